"""Runs the mesh: `make run`, or `python -m bench.mesh [--seconds N] [--agents N] [--trace FILE --speed N] [--json]`.

Always holds: the exit code is 0 only if every call succeeded with the reply it must have; 1 if one did not or a
process died; 130 after Ctrl-C. Every process is stopped on every way out.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvloop

from bench.agents.behaviour import Behaviour
from bench.mesh import fleet, plan, report, trace
from bench.mesh.load import Callers
from bench.mesh.outage import Outage
from bench.mesh.plan import PlannedCall
from bench.process import BenchError, Children, python_environment, stop_on_signals

_TICK_S = 0.25
_PLAIN_TICK_S = 5.0  # between progress lines where the output is no terminal
_COUNTED_S = 5.0  # for the last spans to reach the control plane
_RESENT_S = 60.0  # for batches that wait for their next try after an outage


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--agents", type=int, default=3, help="agents, and with each a caller with its sidecar")
    parser.add_argument("--instances", type=int, default=2, help="of each agent")
    parser.add_argument("--rate", type=float, default=60.0, help="calls per second over all callers")
    parser.add_argument("--calls", type=int, default=0, help="stop after this many calls; 0: only --seconds counts")
    parser.add_argument("--failure-rate", type=float, default=0.01, help="of each agent instance; the sidecar retries")
    parser.add_argument("--timeout-s", type=float, default=30.0, help="deadline of every call")
    parser.add_argument("--trace", type=Path, default=None, help="Azure CSV or Mooncake JSONL, .gz too")
    parser.add_argument(
        "--speed", type=float, default=1.0, help="shortens the trace's gaps and the agents' times alike"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--outage", action="store_true", help="kill the control plane in the middle, and start it again"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON only")
    options = parser.parse_args()
    for name, least in (("seconds", 0.1), ("agents", 1), ("instances", 1), ("rate", 0.1), ("speed", 0.01)):
        if getattr(options, name) < least:
            parser.error(f"--{name} must be at least {least}")
    return options


def _plan(options: argparse.Namespace) -> Iterator[PlannedCall]:
    agents = fleet.agent_names(options.agents)
    if options.trace is None:
        return plan.made_up(agents, options.rate, options.seconds, options.seed, options.calls)
    arrivals = trace.read(options.trace, options.speed, options.seconds, options.calls)
    return plan.traced(arrivals, agents, options.seed)


def _say(options: argparse.Namespace, text: str) -> None:
    print(text, file=sys.stderr if options.json else sys.stdout, flush=True)


async def _show_progress(options: argparse.Namespace, callers: Callers) -> None:
    """A live line on a terminal, a line every few seconds elsewhere."""
    output = sys.stderr if options.json else sys.stdout
    live = output.isatty()
    begun_at = time.monotonic()
    while True:
        await asyncio.sleep(_TICK_S if live else _PLAIN_TICK_S)
        outcomes = callers.progress.outcomes
        failed = sum(not outcome.ok for outcome in outcomes)
        recent = [outcome.total_ms for outcome in outcomes[-200:] if outcome.ok]
        rate = report.hit_rate(outcomes)
        line = (
            f"{time.monotonic() - begun_at:5.1f} s  {len(outcomes)} calls, {callers.progress.in_flight} in flight,"
            f" {failed} failed, P50 {report.percentile(recent, 0.5) or 0:.0f} ms,"
            f" hits {'-' if rate is None else f'{100 * rate:.0f} %'}"
        )
        output.write(f"\r{line:<78}" if live else f"{line}\n")
        output.flush()


async def _load(options: argparse.Namespace, running: fleet.Fleet, behaviour: Behaviour) -> tuple[Callers, float]:
    callers = Callers(running.sidecar_ports, behaviour, options.timeout_s)
    progress = asyncio.create_task(_show_progress(options, callers))
    begun_at = time.monotonic()
    try:
        await callers.run(_plan(options))
        return callers, time.monotonic() - begun_at
    finally:
        progress.cancel()
        await callers.close()
        if (sys.stderr if options.json else sys.stdout).isatty():
            _say(options, "")


def _overview(running: fleet.Fleet, *options: str) -> str:
    """What the operator's own command says."""
    command = [sys.executable, "-m", "outrider.cli", "overview", "--control", running.control_address, *options]
    done = subprocess.run(command, env=python_environment(), capture_output=True, text=True, timeout=30, check=False)
    if done.returncode:
        raise BenchError(f"outrider overview failed: {done.stderr.strip()}")
    return done.stdout


def _counted(running: fleet.Fleet, wanted: int, wait_s: float) -> dict[str, Any]:
    """The control plane's overview, once it has counted all calls or a few seconds have passed."""
    give_up_at = time.monotonic() + wait_s
    while True:
        overview: dict[str, Any] = json.loads(_overview(running, "--json"))
        counted = sum(agent["requests"] for agent in overview["agents"])
        if counted >= wanted or time.monotonic() > give_up_at:
            return overview
        time.sleep(0.2)


def run(options: argparse.Namespace, children: Children) -> int:
    speed = options.speed if options.trace is not None else 1.0
    behaviour = Behaviour(failure_rate=options.failure_rate, speed=speed, concurrency=64)
    begun_at = time.monotonic()
    running = fleet.start(children, options.agents, options.instances, behaviour, options.seed)
    shown = list(running.agents)[:8]
    more = f" and {len(running.agents) - len(shown)} more" if len(running.agents) > len(shown) else ""
    _say(options, f"control:  {running.control_address}, while this runs: outrider --help")
    _say(options, f"agents:   {', '.join(shown)}{more}, {options.instances} instances each, registered by themselves")
    _say(options, f"sidecars: one beside each caller, ports {', '.join(map(str, running.sidecar_ports[:8]))}{more}")
    source = f"{options.trace} at {options.speed:g} x" if options.trace else f"{options.rate:g} calls/s, half repeated"
    _say(options, f"started in {time.monotonic() - begun_at:.1f} s; load for {options.seconds:g} s: {source}")
    outage = Outage(children, running, options.seconds / 3) if options.outage else None
    if outage is not None:
        outage.start()
    callers, elapsed_s = uvloop.run(_load(options, running, behaviour))
    back_s = outage.ended() if outage is not None else None
    for child in (running.control, *running.sidecars):
        if child is not None:
            child.check()
    outcomes = callers.progress.outcomes
    if not outcomes:
        raise BenchError("no call was made: the trace has no arrival in the time given (--seconds, --speed)")
    figures = report.summary(outcomes, running.instances, elapsed_s)
    figures["late_starts"] = callers.progress.late
    figures["overview"] = _counted(running, len(outcomes), _COUNTED_S if outage is None else _RESENT_S)
    if back_s is not None:
        figures["back_s"] = back_s
        _say(options, f"the control plane was killed; all sidecars watched it {back_s:.2f} s after its return")
    if options.json:
        print(json.dumps(figures, indent=1))
    else:
        print(f"\nwhat the callers saw:\n{report.table(figures)}")
        print(f"\nwhat the control plane saw (outrider overview):\n{_overview(running)}")
        if callers.progress.late:
            print(f"{callers.progress.late} calls started over 100 ms late: this machine is too slow for that load")
    return 0 if figures["all"]["ok"] == figures["all"]["calls"] else 1


def main() -> int:
    options = _arguments()
    stop_on_signals()
    try:
        with Children(grace_s=4.0) as children:
            return run(options, children)
    except BenchError as error:
        print(f"mesh: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nmesh: stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
