"""One turn's writes leave together, each connection's in one piece, in the order in which it began to speak."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from outrider_http2.turn import Speaker, Turn


class Noted(Speaker):
    """Stands in for a connection: it has something to say, and says it when flushed."""

    def __init__(self, name: str, log: list[str], then: Callable[[], None] | None = None):
        self.name = name
        self.log = log
        self.then = then

    def flush(self) -> None:
        self.log.append(self.name)
        if self.then is not None:
            self.then()


def test_within_a_turn_nothing_leaves_before_its_end() -> None:
    later: list[Callable[[], None]] = []
    log: list[str] = []
    turn = Turn(later.append)
    turn.begin()
    turn.add(Noted("a", log))
    turn.add(Noted("b", log))
    assert (log, later) == ([], [])
    turn.end()
    assert log == ["a", "b"]
    turn.end()
    assert log == ["a", "b"]


def test_outside_of_a_turn_one_flush_is_asked_for() -> None:
    later: list[Callable[[], None]] = []
    log: list[str] = []
    turn = Turn(later.append)
    turn.add(Noted("a", log))
    turn.add(Noted("b", log))
    assert len(later) == 1
    later.pop()()
    assert log == ["a", "b"]
    turn.add(Noted("c", log))
    later.pop()()
    assert log == ["a", "b", "c"]


def test_who_begins_to_speak_during_the_flush_is_flushed_too() -> None:
    log: list[str] = []
    turn = Turn(lambda _: None)
    late = Noted("late", log)
    turn.begin()
    turn.add(Noted("first", log, lambda: turn.add(late)))
    turn.end()
    assert log == ["first", "late"]


def test_what_can_wait_is_done_after_the_writes_and_outside_of_a_turn_at_once() -> None:
    log: list[str] = []
    turn = Turn(lambda _: None)
    turn.begin()
    turn.after(log.append, "later")
    turn.add(Noted("written", log))
    turn.after(log.append, "last")
    assert log == []
    turn.end()
    assert log == ["written", "later", "last"]
    turn.end()
    assert log == ["written", "later", "last"]
    turn.after(log.append, "now")
    assert log[-1] == "now"


def test_one_that_fails_does_not_keep_the_others_from_being_done() -> None:
    log: list[str] = []
    turn = Turn(lambda _: None)

    def fail(_: str) -> None:
        raise ValueError("of this one")

    turn.begin()
    turn.after(fail, "")
    turn.after(log.append, "done")
    with pytest.raises(ValueError, match="of this one"):
        turn.end()
    assert log == ["done"]
    turn.end()
    assert log == ["done"]
