"""A control plane that runs agents as processes of this machine, looked at and called from outside.

Always holds: agents are `tests.grpc_peer` processes that register by themselves and do what each call says; whatever
was started is gone when the fleet closes, and what had to be killed by then is a failure.

Deliberately not here: engines and loops in process (`tests.local_engine`, `tests.scaling`); what a test expects.
"""

from __future__ import annotations

import contextlib
import json
import signal
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

from bench.process import ROOT, python_environment
from outrider.operator import Operator
from outrider.v1 import operator_pb2
from tests.controls import Control, holds
from tests.grpc_peer import CONTROL
from tests.local_engine import MARK, Yard
from tests.sidecars import WAIT_S, Calls, Mesh, Sidecar, channel_to, code_of, eventually

# Quick decisions: what was is soon forgotten, and nothing but the data is waited for on the way down.
QUICK = {"cooldown_s": 0, "stable_window_s": 2, "panic_window_s": 1}
INTERVAL_MS = 200
_AGENT_ID = "OUTRIDER_AGENT_ID"  # of an instance, in its environment
_END_S = 30.0
_UNLESS_BROKEN = 'if test -e "$0"; then echo "no model to load"; exit 3; fi; exec "$@"'


class Fleet:
    """One control plane with its local engine, and its agents' instances.

    `agents`: ids, with how many calls at once one instance does; or with another program's section of the engine.
    """

    def __init__(self, mesh: Mesh, folder: Path, **agents: int | dict[str, Any]):
        self.yard = Yard(folder)
        sections = {agent_id: self._section(agent_id, told) for agent_id, told in agents.items()}
        local = {"kind": "local", "agents": sections, "state_dir": str(folder / "state"), "stop_on_exit": True}
        scaling = {"interval_ms": INTERVAL_MS, "drain_s": 60, "engines": {"local": local}}
        self.control = Control(mesh, "fleet", scaling=scaling)

    def _section(self, agent_id: str, told: int | dict[str, Any]) -> dict[str, Any]:
        env = {MARK: self.yard.mark, "PYTHONPATH": python_environment()["PYTHONPATH"]}
        common = {"cwd": str(ROOT), "drain_s": 10}
        if not isinstance(told, int):
            return {**common, **told, "env": {**env, **told.get("env", {})}}
        command = ["sh", "-c", _UNLESS_BROKEN, str(self._broken(agent_id))]
        command += ["{python}", "-m", "tests.grpc_peer", "--name={name}", "--ports-file={ports_file}"]
        command += ["--agent={agent_id}", "--control={control}", "--capacity={capacity}"]
        return {**common, "command": command, "capacity": told, "env": env}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """The control plane ends what it runs; what outlives it is ended by pid."""
        try:
            process = self.control.child.process
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait(_END_S)
        finally:
            left = self.yard.end_all()
        assert not left, f"the control plane has left {left} running:\n{self.control.child.log_tail()}"

    # -- the operator ----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def operator(self) -> Iterator[Operator]:
        with Operator(self.control.target) as operator:
            yield operator

    def apply(self, agent_id: str, policy: Mapping[str, Any] = MappingProxyType({}), **scaling: Any) -> None:
        """An agent with this scaling, and what else its policy says."""
        with self.operator() as operator:
            operator.apply_agents([{"agent_id": agent_id, "scaling": {**QUICK, **scaling}, **policy}], "test")

    def explain(self, agent_id: str) -> operator_pb2.ExplainScaleReply:
        with self.operator() as operator:
            return operator.explain_scale(agent_id)

    def scale(self, agent_id: str) -> operator_pb2.ScaleRecord:
        return self.explain(agent_id).scale

    def warnings(self) -> list[str]:
        with self.operator() as operator:
            return list(operator.get_status().warnings)

    def come_to(self, agent_id: str, ready: int, wait_s: float = 2 * WAIT_S) -> operator_pb2.ScaleRecord:
        """Wait until so many serve, none comes and none goes; starting them takes a busy machine a while."""
        seen: list[operator_pb2.ScaleRecord] = []

        def there() -> bool:
            seen[:] = [self.scale(agent_id)]
            one = seen[0]
            return (one.ready, one.starting, one.draining, one.desired) == (ready, 0, 0, ready)

        try:
            eventually(there, f"{ready} instances of {agent_id} serve", wait_s)
        except AssertionError as error:
            raise AssertionError(f"{error}; now:\n{seen}\n{self.control.child.log_tail()}") from None
        return seen[0]

    def changes(self, agent_id: str) -> list[dict[str, Any]]:
        """What the journal holds of changed numbers, oldest first, as the operator's CLI gives it."""
        told = self.control.json("decisions", "--kind", "scale", "--agent", agent_id)["decisions"]
        return [one for one in reversed(told) if one["outcome"]["action"] in ("up", "down")]

    # -- instances -------------------------------------------------------------------------------------------------

    def pids(self, agent_id: str) -> dict[str, int]:
        """By the names that the engine has written down."""
        return {name: one["pid"] for name, one in self.yard.state().items() if one["agent_id"] == agent_id}

    def addresses(self, agent_id: str) -> dict[str, str]:
        return {one.name: one.address for one in self.explain(agent_id).instances}

    def running(self, agent_id: str) -> set[int]:
        """Pids of all processes of an agent, whoever knows of them."""
        found = set()
        for pid in self.yard.running():
            with contextlib.suppress(OSError):
                if f"{_AGENT_ID}={agent_id}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                    found.add(pid)
        return found

    def _broken(self, agent_id: str) -> Path:
        return self.yard.folder / f"{agent_id}.broken"

    def break_program(self, agent_id: str) -> None:
        """From here on instances die at their start."""
        self._broken(agent_id).touch()

    def mend_program(self, agent_id: str) -> None:
        self._broken(agent_id).unlink()

    # -- calls -----------------------------------------------------------------------------------------------------

    def _ask(self, name: str, op: str, **asked: Any) -> Any:
        """An instance does this, as `tests.sidecars.Peer.control`."""
        file = self.yard.folder / "state" / "ports" / f"{name}.json"
        port = json.loads(file.read_text(encoding="utf-8"))["control"]
        with channel_to(f"127.0.0.1:{port}") as channel:
            return json.loads(channel.unary_unary(CONTROL)(json.dumps({"op": op, **asked}).encode(), timeout=WAIT_S))

    def held(self, agent_id: str) -> dict[str, list[str]]:
        """Keys of the calls that run, by instance."""
        return {
            name: [one["key"] for one in self._ask(name, "records") if one["outcome"] == "running" and one["key"]]
            for name in self.pids(agent_id)
        }

    def release(self, name: str, *keys: str) -> None:
        """Calls that are held at an instance end, and those of these keys that come to it."""
        for key in keys:
            self._ask(name, "release", key=key)


