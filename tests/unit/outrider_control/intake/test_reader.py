"""Answers over rollups and what is not folded yet, on both stores."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable

import pytest

from outrider_control.core.figures import Figures, merged
from outrider_control.core.sample import Sample
from outrider_control.core.windows import Windows
from outrider_control.intake.fold import Fold
from outrider_control.intake.reader import MetricsData, Reader
from outrider_control.state import rollups
from outrider_control.state.database import Database
from tests.figure_samples import NOW_MS, same, sample, some, together

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS


def clock_ms() -> int:
    return NOW_MS


async def take(database: Database, samples: Iterable[Sample]) -> None:
    windows = Windows()
    for one in samples:
        windows.add(one.key, one.end_ms, one)
    await database.write(rollups.append_delta, windows.encode())


def consistent(data: MetricsData) -> None:
    """Points and splits add up to the total."""
    assert same(merged([figures for _, figures in data.series]), data.total)
    if data.splits:
        assert same(merged([figures for _, figures in data.splits]), data.total)
    assert [at_ms for at_ms, _ in data.series] == sorted({at_ms for at_ms, _ in data.series})


@pytest.mark.parametrize("window", ["", "10s", "1m", "1h"])
@pytest.mark.parametrize("since_ms", [10 * MINUTE_MS, HOUR_MS, 5 * HOUR_MS])
async def test_answers_are_the_samples_of_the_time_asked_for(database: Database, since_ms: int, window: str) -> None:
    rng = random.Random(since_ms)
    samples = some(rng, 600, agents=2, age_ms=7 * HOUR_MS)
    samples += [one._replace(key=one.key._replace(endpoint=f"e{rng.randrange(3)}")) for one in some(rng, 200)]
    await take(database, samples[:500])
    await Fold(database, clock_ms).once()
    await take(database, samples[500:])
    reader = Reader(database)
    for agent_id, by in (("agent-0", "endpoint"), ("agent-1", "method"), ("", "endpoint")):
        data = await reader.metrics(agent_id, NOW_MS - since_ms, NOW_MS, window, by)
        asked = [
            one for one in samples if one.end_ms >= data.from_ms and (not agent_id or one.key.agent_id == agent_id)
        ]
        assert same(data.total, together(asked))
        assert NOW_MS - since_ms - MINUTE_MS < data.from_ms <= NOW_MS - since_ms
        consistent(data)
        parts = {getattr(one.key, by) for one in asked}
        assert {name for name, _ in data.splits} == parts
        for name, figures in data.splits:
            assert same(figures, together([one for one in asked if getattr(one.key, by) == name]))
        width_ms = {"10s": 10_000, "1m": MINUTE_MS, "1h": HOUR_MS}[data.window]
        for at_ms, figures in data.series:
            assert at_ms % width_ms == 0
            assert same(figures, together([one for one in asked if one.end_ms // width_ms * width_ms == at_ms]))


async def test_the_overview_is_every_agent_of_the_time_asked_for(database: Database) -> None:
    samples = some(random.Random(4), 400, agents=20, age_ms=2 * HOUR_MS)
    await take(database, samples[::2])
    await Fold(database, clock_ms).once()
    await take(database, samples[1::2])
    found = await Reader(database).overview(NOW_MS - HOUR_MS, NOW_MS)
    from_ms = NOW_MS - HOUR_MS
    wanted: dict[str, list[Sample]] = {}
    for one in samples:
        if one.end_ms >= from_ms // 10_000 * 10_000:
            wanted.setdefault(one.key.agent_id, []).append(one)
    assert found.keys() == wanted.keys()
    assert all(same(found[agent_id], together(group)) for agent_id, group in wanted.items())


async def test_long_times_are_answered_from_what_is_kept(database: Database) -> None:
    samples = [sample(end_ms=NOW_MS - age_ms) for age_ms in (0, 3 * HOUR_MS, DAY_MS // 2, 3 * DAY_MS, 20 * DAY_MS)]
    await take(database, samples)
    await Fold(database, clock_ms).once()
    await database.write(rollups.prune, NOW_MS)
    reader = Reader(database)
    for since_ms, count in ((HOUR_MS, 1), (6 * HOUR_MS, 2), (DAY_MS, 3), (7 * DAY_MS, 4), (400 * DAY_MS, 5)):
        data = await reader.metrics("tax", NOW_MS - since_ms, NOW_MS, by="method")
        assert data.total.requests == count
        consistent(data)


async def test_an_answer_does_not_change_what_the_next_one_says(database: Database) -> None:
    samples = some(random.Random(5), 100, agents=1)
    await take(database, samples)
    reader = Reader(database)
    for _ in range(3):
        data = await reader.metrics("agent-0", NOW_MS - HOUR_MS, NOW_MS, by="method")
        assert same(data.total, together(samples))
        data.total.merge(data.total)
        assert same(next(iter((await reader.overview(NOW_MS - HOUR_MS, NOW_MS)).values())), together(samples))


async def test_nothing_known_is_empty(database: Database) -> None:
    reader = Reader(database)
    assert await reader.overview(NOW_MS - HOUR_MS, NOW_MS) == {}
    data = await reader.metrics("nobody", NOW_MS - HOUR_MS, NOW_MS, by="method")
    assert (data.series, data.splits, data.total.requests, data.window) == ([], [], 0, "1m")
    assert await reader.named_metrics("nobody", NOW_MS - HOUR_MS, NOW_MS) == []
    assert await reader.traces(NOW_MS - HOUR_MS) == []


async def test_what_cannot_be_asked_is_a_value_error(database: Database) -> None:
    reader = Reader(database)
    with pytest.raises(ValueError, match="by"):
        await reader.metrics("tax", 0, NOW_MS, by="colour")
    with pytest.raises(ValueError, match="window"):
        await reader.metrics("tax", 0, NOW_MS, "7s")


async def test_a_damaged_delta_spoils_no_answer(database: Database) -> None:
    await database.write(rollups.append_delta, b"junk")
    await take(database, [sample()])
    reader = Reader(database)
    for _ in range(2):
        assert (await reader.metrics("tax", NOW_MS - HOUR_MS, NOW_MS)).total.requests == 1


async def test_while_folding_every_answer_counts_everything_once(database: Database) -> None:
    """Folds, commits and questions at the same time: what was acknowledged is counted, never twice."""
    reader, fold = Reader(database), Fold(database, clock_ms)
    rng = random.Random(6)
    acknowledged = sent = 0

    async def commit() -> None:
        nonlocal acknowledged, sent
        for _ in range(40):
            samples = [one._replace(call=True) for one in some(rng, rng.randint(1, 20))]
            sent += len(samples)
            await take(database, samples)
            acknowledged += len(samples)

    async def ask() -> None:
        while not done.is_set():
            least = acknowledged
            found = await reader.overview(NOW_MS - HOUR_MS, NOW_MS)
            asked = (await reader.metrics("", NOW_MS - HOUR_MS, NOW_MS)).total.requests
            assert least <= sum([figures.requests for figures in found.values()]) <= asked <= sent

    async def fold_often() -> None:
        while not done.is_set():
            await fold.once()

    done = asyncio.Event()
    others = [asyncio.ensure_future(one()) for one in (ask, ask, fold_often)]
    await commit()
    done.set()
    await asyncio.gather(*others)
    await fold.once()
    assert (await reader.metrics("", NOW_MS - HOUR_MS, NOW_MS)).total.requests == sent == acknowledged


def test_figures_of_no_parts() -> None:
    assert same(merged([]), Figures())
