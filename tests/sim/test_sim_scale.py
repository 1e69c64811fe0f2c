"""The scaling simulator: models of HPA and KPA by hand-computed examples, no call is lost, and who wins what."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench.chart import Series, chart
from bench.process import BenchError
from bench.sim_scale import __main__ as program
from bench.sim_scale import fronts, measure, report, workload
from bench.sim_scale.fleet import Call, Fleet, Settings
from bench.sim_scale.hpa import Hpa
from bench.sim_scale.kpa import Kpa
from bench.sim_scale.scaler import View

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


def view(now_s: float, demand: int, ready: int, starting: int = 0, demand_s: float = 0.0) -> View:
    return View(now_s, demand, 0, ready, starting, 0, 10, demand_s)


class Fixed:
    """So many instances, whatever happens."""

    name, tick_s = "fixed", 1.0

    def __init__(self, *sizes: tuple[float, int]):
        self.sizes = sizes

    def decide(self, view: View) -> int:
        return [size for at_s, size in self.sizes if view.now_s >= at_s][-1]


# Kubernetes' HPA: target 7 calls a pod.


def test_hpa_takes_the_ceiling_and_leaves_small_changes() -> None:
    for demand, desired in ((70, 10), (76, 10), (78, 12), (85, 13), (63, 10)):
        assert Hpa(7.0).decide(view(0, demand, 10)) == desired


def test_hpa_doubles_at_most_every_15_s() -> None:
    hpa = Hpa(7.0)
    assert [hpa.decide(view(15.0 * tick, 700, 10)) for tick in range(5)] == [20, 40, 80, 100, 100]


def test_hpa_adds_four_where_that_is_more_than_doubling() -> None:
    hpa = Hpa(7.0)
    assert [hpa.decide(view(15.0 * tick, 140, 1)) for tick in range(4)] == [5, 10, 20, 20]


def test_hpa_counts_what_was_added_within_the_period() -> None:
    hpa = Hpa(7.0, tick_s=5.0)
    assert [hpa.decide(view(5.0 * tick, 700, 10)) for tick in range(4)] == [20, 20, 20, 40]


def test_hpa_goes_down_to_the_highest_recommendation_of_300_s() -> None:
    hpa = Hpa(7.0)
    demands = [70] + [35] * 4 + [14] * 30
    sizes = [hpa.decide(view(15.0 * tick, demand, 10)) for tick, demand in enumerate(demands)]
    assert sizes[:20] == [10] * 20  # the first one counts until 300 s are over
    assert sizes[20] == 5
    assert sizes[24] == 2


# Knative's KPA: target 7 calls a pod.


def test_kpa_takes_the_ceiling_of_the_stable_mean() -> None:
    assert Kpa(7.0).step(0, 10, 71.0, 71.0) == 11
    assert Kpa(7.0).step(0, 10, 70.0, 70.0) == 10


def test_kpa_panics_at_twice_what_is_ready() -> None:
    kpa = Kpa(7.0)
    assert kpa.step(0, 10, 70.0, 132.0) == 10  # 19 / 10: not yet
    assert kpa.panic_at_s is None
    assert kpa.step(2, 10, 74.0, 134.0) == 20
    assert kpa.panic_at_s == 2


def test_kpa_never_goes_down_in_panic_and_leaves_it_after_a_stable_window() -> None:
    kpa = Kpa(7.0)
    assert kpa.step(0, 10, 70.0, 700.0) == 100
    assert kpa.step(2, 100, 80.0, 300.0) == 100
    assert kpa.step(60, 100, 490.0, 70.0) == 100
    assert kpa.step(62, 100, 490.0, 70.0) == 70
    assert kpa.panic_at_s is None


def test_kpa_halves_at_most_and_is_bounded_upwards() -> None:
    assert Kpa(7.0).step(0, 11, 1.0, 1.0) == 5
    assert Kpa(7.0, max_up=3.0).step(0, 10, 70.0, 7_000.0) == 30
    assert Kpa(7.0, low=2).step(0, 1, 0.0, 0.0) == 2


def test_kpa_starts_in_panic_where_more_than_one_is_ready() -> None:
    kpa = Kpa(7.0)
    assert kpa.decide(view(0, 1, 8)) == 8
    assert kpa.panic_at_s == 0
    alone = Kpa(7.0)
    alone.decide(view(0, 1, 1))
    assert alone.panic_at_s is None


def test_kpa_delays_the_way_down_by_the_highest_of_a_window() -> None:
    kpa = Kpa(7.0, scale_down_delay_s=10.0)
    sizes = [kpa.step(2.0 * tick, 10, 70.0 if tick < 2 else 42.0, 42.0) for tick in range(10)]
    assert sizes == [10] * 7 + [6] * 3


def test_kpa_means_are_of_their_windows() -> None:
    kpa = Kpa(7.0)
    total = 0.0
    for tick in range(61):
        desired = kpa.decide(view(2.0 * tick, 0, 1, demand_s=total))
        total += 2.0 * (7 if tick < 30 else 14)
    assert desired == 2
    kpa = Kpa(7.0)
    for tick, (total, desired) in enumerate(((0.0, 1), (14.0, 1), (42.0, 2))):  # means of 7, then 10.5 since the start
        assert kpa.decide(view(2.0 * tick, 7, 1, demand_s=total)) == desired


# The fleet.


def test_calls_are_served_by_capacity_in_time() -> None:
    calls = [Call(0.5, 2.0, 1.0), Call(0.6, 2.0, 3.0), Call(0.7, 2.0, 3.0)]
    outcome = Fleet(calls, Fixed((0, 1)), Settings(capacity=1), 10.0).play()
    assert (outcome.served, outcome.shed, outcome.late) == (2, 1, 1)  # the third waits until 4.5 s: too long
    assert outcome.waited_s == pytest.approx(1.9)
    assert outcome.instance_s == pytest.approx(10.0)


def test_urgent_calls_go_first_but_in_a_fifo() -> None:
    calls = [Call(0.0, 2.0, 9.0), Call(0.1, 2.0, 9.0), Call(0.2, 2.0, 2.0)]
    assert Fleet(calls, Fixed((0, 1)), Settings(capacity=1), 10.0).play().late == 0
    fifo = Fleet(calls, Fixed((0, 1)), Settings(capacity=1, queue="fifo"), 10.0).play()
    assert (fifo.served, fifo.shed, fifo.late) == (3, 0, 1)


def test_an_instance_serves_after_its_start_and_is_paid_from_the_request() -> None:
    outcome = Fleet([Call(6.0, 1.0, 99.0)], Fixed((0, 0), (5, 1)), Settings(1, 10.0, instances=0), 20.0).play()
    assert outcome.ready == [(0.0, 0), (15.0, 1)]
    assert outcome.paid == [(0.0, 0), (5.0, 1)]
    assert outcome.instance_s == pytest.approx(15.0)
    assert outcome.waited_s == pytest.approx(9.0)


def test_who_is_taken_away_ends_its_calls_first() -> None:
    calls = [Call(0.1, 8.0, 1.0), Call(0.2, 8.0, 1.0)]
    outcome = Fleet(calls, Fixed((0, 2), (3, 1)), Settings(1, instances=2), 20.0).play()
    assert outcome.served == 2
    assert [count for _, count in outcome.paid] == [2, 1]
    assert 8.0 < outcome.paid[1][0] < 8.3


@pytest.mark.parametrize("queue", ["deadline", "fifo"])
@pytest.mark.parametrize("name", measure.SCALERS)
@pytest.mark.parametrize("kind", ["step", "spike", "ramp"])
def test_no_call_is_lost_or_counted_twice(kind: str, name: str, queue: str) -> None:
    load = workload.made_up(kind, 2, 3, 4)
    figures, outcome = measure.run(load, measure.SCALERS[name](4, 300), 4, 10.0, queue)
    assert outcome.served + outcome.shed == outcome.calls == len(load.calls) == figures.calls
    assert outcome.late >= outcome.shed
    assert 0.0 < figures.instance_s <= figures.max_instances * load.until_s
    assert queue == "deadline" or not outcome.shed


def test_the_same_seed_gives_the_same_run() -> None:
    def once(seed: int) -> measure.Figures:
        return measure.run(workload.made_up("step", 2, seed, 4), measure.ours(4, 300), 4, 10.0, "deadline")[0]

    assert once(1) == once(1)
    assert once(1) != once(2)


def test_time_to_capacity_and_what_is_needed() -> None:
    load = workload.Workload("x", (), 100.0, 1, step_s=10.0, needed=10)
    assert measure.to_capacity_s([(0, 1), (12, 8), (15, 9)], load) == 5.0
    assert measure.to_capacity_s([(0, 1), (12, 8)], load) is None
    assert measure.to_capacity_s([(0, 9), (12, 3)], load) == 0.0
    assert measure.offered([Call(0.5, 2.0, 0), Call(1.5, 1.2, 0)], 4.0) == [0, 1, 2, 0, 0]
    assert measure.by_second([(0.0, 1), (1.5, 3), (1.7, 4)], 4) == [1, 1, 4, 4]


# What must be reached.


@pytest.mark.parametrize("seed", range(2))
def test_a_tenfold_step_is_met_sooner_than_by_the_others(seed: int) -> None:
    load = workload.made_up("step", 5, seed, 4)
    found = {name: measure.run(load, make(4, 300), 4, 10.0, "deadline")[0] for name, make in measure.SCALERS.items()}
    ours, kpa, hpa = found["outrider"], found["Knative KPA"], found["HPA v2"]
    assert ours.to_capacity_s is not None
    assert kpa.to_capacity_s is not None
    assert hpa.to_capacity_s is not None
    assert ours.to_capacity_s <= min(kpa.to_capacity_s, hpa.to_capacity_s / 2)  # the means are judged by the bench
    assert ours.late <= min(kpa.late, hpa.late / 2)


# Traces, fronts, report.


def write_trace(folder: Path) -> Path:
    path = folder / "azure-llm-2023-conv.csv"
    lines = [
        f"2023-11-16 18:{15 + at // 60:02}:{at % 60:02}.0,1000,{100 + at % 7}" for at in range(600) for _ in range(4)
    ]
    path.write_text(AZURE + "\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_trace_wraps_around_and_keeps_its_calls(tmp_path: Path) -> None:
    path = write_trace(tmp_path)
    first, second = (workload.traced(path, turn, 2, 4) for turn in range(2))
    assert len(first.calls) == len(second.calls) == 2_400
    assert [call.at_s for call in second.calls] == sorted(call.at_s for call in second.calls)
    assert sorted(call.service_s for call in first.calls) == sorted(call.service_s for call in second.calls)
    assert first.until_s == second.until_s


def test_dominance_and_fronts() -> None:
    def at(late: float, instance_s: float) -> fronts.Point:
        return fronts.Point(fronts.Setting("kpa"), late, instance_s, {})

    assert fronts.dominates((1, 5), (1, 6))
    assert not fronts.dominates((1, 5), (1, 5))
    assert not fronts.dominates((0, 7), (1, 6))
    assert [point[1:3] for point in fronts.front([at(3, 3), at(1, 9), at(2, 9), at(5, 1), at(4, 4)])] == [
        (1, 9),
        (3, 3),
        (5, 1),
    ]
    ours = fronts.Point(fronts.OUR_DEFAULT, 2, 5, {})
    assert fronts.dominating([ours, at(2, 4), at(3, 1), at(1, 5)]) == [at(2, 4), at(1, 5)]


def test_verdicts_are_of_the_figures() -> None:
    def figures(ours: float, kpa: float, hpa: float | None) -> dict:
        rows = zip((report.OURS, report.KPA, report.HPA), (ours, kpa, hpa), strict=True)
        made = [
            {"scenario": "s", "scaler": name, "is_step": True, "to_capacity_s": value, "late": 1.0}
            for name, value in rows
        ]
        return {"rows": made, "delay_s": 300}

    def met(ours: float, kpa: float, hpa: float | None) -> list[bool]:
        return [one.is_met for one in report.verdicts(figures(ours, kpa, hpa))[:2]]

    assert met(12, 12, 36) == [True, True]
    assert met(13, 12, 36) == [False, False]
    assert met(12, 19, None) == [True, True]


def test_a_chart_is_well_formed_and_within_its_frame() -> None:
    text = chart("a < b", "x", "y", [Series("one", [(0, 1), (5, 9)]), Series("two", [(1, 1)], "points", 1)])
    root = ElementTree.fromstring(text)
    circles = [one for one in root.iter() if one.tag.endswith("circle")]
    assert len(circles) == 1
    assert 0 < float(circles[0].attrib["cx"]) < 760
    assert chart("a", "x", "y", []) == chart("a", "x", "y", [])


def test_the_program_runs_without_and_with_traces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(program, "OUT", tmp_path / "out")
    monkeypatch.setattr(program, "STEPS", (2,))
    monkeypatch.setattr(program, "OTHERS", ())
    assert program.main(["--data", str(tmp_path), "--quick"]) in (0, 1)
    assert "no traces found" in capsys.readouterr().out
    write_trace(tmp_path)
    program.main(["--data", str(tmp_path), "--quick", "--json", "--processes", "1"])
    figures = json.loads(capsys.readouterr().out)
    assert figures["traces"] == ["azure-llm-2023-conv.csv"]
    assert figures["fronts"]["kpa_settings"] == 6
    assert json.loads((tmp_path / "out" / "sim-scale.json").read_text()) == figures
    assert {path.name for path in (tmp_path / "out").glob("*.svg")} == {"sim-scale-step.svg", "sim-scale-fronts.svg"}


def test_a_trace_that_cannot_be_read_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "azure-llm-2023-conv.csv").write_text("nonsense\n", encoding="utf-8")
    with pytest.raises(BenchError):
        workload.traced(tmp_path / "azure-llm-2023-conv.csv", 0, 1, 4)
