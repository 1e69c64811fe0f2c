"""The operator's CLI against a real control plane whose environment moves defaults, in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from bench.process import python_environment
from outrider.control_channel import Access
from outrider.operator import AsyncOperator, Operator, OperatorError
from outrider_control.commands import agents, doctor, overview, store, watch
from tests.controls import Control
from tests.sidecars import Mesh

ENVIRONMENT = {"CACHE_TTL": "77", "DEFAULT_MAX_INSTANCES": "33", "DEFAULT_MIN_INSTANCES": "2"}


@pytest.fixture(scope="module")
def control(mesh: Mesh) -> Control:
    return Control(mesh, "for-cli", {**os.environ, **ENVIRONMENT}, database="sqlite:///cli.db")


@pytest.fixture
def here(control: Control, monkeypatch: pytest.MonkeyPatch) -> Control:
    """Commands of this process find the control plane."""
    monkeypatch.setenv("OUTRIDER_CONTROL", control.target)
    return control


@pytest.mark.usefixtures("here")
def test_what_get_prints_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where the control plane's defaults are not those of the CLI's own tables."""
    file = tmp_path / "agents.yaml"
    file.write_text("agent_id: moved\nscaling: {min_instances: 20}\noptimization: {cache_enabled: true}\n")
    assert agents.main(["apply", "-f", str(file), "--reason", "first"]) == 0
    for extra in ([], ["--all"]):
        capsys.readouterr()
        assert agents.main(["get", "moved", *extra]) == 0
        printed = capsys.readouterr().out
        document = yaml.safe_load(printed)
        assert document["scaling"]["max_instances"] == 33
        assert document["optimization"]["cache_ttl"] == 77
        file.write_text(printed)
        assert agents.main(["apply", "-f", str(file), "--reason", "again"]) == 0
        assert "moved: unchanged version 1" in capsys.readouterr().out


@pytest.mark.usefixtures("here")
def test_rows_are_imported_over_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "agents.yaml"
    file.write_text("agent_id: rows\nendpoints: ['127.0.0.1:9001']\ntimeout_ms: 500\n")
    assert agents.main(["apply", "-f", str(file), "--reason", "first"]) == 0
    rows = tmp_path / "rows.csv"
    rows.write_text('agent_id,optimization,note\nrows,"{""cache_enabled"": true, ""compression"": true}",x\nnew,,y\n')
    capsys.readouterr()
    assert agents.main(["import", str(rows), "--reason", "moving in", "--json"]) == 0
    outcomes = {one["agent_id"]: one for one in json.loads(capsys.readouterr().out)["agents"]}
    assert {name: one["outcome"] for name, one in outcomes.items()} == {"rows": "changed", "new": "created"}
    changed = {change["path"] for change in outcomes["rows"]["changes"]}
    assert changed == {"optimization.cache_enabled", "optimization.compression"}


@pytest.mark.usefixtures("here")
def test_a_wrong_field_is_named_by_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "agents.yaml"
    file.write_text("agent_id: wrong\nscaling: {min_instances: 50}\n")  # the default bound is the control plane's
    assert agents.main(["apply", "-f", str(file), "--reason", "r"]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"outrider agents apply: {file}: scaling.min_instances: 50 is more than max_instances")
    assert error.count("\n") == 1


def test_roles(control: Control, monkeypatch: pytest.MonkeyPatch) -> None:
    made = control.cli("tokens", "create", "dashboard", "--role", "viewer", "--ttl", "1h", "--reason", "look")
    token = made.stdout.strip()
    assert made.returncode == 0
    assert token
    with Operator(control.target, access=Access(token=token)) as viewer:
        assert viewer.who_am_i().role == "viewer"
        assert viewer.list_agents() is not None
        with pytest.raises(OperatorError, match="PERMISSION_DENIED"):
            viewer.delete_agents(["moved"], "mischief")
    monkeypatch.setenv("OUTRIDER_TOKEN", token)
    refused = control.cli("agents", "delete", "moved", "--reason", "mischief")
    assert refused.returncode == 1
    assert "use a token of a role that may" in refused.stderr
    monkeypatch.setenv("OUTRIDER_TOKEN", "wrong")
    unknown = control.cli("overview")
    assert unknown.returncode == 1
    assert "give a valid token" in unknown.stderr
    monkeypatch.delenv("OUTRIDER_TOKEN")
    listed = control.cli("tokens", "list", "--json").stdout
    assert token not in listed
    (record,) = (one for one in json.loads(listed)["tokens"] if one["name"] == "dashboard")
    assert control.cli("tokens", "revoke", record["id"], "--reason", "seen enough").returncode == 0
    with Operator(control.target, access=Access(token=token)) as viewer, pytest.raises(OperatorError) as caught:
        viewer.who_am_i()
    assert caught.value.status.name == "UNAUTHENTICATED"


