from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

from outrider_control.loops.rollout import by_hand
from outrider_control.loops.rollout.advance import advance
from outrider_control.loops.rollout.by_hand import Refused
from outrider_control.loops.rollout.types import (
    CONFIRM_MS,
    FAILED,
    FINALISING,
    INITIALIZING,
    MAX_LOOK_MS,
    PAUSED,
    PROGRESSING,
    PROMOTING,
    SUCCEEDED,
    WAITING,
    WAITING_PROMOTION,
    Rollout,
    Seen,
    Spec,
    Transition,
)
from tests.rollouts import errors, spec, variant

NOW_MS = 1_800_000_000_000


class Course:
    """One rollout, looked at every second."""

    def __init__(self, of: Spec):
        self.spec = of
        self.now_ms = NOW_MS
        self.rollout = Rollout()
        self.seen = Seen()
        self.told: list[Transition] = []

    def look(self, seconds: float = 1.0, **seen: object) -> Rollout:
        self.now_ms += round(seconds * 1_000)
        self.seen = dataclasses.replace(self.seen, **seen)  # pyright: ignore[reportArgumentType]
        self.take(advance(self.rollout, self.spec, self.seen, self.now_ms))
        return self.rollout

    def take(self, moved: tuple[Rollout, Transition | None]) -> None:
        before, (self.rollout, transition) = self.rollout, moved
        if transition is not None:
            self.told.append(transition)
            assert (transition.before, transition.phase) == (before.phase, self.rollout.phase)
            assert (transition.weight_before, transition.weight) == (before.weight, self.rollout.weight)
            assert transition.reason
        else:
            assert (before.phase, before.weight, before.step) == (
                self.rollout.phase, self.rollout.weight, self.rollout.step,
            )  # fmt: skip

    def until(self, phase: str, most: int = 100) -> None:
        for _ in range(most):
            if self.rollout.phase == phase:
                return
            self.look()
        raise AssertionError(f"it is {self.rollout.phase}: {self.rollout}")

    def promote(self, full: bool = False) -> None:
        self.take(by_hand.promote(self.rollout, self.spec, self.seen, self.now_ms, "me", "good", full))

    def pause(self) -> None:
        self.take(by_hand.pause(self.rollout, "me", "wait"))

    def resume(self) -> None:
        self.take(by_hand.resume(self.rollout, self.spec, "me", "go"))

    def abort(self) -> None:
        self.take(by_hand.abort(self.rollout, self.now_ms, "me", "bad"))

    def phases(self) -> Iterator[str]:
        return (one.phase for one in self.told)


def test_all_the_way() -> None:
    course = Course(spec("0.1:2", "0.5", "1"))
    course.until(SUCCEEDED)
    assert [(one.action, one.weight) for one in course.told] == [
        ("initialize", 0.1), ("step", 0.5), ("step", 1.0), ("promote", 1.0), ("finalise", 1.0), ("succeed", 1.0),
    ]  # fmt: skip
    assert list(course.phases()) == [PROGRESSING, PROGRESSING, PROGRESSING, PROMOTING, FINALISING, SUCCEEDED]
    assert course.rollout.ended_ms
    ended = course.rollout
    assert course.look() is ended


def test_it_begins_when_its_endpoints_are_there() -> None:
    course = Course(spec("0.1"))
    course.look(missing="no endpoint of candidate")
    assert (course.rollout.phase, course.rollout.weight) == (INITIALIZING, 0.0)
    assert course.rollout.problem == "no endpoint of candidate"
    course.look(missing="")
    assert (course.rollout.phase, course.rollout.weight, course.rollout.problem) == (PROGRESSING, 0.1, "")


def test_a_step_lasts_its_pause() -> None:
    course = Course(spec("0.1:30", "0.5"))
    course.look()
    for _ in range(29):
        course.look()
        assert course.rollout.step == 0
    course.look()
    assert (course.rollout.step, course.rollout.elapsed_ms) == (1, 0)


def test_a_gate_waits_for_a_person() -> None:
    course = Course(spec("0:confirm", "0.1:confirm", "1"))
    course.until(WAITING)
    for _ in range(50):
        course.look()
    assert (course.rollout.phase, course.rollout.weight) == (WAITING, 0.0)
    with pytest.raises(Refused, match="promoted"):
        course.resume()
    course.promote()
    assert (course.rollout.phase, course.rollout.weight) == (PROGRESSING, 0.1)
    course.until(WAITING_PROMOTION)
    course.promote()
    course.until(SUCCEEDED)


def test_no_data_goes_nowhere() -> None:
    course = Course(spec("0.1", "1", analyses=[errors()]))
    course.look()
    for _ in range(200):
        course.look(10)
    assert (course.rollout.phase, course.rollout.step) == (PROGRESSING, 0)
    assert course.rollout.runs[0].inconclusive == 200
    assert course.rollout.runs[0].successful == 0


def test_a_good_candidate_goes_on_and_each_step_asks_for_its_own_data() -> None:
    course = Course(spec("0.1", "0.5", "1", analyses=[errors()]))
    course.look()
    course.look(10, candidate=variant("candidate", 100, 2))
    assert course.rollout.step == 1
    for _ in range(5):
        course.look(10)
    assert course.rollout.step == 1  # nothing new came
    course.look(10, candidate=variant("candidate", 200, 4))
    assert course.rollout.step == 2


