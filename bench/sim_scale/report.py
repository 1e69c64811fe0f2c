"""Tables, charts and verdicts of the simulated scalers, from figures alone.

Always holds: a verdict is computed from the figures that are shown. A figure that is not there is not met.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.chart import Series, chart
from bench.sim_scale import fronts
from bench.sim_scale.fleet import Outcome
from bench.sim_scale.fronts import Point
from bench.sim_scale.measure import offered
from bench.sim_scale.workload import TARGET, Workload

TIMES_BETTER = 3.0  # than HPA
OURS, KPA, HPA = "outrider", "Knative KPA", "HPA v2"
_COLUMNS = (
    ("to_capacity_s", "to cap. s", ".1f"),
    ("late", "late", ".0f"),
    ("shed", "shed", ".0f"),
    ("over_s", "over i-s", ",.0f"),
    ("under_s", "under i-s", ",.0f"),
    ("instance_s", "instance-s", ",.0f"),
    ("max_instances", "most", ".0f"),
)


@dataclass(frozen=True, slots=True)
class Verdict:
    what: str
    is_met: bool
    found: str


def verdicts(figures: Mapping[str, Any]) -> list[Verdict]:
    found: list[Verdict] = []
    scenarios = dict.fromkeys([row["scenario"] for row in figures["rows"] if row["is_step"]])
    for scenario in scenarios:
        rows = {row["scaler"]: row for row in figures["rows"] if row["scenario"] == scenario}
        for name, what in (("to_capacity_s", "time to capacity"), ("late", "late calls")):
            ours, kpa, hpa = (rows[scaler][name] for scaler in (OURS, KPA, HPA))
            no_worse = ours is not None and (kpa is None or ours <= kpa)
            found.append(Verdict(f"{scenario}: {what} no worse than KPA", no_worse, f"{_of(ours)} and {_of(kpa)}"))
            better = ours is not None and (hpa is None or ours * TIMES_BETTER <= hpa)
            times = f", {hpa / ours:.1f} times" if ours and hpa is not None else ""
            what = f"{scenario}: {what} {TIMES_BETTER:g} times better than HPA"
            found.append(Verdict(what, better, f"{_of(ours)} and {_of(hpa)}{times}"))
    if "fronts" in figures:
        count, settings = len(figures["fronts"]["dominating"]), figures["fronts"]["kpa_settings"]
        what = f"no setting of KPA dominates our default (scale-down delay {figures['delay_s']} s)"
        found.append(Verdict(what, count == 0, f"{count} of {settings} do"))
    return found


def _of(value: float | None) -> str:
    return "never" if value is None else f"{value:,.1f}"


def text(figures: Mapping[str, Any], found: Sequence[Verdict]) -> str:
    urgent_s, other_s = figures["patience_s"]
    lines = [
        (
            f"{figures['capacity']} calls at once per instance, {figures['start_s']:g} s to start one, scale-down delay"
            f" {figures['delay_s']} s, queue by {figures['queue']}; urgent calls wait {urgent_s:g} s at most, others"
            f" {other_s:g} s."
        ),
        (
            f"Means of {figures['seeds']} seeds, of traces of {figures['turns']} turns. late: started after that or"
            " shed; over, under: instance-seconds beyond and below what is needed"
        ),
        "",
    ]
    scenario = ""
    for row in figures["rows"]:
        if row["scenario"] != scenario:
            scenario = row["scenario"]
            lines.append(f"{scenario:24}" + "".join([f"{title:>12}" for _, title, _ in _COLUMNS]))
        values = [format(row[name], spec) if row[name] is not None else "-" for name, _, spec in _COLUMNS]
        lines.append(f"  {row['scaler']:22}" + "".join([f"{value:>12}" for value in values]))
    lines.append("")
    lines += (
        _fronts_text(figures["fronts"]) if "fronts" in figures else ["no traces found: made-up loads only (--data)"]
    )
    lines += ["", *[f"{'PASS' if one.is_met else 'MISS'}  {one.what}: {one.found}" for one in found]]
    return "\n".join(lines)


def _fronts_text(found: Mapping[str, Any]) -> list[str]:
    lines = [f"all traces together, {found['kpa_settings']} settings of KPA and {found['our_settings']} of ours"]
    lines.append(f"{'front':14}{'target':>8}{'stable s':>10}{'panic':>8}{'late':>10}{'instance-s':>13}")
    for name in ("kpa_front", "our_front", "our_default", "dominating"):
        lines += [f"{name.replace('_', ' '):14}{_setting(point)}" for point in found[name]]
    for name, count in found["dominating_by_trace"].items():
        lines.append(f"{name} alone: {count} settings of KPA dominate our default")
    return lines


def _setting(point: Mapping[str, Any]) -> str:
    setting = f"{point['target']:>8.1f}{point['stable_s']:>10}{point['panic_threshold']:>8.1f}"
    return f"{setting}{point['late']:>10.1f}{point['instance_s']:>13,.0f}"


def fronts_figures(found: Sequence[Point]) -> dict[str, Any]:
    kpa, ours = ([one for one in found if one.setting.scaler == name] for name in ("kpa", "outrider"))
    default = next(one for one in ours if one.setting == fronts.OUR_DEFAULT)
    by_trace = {
        name: sum([fronts.dominates(one.traces[name], values) for one in kpa])
        for name, values in default.traces.items()
    }
    return {
        "kpa_settings": len(kpa),
        "our_settings": len(ours),
        "our_default": [_point(default)],
        "kpa_front": [_point(one) for one in fronts.front(kpa)],
        "our_front": [_point(one) for one in fronts.front(ours)],
        "dominating": [_point(one) for one in fronts.dominating(found)],
        "dominating_by_trace": by_trace,
        "points": [_point(one) for one in found],
    }


def _point(point: Point) -> dict[str, Any]:
    return {**point.setting._asdict(), "late": point.late, "instance_s": point.instance_s, "traces": point.traces}


def fronts_chart(found: Sequence[Point], delay_s: int) -> str:
    series: list[Series] = []
    for colour, (name, shown) in enumerate((("outrider", "outrider"), ("kpa", "Knative KPA"))):
        points = [one for one in found if one.setting.scaler == name]
        series.append(Series(f"{shown}, all", [_place(one) for one in points], "points", colour))
        series.append(Series(f"{shown}, front", [_place(one) for one in fronts.front(points)], "step", colour))
    default = [one for one in found if one.setting == fronts.OUR_DEFAULT]
    title = f"Late calls and instance-seconds over all traces, scale-down delay {delay_s} s"
    series.append(Series("our default", [_place(one) for one in default], "points", 2))
    return chart(title, "late calls", "thousand instance-seconds", series)


def _place(point: Point) -> tuple[float, float]:
    return point.late, point.instance_s / 1_000


def step_chart(curves: Mapping[str, tuple[Workload, Outcome]], capacity: int) -> str:
    """Instances that serve, from a minute before the step on."""
    series: list[Series] = []
    for colour, (name, (load, outcome)) in enumerate(curves.items()):
        begin_s, end_s = load.step_s - 60.0, load.until_s
        before = [count for at_s, count in outcome.ready if at_s <= begin_s][-1:]
        points = [(at_s - load.step_s, float(count)) for at_s, count in outcome.ready if begin_s < at_s <= end_s]
        points = [(-60.0, float(count)) for count in before] + points
        series.append(Series(name, [*points, (end_s - load.step_s, points[-1][1])], "step", colour))
        if colour == len(curves) - 1:
            counts = offered(load.calls, load.until_s)
            needed = [
                (second - load.step_s, count / (TARGET * capacity))
                for second, count in enumerate(counts)
                if second > begin_s
            ]
            series.append(Series("needed", needed, "line", colour + 1))
    return chart("Instances that serve, around a tenfold step", "seconds after the step", "instances", series)
