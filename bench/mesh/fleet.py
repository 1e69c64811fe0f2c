"""The processes of the mesh: agents, a span collector, a sidecar per caller.

Always holds: every port is the system's choice; nothing is started twice; all of it belongs to one `Children`.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field

from bench.agents.behaviour import Behaviour
from bench.process import BenchError, Child, Children, wait_ready
from bench.suite import sidecar

NAMES = ("tax", "revenue", "audit", "legal", "payroll", "treasury", "claims", "support")
RAW_METHODS = ("/bench.Echo/Unary",)


@dataclass(slots=True)
class Fleet:
    agents: dict[str, list[str]] = field(default_factory=dict)  # addresses by agent id
    instances: dict[str, str] = field(default_factory=dict)  # "tax-1" by address
    sidecar_ports: list[int] = field(default_factory=list)  # one per caller
    admin_ports: list[int] = field(default_factory=list)
    sidecars: list[Child] = field(default_factory=list)
    sink_port: int = 0


def agent_names(count: int) -> list[str]:
    return [NAMES[i] if i < len(NAMES) else f"agent-{i + 1}" for i in range(count)]


def start(children: Children, agents: int, instances: int, behaviour: Behaviour, seed: int) -> Fleet:
    """Start everything and wait until each sidecar is ready. Instances differ in speed: the last one is the slowest."""
    if not sidecar.available():
        raise BenchError("outrider_sidecar is not importable: install the project (`pip install -e .[dev]`)")
    fleet = Fleet()
    pending: list[tuple[str, str, Child]] = []
    for agent_id in agent_names(agents):
        for number in range(1, instances + 1):
            name = f"{agent_id}-{number}"
            pending.append((agent_id, name, _start_agent(children, name, number, behaviour, seed + len(pending))))
    sink = children.start("sink", _module("bench.otlp_sink", children, "sink"))
    for agent_id, name, child in pending:
        address = f"127.0.0.1:{children.ports(child, _ports_file(children, name))['port']}"
        fleet.agents.setdefault(agent_id, []).append(address)
        fleet.instances[address] = name
    fleet.sink_port = children.ports(sink, _ports_file(children, "sink"))["port"]
    _start_sidecars(children, fleet)
    return fleet


def _ports_file(children: Children, name: str):
    return children.directory / f"{name}.ports.json"


def _module(module: str, children: Children, name: str) -> list[str]:
    return [sys.executable, "-m", module, "--ports-file", str(_ports_file(children, name))]


def _start_agent(children: Children, name: str, number: int, behaviour: Behaviour, seed: int) -> Child:
    slower = 1 + 0.5 * (number - 1)
    knobs = {
        "first-token-ms": behaviour.first_token_ms * slower,
        "sigma": behaviour.sigma,
        "tokens-per-s": behaviour.tokens_per_s / slower,
        "reply-tokens": behaviour.reply_tokens,
        "chunk-tokens": behaviour.chunk_tokens,
        "failure-rate": behaviour.failure_rate,
        "concurrency": behaviour.concurrency,
        "speed": behaviour.speed,
    }
    command = _module("bench.agents", children, name)
    command += ["--name", name, f"--seed={seed}", *(f"--{knob}={value}" for knob, value in knobs.items())]
    return children.start(name, command)


def _start_sidecars(children: Children, fleet: Fleet) -> None:
    optimization = {"cache_enabled": True, "cache_methods": list(RAW_METHODS), "cache_max_bytes": 16 * 1024 * 1024}
    agents = [
        {"agent_id": agent_id, "endpoints": addresses, "optimization": optimization}
        for agent_id, addresses in fleet.agents.items()
    ]
    started: list[tuple[str, Child]] = []
    for caller in fleet.agents:
        name = f"sidecar-{caller}"
        settings = sidecar.configuration(
            caller, fleet.agents[caller], str(_ports_file(children, name)), fleet.sink_port, {}
        )
        settings["agents"] = agents
        file = children.directory / f"{name}.yaml"
        file.write_text(json.dumps(settings, indent=1), encoding="utf-8")
        child = children.start(name, [sys.executable, "-m", "outrider_sidecar", "--config", str(file)])
        started.append((name, child))
    for name, child in started:
        ports = children.ports(child, _ports_file(children, name))
        wait_ready(child, f"http://127.0.0.1:{ports['admin']}/readyz")
        fleet.sidecar_ports.append(ports["egress"])
        fleet.admin_ports.append(ports["admin"])
        fleet.sidecars.append(child)
