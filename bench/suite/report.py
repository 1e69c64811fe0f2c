"""Figures to tables, and the list of what must be reached with a verdict each.

Always holds: a ratio is taken within a round (the targets of a round run one after the other) and its median over the
rounds is judged; the interval shown is the smallest and the largest round. A figure that was not measured is told as
such, never judged.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.suite.targets import Sample


@dataclass(frozen=True, slots=True)
class Case:
    """One load, put on several targets in turn."""

    name: str
    samples: Mapping[str, list[Sample]]  # by target, one per round
    unit: str = "call"

    def median(self, target: str, figure: str) -> float:
        return statistics.median(getattr(one, figure) for one in self.samples[target])

    def ratios(self, target: str, base: str, figure: str = "cpu_us") -> list[float]:
        """Per round; empty where one of the two was not measured."""
        pairs = zip(self.samples.get(target, ()), self.samples.get(base, ()), strict=False)
        return [getattr(a, figure) / getattr(b, figure) for a, b in pairs if getattr(b, figure) > 0]


@dataclass(frozen=True, slots=True)
class Verdict:
    what: str
    limit: float
    values: Sequence[float]  # one per round; empty: not measured
    unit: str = "x"

    @property
    def value(self) -> float | None:
        return statistics.median(self.values) if self.values else None

    @property
    def text(self) -> str:
        if self.value is None:
            return f"  not measured     {self.what}: at most {self.limit:g} {self.unit}"
        word = "PASS" if self.value <= self.limit else "MISS"
        interval = f" [{min(self.values):.2f} - {max(self.values):.2f}]" if len(self.values) > 1 else ""
        return f"  {word} {self.value:8.2f} {self.unit:3} {self.what}: at most {self.limit:g} {self.unit}{interval}"

    def json(self) -> dict[str, object]:
        passed = None if self.value is None else self.value <= self.limit
        return {
            "what": self.what,
            "limit": self.limit,
            "unit": self.unit,
            "value": self.value,
            "rounds": list(self.values),
            "passed": passed,
        }


def table(case: Case) -> str:
    """One case as text: a line per target, medians of its rounds."""
    lines = [
        f"\n{case.name}",
        f"  {'':16} {'CPU us/' + case.unit:>12} {'range':>15} {'x bare':>7} {'calls/s':>9} {'p50 us':>8} {'p99 us':>8}",
    ]
    for target, samples in case.samples.items():
        low, high = min(one.cpu_us for one in samples), max(one.cpu_us for one in samples)
        ratios = case.ratios(target, "envoy bare")
        ratio = f"{statistics.median(ratios):7.2f}" if ratios and high > 0 else "      -"
        cpu = (
            f"{case.median(target, 'cpu_us'):12.2f} {f'{low:.2f}-{high:.2f}':>15}" if high > 0 else f"{'-':>12} {'':15}"
        )
        lines.append(
            f"  {target:16} {cpu} {ratio} {case.median(target, 'calls_per_s'):9.0f}"
            f" {case.median(target, 'p50_us'):8.0f} {case.median(target, 'p99_us'):8.0f}"
        )
    return "\n".join(lines)
