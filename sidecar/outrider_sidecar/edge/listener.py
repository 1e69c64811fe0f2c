"""The listening side: every stream of an accepted connection is a call under the policy of its moment.

Deliberately not here: sockets and connections (`outrider_http2.listener`), what a call runs through.
"""

from __future__ import annotations

from collections.abc import Callable

from outrider_http2 import listener
from outrider_sidecar.core.accept import Acceptor
from outrider_sidecar.core.runtime import Runtime, Snapshot


class Listener(listener.Listener):
    """One address calls come in on. `snapshot()` gives the policy a new call runs under."""

    def __init__(self, runtime: Runtime, snapshot: Callable[[], Snapshot], max_connections: int = 4_096):
        accept = Acceptor(runtime, snapshot).accept
        super().__init__(
            runtime.reactor,
            lambda _: accept,
            runtime.rng,
            max_connections,
            goodbye="the sidecar is going away",
            make_room=False,  # its callers are local, and a channel between two calls is worth keeping
        )
