"""Batches into the store, each once, on both stores."""

from __future__ import annotations

import asyncio
import random
import threading
from typing import Any, Self

import pytest
import sqlalchemy as sa

from outrider_control.core.cardinality import Bounds
from outrider_control.core.sample import OTHER
from outrider_control.intake.fold import Fold
from outrider_control.intake.ledger import LATE_MS, Ledger, LedgerBounds, Overloaded
from outrider_control.intake.metrics import MetricPoint
from outrider_control.intake.reader import Reader
from outrider_control.state import kept_spans, rollups
from outrider_control.state.database import Database, DatabaseError
from outrider_control.state.kept_spans import KeptSpan
from tests.figure_samples import NOW_MS, batch, same, sample, some, together

HOUR_MS = 3_600_000


def clock_ms() -> int:
    return NOW_MS


async def requests(database: Database, agent_id: str = "") -> int:
    return (await Reader(database).metrics(agent_id, NOW_MS - HOUR_MS, NOW_MS)).total.requests


class Held:
    """The store's writer, stopped until it is let go."""

    def __init__(self, database: Database) -> None:
        self._go = threading.Event()
        self._stopped = database.write(lambda _: self._go.wait(30))
        self._task = asyncio.ensure_future(self._stopped)

    async def __aenter__(self) -> Self:
        await asyncio.sleep(0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._go.set()
        await self._task


async def test_what_was_acknowledged_is_read_at_once_and_after_the_fold(database: Database) -> None:
    ledger, reader = Ledger(database, clock_ms), Reader(database)
    samples = some(random.Random(1), 300, age_ms=600_000)
    assert await ledger.commit(batch(samples, "pod-1", 1))
    before = await reader.metrics("", NOW_MS - HOUR_MS, NOW_MS)
    assert same(before.total, together(samples))
    await Fold(database, clock_ms).once()
    after = await reader.metrics("", NOW_MS - HOUR_MS, NOW_MS)
    assert same(after.total, together(samples))
    assert ledger.counts["accepted"] == 300
    await ledger.close()


async def test_a_batch_that_comes_again_counts_once(database: Database) -> None:
    ledger = Ledger(database, clock_ms)
    one = batch([sample()] * 5, "pod-1", 7)
    assert not ledger.seen("pod-1", 7)
    assert await ledger.commit(one)
    assert ledger.seen("pod-1", 7)
    assert ledger.seen("pod-1", 6)
    assert not ledger.seen("pod-1", 8)
    assert not ledger.seen("", -1)
    assert not await ledger.commit(one)
    assert await ledger.commit(batch([sample()], "pod-1", 8))
    assert await requests(database) == 6
    assert (ledger.counts["accepted"], ledger.counts["duplicate"]) == (6, 5)
    await ledger.close()


async def test_a_batch_that_comes_again_to_another_control_plane_counts_once(
    store_url: str, database: Database
) -> None:
    other_database = Database.open(store_url)
    ledger, other = Ledger(database, clock_ms), Ledger(other_database, clock_ms)
    rng = random.Random(2)
    for sequence in range(1, 8):
        batches = [batch([sample()] * 3, f"pod-{number}", sequence) for number in range(4)]
        sent = [(rng.choice((ledger, other)), one) for one in batches * 3]
        rng.shuffle(sent)
        taken = await asyncio.gather(*[where.commit(one) for where, one in sent])
        assert sum(taken) == 4
    assert await requests(database) == 7 * 4 * 3
    assert ledger.counts["accepted"] + other.counts["accepted"] == 84
    await ledger.close()
    await other.close()
    await other_database.close()


async def test_batches_without_a_number_count_each_time(database: Database) -> None:
    ledger = Ledger(database, clock_ms)
    assert [await ledger.commit(batch([sample()])) for _ in range(3)] == [True] * 3
    assert await requests(database) == 3
    await ledger.close()


async def test_what_arrives_while_one_is_written_is_one_transaction(database: Database) -> None:
    ledger = Ledger(database, clock_ms)
    async with Held(database):
        commits = [asyncio.ensure_future(ledger.commit(batch([sample()] * 10, "pod", number))) for number in range(50)]
        await asyncio.sleep(0.01)
        assert not any(one.done() for one in commits)
    assert await asyncio.gather(*commits) == [True] * 50
    assert len(await database.read(rollups.delta_ids)) <= 2
    assert await requests(database) == 500
    await ledger.close()


async def test_what_waits_is_bounded(database: Database) -> None:
    ledger = Ledger(database, clock_ms, bounds=LedgerBounds(pending_samples=100, retry_ms=250))
    async with Held(database):
        commits = [asyncio.ensure_future(ledger.commit(batch([sample()] * 40))) for _ in range(4)]
        await asyncio.sleep(0.01)
        refused = [one for one in commits if one.done()]
        assert len(refused) == 2
        with pytest.raises(Overloaded) as told:
            await ledger.commit(batch([sample()] * 40))
        assert told.value.retry_ms == 250
    outcomes = await asyncio.gather(*commits, return_exceptions=True)
    assert sum([one is True for one in outcomes]) == 2
    assert ledger.counts["overloaded"] == 120
    assert await requests(database) == 80
    assert await ledger.commit(batch([sample()] * 500)), "a batch larger than the bound is taken where nothing waits"
    await ledger.close()


async def test_bytes_that_wait_are_bounded(database: Database) -> None:
    ledger = Ledger(database, clock_ms, bounds=LedgerBounds(pending_bytes=10_000))
    span = KeptSpan("1" * 32, "2" * 16, "tax", NOW_MS, 5, False, "slow", b"x" * 9_000)
    async with Held(database):
        first = asyncio.ensure_future(ledger.commit(batch([], kept=[span])))
        await asyncio.sleep(0.01)
        with pytest.raises(Overloaded):
            await ledger.commit(batch([], kept=[span]))
    assert await first
    await ledger.close()


async def test_a_store_that_fails_acknowledges_nothing_and_recovers(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(database, clock_ms)
    put = kept_spans.put

    def full(connection: sa.Connection, kept: Any) -> None:
        put(connection, kept)
        raise DatabaseError("store", "the disk is full", "full")

    monkeypatch.setattr(kept_spans, "put", full)  # the last step of the transaction
    ledger.add_dropped("tax", 7, NOW_MS)
    for _ in range(3):
        with pytest.raises(DatabaseError, match="the disk is full"):
            await ledger.commit(batch([sample()] * 5, "pod", 1))
    assert not ledger.seen("pod", 1)
    assert await requests(database) == 0
    monkeypatch.undo()
    assert await ledger.commit(batch([sample()] * 5, "pod", 1))
    total = (await Reader(database).metrics("tax", NOW_MS - HOUR_MS, NOW_MS)).total
    assert (total.requests, total.dropped) == (5, 7)
    assert (ledger.counts["failed"], ledger.counts["accepted"], ledger.counts["dropped"]) == (15, 5, 7)
    await ledger.close()


async def test_late_spans_are_counted_as_lacking(database: Database) -> None:
    ledger = Ledger(database, clock_ms)
    late_ms = NOW_MS - LATE_MS - 1
    samples = [sample(end_ms=late_ms)] * 3 + [sample(end_ms=late_ms, call=False)] + [sample(end_ms=NOW_MS - LATE_MS)]
    assert await ledger.commit(batch(samples))
    total = (await Reader(database).metrics("tax", NOW_MS - 2 * HOUR_MS, NOW_MS)).total
    assert (total.requests, total.dropped) == (1, 3)
    assert (ledger.counts["late"], ledger.counts["accepted"]) == (4, 1)
    await ledger.close()


async def test_spans_of_the_future_are_counted_now(database: Database) -> None:
    ledger = Ledger(database, clock_ms)
    await ledger.commit(batch([sample(end_ms=NOW_MS + 10 * 86_400_000)]))
    await Fold(database, clock_ms).once()
    data = await Reader(database).metrics("tax", NOW_MS, NOW_MS + 120_000)
    assert [at_ms - NOW_MS for at_ms, _ in data.series] == [60_000]
    await ledger.close()


async def test_what_no_figures_can_be_made_of_is_rejected_alone(database: Database) -> None:
    ledger = Ledger(database, clock_ms)
    assert await ledger.commit(batch([sample(), sample(total_us=-5), sample()]))
    assert (ledger.counts["accepted"], ledger.counts["rejected"]) == (2, 1)
    assert await requests(database) == 2
    await ledger.close()


async def test_ten_thousand_agents_are_all_counted(database: Database) -> None:
    ledger = Ledger(database, clock_ms, Bounds(agents=100, series=5))
    for at in range(0, 10_000, 500):
        await ledger.commit(batch([sample(f"agent-{number}") for number in range(at, at + 500)]))
    found = await Reader(database).overview(NOW_MS - HOUR_MS, NOW_MS)
    assert len(found) == 101
    assert found[OTHER].requests == 9_900
    assert (ledger.counts["accepted"], ledger.counts["overflowed"], ledger.series) == (10_000, 9_900, 101)
    await Fold(database, clock_ms, Bounds(agents=100, series=5)).once()
    assert (await Reader(database).overview(NOW_MS - HOUR_MS, NOW_MS))[OTHER].requests == 9_900
    again = Ledger(database, clock_ms, Bounds(agents=100, series=5))
    await again.start()
    await again.commit(batch([sample("agent-99"), sample("agent-100")]))
    found = await Reader(database).overview(NOW_MS - HOUR_MS, NOW_MS)
    assert (found["agent-99"].requests, found[OTHER].requests, len(found)) == (2, 9_901, 101)
    await ledger.close()
    await again.close()


async def test_kept_spans_and_metrics_are_of_the_same_transaction(database: Database) -> None:
    ledger, reader = Ledger(database, clock_ms), Reader(database)
    span = KeptSpan("1" * 32, "2" * 16, "tax", NOW_MS, 5, False, "slow", b"x")
    start_s = NOW_MS // 60_000 * 60
    points = [
        MetricPoint("tax", start_s, "depth", "1", "gauge", 4.0, 1, 4.0, 4.0),
        MetricPoint("tax", start_s, "depth", "1", "gauge", float("nan"), 1, 4.0, 4.0),
        MetricPoint("tax", start_s, "depth", "1", "made up", 4.0, 1, 4.0, 4.0),
        MetricPoint("tax", start_s - 86_400, "depth", "1", "gauge", 9.0, 1, 9.0, 9.0),
    ]
    one = batch([], "pod", 1, kept=[span], metrics=points)
    assert [await ledger.commit(one), await ledger.commit(one)] == [True, False]
    assert await reader.trace(span.trace_id) == [span]
    for _ in range(2):
        ((key, figures),) = await reader.named_metrics("tax", NOW_MS - HOUR_MS, NOW_MS)
        assert (key.name, figures.value, figures.count) == ("depth", 4.0, 1)
        await Fold(database, clock_ms).once()
    await ledger.close()


async def test_a_caller_that_goes_away_loses_no_batch(database: Database) -> None:
    ledger = Ledger(database, clock_ms)
    async with Held(database):
        commits = [asyncio.ensure_future(ledger.commit(batch([sample()], "pod", number))) for number in range(3)]
        await asyncio.sleep(0.01)
        commits[1].cancel()
    await ledger.close()
    assert [one.cancelled() for one in commits] == [False, True, False]
    assert await requests(database) == 3
    with pytest.raises(Overloaded):
        await ledger.commit(batch([sample()]))


async def test_lost_spans_alone_are_written(database: Database) -> None:
    ledger = Ledger(database, clock_ms)
    ledger.add_dropped("tax", 3, NOW_MS)
    ledger.add_dropped("tax", 4, NOW_MS)
    ledger.add_dropped("law", 0, NOW_MS)
    await ledger.close()
    found = await Reader(database).overview(NOW_MS - HOUR_MS, NOW_MS)
    assert {agent_id: figures.dropped for agent_id, figures in found.items()} == {"tax": 7}


async def test_what_is_remembered_of_exporters_is_bounded(database: Database, monkeypatch: Any) -> None:
    monkeypatch.setattr("outrider_control.intake.ledger.MAX_SOURCES", 10)
    ledger = Ledger(database, clock_ms)
    for number in range(30):
        await ledger.commit(batch([sample()], f"pod-{number}", 1))
    assert sum([ledger.seen(f"pod-{number}", 1) for number in range(30)]) == 10
    assert not await ledger.commit(batch([sample()], "pod-0", 1)), "the store knows it still"
    assert await requests(database) == 30
    await ledger.close()
