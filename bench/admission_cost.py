"""What admission adds to the CPU of a call when nothing waits: the data path with and without it, side by side.

`python -m bench.admission_cost [--rounds N] [--json]`. One process, batches in turns (A B A B), medians of rounds; no
sockets, so that the share is of our own CPU alone: of a call's whole CPU, the kernel's included, it is smaller.

Always holds: the data path without admission differs in nothing but the steps `limit`, `degrade` and `admit`.
"""

from __future__ import annotations

import argparse
import json
import statistics
from typing import Any

from bench.datapath import Path
from outrider.policy import Degradation, Limits, Queue, Rates
from outrider_sidecar import stack
from outrider_sidecar.edge.view import COMPILED

SIZE, IN_FLIGHT = 1_024, 32
_STEPS = ("admit", "degrade", "limit")
_RATE = 1e9  # per minute: never reached
CASES: dict[str, tuple[dict[str, Any], int]] = {
    "limit and queue": ({}, 0),
    "and slots, adaptive limit, degradation": (
        {"limits": Limits(adaptive=True, min_in_flight=64), "queue": Queue(), "degradation": Degradation(True)},
        1_000,
    ),
    "and limits per agent, user and tenant in requests": (
        {
            "rates": Rates(_RATE, _RATE, _RATE, fleet_wide=False),
            "limits": Limits(adaptive=True, min_in_flight=64),
            "degradation": Degradation(True),
        },
        1_000,
    ),
}


def measure(rounds: int) -> dict[str, dict[str, Any]]:
    """By case: microseconds per call with and without, and their ratio, one value per round."""
    plain = tuple([module for module in stack.EGRESS if module.__name__.rpartition(".")[2] not in _STEPS])
    figures: dict[str, dict[str, Any]] = {}
    for name, (policy, capacity) in CASES.items():
        without = Path(SIZE, IN_FLIGHT, True, filters=plain)
        with_it = Path(SIZE, IN_FLIGHT, True, policy=policy, capacity=capacity)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    figures = measure(options.rounds)
    if options.json:
        print(json.dumps(figures))
        return
    print(f"data path {'compiled' if COMPILED else 'interpreted'}, {SIZE} B, {IN_FLIGHT} in flight")
    for name, one in figures.items():
        low, middle, high = min(one["ratios"]), statistics.median(one["ratios"]), max(one["ratios"])
        print(f"{name:50} {one['without_us']:6.1f} us without, {middle - 1:+.1%} [{low - 1:+.1%} {high - 1:+.1%}]")


if __name__ == "__main__":
    main()
