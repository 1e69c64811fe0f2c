"""A stage: what a filter appends to a call's reply path instead of wrapping it.

Always holds: a stage is synchronous; the bytes it is given come in order and cut anywhere; what it holds back it gives
in `flush`. Deliberately not here: stages themselves (filters and payload adapters).
"""

from __future__ import annotations

from typing import Protocol

from outrider_http2.head import Head


class Stage(Protocol):
    """One transformation of one call's reply."""

    def head(self, head: Head) -> None:
        """The reply's initial metadata, before any data."""
        ...

    def feed(self, data: bytes) -> bytes:
        """What goes on of these bytes; empty holds everything back."""
        ...

    def flush(self, status: int) -> bytes:
        """The reply is over with this gRPC status: what was held back."""
        ...
