"""The bench of made-up experiments: its rows, its judgement, and a small run of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.sim_experiment import __main__ as bench
from bench.sim_experiment import scenarios
from bench.sim_experiment.scenarios import FIXED_ROW, NO_DIFFERENCE, POWER, SRM, Verdict, peeking, verdicts


def reports(**changed: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What is good, with changes by row."""
    found = {
        row.name: {"reject_rate": 0.01, "srm_rate": 0.0, "runs": 2_000, "units": 20_000}
        for row in scenarios.rows(2_000, 100, 20_000, 1)
    }
    found[POWER] |= {"reject_rate": 0.95}
    found[SRM] |= {"srm_rate": 0.9}
    for name, change in changed.items():
        found[name] |= change
    return found


def missed(**changed: dict[str, Any]) -> list[str]:
    return [one.what for one in verdicts(reports(**changed)) if not one.is_met]


def test_good_figures_pass() -> None:
    assert missed() == []
    assert len(verdicts(reports())) == 13


@pytest.mark.parametrize(
    ("name", "change"),
    [
        (f"{NO_DIFFERENCE}, rate .3", {"reject_rate": 0.0505}),
        (FIXED_ROW, {"reject_rate": 0.07}),
        (POWER, {"reject_rate": 0.92}),
        (SRM, {"srm_rate": 0.79}),
        (POWER, {"srm_rate": 0.015}),
    ],
)
def test_each_requirement_can_be_missed(name: str, change: dict[str, Any]) -> None:
    assert len(missed(**{name: change})) == 1


def test_one_look_may_err_in_about_5_percent() -> None:
    assert missed(**{FIXED_ROW: {"reject_rate": 0.055}}) == []


def test_power_is_judged_at_the_units_that_were_promised() -> None:
    few = reports(**{POWER: {"units": 1_000, "reject_rate": 0.1}})
    assert all([one.is_met for one in verdicts(few)])


def test_rows_are_drawn_apart() -> None:
    rows = scenarios.rows(5, 10, 1_000, 1)
    assert len({row.scenario.seed for row in rows}) == len(rows) == len({row.name for row in rows})


def test_peeking_errs() -> None:
    assert peeking(300, 100, 20_000, 1) > 0.25
    assert peeking(300, 1, 20_000, 1) < 0.12


@pytest.mark.parametrize(("as_json", "processes"), [(False, "1"), (True, "2")])
def test_a_small_run(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    as_json: bool,
    processes: str,
) -> None:
    monkeypatch.setattr(bench, "OUT", tmp_path)
    monkeypatch.setattr(scenarios, "verdicts", lambda _: [Verdict("something", False, "nothing")])
    few = ["--runs", "2", "--looks", "5", "--units", "1000", "--processes", processes]
    assert bench.main([*few, *(["--json"] if as_json else [])]) == 1
    text = capsys.readouterr().out
    told = json.loads((tmp_path / "sim-experiment.json").read_text(encoding="utf-8"))
    assert set(told["rows"]) == {row.name for row in scenarios.rows(2, 5, 1_000, 1)}
    assert json.loads(text) == told if as_json else "MISS  something: nothing" in text


@pytest.mark.parametrize("arguments", [["--runs", "0"], ["--looks", "600", "--units", "1000"], ["--units", "9"]])
def test_arguments_that_cannot_be_played(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.main(arguments)
    assert "must be at" in capsys.readouterr().err
