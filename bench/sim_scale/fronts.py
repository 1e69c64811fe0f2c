"""Late calls against instance-seconds, for a grid of settings of Knative's scaler and of ours, over the same traces.

Always holds: both sides have the same scale-down delay, the same calls and the same queue. A setting dominates another
where it is no worse in both and better in one; the verdict is computed over all settings of the grid.

Deliberately not here: choosing settings for us. What is judged is the policy's default.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from bench.sim_scale import measure, workload
from bench.sim_scale.workload import Patience, Workload

TARGETS = (0.5, 0.6, 0.7, 0.8, 0.9)
STABLE_S = (30, 60, 120)
KPA_PANIC = (1.5, 2.0, 3.0, 10.0)
OUR_PANIC = (1.5, 2.0, 3.0)


class Setting(NamedTuple):
    scaler: str  # "outrider" or "kpa"
    target: float = 0.7
    stable_s: int = 60
    panic_threshold: float = 2.0


OUR_DEFAULT = Setting("outrider")


class Point(NamedTuple):
    """Over all traces, the mean of the turns; by trace beside it."""

    setting: Setting
    late: float
    instance_s: float
    traces: dict[str, tuple[float, float]]


class Bed(NamedTuple):
    """What all settings are tried on."""

    paths: tuple[Path, ...]
    turns: int
    capacity: int
    start_s: float
    delay_s: int
    queue: str
    patience: Patience


def grid(is_small: bool) -> list[Setting]:
    targets, stables = (TARGETS[::2], STABLE_S[1:2]) if is_small else (TARGETS, STABLE_S)
    kpa = [Setting("kpa", *rest) for rest in product(targets, stables, KPA_PANIC[1::2] if is_small else KPA_PANIC)]
    ours = [Setting("outrider", *rest) for rest in product(targets, stables, OUR_PANIC[1:2] if is_small else OUR_PANIC)]
    return kpa + ours


def points(settings: Sequence[Setting], bed: Bed, processes: int) -> list[Point]:
    """In the order of the settings."""
    if processes < 2:
        return [point(setting, bed) for setting in settings]
    with ProcessPoolExecutor(processes) as pool:
        return list(pool.map(point, settings, [bed] * len(settings)))


def point(setting: Setting, bed: Bed) -> Point:
    traces: dict[str, tuple[float, float]] = {}
    for path in bed.paths:
        found = [
            measure.run(_workload(path, turn, bed), _scaler(setting, bed), bed.capacity, bed.start_s, bed.queue)[0]
            for turn in range(bed.turns)
        ]
        name = path.name.partition(".")[0]
        traces[name] = sum([one.late for one in found]) / bed.turns, sum([one.instance_s for one in found]) / bed.turns
    late, instance_s = (sum([values[at] for values in traces.values()]) for at in (0, 1))
    return Point(setting, late, instance_s, traces)


@lru_cache(64)
def _workload(path: Path, turn: int, bed: Bed) -> Workload:
    return workload.traced(path, turn, bed.turns, bed.capacity, bed.patience)


def _scaler(setting: Setting, bed: Bed) -> Any:
    _, target, stable_s, panic = setting
    if setting.scaler == "kpa":
        return measure.kpa(bed.capacity, bed.delay_s, target, stable_s=float(stable_s), panic_threshold=panic)
    wanted = {"target_utilization": target, "stable_window_s": stable_s, "panic_threshold": panic}
    return measure.ours(bed.capacity, bed.delay_s, **wanted)


def dominates(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one[0] <= other[0] and one[1] <= other[1] and one != other


def front(found: Iterable[Point]) -> list[Point]:
    """Those that none of them dominates, fewest late calls first."""
    every = sorted(found, key=lambda one: (one.late, one.instance_s))
    return [one for one in every if not any([dominates(other[1:3], one[1:3]) for other in every])]


def dominating(found: Sequence[Point]) -> list[Point]:
    """Settings of Knative's that dominate our default."""
    ours = next(one for one in found if one.setting == OUR_DEFAULT)
    return [one for one in found if one.setting.scaler == "kpa" and dominates(one[1:3], ours[1:3])]
