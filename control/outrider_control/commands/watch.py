"""`outrider watch`: an overview again and again, as long as somebody looks.

Always holds: it outlives a control plane that restarts, and says so meanwhile; the last figures stay on the screen.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from typing import Any, Self

from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from outrider.control_channel import OperatorError
from outrider.v1 import operator_pb2 as pb
from outrider_control.commands.arguments import add_since, command_parser, count, duration_ms
from outrider_control.commands.figures import caption, figures_table, overview_data
from outrider_control.commands.output import clock_time
from outrider_control.commands.session import CommandError, Session, run

RETRY_S = 1.0
_OTHER_LINES = 8  # of the screen: title, header, total, captions
PATIENCE_S = 60.0  # without an answer, once there was one


def main(arguments: list[str]) -> int:
    """live figures of all agents, until Ctrl-C"""
    parser = command_parser("watch", main.__doc__)
    parser.add_argument("--agent", metavar="AGENT", default="", help="which (default: all)")
    parser.add_argument(
        "--interval", metavar="TIME", type=duration_ms, default=2_000, help="default: 2s; at least 250ms"
    )
    parser.add_argument("--count", metavar="N", type=count, help="end after so many overviews")
    add_since(parser, "1m")
    return run(parser, arguments, _watch)


def _watch(session: Session) -> int:
    screen = _Live(session) if session.out.console.is_terminal and not session.out.is_json else _Lines(session)
    try:
        with Interrupts() as interrupts, screen:
            _follow(session, screen, interrupts)
    except KeyboardInterrupt:
        pass  # how watching ends
    return 0


class Interrupts:
    """Ctrl-C, remembered: a library in whose clean-up code it happens to arrive drops the exception."""

    def __init__(self) -> None:
        self._before: Any = None
        self._was = False

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._take)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def check(self) -> None:
        """KeyboardInterrupt, if there was one."""
        if self._was:
            raise KeyboardInterrupt

    def _take(self, *_: object) -> None:
        self._was = True
        raise KeyboardInterrupt


def _follow(session: Session, screen: _Lines, interrupts: Interrupts) -> None:
    options = session.options
    left = options.count
    silent_since: float | None = None
    while True:
        try:
            for overview in session.operator.stream_metrics(options.interval, options.since, options.agent):
                silent_since = None
                screen.show(overview)
                screen.has_shown = True
                interrupts.check()
                if left is not None:
                    left -= 1
                    if left == 0:
                        return
        except OperatorError as error:
            if not error.is_unreachable or not screen.has_shown:
                raise
            silent_since = silent_since or time.monotonic()
            if time.monotonic() - silent_since > PATIENCE_S:
                raise
            screen.lost(error)
        if not screen.has_shown:
            raise CommandError(f"the control plane at {session.operator.address} ended the stream without a figure")
        time.sleep(RETRY_S)
        interrupts.check()


class _Lines:
    """Overviews one after the other: a line of JSON each, or a table each."""

    def __init__(self, session: Session):
        self.out = session.out
        self.prog = session.prog
        self.has_shown = False

    def show(self, overview: pb.Overview) -> None:
        if self.out.is_json:
            self.out.json_line(overview_data(overview))
        else:
            self.out.show(_picture(overview, self.out.console.width))
            self.out.console.file.flush()

    def lost(self, error: OperatorError) -> None:
        print(f"{self.prog}: {error.address} does not answer; trying again", file=sys.stderr)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        pass


class _Live(_Lines):
    """One table that changes in its place."""

    def __init__(self, session: Session):
        super().__init__(session)
        self._live = Live(console=self.out.console, auto_refresh=False, vertical_overflow="ellipsis")
        self._last: RenderableType = ""

    def show(self, overview: pb.Overview) -> None:
        size = self.out.console.size
        self._last = _picture(overview, size.width, max(1, size.height - _OTHER_LINES))
        self._live.update(self._last, refresh=True)

    def lost(self, error: OperatorError) -> None:
        text = f"{error.address} does not answer; these are the last figures"
        self._live.update(Group(self._last, Text(text, style="red")), refresh=True)

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self._live.__exit__(None, None, None)


def _picture(overview: pb.Overview, width: int, most: int | None = None) -> RenderableType:
    """The table; of more agents than `most` those with the most calls."""
    agents = list(overview.agents)
    lines = caption(overview)
    if most is not None and len(agents) > most:
        agents = sorted(agents, key=lambda agent: -agent.figures.requests)[:most]
        lines.append((f"{len(overview.agents) - most} quieter agents are not shown: make the terminal higher", "dim"))
    rows = ((agent.agent_id, agent.figures) for agent in agents)
    made = figures_table("AGENT", rows, overview.total, width, clock_time(overview.to_unix_ms))
    return Group(made, *(Text(line, style=style) for line, style in lines))
