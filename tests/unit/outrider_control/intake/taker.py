"""A process that takes numbered batches in, folds meanwhile, and says which batch was acknowledged: to be killed.

`python taker.py URL FIRST LAST`: prints each number once its batch is acknowledged, and "done" in the end.
"""

from __future__ import annotations

import asyncio
import random
import sys

from outrider_control.core.sample import Sample
from outrider_control.intake.fold import Fold
from outrider_control.intake.ledger import Ledger
from outrider_control.state.database import Database
from outrider_control.state.kept_spans import KeptSpan
from tests.figure_samples import NOW_MS, batch, some

SOURCE = "pod-1"


def samples_of(number: int) -> list[Sample]:
    """What is in a batch: the same each time it is sent."""
    return some(random.Random(number), 20, age_ms=100_000)


def span_of(number: int) -> KeptSpan:
    """The span that is kept of a batch."""
    return KeptSpan(f"{number:032x}", f"{number:016x}", "tax", NOW_MS + number, 5, False, "slow", b"x" * 200)


async def take(url: str, first: int, last: int) -> None:
    database = Database.open(url)
    ledger, fold = Ledger(database, lambda: NOW_MS), Fold(database, lambda: NOW_MS)
    await ledger.start()

    async def fold_often() -> None:
        while True:
            await fold.once()
            await asyncio.sleep(0.001)

    folding = asyncio.create_task(fold_often())
    for number in range(first, last + 1):
        await ledger.commit(batch(samples_of(number), SOURCE, number, kept=[span_of(number)]))
        print(number, flush=True)
    folding.cancel()
    await asyncio.wait([folding])
    await ledger.close()
    await database.close()
    print("done", flush=True)


if __name__ == "__main__":
    asyncio.run(take(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
