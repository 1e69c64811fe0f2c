"""A process that is killed with SIGKILL at any moment loses nothing it acknowledged, and counts nothing twice."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

from outrider_control.core.figures import Figures, merged
from outrider_control.intake.fold import Fold
from outrider_control.intake.reader import Reader
from outrider_control.state import rollups
from outrider_control.state.database import Database
from tests.figure_samples import NOW_MS, same, together
from tests.unit.outrider_control.intake.taker import samples_of, span_of

ROOT = Path(__file__).resolve().parents[4]
LAST = 120
KILLS = 4


def run(url: str, first: int, kill_after: int, delay_s: float = 0.0) -> int:
    """Takes batches from `first` on, kills the process soon after one of them; the last that was acknowledged."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in ("protos", "control", "."))}
    command = [sys.executable, str(Path(__file__).with_name("taker.py")), url, str(first), str(LAST)]
    acknowledged = first - 1
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line == "done\n":
                break
            acknowledged = int(line)
            if acknowledged == kill_after:
                time.sleep(delay_s)  # anywhere in a commit or a fold
                process.kill()  # what it wrote before is still read
    assert process.returncode == (-9 if kill_after <= LAST else 0)
    return acknowledged


async def total(database: Database) -> Figures:
    return (await Reader(database).metrics("", NOW_MS - 3_600_000, NOW_MS)).total


async def test_figures_survive(store_url: str) -> None:
    rng = random.Random(9)
    acknowledged = 0
    for _ in range(KILLS):
        acknowledged = run(store_url, acknowledged + 1, acknowledged + rng.randint(1, 25), rng.uniform(0, 0.02))
        database = Database.open(store_url)
        found = (await total(database)).requests
        sure, perhaps = (
            together(one for number in range(1, last + 1) for one in samples_of(number)).requests
            for last in (acknowledged, acknowledged + 1)
        )
        assert found in (sure, perhaps), "all that was acknowledged, and at most the one on its way"
        await database.close()
    assert acknowledged < LAST
    assert run(store_url, acknowledged + 1, LAST + 1) == LAST
    database = Database.open(store_url)
    wanted = together(one for number in range(1, LAST + 1) for one in samples_of(number))
    assert same(await total(database), wanted)
    await Fold(database, lambda: NOW_MS).once()
    assert same(await total(database), wanted)
    found = await Reader(database).overview(NOW_MS - 3_600_000, NOW_MS)
    assert same(merged(list(found.values())), wanted)
    assert await database.read(rollups.delta_ids) == []
    kept = await Reader(database).traces(0, limit=1_000)
    assert [trace.spans for trace in reversed(kept)] == [[span_of(number)] for number in range(1, LAST + 1)]
    await database.close()
