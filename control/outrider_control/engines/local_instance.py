"""One instance's life: its turn to start, its process, being ready, being looked at, and its end.

Always holds: its process is in the ledger from before it starts until it has ended; it ends by SIGTERM, `drain_s`, and
SIGKILL to all that it has started; cancelling its task leaves its process as it is. Whoever is silent for several looks
in a row ends and is FAILED from then on, but never more than a third of an agent's instances at a time, and no look
counts for which this process itself came late.

Deliberately not here: how many instances there are, and whether another one takes its place (`local`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from outrider.address import Address
from outrider_control.engines import local_log, local_probe
from outrider_control.engines.local_ledger import Entry, Ledger
from outrider_control.engines.local_process import Process
from outrider_control.engines.local_settings import (
    HEALTH,
    INHERITED,
    REGISTERED,
    LocalAgent,
    LocalSettings,
    fill,
    python,
)
from outrider_control.loops.scale.types import DRAINING, FAILED, READY, STARTING, EngineError, Instance

TOKEN: Final = "OUTRIDER_INSTANCE_TOKEN"
_FIRST_POLL_S: Final = 0.05  # between two looks at one that starts
_MOST_POLL_S: Final = 0.5
_LOOK_S: Final = 2.0  # a look takes no longer
_LATE_S: Final = 1.0  # by how much this process may be late for a look to count
_UNREADY_DRAIN_S: Final = 5.0  # for one that has never served

_LOG = logging.getLogger("outrider.control.engines.local")


@dataclass(slots=True)
class Host:
    """What all instances of an engine share."""

    where: str  # the engine, in messages
    settings: LocalSettings
    ledger: Ledger
    clock_ms: Callable[[], int]
    endpoints: Callable[[str], Sequence[Instance]]
    control: Callable[[], str]
    boots: asyncio.Semaphore
    ports: local_probe.Ports = field(default_factory=local_probe.Ports)
    _addresses: dict[str, tuple[float, frozenset[str]]] = field(default_factory=dict)

    def registered(self, agent_id: str, address: str) -> bool:
        """Whether an endpoint of the agent is, as of just now: many instances ask."""
        now_s = asyncio.get_running_loop().time()
        known = self._addresses.get(agent_id)
        if known is None or now_s - known[0] > _FIRST_POLL_S:
            known = now_s, frozenset([one.address for one in self.endpoints(agent_id)])
            self._addresses[agent_id] = known
        return address in known[1]


class LocalInstance:
    """One of an agent's. `run` is its task."""

    def __init__(self, host: Host, agent_id: str, agent: LocalAgent, name: str, may_fail: Callable[[], bool]):
        self.name = name
        self.state = STARTING
        self.address: Address | None = None
        self.note = "waits for its turn to start"
        self.started_ms = host.clock_ms()
        self.asked_s = asyncio.get_running_loop().time()
        self.began_s = 0.0  # of the loop's clock, as all in seconds; 0: not yet
        self.ready_s = 0.0
        self.process: Process | None = None
        self._host = host
        self._agent_id = agent_id
        self._agent = agent
        self._may_fail = may_fail  # asked before one that is silent ends
        self._loop = asyncio.get_running_loop()
        self._leave: asyncio.Future[None] = self._loop.create_future()
        self._drain_s = agent.drain_s

    @classmethod
    def adopt(
        cls, host: Host, agent: LocalAgent, entry: Entry, process: Process, may_fail: Callable[[], bool]
    ) -> LocalInstance:
        """One that a control plane before has left running."""
        self = cls(host, entry.agent_id, agent, entry.name, may_fail)
        self.process = process
        self.started_ms = entry.started_ms
        self.began_s = self._loop.time()
        self.note = "" if entry.ready else "is starting"
        try:
            self.address = _address(entry.address)
            host.ports.hold(self.address.port)
        except ValueError:
            self.address = None
        if entry.ready:
            self.state = READY
            self.ready_s = self.began_s
        if entry.leaving:
            self.leave()
        return self

    @property
    def seen(self) -> Instance:
        """As the loop sees it."""
        return Instance(self.name, str(self.address or ""), self.state, self.started_ms, self.note)

    @property
    def log(self) -> Path:
        return self._host.settings.log_dir / f"{self.name}.log"

    @property
    def leaving(self) -> bool:
        """Whether it was told to."""
        return self._leave.done()

    @property
    def waits(self) -> bool:
        """Whether its turn to start has not come."""
        return self.state == STARTING and not self.began_s

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()

    def leave(self, drain_s: float | None = None) -> None:
        """It ends, as soon as it can."""
        if self.state in (STARTING, READY):
            self.state = DRAINING
        self.note = "ends"
        if drain_s is not None:
            self._drain_s = min(self._drain_s, drain_s)
        self._host.ledger.change(self.name, leaving=True)
        if not self._leave.done():
            self._leave.set_result(None)

    async def run(self) -> None:
        """Its life; returns when it has ended. FAILED then: by itself, or because it had to."""
        try:
            if self.process is None:
                async with self._host.boots:
                    await self._boot()
            else:
                await self._until_ready()
            if self.state == READY:
                await self._serve()
            await self._end()
        finally:
            self._let_go()

    # -- starting --------------------------------------------------------------------------------------------------

    async def _boot(self) -> None:
        self.began_s = self._loop.time()
        self.note = "is starting"
        if self.leaving:
            return
        token = secrets.token_hex(16)
        try:
            port = 0 if self._agent.tells_port else self._host.ports.take(self._agent.host, self._agent.ports)
            if port:
                self.address = Address(self._agent.host, port)
            entry = Entry(self.name, self._agent_id, token, self.started_ms, str(self.address or ""))
            self._host.ledger.put(entry)
            await self._host.ledger.save()
            if self.leaving:
                return
            self._prepare()
            values = self._values(port)
            words = self._agent.words(values)
            env = self._environment(values, port, token)
            self.process = Process.spawn(words, env, self._agent.cwd, self.log)
        except (OSError, ValueError, EngineError) as error:
            self._fail(f"cannot be started: {error}")
            return
        self._host.ledger.change(self.name, pid=self.process.pid, start=self.process.start)
        await self._saved()
        await self._until_ready()

    def _prepare(self) -> None:
        local_log.begin(self.log)
        self._ports_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._ports_file.unlink(missing_ok=True)

    @property
    def _ports_file(self) -> Path:
        return self._host.settings.state_dir / "ports" / f"{self.name}.json"

    def _values(self, port: int) -> dict[str, str]:
        return {
            "port": str(port),
            "name": self.name,
            "agent_id": self._agent_id,
            "control": self._host.control(),
            "ports_file": str(self._ports_file.absolute()),
            "capacity": str(self._agent.capacity),
            "python": python(),
        }

    def _environment(self, values: dict[str, str], port: int, token: str) -> dict[str, str]:
        known = (*INHERITED, *self._agent.inherit)
        env = {name: os.environ[name] for name in known if name in os.environ}
        env |= {name: fill(text, values) for name, text in self._agent.env.items()}
        env |= {
            "OUTRIDER_AGENT_ID": self._agent_id,
            "OUTRIDER_INSTANCE": self.name,
            "OUTRIDER_CONTROL": values["control"],
            TOKEN: token,
        }
        if port:
            env["OUTRIDER_PORT"] = str(port)
        if self._agent.has_ports_file:
            env["OUTRIDER_PORTS_FILE"] = values["ports_file"]
        if self._agent.capacity:
            env["OUTRIDER_CAPACITY"] = str(self._agent.capacity)
        return env

    async def _until_ready(self) -> None:
        """READY, or it died, is to leave, or took too long."""
        give_up_s = self._loop.time() + self._agent.start_s
        poll_s = _FIRST_POLL_S
        wrong = ""
        while self.state == STARTING and not await self._ends_within(poll_s):
            poll_s = min(poll_s * 1.5, _MOST_POLL_S)
            wrong = await self._is_unready()
            if self.state != STARTING or self._has_ended:
                return
            if not wrong:
                self.state = READY
                self.ready_s = self._loop.time()
                self.note = ""
                self._host.ledger.change(self.name, ready=True, address=str(self.address))
                await self._saved()
            elif self._loop.time() >= give_up_s:
                self._drain_s = min(self._drain_s, _UNREADY_DRAIN_S)
                self._fail(f"was not ready within {self._agent.start_s:g} s: {wrong}")

    async def _is_unready(self) -> str:
        """Empty: it is ready."""
        if self.address is None:
            port = local_probe.told_port(self._ports_file)
            if not port:
                return f"it has not written its port to {self._ports_file}"
            self._host.ports.hold(port)
            self.address = Address(self._agent.host, port)
        if self._agent.ready == REGISTERED:
            if self._host.registered(self._agent_id, str(self.address)):
                return ""
            return f"it has not registered {self.address} with the control plane"
        look = local_probe.serves if self._agent.ready == HEALTH else local_probe.connects
        return await self._while_it_lives(look(self.address, _LOOK_S))

    # -- serving ---------------------------------------------------------------------------------------------------

    async def _serve(self) -> None:
        """Until it died, is to leave, or is silent."""
        silent = 0
        while True:
            wait_s = self._agent.check_s
            began_s = self._loop.time()
            if await self._ends_within(wait_s or None):
                return
            wrong = await self._is_silent()
            late_s = self._loop.time() - began_s - wait_s - _LOOK_S
            if late_s > _LATE_S:
                continue  # it is us who cannot keep up: that says nothing of it
            silent = silent + 1 if wrong else 0
            if silent >= self._agent.unhealthy_after and self._may_fail() and self.state == READY:
                self._fail(f"was silent for {silent} looks in a row: {wrong}")
                return

    async def _is_silent(self) -> str:
        """Empty: it is there."""
        address = self.address
        if address is None:
            return ""
        if self._agent.ready == REGISTERED:
            if self._host.registered(self._agent_id, str(address)):
                return ""
            return await self._while_it_lives(local_probe.answers(address, _LOOK_S))
        look = local_probe.serves if self._agent.ready == HEALTH else local_probe.connects
        return await self._while_it_lives(look(address, _LOOK_S))

    async def _while_it_lives(self, look: Coroutine[Any, Any, str]) -> str:
        """What a look finds; nothing where the instance has died or is to leave meanwhile."""
        assert self.process is not None
        task = self._loop.create_task(look)
        try:
            await asyncio.wait((task, self._leave, self.process.exited), return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() else ""
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait((task,))

    # -- ending ----------------------------------------------------------------------------------------------------

    @property
    def _has_ended(self) -> bool:
        return self.process is not None and self.process.exited.done()

    async def _ends_within(self, timeout_s: float | None) -> bool:
        """Waits; whether it has died or is to leave."""
        assert self.process is not None
        if not (self._leave.done() or self._has_ended):
            ends = (self._leave, self.process.exited)
            await asyncio.wait(ends, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        return self._leave.done() or self._has_ended

    async def _end(self) -> None:
        """Of its process, where there is one."""
        process = self.process
        if process is not None:
            if process.exited.done():
                self._died(process)
            else:
                await self._saved()
                process.terminate()
                await asyncio.wait((process.exited,), timeout=self._drain_s)
                if not process.exited.done():
                    _LOG.warning("%s: %s did not end within %g s: killed", self._host.where, self.name, self._drain_s)
                    process.kill()
                    await asyncio.wait((process.exited,))
        self._host.ledger.remove(self.name)
        await self._saved()

    def _died(self, process: Process) -> None:
        if self.state in (FAILED, DRAINING) or self.leaving:
            return
        code = process.exited.result()
        before = self.state == STARTING
        lived_s = self._loop.time() - self.began_s
        when = f"{lived_s:.1f} s after its start, before it was ready" if before else f"after {lived_s:.0f} s"
        self._fail(f"{_how(code)} {when}")

    def _fail(self, note: str) -> None:
        self.state = FAILED
        said = local_log.last_lines(self.log) if self.process is not None else ""
        self.note = f"{note}: {said}" if said else note
        _LOG.warning("%s: instance %s %s", self._host.where, self.name, self.note)

    def _let_go(self) -> None:
        process = self.process
        if process is not None:
            process.release()
        if process is None or process.exited.done():
            self._host.ledger.remove(self.name)
            self._ports_file.unlink(missing_ok=True)
            if self.address is not None:
                self._host.ports.give(self.address.port)

    async def _saved(self) -> None:
        """What is on disk already is enough to find the process again: this may fail."""
        try:
            await self._host.ledger.save()
        except EngineError as error:
            _LOG.error("%s", error)


def _address(text: str) -> Address:
    host, _, port = text.rpartition(":")
    return Address(host.strip("[]"), int(port))


def _how(code: int | None) -> str:
    if code is None:
        return "ended"
    if code >= 0:
        return f"ended with code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"
