"""The processes of the mesh: a control plane, agents that register with it, a sidecar per caller.

Always holds: every port is the system's choice; nothing is started twice; all of it belongs to one `Children`. The
sidecars are told nothing but where the control plane is: policy and endpoints come from there.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from bench.agents.behaviour import Behaviour
from bench.process import BenchError, Child, Children, wait_ready
from bench.suite import sidecar
from outrider.operator import Operator

NAMES = ("tax", "revenue", "audit", "legal", "payroll", "treasury", "claims", "support")
RAW_METHODS = ("/bench.Echo/Unary",)
HOSTS = 8  # processes that agents' instances share, at most
CACHE_BYTES = 16 * 1024 * 1024
_REGISTERED_S = 20.0  # how long agents may take to register
_PRICE = {"input_usd_per_mtok": 3.0, "output_usd_per_mtok": 15.0}  # of the simulated agents' model


@dataclass(slots=True)
class Fleet:
    agents: dict[str, list[str]] = field(default_factory=dict)  # addresses by agent id
    instances: dict[str, str] = field(default_factory=dict)  # "tax-1" by address
    sidecar_ports: list[int] = field(default_factory=list)  # one per caller
    admin_ports: list[int] = field(default_factory=list)
    sidecars: list[Child] = field(default_factory=list)
    control: Child | None = None
    control_address: str = ""


def agent_names(count: int) -> list[str]:
    return [NAMES[i] if i < len(NAMES) else f"agent-{i + 1}" for i in range(count)]


def start(children: Children, agents: int, instances: int, behaviour: Behaviour, seed: int) -> Fleet:
    """Start everything and wait until each sidecar is ready. Instances differ in speed: the last one is the slowest."""
    if not sidecar.available():
        raise BenchError("outrider_sidecar is not importable: install the project (`pip install -e .[dev]`)")
    fleet = Fleet()
    _start_control(children, fleet, agent_names(agents))
    _start_agents(children, fleet, agent_names(agents), instances, behaviour, seed)
    _wait_registered(fleet, agents * instances)
    _start_sidecars(children, fleet)
    return fleet


def _ports_file(children: Children, name: str) -> Path:
    return children.directory / f"{name}.ports.json"


def _start_control(children: Children, fleet: Fleet, names: list[str]) -> None:
    optimization = {"cache_enabled": True, "cache_methods": list(RAW_METHODS), "cache_max_bytes": CACHE_BYTES}
    agents_file = children.directory / "agents.yaml"
    agents = [{"agent_id": name, "optimization": optimization} for name in names]
    agents_file.write_text(json.dumps({"agents": agents}, indent=1), encoding="utf-8")
    settings = {
        "grpc": "127.0.0.1:0",
        "http": "127.0.0.1:0",
        "database": "sqlite:///outrider.db",
        "agents_file": str(agents_file),
        "ports_file": str(_ports_file(children, "control")),
        "prices": {"simulated": _PRICE},
    }
    file = children.directory / "control.yaml"
    file.write_text(json.dumps(settings, indent=1), encoding="utf-8")
    _launch_control(children, fleet, "control", file)


def _launch_control(children: Children, fleet: Fleet, name: str, file: Path) -> None:
    child = children.start(name, [sys.executable, "-m", "outrider_control", "--config", str(file)])
    ports = children.ports(child, _ports_file(children, "control"))
    wait_ready(child, f"http://127.0.0.1:{ports['http']}/readyz")
    fleet.control = child
    fleet.control_address = f"127.0.0.1:{ports['grpc']}"


def restart_control(children: Children, fleet: Fleet) -> None:
    """Start the control plane that was killed again, where it was; it is ready when this returns."""
    file = children.directory / "control.yaml"
    settings = json.loads(file.read_text(encoding="utf-8"))
    settings["grpc"] = fleet.control_address
    file.write_text(json.dumps(settings, indent=1), encoding="utf-8")
    _ports_file(children, "control").unlink()
    _launch_control(children, fleet, "control-again", file)


def _start_agents(
    children: Children, fleet: Fleet, names: list[str], instances: int, behaviour: Behaviour, seed: int
) -> None:
    fleet.agents = {agent_id: [] for agent_id in names}
    everyone = [(agent_id, number) for number in range(1, instances + 1) for agent_id in names]
    hosts = min(HOSTS, len(everyone))
    started: list[tuple[list[tuple[str, int]], str, Child]] = []
    for host in range(hosts):
        hosted = everyone[host::hosts]
        name = f"agents-{host + 1}"
        command = [sys.executable, "-m", "bench.agents", "--ports-file", str(_ports_file(children, name))]
        command += [f"--control={fleet.control_address}", f"--seed={seed + host * len(everyone)}"]
        for agent_id, number in hosted:
            command += [f"--name={agent_id}-{number}", f"--slower={1 + 0.5 * (number - 1)}"]
        knobs = {name: getattr(behaviour, name) for name in behaviour.__slots__}
        command += [f"--{knob.replace('_', '-')}={value}" for knob, value in knobs.items()]
        started.append((hosted, name, children.start(name, command)))
    for hosted, name, child in started:
        ports = children.ports(child, _ports_file(children, name), 60.0)
        for agent_id, number in hosted:
            instance = f"{agent_id}-{number}"
            address = f"127.0.0.1:{ports[instance] if len(hosted) > 1 else ports['port']}"
            fleet.agents[agent_id].append(address)
            fleet.instances[address] = instance


def _wait_registered(fleet: Fleet, wanted: int) -> None:
    give_up_at = time.monotonic() + _REGISTERED_S
    with Operator(fleet.control_address) as operator:
        while (known := len(operator.list_endpoints().endpoints)) < wanted:
            if time.monotonic() > give_up_at:
                raise BenchError(f"{known} of {wanted} instances registered within {_REGISTERED_S:g} s")
            time.sleep(0.05)


def _start_sidecars(children: Children, fleet: Fleet) -> None:
    started: list[tuple[str, Child]] = []
    for caller in fleet.agents:
        name = f"sidecar-{caller}"
        settings = {
            "listen": "127.0.0.1:0",
            "admin": "127.0.0.1:0",
            "ports_file": str(_ports_file(children, name)),
            "control": [fleet.control_address],
            "default_agent": caller,
        }
        file = children.directory / f"{name}.yaml"
        file.write_text(json.dumps(settings, indent=1), encoding="utf-8")
        child = children.start(name, [sys.executable, "-m", "outrider_sidecar", "--config", str(file)])
        started.append((name, child))
    for name, child in started:
        ports = children.ports(child, _ports_file(children, name), 60.0)
        wait_ready(child, f"http://127.0.0.1:{ports['admin']}/readyz")
        fleet.sidecar_ports.append(ports["egress"])
        fleet.admin_ports.append(ports["admin"])
        fleet.sidecars.append(child)
