"""The window of span ids."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from outrider_control.intake.dedupe import Window


def test_a_batch_that_was_not_taken_may_come_again():
    window = Window()
    window.claim({b"a"})
    assert window.is_pending([b"a"])
    window.release({b"a"})
    assert b"a" not in window
    assert not window.is_pending([b"a"])
    window.claim({b"a"})
    window.settle({b"a"})
    assert b"a" in window
    assert not window.is_pending([b"a"])


@given(st.lists(st.integers(0, 400), max_size=600), st.integers(2, 40))
def test_the_newest_half_is_always_known_and_the_whole_bounded(ids: list[int], capacity: int):
    window = Window(capacity)
    newest: dict[int, None] = {}
    for number in ids:
        key = b"%d" % number
        window.claim({key})
        window.settle({key})
        newest.pop(number, None)
        newest[number] = None
        assert len(window) <= capacity
        assert all(b"%d" % one in window for one in list(newest)[-(capacity // 2) :])
