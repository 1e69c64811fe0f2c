"""An A/B test and two rollouts on this machine: `make ab`, or `python -m bench.ab [--seed N] [--json]`.

A real mesh: a control plane, three versions of one agent whose true quality is known, two callers' sidecars, sessions
that call and say how content they are. First an experiment on accuracy, v1 against v2: it has to reach its verdict and
begin the rollout that is asked for, which has to end with everything on v2. Then a rollout of v3, which fails too
often: it has to be aborted, with everything back on v2.

Always holds: the exit code is 0 only if all of it came out as it must, 1 if not, 130 after Ctrl-C; every process is
stopped on every way out; time and calls are bounded.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvloop

from bench.ab.load import Sessions
from bench.process import BenchError, Children, stop_on_signals, wait_ready
from outrider.operator_async import AsyncOperator

AGENT = "tax"
SIDECARS = 2
QUALITY = {"v1": 0.55, "v2": 0.75, "v3": 0.75}  # chance that an answer is right
FAILS = {"v1": 0.0, "v2": 0.0, "v3": 0.3}
SAMPLE_SIZE = 4_000
LIMIT_S = 120.0  # of each part
_SETTLE_S = 1.5  # after a rollout's end: calls under way end, sidecars have long been told
_LOOK_S = 0.25


class Checks:
    """What came out, line by line."""

    def __init__(self, quiet: bool):
        self.rows: list[dict[str, Any]] = []
        self._quiet = quiet

    def add(self, name: str, said: str, is_right: bool) -> None:
        """One thing that must be as it must."""
        self.rows.append({"check": name, "found": said, "ok": is_right})
        self.say(f"{'ok  ' if is_right else 'MISS'} {name}: {said}")

    def say(self, text: str) -> None:
        """For people."""
        if not self._quiet:
            print(text, flush=True)

    @property
    def all_right(self) -> bool:
        return all([row["ok"] for row in self.rows])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print what came out as JSON only")
    return parser.parse_args()


def _write(children: Children, name: str, settings: dict[str, Any]) -> Path:
    file = children.directory / f"{name}.yaml"
    file.write_text(json.dumps(settings, indent=1), encoding="utf-8")
    return file


def _ports_file(children: Children, name: str) -> Path:
    return children.directory / f"{name}.ports.json"


def start(children: Children, seed: int) -> tuple[str, list[int]]:
    """Agents, control plane, sidecars: the control plane's address and the sidecars' ports, once all are ready."""
    endpoints = []
    for at, version in enumerate(QUALITY):
        knobs = ["--first-token-ms=4", "--tokens-per-s=4000", "--concurrency=256", f"--failure-rate={FAILS[version]}"]
        name = f"--name={AGENT}-{version}"
        _, ports = children.start_module(f"agent-{version}", "bench.agents", name, f"--seed={seed + at}", *knobs)
        endpoints.append({"address": f"127.0.0.1:{ports['port']}", "labels": {"version": version}})
    agent = {
        "agent_id": AGENT,
        "endpoints": endpoints,
        "retry": {"max_attempts": 1},  # else a version that fails would be hidden by the one that does not
        "outlier": {"enabled": False},
        "limits": {"max_in_flight": 256},
    }
    settings = {
        "grpc": "127.0.0.1:0",
        "http": "127.0.0.1:0",
        "database": "sqlite:///outrider.db",
        "agents_file": str(_write(children, "agents", {"agents": [agent]})),
        "ports_file": str(_ports_file(children, "control")),
    }
    file = _write(children, "control", settings)
    control = children.start("control", [sys.executable, "-m", "outrider_control", "--config", str(file)])
    ports = children.ports(control, _ports_file(children, "control"))
    wait_ready(control, f"http://127.0.0.1:{ports['http']}/readyz")
    address = f"127.0.0.1:{ports['grpc']}"
    return address, [_sidecar(children, number, address) for number in range(SIDECARS)]


def _sidecar(children: Children, number: int, control: str) -> int:
    name = f"sidecar-{number + 1}"
    settings = {
        "listen": "127.0.0.1:0",
        "admin": "127.0.0.1:0",
        "ports_file": str(_ports_file(children, name)),
        "control": [control],
        "default_agent": AGENT,
        "state_dir": str(children.directory / name),
    }
    file = _write(children, name, settings)
    child = children.start(name, [sys.executable, "-m", "outrider_sidecar", "--config", str(file)])
    ports = children.ports(child, _ports_file(children, name), 60.0)
    wait_ready(child, f"http://127.0.0.1:{ports['admin']}/readyz")
    return ports["egress"]


async def _until(get: Callable[[], Any], ended: Callable[[Any], bool], checks: Checks, what: str) -> Any:
    """The record once it has ended, or as it stands when the time is over."""
    give_up_at = time.monotonic() + LIMIT_S
    said = ""
    while True:
        record = await get()
        text = what + ": " + _state(record)
        if text != said:
            checks.say(f"     {text}")
            said = text
        if ended(record) or time.monotonic() > give_up_at:
            return record
        await asyncio.sleep(_LOOK_S)


def _state(record: Any) -> str:
    if hasattr(record, "phase"):
        return f"{record.phase}, step {record.step + 1}, {record.weight:.0%} on the candidate"
    return f"{record.state}, {record.units // 500 * 500:,}+ units"


async def _experiment(operator: AsyncOperator, sessions: Sessions, checks: Checks) -> None:
    """v2 is better, and goes out."""
    name = "better-answers"
    versions = {version: {"labels": {"version": version}} for version in ("v1", "v2")}
    going_out = {"steps": ["25%:2s", "100%"], "analyses": [_errors()]}
    await operator.create_ab_test(
        AGENT, name, versions, "accuracy", "bench: is v2 better?", sample_size=SAMPLE_SIZE,
        guardrails=["error_rate:+0.05"], rollout=going_out,
    )  # fmt: skip
    record = await _until(
        lambda: operator.get_experiment(name), lambda one: one.state == "stopped", checks, "experiment"
    )
    checks.add("the experiment's verdict is that v2 wins", f"{record.verdict} {record.winner}".strip(), (
        record.verdict, record.winner) == ("win", "v2"))  # fmt: skip
    truth = QUALITY["v2"] - QUALITY["v1"]
    for one in record.comparisons:
        inside = "within" if one.low <= truth <= one.high else "outside, which one of 20 such intervals is,"
        checks.say(
            f"     the true difference of {truth:.2f} is {inside} the interval: {one.effect:.3f} ({one.low:.3f} to"
            f" {one.high:.3f}), {record.units:,} units, {record.looks} looks"
        )
    checks.add("units came as they were to be divided", f"p {record.srm.p_value:.3f}", not record.srm.mismatch)
    checks.say(f"     {record.conclusion}")
    checks.add("the verdict has begun the rollout", record.rollout or record.reason, bool(record.rollout))
    if record.rollout:
        await _rollout(operator, record.rollout, sessions, checks, "succeeded", "v2")


async def _harmful(operator: AsyncOperator, sessions: Sessions, checks: Checks) -> None:
    """v3 fails too often, and comes back."""
    spec = {
        "name": "v3-goes-out",
        "agent_id": AGENT,
        "candidate": {"name": "v3", "labels": {"version": "v3"}},
        "stable": {"name": "v2", "labels": {"version": "v2"}},
        "steps": ["20%:2s", "50%:2s", "100%"],
        "analyses": [_errors()],
    }
    await operator.create_rollout(spec, "bench: v3 fails")
    await _rollout(operator, "v3-goes-out", sessions, checks, "failed", "v2")


def _errors() -> dict[str, Any]:
    return {"metric": "error_rate", "max": 0.1, "min_units": 30, "interval_s": 1}


async def _rollout(
    operator: AsyncOperator, name: str, sessions: Sessions, checks: Checks, phase: str, version: str
) -> None:
    record = await _until(
        lambda: operator.get_rollout(name), lambda one: one.phase in ("succeeded", "failed"), checks, f"rollout {name}"
    )
    checks.add(f"the rollout {name} has {phase}", f"{record.phase}: {record.reason}", record.phase == phase)
    await asyncio.sleep(_SETTLE_S)
    before = sessions.seen.by_version.copy()
    await asyncio.sleep(_SETTLE_S)
    after = sessions.seen.by_version - before
    checks.add(f"every call after it is answered by {version}", dict(after).__repr__(), set(after) == {version})


async def _run(options: argparse.Namespace, control: str, ports: list[int], checks: Checks) -> None:
    sessions = Sessions(AGENT, ports, QUALITY, options.seed)
    async with AsyncOperator(control) as operator:
        sessions.start()
        try:
            await _experiment(operator, sessions, checks)
            await _harmful(operator, sessions, checks)
        finally:
            await sessions.close()
    seen = sessions.seen
    checks.add("sessions kept their variant until it was taken back", f"{seen.flipped} of {seen.sessions:,} moved",
               seen.flipped <= _under_way(sessions))  # fmt: skip
    checks.say(
        f"     {seen.calls:,} calls in {seen.sessions:,} sessions, {seen.failed:,} failed, feedback on {seen.told:,}"
    )


def _under_way(sessions: Sessions) -> int:
    """At most the sessions that were under way when v3 was taken back may have seen two variants."""
    return sessions.width


def main() -> int:
    options = _arguments()
    checks = Checks(options.json)
    stop_on_signals()
    try:
        with Children() as children:
            control, ports = start(children, options.seed)
            uvloop.run(_run(options, control, ports, checks))
    except BenchError as error:
        print(f"bench.ab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    if options.json:
        print(json.dumps({"ok": checks.all_right, "checks": checks.rows}))
    return 0 if checks.all_right else 1


if __name__ == "__main__":
    sys.exit(main())