def test_the_next_address_answers(control: Control, capsys: pytest.CaptureFixture[str]) -> None:
    assert overview.main(["--json", "--control", f"127.0.0.1:1,{control.target}"]) == 0
    assert "agents" in json.loads(capsys.readouterr().out)
    given = ["default", "--none", "--reason", "r", "--control", f"127.0.0.1:1,{control.target}"]
    assert agents.main(given) == 0


async def test_the_customers_names(control: Control) -> None:
    async with AsyncOperator(control.target) as operator:
        await operator.apply_agents([{"agent_id": "named", "timeout_ms": 9}], "first")
        done = await operator.configure_response_optimization("named", "cheaper", cache_enabled=True, cache_ttl=5)
        assert sorted(change.path for change in done.agents[0].changes) == [
            "optimization.cache_enabled",
            "optimization.cache_ttl",
        ]
        assert "named" in {agent.agent_id for agent in (await operator.get_dashboard_metrics()).agents}
        assert (await operator.get_agent_health("named")).state
        stream = operator.stream_metrics(250, 1_000)
        assert "named" in {agent.agent_id for agent in (await anext(stream)).agents}
        await stream.aclose()


@pytest.mark.usefixtures("here")
def test_watch(capsys: pytest.CaptureFixture[str]) -> None:
    assert watch.main(["--json", "--count", "2", "--interval", "250ms"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 2
    assert lines[0]["to_unix_ms"] < lines[1]["to_unix_ms"]


def test_watch_outlives_a_restart(control: Control) -> None:
    line = [sys.executable, "-m", "outrider.cli", "watch", "--json", "--interval", "250ms", "--control", control.target]
    environment = python_environment({})
    with subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as watching:
        assert watching.stdout is not None
        assert "agents" in json.loads(watching.stdout.readline())
        control.kill()
        killed_ms = time.time() * 1_000
        control.start()
        for shown in watching.stdout:
            if json.loads(shown)["to_unix_ms"] > killed_ms:
                break
        watching.send_signal(signal.SIGINT)
        _, said = watching.communicate(timeout=30)
        assert watching.returncode == 0
        assert b"does not answer; trying again" in said
        assert b"Traceback" not in said


def test_doctor(here: Control, capsys: pytest.CaptureFixture[str]) -> None:
    here.apply({"agent_id": "lonely"})
    assert doctor.main(["--no-ports", "--json", "--config", str(here.file)]) == 1
    found = json.loads(capsys.readouterr().out)["findings"]
    assert {
        "check": "config",
        "level": "ok",
        "text": f"{here.file}: outrider-control accepts it",
        "todo": None,
    } in found
    wrong = [one for one in found if one["level"] == "wrong"]
    assert [one["check"] for one in wrong] == ["endpoints"]
    assert "lonely" in wrong[0]["text"]


def test_a_backup_while_it_runs(control: Control, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    control.apply({"agent_id": "saved"})
    (source,) = control.folder.rglob("cli.db")
    file = tmp_path / "backup"
    assert store.main(["backup", "--database", f"sqlite:///{source}", "--file", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"]["agents"] >= 1
    assert store.main(["restore", "--database", f"sqlite:///{tmp_path / 'other.db'}", "--file", str(file)]) == 0
    capsys.readouterr()
    assert store.main(["restore", "--database", f"sqlite:///{source}", "--file", str(file), "--force"]) == 1
    assert "control plane" in capsys.readouterr().err
