"""A stream becomes a call: the first thing that happens to each, hence compiled with the others.

Deliberately not here: sockets and connections (`edge.listener`), what a call runs through (`stack`).
"""

from __future__ import annotations

from collections.abc import Callable

from outrider_http2.head import Head, Rest
from outrider_http2.stream import Stream
from outrider_sidecar.core.call import Call
from outrider_sidecar.core.runtime import Runtime, Snapshot


class Acceptor:
    """Of one listener. `snapshot()` gives the policy a new call runs under."""

    __slots__ = ("_runtime", "_snapshot")

    def __init__(self, runtime: Runtime, snapshot: Callable[[], Snapshot]):
        self._runtime = runtime
        self._snapshot = snapshot

    def accept(self, stream: Stream, head: Head, rest: Rest, end: bool) -> None:
        """Begin the call of one stream."""
        runtime = self._runtime
        call = Call(runtime, self._snapshot(), stream, head, rest, end, runtime.clock())
        stream.handler = call
        call.run()
