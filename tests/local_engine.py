"""Local engines for tests, whose agents are `tests.local_agent` processes; nothing of them is left behind.

Always holds: every process that an engine of a `Yard` starts, and what those start, carries the yard's mark in its
environment; after the test those that still run are ended, and that is a failure unless the test wanted it.

`python -m tests.local_engine FOLDER COUNT` runs an engine until it is killed.

Deliberately not here: what a test expects of an engine.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import secrets
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import uvloop

from outrider_control.engines.local import LocalEngine, settings
from outrider_control.loops.scale.types import READY, EngineError, Instance

AGENT = Path(__file__).with_name("local_agent.py")
MARK = "YARD_MARK"
WAIT_S = 15.0


def clock_ms() -> int:
    return time.time_ns() // 1_000_000


class Yard:
    """A folder, and engines over it."""

    def __init__(self, folder: Path, mark: str = ""):
        self.folder = folder
        self.mark = mark or secrets.token_hex(8)
        self.control = "127.0.0.1:7700"
        self.registered: set[str] = set()  # addresses
        self._engines: list[LocalEngine] = []
        self.die = folder / "die"  # agents die at their start while this file is there

    def agent(self, *arguments: str, **fields: Any) -> dict[str, Any]:
        """The section of an agent whose program gets these arguments."""
        command = ["{python}", "-I", "-S", str(AGENT), "--port", "{port}", "--die-if", str(self.die), *arguments]
        env = {MARK: self.mark, **fields.pop("env", {})}
        return {"command": command, "env": env, "ready": "port", "drain_s": 5, **fields}

    def engine(self, tax: dict[str, Any] | None = None, first_s: float = 0.05, **fields: Any) -> LocalEngine:
        agents = {"tax": tax if tax is not None else self.agent(), **fields.pop("agents", {})}
        data = {"kind": "local", "agents": agents, "state_dir": "state", "booting": 4, **fields}
        read = settings(data, "scaling.engines.local", self.folder)

        def endpoints(agent_id: str) -> Sequence[Instance]:
            return [Instance(address, address, READY) for address in self.registered]

        engine = LocalEngine("local", read, clock_ms, endpoints, lambda: self.control, random.Random(1), first_s)
        self._engines.append(engine)
        return engine

    async def close(self) -> None:
        """Engines that a test which failed has left."""
        for engine in self._engines:
            await engine.close()

    @property
    def state_file(self) -> Path:
        return self.folder / "state" / "instances.json"

    def state(self) -> dict[str, dict[str, Any]]:
        """What is on disk, by name."""
        return {one["name"]: one for one in json.loads(self.state_file.read_text(encoding="utf-8"))["instances"]}

    def log(self, name: str) -> str:
        return (self.folder / "state" / "logs" / f"{name}.log").read_text(encoding="utf-8")

    def started_with(self, name: str) -> dict[str, Any]:
        """What a program was started with, as it says."""
        return json.loads(self.log(name).splitlines()[0])

    def running(self) -> set[int]:
        """Pids of all that run with this yard's mark."""
        found = set()
        for entry in Path("/proc").iterdir():
            try:
                is_ours = f"{MARK}={self.mark}".encode() in (entry / "environ").read_bytes().split(b"\0")
                if is_ours and not is_zombie(int(entry.name)):
                    found.add(int(entry.name))
            except (OSError, ValueError):
                continue
        return found

    def end_all(self) -> set[int]:
        """Whatever was left; which it was."""
        left = self.running()
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        give_up_at = time.monotonic() + WAIT_S
        while self.running() and time.monotonic() < give_up_at:
            time.sleep(0.01)
        return left


def is_zombie(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] in (b"Z", b"X")


async def eventually(holds: Callable[[], Any], what: str) -> Any:
    """Waits until it holds; what it gave then."""
    give_up_at = time.monotonic() + WAIT_S
    while not (found := holds()):
        assert time.monotonic() < give_up_at, f"{what}: not within {WAIT_S:g} s"
        await asyncio.sleep(0.01)
    return found


async def come_to(engine: LocalEngine, holds: Callable[[list[Instance]], Any], agent_id: str = "tax") -> Any:
    """Waits until it holds of the instances; the instances then."""
    give_up_at = time.monotonic() + WAIT_S
    while not holds(found := list(await engine.instances(agent_id))):
        assert time.monotonic() < give_up_at, f"not within {WAIT_S:g} s; now: {found}"
        await asyncio.sleep(0.01)
    return found


async def serving(engine: LocalEngine, count: int, agent_id: str = "tax") -> list[Instance]:
    """Asks for so many and waits until they are ready, and no others are left."""
    try:
        await engine.grow(agent_id, count)
    except EngineError:
        pass
    return list(await come_to(engine, lambda found: states(found) == [READY] * count, agent_id))


def states(instances: Sequence[Instance]) -> list[str]:
    return [one.state for one in instances]


async def run_until_killed(folder: Path, mark: str, count: int) -> None:
    engine = Yard(folder, mark).engine()
    await engine.start()
    await serving(engine, count)
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(run_until_killed(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