class Holding:
    """Calls to one agent through a sidecar that are held until they are let go. All must succeed."""

    def __init__(self, fleet: Fleet, sidecar: Sidecar, agent_id: str, prefix: str):
        self.calls: dict[str, Any] = {}
        self._fleet = fleet
        self._agent_id = agent_id
        self._prefix = prefix
        self._channel = channel_to(sidecar.target)
        self._to = Calls(self._channel, [("x-agent-id", agent_id)], 90)
        eventually(lambda: holds(sidecar, agent_id), f"{agent_id} reaches the sidecar")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._channel.close()

    def start(self, count: int) -> None:
        for _ in range(count):
            key = f"{self._prefix}-{len(self.calls)}"
            self.calls[key] = self._to.start("Unary", key.encode(), key=key, hold=True)

    def all_run(self) -> dict[str, list[str]]:
        """Keys by instance, once no call waits any more."""
        return eventually(self._all, f"all {len(self._left)} calls to {self._agent_id} run", 2 * WAIT_S)

    @property
    def _left(self) -> list[str]:
        return [key for key, call in self.calls.items() if not call.done()]

    def _all(self) -> dict[str, list[str]] | None:
        held = self._fleet.held(self._agent_id)
        return held if sorted(key for keys in held.values() for key in keys) == sorted(self._left) else None

    def end(self, name: str, *keys: str) -> None:
        """Calls at an instance are answered, each with its own reply."""
        self._fleet.release(name, *keys)
        for key in keys:
            assert self.calls[key].result() == key.encode()

    def end_all(self) -> None:
        for name, keys in self.all_run().items():
            self.end(name, *keys)
        assert all(call.done() for call in self.calls.values())


class Trickle:
    """One call after the other to an agent, until the block ends."""

    def __init__(self, sidecar: Sidecar, agent_id: str):
        self.passed = 0
        self.failed: list[str] = []
        self._sidecar = sidecar
        self._agent_id = agent_id
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"trickle to {agent_id}")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopped.set()
        self._thread.join()

    def goes_on(self) -> None:
        """Wait until some more calls that begin from here on have succeeded; none may have failed."""
        until = self.passed + 5
        eventually(lambda: self.passed >= until or self.failed, f"calls to {self._agent_id} succeed")
        assert self.failed == []

    def _run(self) -> None:
        with channel_to(self._sidecar.target) as channel:
            calls = Calls(channel, [("x-agent-id", self._agent_id)])
            while not self._stopped.wait(0.02):
                call = calls.unary(b"x")
                if call.exception() is None:
                    self.passed += 1
                else:
                    self.failed.append(f"{code_of(call)}: {call.details()}")
