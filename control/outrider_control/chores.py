"""What the process does by itself, again and again: fold and prune as the leader, look for what others changed.

Always holds: a chore that fails is tried again at its next turn and says so once; only the leader folds and prunes;
changes of other control planes are seen within `POLL_S`.

Deliberately not here: leases and remembering sidecars (`publish`), what a fold or a prune does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from outrider import __version__
from outrider_control.config import Settings
from outrider_control.core.cardinality import Bounds
from outrider_control.intake.fold import Fold
from outrider_control.publish.publisher import Publisher
from outrider_control.state import peers, retention, revision
from outrider_control.state.database import Database, DatabaseError
from outrider_control.state.leadership import Leadership

log = logging.getLogger("outrider.control")

POLL_S = 0.2  # other processes' changes, where there can be any
PEER_S = 2.0  # how often this one says that it is there: `publish.fleet` takes it for gone after three times that
PEER_GONE_MS = 20_000
HOPS_S = 10.0
PRUNE_S = 300.0
_FIRST_PRUNE_S = 10.0  # after the start: not while everybody connects


class Chores:
    """All of them. `start` once the process serves, at `address`."""

    def __init__(
        self,
        db: Database,
        publisher: Publisher,
        leadership: Leadership,
        bounds: Bounds,
        settings: Settings,
        control_id: str,
        clock_ms: Callable[[], int],
        has_sidecar: Callable[[str], None],
    ):
        self.fold = Fold(db, clock_ms, bounds)
        self.peers: list[peers.PeerRow] = []
        self.pruned: dict[str, int] = {}
        self.failing: dict[str, str] = {}  # chore -> why its last turn failed
        self._db = db
        self._publisher = publisher
        self._leadership = leadership
        self._settings = settings
        self._control_id = control_id
        self._has_sidecar = has_sidecar
        self._clock_ms = clock_ms
        self._address = ""
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, address: str) -> None:
        """Begin; `address` is where others can reach this control plane."""
        self._address = address
        loop = asyncio.get_running_loop()
        self._tasks.append(loop.create_task(self.fold.run(lambda: self._leadership.leader)))
        self._tasks.append(loop.create_task(self._again("peers", PEER_S, self._greet)))
        self._tasks.append(loop.create_task(self._again("hops", HOPS_S, self._tell_hops)))
        self._tasks.append(loop.create_task(self._again("prune", PRUNE_S, self._prune, _FIRST_PRUNE_S)))
        if self._db.dialect != "sqlite":
            self._tasks.append(loop.create_task(self._again("poll", POLL_S, self._poll)))

    async def close(self) -> None:
        """End all of them, fold what is there, and say goodbye to the other control planes."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if not self._tasks:
            return
        try:
            if self._leadership.leader:
                await self.fold.once()
            await self._db.write(peers.remove, self._control_id)
        except DatabaseError as error:
            log.warning("at the end: %s", error)

    async def _again(self, name: str, every_s: float, chore: Callable[[], Awaitable[None]], first_s: float = 0) -> None:
        await asyncio.sleep(first_s)
        while True:
            try:
                await chore()
                if self.failing.pop(name, ""):
                    log.info("%s: works again", name)
            except DatabaseError as error:
                if name not in self.failing:
                    log.warning("%s: %s", name, error)
                self.failing[name] = str(error)
            except Exception:
                if name not in self.failing:
                    log.exception("%s failed; it is tried again in %g s", name, every_s)
                self.failing[name] = "a defect: see the log"
            await asyncio.sleep(every_s)

    async def _poll(self) -> None:
        self._publisher.changed(await self._db.read(revision.current))

    async def _tell_hops(self) -> None:
        """Agents whose calls pass a sidecar of ours: it counts them, and not what the agents say of themselves."""
        for load in self._publisher.fleet.loads().values():
            for agent in load.agents:
                if agent.calls:
                    self._has_sidecar(agent.agent_id)

    async def _greet(self) -> None:
        now_ms = self._clock_ms()
        row = peers.PeerRow(self._control_id, self._address, __version__, now_ms)
        await self._db.write(peers.put, row)
        self.peers = await self._db.read(peers.current, now_ms - PEER_GONE_MS)
        self._publisher.fleet.meet({peer.control_id: peer.seen_ms for peer in self.peers})

    async def _prune(self) -> None:
        if not self._leadership.leader:
            return
        for name, count in (await self._db.write(retention.prune, self._clock_ms(), self._settings.retention)).items():
            self.pruned[name] = self.pruned.get(name, 0) + count
