"""A stage: what a filter appends to a call's reply path instead of wrapping it.

Always holds: a stage is synchronous; the bytes it is given come in order and cut anywhere; what it holds back it gives
in `flush`. Deliberately not here: stages themselves (filters and payload adapters).
A tap sees the reply as the endpoint sent it, before the stages, and changes nothing of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from outrider_http2.head import Head

if TYPE_CHECKING:
    from outrider_sidecar.core.call import Call


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


class Tap:
    """Who listens to one call's reply on behalf of others, and may set its pace."""

    __slots__ = ()

    def takes_more(self, caught_up: bool) -> bool:
        """Whether the endpoint may send more; `caught_up`: the call's own caller has taken all there was."""
        raise NotImplementedError  # abstract

    def taken(self, size: int, caught_up: bool) -> None:
        """The call's own caller took bytes that had waited."""
        raise NotImplementedError  # abstract

    def on_head(self, head: Head, extra: bytes) -> None:
        raise NotImplementedError  # abstract

    def on_data(self, data: bytes) -> None:
        raise NotImplementedError  # abstract

    def on_tail(self, head: Head, extra: bytes, status: int) -> None:
        """The reply is whole; the call it was for has ended."""
        raise NotImplementedError  # abstract

    def leader_leaves(self, call: Call) -> None:
        """The call's own caller is gone."""
        raise NotImplementedError  # abstract
