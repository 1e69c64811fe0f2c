"""The real control plane program as a child process, for black-box tests, and the operator's own CLI against it.

Always holds: what is started belongs to a `tests.sidecars.Mesh` and is gone when that closes; a control plane that is
started again gets the address it had, so that sidecars find it.

Deliberately not here: what a test expects of a control plane.
"""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import yaml

from bench.process import ROOT, Child, python_environment
from tests.sidecars import WAIT_S, Mesh, Sidecar, eventually

PRICES = {"simulated": {"input_usd_per_mtok": 3.0, "output_usd_per_mtok": 15.0}}


class Control:
    """One `outrider-control` process. `config` may be changed before `start` is called again."""

    def __init__(self, mesh: Mesh, name: str = "control", environment: Mapping[str, str] | None = None, **config: Any):
        self._mesh = mesh
        self.name = name
        self.folder = mesh.children.directory / name
        self.folder.mkdir(exist_ok=True)
        self.file = self.folder / "control.yaml"
        self.config = {
            "grpc": "127.0.0.1:0",
            "http": "127.0.0.1:0",
            "ports_file": "ports.json",
            "prices": PRICES,
            **config,
        }
        self._environment = environment
        self.child: Child
        self.ports: dict[str, int] = {}
        self.start()

    def write(self) -> None:
        self.file.write_text(yaml.safe_dump(self.config), encoding="utf-8")

    def launch(self) -> Child:
        """Start the program; it may well end at once."""
        self.write()
        command = [sys.executable, "-m", "outrider_control", "--config", str(self.file)]
        name = f"{self.name}-{len(list(self.folder.parent.glob(f'{self.name}-*.log')))}"
        self.child = self._mesh.children.start(name, command, environment=self._environment)
        return self.child

    def start(self) -> None:
        """Start the program, on the ports it had before if there were any, and wait until it is ready."""
        ports_file = self.folder / "ports.json"
        ports_file.unlink(missing_ok=True)
        if self.ports:
            self.config |= {name: f"127.0.0.1:{self.ports[name]}" for name in ("grpc", "http")}
        self.launch()
        self.ports = self._mesh.children.ports(self.child, ports_file, WAIT_S)
        eventually(lambda: self.get("/readyz")[0] == 200, f"{self.name} is ready")

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.ports['grpc']}"

    def get(self, path: str) -> tuple[int, bytes]:
        link = http.client.HTTPConnection("127.0.0.1", self.ports["http"], timeout=WAIT_S)
        try:
            link.request("GET", path)
            reply = link.getresponse()
            return reply.status, reply.read()
        except OSError:
            self.child.check()
            return 0, b""
        finally:
            link.close()

    def kill(self) -> None:
        """As the kernel does it when memory is out."""
        self.child.signal_group(signal.SIGKILL)
        self.child.process.wait(WAIT_S)

    def stop(self) -> int:
        return self._mesh.children.stop(self.child)

    def log(self) -> str:
        return self.child.log.read_text(encoding="utf-8", errors="replace")

    # -- the operator ----------------------------------------------------------------------------------------------

    def cli(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """`outrider ...` against this control plane."""
        return cli(*arguments, control=self.target, stdin=stdin)

    def json(self, *arguments: str, stdin: str = "") -> Any:
        """What a command says with --json; it must end well."""
        done = self.cli(*arguments, "--json", stdin=stdin)
        assert done.returncode == 0, (arguments, done.stdout, done.stderr)
        return json.loads(done.stdout)

    def apply(self, *agents: Mapping[str, Any], reason: str = "test") -> Any:
        """Put agents in force by `outrider agents apply`."""
        return self.json(
            "agents",
            "apply",
            "-f",
            "-",
            "--reason",
            reason,
            stdin=yaml.safe_dump({"agents": [dict(a) for a in agents]}),
        )

    def requests(self, agent_id: str = "") -> int:
        """Calls the overview counts, of one agent or all."""
        agents = self.json("overview", "--since", "1h")["agents"]
        return sum(agent["requests"] for agent in agents if agent_id in ("", agent["agent_id"]))


def cli(*arguments: str, control: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """`outrider ...` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "outrider.cli", *arguments, "--control", control],
        env=python_environment({"COLUMNS": "100"}),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=ROOT,
    )


def watching(sidecar: Sidecar) -> bool:
    """Whether a sidecar's watch stream is open."""
    return sidecar.metric("outrider_control_connected") == 1


def holds(sidecar: Sidecar, agent_id: str) -> bool:
    """Whether a sidecar knows an agent."""
    return any(agent["agent_id"] == agent_id for agent in sidecar.json("/agents")["agents"])
