import random

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from outrider_sidecar.core.errors import INVALID_ARGUMENT, OK, RESOURCE_EXHAUSTED, UNAVAILABLE
from outrider_sidecar.engines.export_queue import Batch, ExportPolicy, ExportQueue

POLICY = ExportPolicy(max_queue=8, max_batch=4, schedule_delay_ms=1_000, max_elapsed_ms=10_000)


def filled(count: int, policy: ExportPolicy = POLICY, now: float = 100.0) -> ExportQueue:
    queue = ExportQueue(policy, random.Random(1))
    for number in range(count):
        queue.put(b"%d" % number, now)
    return queue


def test_nothing_is_due_while_empty():
    assert filled(0).due() is None
    assert filled(0).due(flush=True) is None


def test_a_part_batch_waits_for_its_delay_and_a_full_one_does_not():
    queue = filled(3)
    assert queue.due() == 101.0
    assert queue.due(flush=True) == 0.0
    assert queue.put(b"3", 100.5)
    assert queue.due() == 0.0
    assert queue.take(100.5).spans == (b"0", b"1", b"2", b"3")


def test_put_says_when_due_moves():
    queue = ExportQueue(POLICY, random.Random(1))
    assert [queue.put(b"", 1.0) for _ in range(10)] == [True, False, False, True] + [False] * 6


def test_the_oldest_goes_when_full():
    queue = filled(11)
    assert queue.dropped_full == 3
    assert queue.waiting == 8
    assert queue.take(100.0).spans == (b"3", b"4", b"5", b"6")


def test_one_batch_is_out_at_a_time_and_batches_are_numbered():
    queue = filled(7)
    assert queue.take(100.0).sequence == 0
    assert queue.due() is None
    queue.sent()
    assert queue.due() == 101.0
    assert queue.take(101.0) == Batch((b"4", b"5", b"6"), 1, 101.0, 1)
    queue.sent(rejected=2)
    assert (queue.exported, queue.rejected, queue.waiting) == (5, 2, 0)


@pytest.mark.parametrize(("rejected", "exported"), [(-5, 4), (99, 0)])
def test_a_senseless_rejected_count_is_bounded(rejected: int, exported: int):
    queue = filled(4)
    queue.take(100.0)
    queue.sent(rejected)
    assert (queue.exported, queue.exported + queue.rejected) == (exported, 4)


def test_a_retry_keeps_batch_and_number_and_backs_off_with_jitter():
    policy = ExportPolicy(max_queue=8, max_batch=4, max_elapsed_ms=1_000_000)
    queue = filled(5, policy)
    now, waits = 100.0, []
    for tries in range(1, 9):
        batch = queue.take(now)
        assert (batch.spans, batch.sequence, batch.tries) == ((b"0", b"1", b"2", b"3"), 0, tries)
        queue.failed(now, UNAVAILABLE)
        due = queue.due()
        assert due is not None
        waits.append(due - now)
        now = due
    for wait_s, full_s in zip(waits, [1, 2, 4, 8, 16, 30, 30, 30], strict=True):
        assert 0.8 * full_s <= wait_s <= 1.2 * full_s
    assert len({wait_s / full_s for wait_s, full_s in zip(waits, [1, 2, 4, 8, 16, 30, 30, 30], strict=True)}) > 4
    assert queue.retries == 7
    queue.take(now)
    queue.sent()
    assert (queue.exported, queue.dropped_refused) == (4, 0)
    assert queue.take(now).sequence == 1


def test_backoff_holds_back_a_flush_and_full_batches():
    queue = filled(8)
    queue.take(100.0)
    queue.failed(100.0, UNAVAILABLE)
    due = queue.due(flush=True)
    assert due is not None
    assert due > 100.0
    assert queue.due() == due


@pytest.mark.parametrize("status", [1, 4, 10, 11, 14, 15])
def test_retryable_statuses(status: int):
    queue = filled(4)
    queue.take(100.0)
    queue.failed(100.0, status)
    assert (queue.waiting, queue.dropped_refused) == (4, 0)


