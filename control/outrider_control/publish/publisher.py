"""Keeps the catalog equal to the store, and tells every stream what changed.

Always holds: what is pushed is in the store; the store is read by one task at a time, and changes that come meanwhile
are read together; a change is encoded once, whatever the number of streams; the newest stream of a sidecar is its only
one. While the store cannot be read the streams live on with what was read last.

Deliberately not here: the bytes (`resources`), a stream's state (`watch`), gRPC (`mesh_service`), leases (`lessor`).
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence

from outrider.v1 import mesh_pb2
from outrider_control.publish import news, resources
from outrider_control.publish.fleet import REMEMBERED_MS, Fleet, Sidecar
from outrider_control.publish.lessor import Lessor
from outrider_control.publish.news import News
from outrider_control.publish.quotas import KEY_BYTES, KEY_NAME, Divider
from outrider_control.publish.resources import ENDPOINTS, POLICY, ResourceId
from outrider_control.publish.streams import Stream
from outrider_control.publish.watch import Refused
from outrider_control.state import meta, sidecars
from outrider_control.state.database import Database, DatabaseError

RETRY_S = 0.5
REMEMBER_S = 2.0
CONFIRM_INTERVAL_S = 0.01

_LOG = logging.getLogger("outrider.control.publish")


class Publisher:
    """Everything that is watched; one per process. `version` is that of the control plane's software."""

    def __init__(
        self,
        db: Database,
        fleet: Fleet,
        clock_ms: Callable[[], int],
        version: str = "",
        load_interval_ms: int = 1_000,
    ):
        self.fleet = fleet
        self.lessor = Lessor(db, fleet.leases, clock_ms)
        self.divider = Divider(fleet, clock_ms, self._say)
        self.closing = False
        self.revision = 0  # of the store, as far as it was read
        self.unreadable: dict[str, str] = {}  # agents whose newest policy cannot be enforced, and what is instead
        self.counts = {"updates": 0, "acks": 0, "refusals": 0, "replaced": 0}
        self._db = db
        self._clock_ms = clock_ms
        self._version = version
        self._load_interval_ms = load_interval_ms
        self._streams: dict[str, Stream] = {}
        self._asked = 0  # reads of the store that were asked for, by number
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self._reader: asyncio.Task[None] | None = None
        self._rememberer: asyncio.Task[None] | None = None
        self._answered = asyncio.Event()  # an ack came, or the catalog changed
        self._stop_listening: Callable[[], None] = lambda: None

    async def start(self) -> None:
        """Reads the store; to be called before the first stream. DatabaseError where it cannot be read."""
        now_ms = self._clock_ms()
        self._stop_listening = self._db.on_change(self.changed)
        whole = await self._db.read(news.since, 0)
        self.fleet.leases.load(whole.leases(), now_ms)
        self._take(whole, at_start=True)
        self.fleet.alone = self._db.dialect == "sqlite"
        self.fleet.learn(await self._db.read(sidecars.current, now_ms - REMEMBERED_MS))
        self.lessor.start()
        quota_key = await self._db.read(meta.text, KEY_NAME)
        if not quota_key:
            quota_key = await self._db.write(meta.ensure_text, KEY_NAME, secrets.token_hex(KEY_BYTES))
        self.divider.start(bytes.fromhex(quota_key))
        self._rememberer = asyncio.get_running_loop().create_task(self._remember_forever())

    async def close(self) -> None:
        """Ends all streams; their sidecars take another control plane."""
        self.closing = True
        self._stop_listening()
        for stream in list(self._streams.values()):
            stream.end("this control plane is stopping: take another one")
        tasks = [task for task in (self._reader, self._rememberer) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for _, waiter in self._waiting:
            waiter.cancel()
        await self.divider.close()
        await self.lessor.close()

    # The store.

    def changed(self, revision: int) -> None:
        """The store has this revision: what is new is read and pushed. Never blocks."""
        if revision > self.revision and not self.closing:
            self._ask()

    async def refresh(self) -> None:
        """Returns when everything that is in the store now is in the catalog. DatabaseError where it cannot be read."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ask()
        self._waiting.append((self._asked, waiter))
        await waiter

    def _ask(self) -> None:
        self._asked += 1
        if self._reader is None:
            self._reader = asyncio.get_running_loop().create_task(self._read())

    async def _read(self) -> None:
        served = 0
        try:
            while served < self._asked:
                asked = self._asked
                try:
                    self._take(await self._db.read(news.since, self.revision))
                except DatabaseError as error:
                    _LOG.warning("the store cannot be read, sidecars go on with what they hold: %s", error)
                    self._serve(asked, error)
                    await asyncio.sleep(RETRY_S)
                    continue
                except Exception as error:  # noqa: BLE001 - a fault of ours must not end what pushes for good
                    _LOG.exception("what is in the store cannot be published")
                    self._serve(asked, DatabaseError("", f"cannot be published: {error}"))
                    await asyncio.sleep(RETRY_S)
                    continue
                served = asked
                self._serve(asked, None)
        finally:
            self._reader = None

    def _serve(self, asked: int, error: DatabaseError | None) -> None:
        ready = [waiter for number, waiter in self._waiting if number <= asked]
        self._waiting = [(number, waiter) for number, waiter in self._waiting if number > asked]
        for waiter in ready:
            if waiter.done():
                continue
            if error is None:
                waiter.set_result(None)
            else:
                waiter.set_exception(error)

    def _take(self, news: News, at_start: bool = False) -> None:
        """Puts what is new in the catalog and wakes the streams."""
        changed: list[ResourceId] = []
        try:
            self._put(news, changed, at_start)
            self.revision = max(self.revision, news.revision)
        finally:  # what is in the catalog is pushed, whatever went wrong after it
            if changed:
                self._push(changed)

    def _put(self, news: News, changed: list[ResourceId], at_start: bool) -> None:
        """Puts what is new in the catalog, and names it in `changed`."""
        catalog = self.fleet.catalog
        now_us = self._clock_ms() * 1_000
        for agent_id in (*(record.agent.agent_id for record in news.agents), *(name for name, _ in news.deleted)):
            self.unreadable.pop(agent_id, None)
        self.unreadable.update(news.unreadable)
        for record in news.agents:
            agent = record.agent
            self.fleet.agents[agent.agent_id] = agent
            if catalog.put(resources.policy(agent, record.version.version, record.version.at_ms * 1_000)):
                changed.append(ResourceId(POLICY, agent.agent_id))
        for agent_id, version in news.deleted:
            self.fleet.agents.pop(agent_id, None)
            if catalog.remove(ResourceId(POLICY, agent_id), version, now_us):
                changed.append(ResourceId(POLICY, agent_id))
        for agent_id, endpoint_set in news.endpoints.items():
            if not at_start:
                self.lessor.lost(self.fleet.leases.learn(agent_id, endpoint_set.leases, news.revision))
            key = ResourceId(ENDPOINTS, agent_id)
            ordered = sorted(endpoint_set.leases, key=lambda lease: lease.address)
            encoded = [lease.endpoint for lease in ordered if not lease.draining]
            if encoded:
                is_new = catalog.put(resources.endpoints(agent_id, endpoint_set.version, encoded, now_us))
            else:
                is_new = catalog.remove(key, endpoint_set.version, now_us)
            if is_new:
                changed.append(key)
        for agent_id, split_set in news.splits.items():
            key = ResourceId(resources.SPLITS, agent_id)
            if split_set.splits:
                is_new = catalog.put(resources.splits(agent_id, split_set.revision, split_set.splits, now_us))
            else:
                is_new = catalog.remove(key, split_set.revision, now_us)
            if is_new:
                changed.append(key)
        changed.extend([resource.key for resource in self._of_the_mesh(news, now_us) if catalog.put(resource)])

    def _of_the_mesh(self, news: News, now_us: int) -> Iterable[resources.Resource]:
        catalog = self.fleet.catalog
        if news.epochs is not None and news.epochs.version > catalog.version(ResourceId(resources.EPOCHS, "")):
            yield resources.epochs(news.epochs.floor, news.epochs.rows, news.epochs.version, now_us)
        default_agent, version = news.default_agent
        if version > catalog.version(ResourceId(resources.MESH, "")):
            yield resources.mesh(default_agent, version, now_us)

    def _push(self, changed: Sequence[ResourceId]) -> None:
        self.counts["updates"] += 1
        for stream in self._streams.values():
            stream.watch.mark(changed)
            stream.wake()
        self._answered.set()

    # Streams.

    def is_older_than(self, claimed: Mapping[ResourceId, int]) -> bool:
        """Whether a sidecar holds something newer than what was read of the store: another control plane was faster."""
        version = self.fleet.catalog.version
        return any([held > version(key) for key, held in claimed.items()])

    def welcome(self) -> bytes:
        """The first message of a stream."""
        welcome = mesh_pb2.Welcome(
            instance_id=self.fleet.control_id,
            version=self._version,
            load_interval_ms=self._load_interval_ms,
            now_unix_ms=self._clock_ms(),
        )
        return mesh_pb2.WatchResponse(welcome=welcome).SerializeToString()

    def opened(self, hello: mesh_pb2.Hello, stream: Stream, peer: str) -> Sidecar:
        """A stream whose welcome was sent. An older one of the same instance ends."""
        older = self._streams.pop(hello.instance_id, None)
        if older is not None:
            self.counts["replaced"] += 1
            older.end("a newer stream of the same instance_id took the place of this one")
        sidecar = self.fleet.open(hello, stream.watch, peer)
        self._streams[hello.instance_id] = stream
        stream.wake()
        self.divider.opened(hello)
        if self.closing:
            stream.end("this control plane is stopping: take another one")
        return sidecar

    def closed(self, sidecar: Sidecar, stream: Stream) -> None:
        if self._streams.get(stream.instance_id) is stream:
            del self._streams[stream.instance_id]
            self.divider.closed(stream.instance_id)
        if self.fleet.closed(sidecar):
            self.lessor.released(stream.instance_id)
        self._answered.set()

    def loaded(self, sidecar: Sidecar, load: mesh_pb2.LoadReport) -> None:
        instance_id = sidecar.record.instance_id
        stream = self._streams.get(instance_id)
        if stream is not None and stream.watch is sidecar.watch:  # not of a stream that was replaced
            self.divider.taken(instance_id, load)
        del load.quotas[:]
        self.fleet.loaded(sidecar, load)

    def _say(self, instance_id: str, message: bytes) -> bool:
        stream = self._streams.get(instance_id)
        return stream is not None and stream.say(message)

    def acked(self, sidecar: Sidecar, refused: Sequence[Refused]) -> None:
        self.fleet.acked(sidecar)
        self.counts["acks"] += 1
        self.counts["refusals"] += len(refused)
        for key, version, reason in refused:
            name = sidecar.record.node or sidecar.record.instance_id
            _LOG.warning("sidecar %s refuses %s at version %d: %s", name, key.name or "the mesh", version, reason)
        self._answered.set()

    def announced(self, sidecar: Sidecar, announcement: mesh_pb2.Announcement) -> None:
        instance_id = sidecar.record.instance_id
        stream = self._streams.get(instance_id)
        if stream is not None and stream.watch is sidecar.watch:  # not of a stream that was replaced
            self.lessor.announce(instance_id, sidecar.record.node, announcement.endpoints)

    async def confirmed(self, kind: int, name: str, version: int, timeout_s: float) -> tuple[int, int]:
        """(connected, confirmed) of this control plane's sidecars, once each has taken that version or a newer one, or
        refused it, or the time is over."""
        key = ResourceId(kind, name)
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    self._answered.clear()
                    connected, confirmed, refused = self.fleet.confirmed(kind, name, version)
                    if self.fleet.catalog.version(key) >= version and confirmed + refused >= connected:
                        break
                    await self._answered.wait()
                    await asyncio.sleep(CONFIRM_INTERVAL_S)  # acks come by the hundred; one look for all of them
        except TimeoutError:
            connected, confirmed, _ = self.fleet.confirmed(kind, name, version)
        return connected, confirmed

    # Leases of instances.

    async def renew(self, lease_ids: Sequence[str]) -> list[str]:
        """Those that are not known, here or in the store."""
        unknown = self.lessor.renew(lease_ids)
        if unknown:
            await self.lessor.look_up(unknown)
            unknown = self.lessor.renew(unknown)
        return unknown

    async def deregister(self, lease_id: str) -> None:
        if not self.fleet.leases.of_owner(lease_id):
            await self.lessor.look_up([lease_id])
        await self.lessor.deregister(lease_id)

    # For other control planes, and for the next start.

    async def _remember_forever(self) -> None:
        while True:
            await asyncio.sleep(REMEMBER_S)
            try:
                await self.remember()
            except DatabaseError as error:
                _LOG.warning("what is known of sidecars cannot be stored: %s", error)
            except Exception:  # noqa: BLE001 - what is remembered is no reason to stop serving
                _LOG.exception("what is known of sidecars cannot be stored")

    async def remember(self) -> None:
        """Stores what is new of own sidecars, and reads what other control planes say of theirs."""
        shared = self._db.dialect == "postgresql"
        rows = self.fleet.to_store(with_loads=shared)
        if rows:
            try:
                await self._db.write(sidecars.put, rows)
            except BaseException:
                self.fleet.not_stored(rows)
                raise
        if shared:
            self.fleet.learn(await self._db.read(sidecars.current, self._clock_ms() - REMEMBERED_MS))
