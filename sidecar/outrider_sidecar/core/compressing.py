"""What is known of one call whose request is compressed: how far it is read, and what came of it.

Always holds: what is said of money comes after the upstream's own usage; a call without any says nothing.

Deliberately not here: the work (`filters.compress`), what pays (`compress.controller`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from outrider_http2.head import Head
from outrider_http2.stream import Sink

if TYPE_CHECKING:
    from outrider_sidecar.core.call import Call


class Prepared:
    """How far a request is read."""

    __slots__ = ("asked", "message", "parts", "scope", "spots", "stage", "tenant")

    def __init__(self) -> None:
        self.stage = 0
        self.asked = False  # a worker, for what is heavy: once
        self.message = b""
        self.spots: list[Any] = []  # of `payloads.native_blocks`
        self.parts: list[Any] = []  # of `compress.conversation`
        self.tenant = ""
        self.scope = b""


class Reply(Sink):
    """Takes the reply of a call that is nobody's; of one that is too large only so much."""

    __slots__ = ("body", "max_bytes")

    def __init__(self, max_bytes: int) -> None:
        self.queue = None
        self.max_bytes = max_bytes
        self.body = b""

    def send_head(self, head: Head, extra: bytes = b"", end: bool = False) -> None:
        pass

    def send_data(self, data: bytes, end: bool = False) -> None:
        if len(self.body) <= self.max_bytes:
            self.body += data

    def send_tail(self, head: Head, extra: bytes = b"") -> None:
        pass

    def credit(self, size: int) -> None:
        pass

    def reset(self, code: int) -> None:
        pass


class Ended:
    """What a call is measured by when it is over."""

    __slots__ = ("_controller", "_treated")

    def __init__(self, controller: Any, treated: bool):
        self._controller = controller
        self._treated = treated

    def ended(self, call: Call) -> None:
        """Tells the controller, and the span what was saved."""
        facts = call.tokens
        done = call.compressed
        if call.status != 0 or facts is None or done is None:
            return
        net: float = self._controller.told(
            self._treated,
            done.tokens_after,
            done.tokens_saved,
            facts.input_tokens or None,
            facts.cache_read_tokens if facts.input_tokens else None,
            facts.output_tokens or None,
            call.runtime.clock(),
        )
        if facts.input_tokens:
            call.compressed = done._replace(net=net)
