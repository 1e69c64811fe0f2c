"""A tenfold spike on this machine: `make spike`, or `python -m bench.spike [--base N] [--peak N] [--json]`.

A real mesh: a control plane whose local engine starts agent instances, each behind a sidecar of its own and with a
hard concurrency; two callers, each with its sidecar. 50 calls/s step to 500 calls/s and back.

Always holds: the exit code is 0 only if the verdict is reached in every line, 1 if it is not, 130 after Ctrl-C; every
process is stopped on every way out.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

from bench.agents.behaviour import Behaviour
from bench.mesh.report import percentile
from bench.process import ROOT, BenchError, Child, Children, python_environment, stop_on_signals, wait_ready
from bench.spike import verdict
from bench.spike.load import LANES, Callers, Phase, planned
from bench.spike.verdict import Look
from outrider.operator import Operator, OperatorError
from outrider.operator_async import AsyncOperator

AGENT = "tax"
CALLERS = 2
_LOOK_S = 0.5
_STARTED_S = 60.0


@dataclass(slots=True)
class Bed:
    """What runs."""

    control: Child
    control_address: str
    sidecar_ports: list[int]
    sidecars: list[Child]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=float, default=50.0, help="calls per second before and after")
    parser.add_argument("--peak", type=float, default=500.0, help="calls per second of the spike")
    parser.add_argument("--seconds", type=float, default=30.0, help="of the spike")
    parser.add_argument("--before", type=float, default=20.0, help="seconds before it")
    parser.add_argument("--after", type=float, default=20.0, help="seconds after it")
    parser.add_argument("--concurrency", type=int, default=32, help="calls at once that one instance serves, no more")
    parser.add_argument("--least", type=int, default=1, help="instances")
    parser.add_argument("--most", type=int, default=10, help="instances")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON only")
    return parser.parse_args()


def _ports_file(children: Children, name: str) -> Path:
    return children.directory / f"{name}.ports.json"


def _write(children: Children, name: str, settings: dict[str, Any]) -> Path:
    file = children.directory / f"{name}.yaml"
    file.write_text(json.dumps(settings, indent=1), encoding="utf-8")
    return file


def _agents(options: argparse.Namespace) -> dict[str, Any]:
    scaling = {"min_instances": options.least, "max_instances": options.most, "cooldown_s": 10}
    queue = {"max_waiting": 20_000, "max_wait_ms": 30_000, "codel_target_ms": 0}
    return {"agents": [{"agent_id": AGENT, "queue": queue, "scaling": scaling}]}


def _engine(options: argparse.Namespace, behaviour: Behaviour) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench.spike.instance", "--name={name}", f"--agent={AGENT}", "--port={port}"]
    command += ["--control={control}", f"--seed={options.seed}"]
    command += [f"--{knob.replace('_', '-')}={getattr(behaviour, knob)}" for knob in behaviour.__slots__]
    environment = {"PYTHONPATH": python_environment()["PYTHONPATH"]}
    agent = {
        "command": command,
        "capacity": behaviour.concurrency,
        "env": environment,
        "cwd": str(ROOT),
        "drain_s": 12,
    }
    return {"kind": "local", "agents": {AGENT: agent}, "stop_on_exit": True}


def start(children: Children, options: argparse.Namespace, behaviour: Behaviour) -> Bed:
    """Control plane, first instances, callers' sidecars; ready when this returns."""
    settings = {
        "grpc": "127.0.0.1:0",
        "http": "127.0.0.1:0",
        "database": "sqlite:///outrider.db",
        "agents_file": str(_write(children, "agents", _agents(options))),
        "ports_file": str(_ports_file(children, "control")),
        "scaling": {"engine": "local", "engines": {"local": _engine(options, behaviour)}},
    }
    command = [sys.executable, "-m", "outrider_control", "--config", str(_write(children, "control", settings))]
    control = children.start("control", command)
    ports = children.ports(control, _ports_file(children, "control"))
    wait_ready(control, f"http://127.0.0.1:{ports['http']}/readyz")
    bed = Bed(control, f"127.0.0.1:{ports['grpc']}", [], [])
    for number in range(CALLERS):
        name = f"sidecar-{number + 1}"
        told = {
            "listen": "127.0.0.1:0",
            "admin": "127.0.0.1:0",
            "ports_file": str(_ports_file(children, name)),
            "control": [bed.control_address],
            "default_agent": AGENT,
        }
        command = [sys.executable, "-m", "outrider_sidecar", "--config", str(_write(children, name, told))]
        child = children.start(name, command)
        found = children.ports(child, _ports_file(children, name))
        wait_ready(child, f"http://127.0.0.1:{found['admin']}/readyz")
        bed.sidecars.append(child)
        bed.sidecar_ports.append(found["egress"])
    _wait_for_instances(bed, options.least)
    return bed


