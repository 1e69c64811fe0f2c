"""`outrider scale` against a real control plane: an operator looks, sets, pauses; what was done is in the journal."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import pytest

from outrider.control_channel import OperatorError
from outrider.operator import AsyncOperator
from outrider_control.commands import agents, decisions, doctor, endpoints, scale
from tests.controls import Control
from tests.sidecars import Mesh, eventually

Say = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def control(mesh: Mesh) -> Control:
    return Control(mesh, "for-scale", {**os.environ, "DEFAULT_MAX_INSTANCES": "12"})


@pytest.fixture
def here(control: Control, monkeypatch: pytest.MonkeyPatch) -> Control:
    """Commands of this process find the control plane."""
    monkeypatch.setenv("OUTRIDER_CONTROL", control.target)
    return control


@pytest.fixture
def say(here: Control, capsys: pytest.CaptureFixture[str]) -> Say:
    """Run a command: (exit code, standard output, standard error)."""

    def run(command: Any, *arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = command.main(list(arguments))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def data(said: tuple[int, str, str]) -> Any:
    code, out, error = said
    assert (code, error) == (0, "")
    return json.loads(out)


def test_an_agent_that_no_engine_runs(here: Control, say: Say) -> None:
    here.apply({"agent_id": "alone", "endpoints": [{"address": "127.0.0.1:9001", "capacity": 8}]})
    eventually(lambda: any(one["agent_id"] == "alone" for one in data(say(scale, "--json"))["scales"]), "it is known")
    (record,) = (one for one in data(say(scale, "list", "--json"))["scales"] if one["agent_id"] == "alone")
    assert (record["state"], record["engine"], record["demand"]) == ("no engine", "", None)
    code, out, _ = say(scale)
    assert code == 0
    assert "no engine" in out
    explained = data(say(scale, "explain", "alone", "--json"))
    assert (explained["scale"]["agent_id"], explained["decisions"], explained["instances"]) == ("alone", [], [])
    assert say(scale, "explain", "alone")[0] == 0
    (endpoint,) = data(say(endpoints, "alone", "--json"))["endpoints"]
    assert endpoint["capacity"] == 8
    found = data(say(doctor, "--no-ports", "--json"))["findings"]
    (finding,) = (one for one in found if one["check"] == "scaling")
    assert finding["level"] == "note"
    assert "alone" in finding["text"]


def test_set_changes_what_is_named(here: Control, say: Say) -> None:
    here.apply({"agent_id": "set", "timeout_ms": 77, "scaling": {"min_instances": 2}})
    code, out, _ = say(scale, "set", "set", "--max", "40", "--dry-run")
    assert code == 0
    assert out.splitlines()[:2] == ["set: would be changed version 2", "  scaling.max_instances: 12 -> 40"]
    arguments = ("--max", "40", "--cooldown", "1m", "--reason", "spike")
    code, out, _ = say(scale, "set", "set", *arguments, "--expected", "1")
    assert out.splitlines() == [
        "set: version 2 is in force",
        "  scaling.max_instances: 12 -> 40",
        "  scaling.cooldown_s: 300 -> 60",
    ]
    policy = data(say(agents, "get", "set", "--json"))["policy"]
    assert (policy["timeout_ms"], policy["scaling"]["min_instances"], policy["scaling"]["max_instances"]) == (77, 2, 40)
    (entry,) = data(say(decisions, "--agent", "set", "--limit", "1", "--json"))["decisions"]
    assert (entry["kind"], entry["reason"], entry["outcome"]["version"]) == ("apply", "spike", 2)
    code, out, error = say(scale, "set", "set", *arguments, "--expected", "1")
    assert (code, out) == (1, "")
    assert "is at version 2, the change is based on 1" in error
    assert say(agents, "rollback", "set", "--reason", "over")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--min", "13"), "scaling.min_instances: 13 is more than max_instances, which is 12"),
        (("--target", "7"), "scaling.target_utilization: 7.0 is not between 0.01 and 1"),
        (("--max-usd-per-h", "5"), "scaling.max_usd_per_h: 5.0 needs scaling.instance_usd_per_h"),
    ],
)
@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_a_wrong_value_names_its_field(
    here: Control, say: Say, arguments: tuple[str, ...], said: str, dry: tuple[str, ...]
) -> None:
    here.apply({"agent_id": "wrong"})
    code, out, error = say(scale, "set", "wrong", *arguments, "--reason", "r", *dry)
    assert (code, out) == (1, "")
    assert error.startswith(f"outrider scale set: {said}")
    assert error.count("\n") == 1


def test_pause_and_resume_outlive_a_restart(here: Control, say: Say) -> None:
    here.apply({"agent_id": "held"})
    assert say(scale, "pause", "held", "--reason", "release")[0] == 0
    here.kill()
    here.start()

    def held() -> Any:
        return data(say(scale, "explain", "held", "--json"))["scale"]

    record = eventually(lambda: held()["paused_by"] and held(), "the pause is read from the store")
    assert (record["paused_by"], record["paused_reason"]) == ("loopback", "release")
    assert say(scale, "resume", "held", "--reason", "it is out")[0] == 0
    assert held()["paused_by"] == ""
    code, out, _ = say(decisions, "--kind", "scale", "--agent", "held")
    assert code == 0
    words = " ".join(out.split())
    assert words.index("resume") < words.index("pause")
    assert "it is out" in words
    told = data(say(scale, "explain", "held", "--json"))["decisions"]
    assert [one["outcome"]["action"] for one in told] == ["resume", "pause"]


def test_an_agent_that_is_not_there(say: Say) -> None:
    for arguments in (
        ("explain", "nobody"),
        ("pause", "nobody", "--reason", "r"),
        ("resume", "nobody", "--reason", "r"),
    ):
        code, out, error = say(scale, *arguments)
        assert (code, out) == (1, "")
        assert "agent 'nobody' is not configured" in error
    assert say(scale, "set", "nobody", "--min", "1", "--reason", "r")[0] == 1


async def test_the_customers_names(control: Control) -> None:
    async with AsyncOperator(control.target) as operator:
        await operator.apply_agents([{"agent_id": "named"}], "first")
        record = await operator.configure_auto_scaling(
            "named", {"min_instances": 3, "target_utilization": 0.75}, "more"
        )
        assert (record.version.version, record.policy.scaling.min_instances) == (2, 3)
        with pytest.raises(OperatorError, match="ABORTED"):
            await operator.configure_auto_scaling("named", {"min_instances": 4}, "more", expected_version=1)
        assert (await operator.monitor_and_scale("named")).scale.agent_id == "named"
        assert "named" in {one.agent_id for one in (await operator.list_scales()).scales}
