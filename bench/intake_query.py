"""What taking in, folding and asking cost: SQLite, one agent with 20 series over 24 hours among 51.

`python bench/intake_query.py [--json] [--rounds N] [--database URL]`. The store is filled with rollups as 51 agents of
20 series leave them (24 hours of one agent, two hours of the others, 100 calls a window), then measured: one group
commit and the fold of two seconds at 20,000 spans/s, and questions. Times are milliseconds, medians over rounds,
with the worst and the CPU time beside; the process stays on one core.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
# In place of this folder, whose `profile` would be taken for another.
sys.path[0:1] = [str(ROOT / "control"), str(ROOT / "protos")]

from sqlalchemy import Connection, insert  # noqa: E402

from outrider_control.core.figures import Figures  # noqa: E402
from outrider_control.core.sample import Sample, SeriesKey  # noqa: E402
from outrider_control.intake.fold import Fold  # noqa: E402
from outrider_control.intake.ledger import Ledger, Prepared  # noqa: E402
from outrider_control.intake.reader import Reader  # noqa: E402
from outrider_control.state import schema  # noqa: E402
from outrider_control.state.database import Database  # noqa: E402

AGENTS = 51
SERIES = 20
CALLS = 100  # of a series and window
NOW_S = 1_790_000_000 + 3_540  # one second short of the worst minute for the hour's edge
HOUR_S = 3_600
BATCH = 512
SPANS_A_SECOND = 20_000


class Times(NamedTuple):
    """Milliseconds."""

    median: float
    worst: float
    cpu: float  # median, of the whole process: on a machine that others use the figure to look at


def samples(rng: random.Random, count: int, agents: int = 1) -> list[Sample]:
    """Calls as a mesh makes them: most answer, some from the cache, half of them use a model."""
    found = []
    for _ in range(count):
        key = SeriesKey(
            f"agent-{rng.randrange(agents):02d}", f"/pkg.Svc/M{rng.randrange(4)}", "", f"e{rng.randrange(5)}"
        )
        cache = rng.choice(("hit", "miss", "miss", "bypass"))
        failed = rng.random() < 0.02
        status = "UNAVAILABLE" if failed else "OK"
        total_us, first_us = int(rng.lognormvariate(12, 0.8)), int(rng.lognormvariate(11, 0.6))
        queue_us = int(rng.expovariate(1e-4)) if rng.random() < 0.1 else 0
        tokens = (rng.randint(50, 2_000), rng.randint(10, 600)) if cache != "hit" else (0, 0)
        end_ms = NOW_S * 1000 - rng.randrange(2_000)
        outcome = (True, status, failed, False, total_us, first_us, queue_us, cache, "llm")
        found.append(Sample(key, end_ms, *outcome, *tokens, 0, 0, 0, 0, sum(tokens) * 500, bool(tokens[0]), False))
    return found


def pool(rng: random.Random, calls: int) -> list[bytes]:
    """Encoded figures to choose rows from."""
    found = []
    for _ in range(100):
        figures = Figures()
        for sample in samples(rng, calls):
            figures.add(sample)
        found.append(figures.encode())
    return found


def fill(connection: Connection, rng: random.Random) -> int:
    """Rollups of all agents; how many rows."""
    keys = [
        {"agent_id": f"agent-{agent:02d}", "method": f"/pkg.Svc/M{number // 5}", "endpoint": f"e{number % 5}"}
        for agent in range(AGENTS)
        for number in range(SERIES)
    ]
    connection.execute(
        insert(schema.series), [{"id": at + 1, "variant": "", "tenant": ""} | key for at, key in enumerate(keys)]
    )
    of_series, of_totals = pool(rng, CALLS), pool(rng, CALLS * SERIES // 4)
    count = 0
    for agent in range(AGENTS):
        hours = 24 if agent == 0 else 2
        for window_s, kept_h in ((10, 2), (60, 24), (600, 24), (HOUR_S, 24)):
            if agent and window_s == 10:
                kept_h = 1
            first_s = (NOW_S - min(hours, kept_h) * HOUR_S) // window_s * window_s
            rows = [
                {
                    "window_s": window_s,
                    "agent_id": f"agent-{agent:02d}",
                    "start_s": start_s,
                    "series_id": number and agent * SERIES + number,
                    "figures": rng.choice(of_series if number else of_totals),
                }
                for start_s in range(first_s, NOW_S + 1, window_s)
                for number in range(SERIES + 1)
            ]
            connection.execute(insert(schema.rollups), rows)
            count += len(rows)
    return count


async def times_ms(rounds: int, question: Callable[[], Awaitable[object]]) -> Times:
    """Of some rounds, after one to warm up."""
    await question()
    return summed_up([await time_ms(question) for _ in range(rounds)])


async def time_ms(question: Callable[[], Awaitable[object]]) -> tuple[float, float]:
    """(wall, CPU) of one."""
    wall, cpu = time.perf_counter(), time.process_time()
    await question()
    return (time.perf_counter() - wall) * 1e3, (time.process_time() - cpu) * 1e3


def summed_up(found: list[tuple[float, float]]) -> Times:
    wall, cpu = zip(*found, strict=True)
    return Times(statistics.median(wall), max(wall), statistics.median(cpu))


async def measure(url: str, rounds: int) -> dict[str, Times]:
    rng = random.Random(1)
    database = Database.open(url)
    begin = time.perf_counter()
    rows = await database.write(fill, rng)
    print(f"{rows:,} rows of rollups written in {time.perf_counter() - begin:.1f} s", file=sys.stderr)
    now_ms = NOW_S * 1000
    ledger, fold, reader = Ledger(database, lambda: now_ms), Fold(database, lambda: now_ms), Reader(database)
    await ledger.start()
    found: dict[str, Times] = {}
    spans = samples(rng, 2 * SPANS_A_SECOND, AGENTS)
    batches = [Prepared("", -1, spans[at : at + BATCH], (), ()) for at in range(0, len(spans), BATCH)]

    async def commit_all() -> None:
        await asyncio.gather(*[ledger.commit(one) for one in batches])

    async def commit_and_fold() -> None:
        await commit_all()
        folds.append(await time_ms(fold.once))

    folds: list[tuple[float, float]] = []
    found["commit of 40,000 spans of 51 agents"] = await times_ms(3, commit_all)
    await fold.once()
    await times_ms(3, commit_and_fold)
    found["fold of 40,000 spans of 51 agents (1,020 series)"] = summed_up(folds)
    await commit_all()
    day_ms, hour_ms = 24 * HOUR_S * 1000, HOUR_S * 1000
    one = "agent-00"
    questions: dict[str, Callable[[], Awaitable[object]]] = {
        "24 h of one agent": lambda: reader.metrics(one, now_ms - day_ms, now_ms),
        "24 h of one agent by endpoint": lambda: reader.metrics(one, now_ms - day_ms, now_ms, by="endpoint"),
        "24 h of one agent, a point a minute": lambda: reader.metrics(one, now_ms - day_ms, now_ms, "1m"),
        "1 h of one agent": lambda: reader.metrics(one, now_ms - hour_ms, now_ms),
        "1 h of one agent by method": lambda: reader.metrics(one, now_ms - hour_ms, now_ms, by="method"),
        "1 h of 51 agents (overview)": lambda: reader.overview(now_ms - hour_ms, now_ms),
        "1 min of 51 agents (stream)": lambda: reader.overview(now_ms - 60_000, now_ms),
    }
    for name, question in questions.items():
        found[name] = await times_ms(rounds, question)
    await ledger.close()
    await database.close()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--database", help="an empty database in place of a file of SQLite")
    options = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory(prefix="outrider-bench-") as folder:
        found = asyncio.run(measure(options.database or f"sqlite:///{folder}/bench.db", options.rounds))
    if options.json:
        print(json.dumps({name: times._asdict() for name, times in found.items()}))
        return 0
    print(f"{'milliseconds':52} {'median':>9} {'worst':>9} {'CPU':>9}")
    for name, times in found.items():
        print(f"{name:52} {times.median:9.1f} {times.worst:9.1f} {times.cpu:9.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
