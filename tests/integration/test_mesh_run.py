"""The whole mesh as `make run` starts it: agents, sidecars, load, figures, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from bench.process import ROOT, python_environment

COMMAND = [sys.executable, "-m", "bench.mesh", "--agents=2", "--instances=2", "--rate=40"]


def start(tmp_path: Path, *arguments: str) -> subprocess.Popen[str]:
    """The mesh, with its temporary files under `tmp_path`."""
    environment = python_environment({"TMPDIR": str(tmp_path)})
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [*COMMAND, *arguments], stdout=pipe, stderr=pipe, text=True, env=environment, cwd=ROOT, start_new_session=True
    )


def left_of(tmp_path: Path) -> list[str]:
    """Command lines of processes that name this test's temporary directory."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if str(tmp_path) in command:
                found.append(command)
    return found


def test_every_call_of_a_short_run_succeeds_and_is_told(tmp_path: Path) -> None:
    mesh = start(tmp_path, "--seconds=4", "--json")
    output, errors = mesh.communicate(timeout=90)
    assert mesh.returncode == 0, output + errors
    figures = json.loads(output)
    assert figures["all"]["calls"] > 80
    assert figures["all"]["ok"] == figures["all"]["calls"]
    told = {agent["agent_id"]: agent for agent in figures["overview"]["agents"]}
    for agent_id, seen in figures["agents"].items():
        assert told[agent_id]["requests"] == seen["calls"], "the control plane counts every call once"
        assert told[agent_id]["success_rate"] == 1
        assert told[agent_id]["cost_usd"] > 0, "the simulated model has a price"
    assert figures["hit_rates"]["llm"] > 0.1, "half of the questions repeat"
    assert set(figures["endpoints"]) == {"tax-1", "tax-2", "revenue-1", "revenue-2"}
    assert min(figures["endpoints"].values()) > 0, "all instances are used"
    assert left_of(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_an_outage_of_the_control_plane_fails_no_call_and_loses_no_figure(tmp_path: Path) -> None:
    mesh = start(tmp_path, "--seconds=6", "--outage", "--json")
    output, errors = mesh.communicate(timeout=110)
    assert mesh.returncode == 0, output + errors
    figures = json.loads(output)
    assert sum(agent["requests"] for agent in figures["overview"]["agents"]) == figures["all"]["calls"]
    assert left_of(tmp_path) == []


def test_a_trace_is_replayed_and_bounded_by_calls(tmp_path: Path) -> None:
    lines = [
        json.dumps({"timestamp": at, "input_length": 900, "output_length": 12, "hash_ids": [0, 1]})
        for at in range(0, 60_000, 1000)
    ]
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    mesh = start(tmp_path, f"--trace={path}", "--speed=20", "--calls=30", "--json")
    output, errors = mesh.communicate(timeout=90)
    assert mesh.returncode == 0, output + errors
    figures = json.loads(output)
    assert (figures["all"]["calls"], figures["all"]["ok"]) == (30, 30)
    assert figures["all"]["output_tokens"] == 30 * 12


def test_a_call_that_should_not_fail_makes_the_exit_code_1(tmp_path: Path) -> None:
    mesh = start(tmp_path, "--seconds=2", "--failure-rate=1", "--json")
    output, errors = mesh.communicate(timeout=90)
    assert mesh.returncode == 1, errors
    assert json.loads(output)["failures"], "the reasons are told"


def test_ctrl_c_stops_every_process(tmp_path: Path) -> None:
    mesh = start(tmp_path, "--seconds=60")
    assert mesh.stdout is not None
    for line in mesh.stdout:
        if line.startswith("started in"):
            break
    assert len(left_of(tmp_path)) >= 7, "two agents twice, a control plane, two sidecars"
    mesh.send_signal(signal.SIGINT)
    mesh.communicate(timeout=30)
    assert mesh.returncode == 130
    assert left_of(tmp_path) == []