@pytest.mark.parametrize("status", [OK, 2, INVALID_ARGUMENT, 5, 6, 7, RESOURCE_EXHAUSTED, 9, 12, 13, 16, 99])
def test_all_others_drop_the_batch_and_go_on(status: int):
    queue = filled(6)
    queue.take(100.0)
    queue.failed(100.0, status)
    assert (queue.waiting, queue.dropped_refused) == (2, 4)
    assert queue.due(flush=True) == 0.0


def test_the_collectors_own_delay_wins_and_makes_exhaustion_retryable():
    queue = filled(4)
    queue.take(100.0)
    queue.failed(100.0, RESOURCE_EXHAUSTED, 2.5)
    assert queue.due() == 102.5
    queue.take(102.5)
    queue.failed(102.5, UNAVAILABLE, 0.0)
    assert queue.due() == 102.5


def test_a_negative_delay_means_do_not_retry():
    queue = filled(4)
    queue.take(100.0)
    queue.failed(100.0, UNAVAILABLE, -0.001)
    assert (queue.waiting, queue.dropped_refused) == (0, 4)


def test_a_batch_that_grew_too_old_is_dropped_and_the_next_still_waits():
    queue = filled(5)
    queue.take(100.0)
    queue.failed(109.9, UNAVAILABLE, 1.0)
    assert (queue.waiting, queue.dropped_refused) == (1, 4)
    assert queue.due(flush=True) == pytest.approx(110.9)


def test_an_endless_delay_is_bounded():
    queue = filled(5)
    queue.take(100.0)
    queue.failed(100.0, UNAVAILABLE, 1e12)
    assert queue.due(flush=True) == 110.0


def test_abandon_counts_everything_held():
    queue = filled(8)
    queue.take(100.0)
    assert queue.abandon() == 8
    assert (queue.waiting, queue.dropped_refused, queue.due()) == (0, 8, None)


def test_reporting_without_a_batch_is_a_defect():
    with pytest.raises(RuntimeError):
        filled(3).sent()


class Books(RuleBasedStateMachine):
    """Whatever happens, every span is held or counted once, and the queue stays within its bounds."""

    def __init__(self) -> None:
        super().__init__()
        self.put_count = 0
        self.now = 100.0
        self.out: Batch | None = None
        self.last_sequence = -1

    @initialize(seed=st.integers(0, 9))
    def begin(self, seed: int) -> None:
        self.queue = ExportQueue(POLICY, random.Random(seed))

    @rule(count=st.integers(1, 6))
    def put(self, count: int) -> None:
        for _ in range(count):
            before = self.queue.due()
            moved = self.queue.put(b"%d" % self.put_count, self.now)
            self.put_count += 1
            after = self.queue.due()
            assert moved or before == after or self.out is not None

    @rule(elapsed_s=st.floats(0, 5))
    def wait(self, elapsed_s: float) -> None:
        self.now += elapsed_s

    @precondition(lambda self: self.out is None and self.queue.due() is not None and self.queue.due() <= self.now)
    @rule()
    def take(self) -> None:
        self.out = self.queue.take(self.now)
        assert 0 < len(self.out.spans) <= POLICY.max_batch
        assert self.out.sequence == self.last_sequence + (self.out.tries == 1)
        self.last_sequence = self.out.sequence

    @precondition(lambda self: self.out is not None)
    @rule(rejected=st.integers(0, 5))
    def sent(self, rejected: int) -> None:
        self.out = None
        self.queue.sent(rejected)

    @precondition(lambda self: self.out is not None)
    @rule(status=st.integers(0, 16), delay_s=st.none() | st.floats(-1, 50))
    def failed(self, status: int, delay_s: float | None) -> None:
        self.out = None
        self.queue.failed(self.now, status, delay_s)
        due = self.queue.due(flush=True)
        assert due is None or due <= self.now + max(POLICY.max_elapsed_ms / 1e3, 36.0)

    @invariant()
    def every_span_is_accounted_for(self) -> None:
        queue = self.queue
        ended = queue.exported + queue.rejected + queue.dropped_full + queue.dropped_refused
        assert ended + queue.waiting == self.put_count
        assert queue.waiting <= POLICY.max_queue + POLICY.max_batch


TestBooks = Books.TestCase
