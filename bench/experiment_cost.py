"""What splits add to the CPU of a call: the data path with and without them, side by side.

`python -m bench.experiment_cost [--rounds N] [--json]`. One process, batches in turns (A B A B), medians of rounds; no
sockets, so that the share is of our own CPU alone: of a call's whole CPU, the kernel's included, it is smaller.

Always holds: requests are the same with and without, `x-session-id` and `x-user-id` among them; of what is added the
literals in metadata and trailers are a part. Writing the sticky store is told beside it, per unit that is new.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path as FilePath
from typing import Any

from bench.datapath import Path
from outrider.split import Split, Variant
from outrider_sidecar.edge.session_file import SessionFile
from outrider_sidecar.edge.view import COMPILED
from outrider_sidecar.engines.sessions import Sessions

SIZE, IN_FLIGHT = 1_024, 32
SESSIONS = 1_000  # that take turns, where they are known
UNITS = 50_000  # that are written
_HALVES = (Variant("A", 0.5, prompt_version="p1"), Variant("B", 0.5, prompt_version="p2"))
_ONE = Split("checkout-prompt", "a", _HALVES)
_BOUND = Split("rollout", "a", (Variant("stable", 0.9, labels={"version": "v1"}), Variant("next", 0.1)))
CASES: dict[str, tuple[tuple[Split, ...], int]] = {  # splits, and after how many calls a session comes again
    "one split, sessions that are known": ((_ONE,), SESSIONS),
    "three splits, labels among them": ((_ONE, _BOUND, Split("by-user", "a", _HALVES, unit="user")), SESSIONS),
    "one split, each call another session": ((_ONE,), 2**40),
    "one split by request": ((Split("by-request", "a", _HALVES, unit="request"),), SESSIONS),
}


def _fields(again: int) -> Any:
    def fields(stream_id: int) -> tuple[tuple[bytes, bytes], ...]:
        return (b"x-user-id", b"user-7"), (b"x-session-id", b"session-%016x" % (stream_id % again))

    return fields


def measure(rounds: int) -> dict[str, dict[str, Any]]:
    """By case: microseconds per call without, and the ratio with, one value per round."""
    figures: dict[str, dict[str, Any]] = {}
    for name, (splits, again) in CASES.items():
        without = Path(SIZE, IN_FLIGHT, True, fields=_fields(again))
        with_it = Path(SIZE, IN_FLIGHT, True, splits=splits, fields=_fields(again))
        for _ in range(2 * SESSIONS // IN_FLIGHT):
            with_it.batch()
        ratios, base = [], []
        for _ in range(rounds):
            spent: tuple[list[float], list[float]] = ([], [])
            for _ in range(300):
                spent[0].append(without.batch())
                spent[1].append(with_it.batch())
            low, high = (statistics.median(one) / IN_FLIGHT * 1e6 for one in spent)
            ratios.append(high / low)
            base.append(low)
        figures[name] = {"without_us": statistics.median(base), "ratios": ratios}
    return figures


async def written_us() -> float:
    """Microseconds per unit to write new units, a batch of 32 at a time."""
    with tempfile.TemporaryDirectory() as folder:
        sessions = Sessions()
        loop = asyncio.get_running_loop()
        file = SessionFile(FilePath(folder), sessions, loop, time.monotonic, time.time)
        file.restore()
        spent = 0.0
        for at in range(UNITS):
            sessions.put(b"a\0ssession-%016x" % at, (("checkout-prompt", "A"),), time.monotonic())
            if at % IN_FLIGHT == IN_FLIGHT - 1:
                began = time.process_time()
                file.flush()
                spent += time.process_time() - began
        await file.close()
    return spent / UNITS * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    figures = measure(options.rounds)
    unit_us = asyncio.run(written_us())
    if options.json:
        print(json.dumps({"cases": figures, "written_us": unit_us}))
        return
    print(f"data path {'compiled' if COMPILED else 'interpreted'}, {SIZE} B, {IN_FLIGHT} in flight")
    for name, one in figures.items():
        low, middle, high = min(one["ratios"]), statistics.median(one["ratios"]), max(one["ratios"])
        print(f"{name:50} {one['without_us']:6.1f} us without, {middle - 1:+.1%} [{low - 1:+.1%} {high - 1:+.1%}]")
    print(f"a new unit on disk, kernel included: {unit_us:.1f} us")


if __name__ == "__main__":
    main()