def test_harm_brings_everything_back_at_once() -> None:
    course = Course(spec("0.1", "0.5", "1", analyses=[errors()]))
    course.look()
    course.look(10, candidate=variant("candidate", 100, 2))
    course.look(10, candidate=variant("candidate", 200, 60))
    rollout = course.rollout
    assert (rollout.phase, rollout.weight, rollout.aborted) == (FAILED, 0.0, True)
    assert "error_rate failed" in rollout.reason
    assert course.told[-1].action == "abort"
    assert course.told[-1].inputs["analyses"][0]["value"] == pytest.approx(0.58)


def test_harm_is_seen_in_a_pause_and_at_a_gate_too() -> None:
    for stop in ("pause", "gate", "time"):
        course = Course(spec("0.1:1000" if stop == "time" else "0.1:confirm", "1", analyses=[errors()]))
        course.look()
        course.look(10, candidate=variant("candidate", 100, 0))
        if stop == "pause":
            course.pause()
        course.look(10, candidate=variant("candidate", 200, 100))
        assert course.rollout.phase == FAILED


def test_what_cannot_be_concluded_pauses_and_is_measured_again_when_resumed() -> None:
    course = Course(spec("0.1", "1", analyses=[errors(inconclusive_limit=2)]))
    course.look()
    for _ in range(3):
        course.look(10)
    assert course.rollout.phase == PAUSED
    assert "inconclusive" in course.rollout.reason
    assert course.rollout.weight == 0.1
    course.resume()
    course.look(10)
    assert course.rollout.phase == PROGRESSING
    course.look(10, candidate=variant("candidate", 100, 0))
    assert course.rollout.step == 1


def test_errors_abort() -> None:
    course = Course(spec("0.1", "1", analyses=[errors()]))
    course.look()
    broken = variant("candidate", 100, 0)
    broken.moments["error_rate"].sums[0] = float("nan")
    for _ in range(4):
        course.look(10, candidate=broken)
        assert course.rollout.phase == PROGRESSING
    course.look(10)
    assert course.rollout.phase == FAILED
    assert "could not be measured" in course.rollout.reason


def test_a_step_without_a_verdict_pauses_at_its_deadline() -> None:
    course = Course(spec("0.1", "1", analyses=[errors()], progress_deadline_s=60))
    course.look()
    for _ in range(5):
        course.look(10)
    assert course.rollout.phase == PROGRESSING
    course.look(10)
    assert course.rollout.phase == PAUSED
    assert "60 s" in course.rollout.reason
    course.resume()
    course.look(10)
    assert course.rollout.phase == PROGRESSING  # a new deadline


def test_the_deadline_is_of_the_verdict_and_not_of_a_pause_or_a_gate() -> None:
    course = Course(spec("0.1:100", "0.5:confirm", "1", progress_deadline_s=10))
    course.until(WAITING_PROMOTION, 200)
    for _ in range(30):
        course.look()
    assert course.rollout.phase == WAITING_PROMOTION


@pytest.mark.parametrize("jump_s", [-100_000.0, 100_000.0])
def test_a_clock_that_jumps_counts_for_one_look_at_most(jump_s: float) -> None:
    course = Course(spec("0.1:60", "1"))
    course.look()
    course.look(10)
    course.look(jump_s)
    assert course.rollout.elapsed_ms <= 10_000 + MAX_LOOK_MS
    assert course.rollout.step == 0
    for _ in range(60):
        course.look()
    assert course.rollout.step == 1


def test_promotion_waits_for_the_sidecars_but_not_for_ever() -> None:
    course = Course(spec("1"))
    course.look(unconfirmed=3)
    course.until(PROMOTING)
    for _ in range(CONFIRM_MS // 1_000 - 1):
        course.look()
        assert course.rollout.phase == PROMOTING
        assert "3 sidecars" in course.rollout.problem
    course.look()
    assert course.rollout.phase == FINALISING
    assert "3 sidecars" in course.rollout.reason
    quick = Course(spec("1"))
    quick.until(PROMOTING)
    quick.look(unconfirmed=0)
    assert quick.rollout.phase == FINALISING


def test_by_hand_from_every_phase() -> None:
    course = Course(spec("0.1:confirm", "0.5:1000", "1"))
    course.pause()
    assert course.look().phase == PAUSED  # before it began
    course.resume()
    assert course.look().phase == PROGRESSING
    with pytest.raises(Refused, match="not paused"):
        course.resume()
    course.pause()
    with pytest.raises(Refused, match="paused already"):
        course.pause()
    course.promote()
    assert (course.rollout.step, course.rollout.phase, course.rollout.weight) == (1, PROGRESSING, 0.5)
    course.promote(full=True)
    assert (course.rollout.phase, course.rollout.weight) == (PROMOTING, 1.0)
    for change in (course.pause, course.promote):
        with pytest.raises(Refused, match="everything goes to the candidate"):
            change()
    course.until(SUCCEEDED)
    for change in (course.pause, course.promote, course.resume):
        with pytest.raises(Refused, match="abort brings the stable version back"):
            change()
    course.abort()  # what has succeeded can be taken back
    assert (course.rollout.phase, course.rollout.weight, course.rollout.aborted) == (FAILED, 0.0, True)
    for change in (course.pause, course.promote, course.resume, course.abort):
        with pytest.raises(Refused, match="failed"):
            change()


def test_nothing_is_promoted_to_where_nobody_is() -> None:
    course = Course(spec("0.1", "1"))
    course.look(missing="no endpoint of candidate")
    with pytest.raises(Refused, match="no endpoint"):
        course.promote()
    with pytest.raises(Refused, match="no endpoint"):
        course.promote(full=True)
    course.pause()
    course.look(missing="")
    course.promote()
    assert (course.rollout.step, course.rollout.weight) == (0, 0.1)
