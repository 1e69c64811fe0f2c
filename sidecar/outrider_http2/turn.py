"""One loop turn's writes: connections with something to say, flushed together, and what can wait until they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from outrider_http2.compiled import mypyc_attr


@mypyc_attr(allow_interpreted_subclasses=True)
class Speaker:
    """What has output to write: a connection."""

    __slots__ = ()

    def flush(self) -> None:
        raise NotImplementedError  # abstract


class Turn:
    """Collects connections whose output is not empty. `begin`/`end` bracket a burst of input; outside of one the
    flush is left to `call_soon`, so that a timer's or a task's writes leave together too."""

    __slots__ = ("_after", "_call_soon", "_deep", "_dirty", "_later")

    def __init__(self, call_soon: Callable[[Callable[[], None]], object]):
        self._call_soon = call_soon
        self._dirty: list[Speaker] = []
        self._after: list[tuple[Callable[[Any], object], Any]] = []
        self._deep = False
        self._later = False

    def add(self, conn: Speaker) -> None:
        """A connection's output has become non-empty."""
        self._dirty.append(conn)
        if not self._deep and not self._later:
            self._later = True
            self._call_soon(self._flush_later)

    def after(self, task: Callable[[Any], object], what: Any) -> None:
        """Do `task(what)` once this turn's writes have left: nobody waits for it. Outside of a turn: now."""
        if self._deep:
            self._after.append((task, what))
        else:
            task(what)

    def begin(self) -> None:
        self._deep = True

    def end(self) -> None:
        self._deep = False
        dirty = self._dirty
        if dirty:
            # Writing may pause a socket and so touch other connections: they are appended and written as well.
            for conn in dirty:
                conn.flush()
            dirty.clear()
        if self._after:
            after, self._after = self._after, []
            broken: Exception | None = None
            for task, what in after:
                try:
                    task(what)
                except Exception as error:  # noqa: BLE001 - of one call: the others' must be done all the same
                    broken = error
            if broken is not None:
                raise broken

    def _flush_later(self) -> None:
        self._later = False
        self._deep = True
        self.end()
