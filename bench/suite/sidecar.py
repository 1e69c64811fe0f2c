"""Our sidecar as a target: its configuration, written for the run, and its start.

Always holds: default features are on - spans to an OTLP collector, metrics, deadlines, outlier detection, retries,
the cache with ghosts - and nothing is switched off for the bench.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from bench.process import Child, Children, wait_ready

CACHED_METHOD = "/bench.Echo/Unary"
PLAIN_METHOD = "/bench.Echo/Plain"  # not among the cacheable methods
STREAM_METHOD = "/bench.Echo/Stream"


@dataclass(frozen=True, slots=True)
class Sidecar:
    child: Child
    port: int
    admin_port: int
    ready_s: float

    @property
    def pid(self) -> int:
        return self.child.pid

    def admin(self, path: str) -> str:
        return f"http://127.0.0.1:{self.admin_port}{path}"


def available() -> bool:
    try:
        return importlib.util.find_spec("outrider_sidecar.app") is not None
    except ModuleNotFoundError:
        return False


def configuration(
    agent_id: str,
    endpoints: Sequence[str],
    ports_file: str,
    otlp_port: int | None,
    optimization: dict[str, object],
) -> dict[str, object]:
    """The sidecar's file (YAML reads JSON) for one agent on ports of the system's choice."""
    agent = {"agent_id": agent_id, "endpoints": list(endpoints), "optimization": optimization}
    settings: dict[str, object] = {
        "listen": "127.0.0.1:0",
        "admin": "127.0.0.1:0",
        "ports_file": ports_file,
        "default_agent": agent_id,
        "agents": [agent],
    }
    if otlp_port is not None:
        settings["telemetry"] = {"otlp": f"127.0.0.1:{otlp_port}"}
    return settings


def start(
    children: Children,
    name: str,
    backend_port: int,
    core: int | None,
    otlp_port: int | None = None,
    cache_bytes: int = 8 * 1024 * 1024,
    profile: Sequence[str] = (),
) -> Sidecar:
    """Start a sidecar before `backend_port` with a cache of `cache_bytes`; ready when this returns."""
    ports_file = children.directory / f"{name}.ports.json"
    file = children.directory / f"{name}.yaml"
    optimization = {"cache_enabled": True, "cache_methods": [CACHED_METHOD], "cache_max_bytes": cache_bytes}
    settings = configuration("echo", [f"127.0.0.1:{backend_port}"], str(ports_file), otlp_port, optimization)
    file.write_text(json.dumps(settings, indent=1), encoding="utf-8")
    command = [sys.executable, *profile, "-m", "outrider_sidecar", "--config", str(file)]
    child = children.start(name, command, core)
    ports = children.ports(child, ports_file)
    ready_s = wait_ready(child, f"http://127.0.0.1:{ports['admin']}/readyz")
    return Sidecar(child, ports["egress"], ports["admin"], ready_s)