def _wait_for_instances(bed: Bed, least: int) -> None:
    give_up_at = time.monotonic() + _STARTED_S
    with Operator(bed.control_address) as operator:
        while (ready := len(operator.list_endpoints(agent_id=AGENT).endpoints)) < least:
            bed.control.check()
            if time.monotonic() > give_up_at:
                raise BenchError(
                    f"{ready} of {least} instances serve after {_STARTED_S:g} s:\n{bed.control.log_tail()}"
                )
            time.sleep(0.1)


async def _watch(bed: Bed, callers: Callers, looks: list[Look], options: argparse.Namespace) -> None:
    """Look at the mesh every half a second, and show every second look."""
    output = sys.stderr if options.json else sys.stdout
    header = f"{'s':>5} {'calls/s':>8} {'in flight':>9} {'waiting':>8} {'instances':>20} {'failed':>7}"
    output.write(header + "".join(f" {f'P95 {lane}':>13}" for lane in LANES) + "\n")
    async with AsyncOperator(bed.control_address) as operator:
        for turn in range(10**9):
            await asyncio.sleep(_LOOK_S)
            with contextlib.suppress(OperatorError):
                scale = (await operator.explain_scale(agent_id=AGENT, limit=1)).scale
                demand, waiting = int(scale.demand), int(scale.queued)
                at_s = time.monotonic() - callers.begun_at
                counts = (scale.ready, scale.starting, scale.draining, scale.desired)
                looks.append(Look(at_s, *counts, waiting, max(0, demand - waiting)))
            if turn % 2 and looks:
                output.write(_line(looks[-1], callers) + "\n")
                output.flush()


def _line(look: Look, callers: Callers) -> str:
    recent = [one for one in callers.outcomes[-5000:] if one.ended_s >= look.at_s - 2]
    started = sum(one.ended_s >= look.at_s - 1 for one in recent)
    failed = sum(bool(one.reason) for one in callers.outcomes)
    times = []
    for lane in LANES:
        p95 = percentile([one.total_ms for one in recent if one.lane == lane and not one.reason], 0.95)
        times.append(f" {'-' if p95 is None else f'{p95:.0f} ms':>13}")
    instances = f"{look.ready}+{look.starting}-{look.draining} of {look.desired}"
    return f"{look.at_s:5.0f} {started:8} {callers.in_flight:9} {look.waiting:8} {instances:>20} {failed:7}" + "".join(
        times
    )


async def _load(bed: Bed, options: argparse.Namespace, behaviour: Behaviour) -> tuple[Callers, list[Look]]:
    callers = Callers(AGENT, bed.sidecar_ports, behaviour)
    phases = (
        Phase("before", options.before, options.base),
        Phase("spike", options.seconds, options.peak),
        Phase("after", options.after, options.base),
    )
    looks: list[Look] = []
    watching = asyncio.create_task(_watch(bed, callers, looks, options))
    try:
        await callers.run(planned(phases, options.seed))
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await callers.close()
    if not watching.cancelled() and watching.exception() is not None:
        raise BenchError(f"the mesh could not be looked at: {watching.exception()}")
    return callers, looks


def run(options: argparse.Namespace, children: Children) -> int:
    say = sys.stderr if options.json else sys.stdout
    behaviour = Behaviour(first_token_ms=100, sigma=0.2, tokens_per_s=200, concurrency=options.concurrency, refuses=1)
    begun_at = time.monotonic()
    bed = start(children, options, behaviour)
    print(f"control plane {bed.control_address}; while this runs: outrider scale --control ...", file=say)
    print(f"{options.least} instances of {AGENT} serve after {time.monotonic() - begun_at:.1f} s", file=say, flush=True)
    callers, looks = uvloop.run(_load(bed, options, behaviour))
    for child in (bed.control, *bed.sidecars):
        child.check()
    figures = verdict.summary(callers.outcomes, looks, options.before, options.before + options.seconds)
    figures["late_starts"] = callers.late
    told = verdict.verdicts(figures)
    figures["verdicts"] = [{"what": what, "came_out": how, "reached": good} for what, how, good in told]
    if options.json:
        print(json.dumps(figures, indent=1))
    else:
        print(f"\n{verdict.table(figures)}\n")
        for what, how, good in told:
            print(f"{'REACHED' if good else 'MISS':8} {what}: {how}")
        if callers.late:
            print(f"{callers.late} calls started over 100 ms late: this machine is too slow for that load")
    return 0 if all(good for _, _, good in told) else 1


def main() -> int:
    options = _arguments()
    stop_on_signals()
    try:
        with Children(grace_s=25.0) as children:
            return run(options, children)
    except BenchError as error:
        print(f"spike: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nspike: stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
