"""The review of learning examples by keyboard: one at a time, a key decides, the reason is asked for.

Always holds: nothing is reviewed without a reason; what the control plane refuses is said and stays the one on screen;
leaving at any moment loses nothing that was decided.

Deliberately not here: the command line (`examples`), what a review leads to (the control plane).
"""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
from rich.console import Group, RenderableType
from rich.text import Text

from outrider.control_channel import OperatorError
from outrider.v1 import experiment_pb2 as pb
from outrider_control.commands.output import clock_time, shown
from outrider_control.commands.session import CommandError, Session, explained

HELP = "a approve   e edit, then approve   r reject   s skip   q quit"
CANDIDATE = "candidate"
_PAGE = 50
_QUESTION, _CORRECTION = ">>> question", ">>> what the answer should have been"
_GONE = (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION)


@dataclass(slots=True)
class Desk:
    """Where a reviewer sits. Replaced as a whole where there is no terminal."""

    key: Callable[[], str]  # one key; "" at the end of input
    line: Callable[[str], str]  # a line after a prompt, without its end
    edit: Callable[[str], str | None]  # a text in an editor; None: left without saving


@dataclass(slots=True)
class Tally:
    """What was done."""

    approved: int = 0
    rejected: int = 0
    skipped: int = 0


def review_all(session: Session, agent_id: str, reason: str, desk: Desk) -> Tally:
    """Show candidates, oldest first, until there are none left or the reviewer quits."""
    tally = Tally()
    for example, left in _candidates(session, agent_id, tally):
        session.out.show(card(example, left))
        if not _decide(session, example, reason, desk, tally):
            break
    return tally


def _candidates(session: Session, agent_id: str, tally: Tally) -> Iterator[tuple[pb.Example, int]]:
    """Each with how many there are from it on."""
    after_id = 0
    while True:
        reply = session.operator.list_examples(agent_id, CANDIDATE, _PAGE, after_id)
        if not reply.examples:
            return
        left = reply.counts.get(CANDIDATE, 0) - tally.skipped  # who is skipped stays a candidate
        for at, example in enumerate(reply.examples):
            yield example, max(1, left - at)
        after_id = reply.examples[-1].id


def _decide(session: Session, example: pb.Example, reason: str, desk: Desk, tally: Tally) -> bool:
    """Whether to go on to the next one."""
    while True:
        match desk.key().lower():
            case "a":
                if _send(session, example, "approve", reason, desk):
                    tally.approved += 1
                    return True
            case "e":
                if _edit(session, example, reason, desk):
                    tally.approved += 1
                    return True
            case "r":
                if _send(session, example, "reject", reason, desk):
                    tally.rejected += 1
                    return True
            case "s":
                tally.skipped += 1
                return True
            case "q" | "":
                return False
            case _:
                session.out.line(HELP, "dim")


def _edit(session: Session, example: pb.Example, reason: str, desk: Desk) -> bool:
    wanted = example.correction or example.output
    edited = desk.edit(f"{_QUESTION}\n{example.input}\n{_CORRECTION}\n{wanted}\n")
    if edited is None:
        session.out.line("not changed", "yellow")
        return False
    question, marker, correction = edited.partition(f"\n{_CORRECTION}\n")
    question = question.removeprefix(f"{_QUESTION}\n")
    if not marker:
        session.out.line(f"the line {_CORRECTION!r} is gone: nothing is changed", "red")
        return False
    question, correction = question.strip("\n"), correction.strip("\n")
    if not correction:
        session.out.line("there is no answer left: reject it instead", "red")
        return False
    return _send(session, example, "approve", reason, desk, question, correction)


def _send(
    session: Session,
    example: pb.Example,
    verdict: str,
    reason: str,
    desk: Desk,
    question: str | None = None,
    correction: str | None = None,
) -> bool:
    """Whether the example is done with."""
    why = reason or desk.line(f"Reason to {verdict} (goes into the journal): ").strip()
    if not why:
        session.out.line("not without a reason", "yellow")
        return False
    try:
        session.operator.review_example(example.id, verdict, why, question, correction)
    except OperatorError as error:
        if error.is_unreachable:
            raise
        session.out.line(explained(error), "red")
        return error.status in _GONE  # somebody else was faster
    return True


def card(example: pb.Example, left: int) -> RenderableType:
    """One example as it is reviewed."""
    head = f"example {example.id} of {shown(example.agent_id)}, said {example.count} times"
    head += f", last {clock_time(example.last_unix_ms)}; {left} to review"
    parts: list[RenderableType] = [Text(""), Text(head, style="bold")]
    missing = "(nobody sent it)"
    for title, text, style in (
        ("question", example.input or missing, ""),
        ("answer", example.output or missing, ""),
        ("should have been", example.correction, "green"),
        ("complaint", example.complaint, "red"),
        ("labels", ", ".join(example.labels), ""),
        ("traces", ", ".join(example.trace_ids), "dim"),
    ):
        if text:
            parts.append(Text.assemble((f"{title}: ", "dim"), (shown(text), style)))
    return Group(*parts)


def terminal_desk() -> Desk:
    """The terminal this program runs in."""
    return Desk(key=_key, line=_line, edit=edit_text)


def _key() -> str:
    print(f"{HELP}: ", end="", file=sys.stderr, flush=True)
    with _unbuffered():
        key = sys.stdin.read(1)
    print(key if key.isprintable() else "", file=sys.stderr)
    return key


def _line(prompt: str) -> str:
    print(prompt, end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().rstrip("\n")


@contextlib.contextmanager
def _unbuffered() -> Iterator[None]:
    """Keys come one by one, without Enter; where a terminal cannot do that, with it."""
    try:
        import termios
        import tty
    except ImportError:
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def edit_text(text: str) -> str | None:
    """A text as it comes back from the user's editor; None: it is the same, or the editor failed."""
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    with tempfile.TemporaryDirectory(prefix="outrider-") as folder:  # nobody else may read it
        file = Path(folder) / "example.txt"
        file.write_text(text, encoding="utf-8")
        try:
            done = subprocess.run([*shlex.split(editor), str(file)], check=False)
        except (OSError, ValueError) as error:
            raise CommandError(f"the editor {editor!r} cannot be started: {error} (set EDITOR)") from None
        if done.returncode:
            return None
        edited = file.read_text(encoding="utf-8", errors="replace")
    return edited if edited != text else None
