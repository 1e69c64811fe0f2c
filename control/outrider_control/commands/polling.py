"""A record that is asked for again and again, as long as somebody looks: `status --watch`.

Always holds: it outlives a control plane that restarts, and says so meanwhile; the last picture stays on the screen; it
ends by itself when the record can change no more.

Deliberately not here: what is shown.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from typing import TypeVar

from google.protobuf.message import Message
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from outrider.control_channel import OperatorError
from outrider_control.commands.output import plain
from outrider_control.commands.session import Session
from outrider_control.commands.watch import PATIENCE_S, Interrupts

R = TypeVar("R", bound=Message)


def poll(
    session: Session,
    ask: Callable[[], R],
    picture: Callable[[R], RenderableType],
    is_over: Callable[[R], bool],
    interval_s: float,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Show a record until it is over or the user leaves."""
    out = session.out
    is_live = out.console.is_terminal and not out.is_json
    live = Live(console=out.console, auto_refresh=False, vertical_overflow="visible") if is_live else None
    try:
        with Interrupts() as interrupts, contextlib.nullcontext() if live is None else live:
            show = _in_place(live, picture) if live is not None else lambda record, _: _print(session, record, picture)

            def shown(record: R | None, error: OperatorError | None) -> None:
                show(record, error)
                interrupts.check()

            _follow(session, ask, shown, is_over, interval_s, sleep)
    except KeyboardInterrupt:
        pass  # how watching ends


def _follow(
    session: Session,
    ask: Callable[[], R],
    show: Callable[[R | None, OperatorError | None], None],
    is_over: Callable[[R], bool],
    interval_s: float,
    sleep: Callable[[float], None],
) -> None:
    silent_since: float | None = None
    has_shown = False
    while True:
        try:
            record = ask()
        except OperatorError as error:
            if not error.is_unreachable or not has_shown:
                raise
            silent_since = silent_since or time.monotonic()
            if time.monotonic() - silent_since > PATIENCE_S:
                raise
            if session.out.is_json or not session.out.console.is_terminal:
                print(f"{session.prog}: {error.address} does not answer; trying again", file=sys.stderr)
            show(None, error)
        else:
            silent_since, has_shown = None, True
            show(record, None)
            if is_over(record):
                return
        sleep(interval_s)


def _print(session: Session, record: R | None, picture: Callable[[R], RenderableType]) -> None:
    """One after the other: a line of JSON each, or a picture each."""
    if record is None:
        return
    if session.out.is_json:
        session.out.json_line(plain(record))
    else:
        session.out.show(picture(record))
        session.out.console.file.flush()


def _in_place(live: Live, picture: Callable[[R], RenderableType]) -> Callable[[R | None, OperatorError | None], None]:
    last: list[RenderableType] = [Text("")]

    def show(record: R | None, error: OperatorError | None) -> None:
        if record is not None:
            last[0] = picture(record)
            live.update(last[0], refresh=True)
        elif error is not None:
            told = Text(f"{error.address} does not answer; this is what was known last", style="red")
            live.update(Group(last[0], told), refresh=True)

    return show
