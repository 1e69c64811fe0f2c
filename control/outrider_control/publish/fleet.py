"""The fleet as this control plane sees it: sidecars and their load, and the endpoints of every agent.

Always holds: a sidecar is known by the instance id of its process, and the newest stream of an instance is the one
that counts; one that has gone is remembered for ten minutes, and there are never more than 10,000; load older than
three seconds is no load. What other control planes serve is known from the store, as old as their last word; who is
not there any more serves nobody.

Deliberately not here: streams and the store (`publisher`), how leases live (`core.leases`).
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from typing import NamedTuple

from outrider.policy import Agent
from outrider.v1 import mesh_pb2, operator_pb2
from outrider_control.core.leases import Leases
from outrider_control.publish import resources
from outrider_control.publish.resources import Catalog
from outrider_control.publish.watch import Watch
from outrider_control.state.sidecars import SidecarRow

LOAD_STALE_MS = 3_000
FOREIGN_STALE_MS = 10_000  # after this long without a word a sidecar of another control plane is not connected
PEER_STALE_MS = 6_000  # after this long without a word a control plane is not there: it says so every two seconds
REMEMBERED_MS = 600_000
MAX_SIDECARS = 10_000
MAX_TEXT = 256
MAX_CAPABILITIES = 32
MAX_LOADED_AGENTS = 10_000


class Report(NamedTuple):
    """The last load report of one sidecar of the mesh."""

    instance_id: str
    load: mesh_pb2.LoadReport | None  # None: there was none yet
    at_ms: int  # received; 0: never
    fresh: bool
    connected: bool
    own: bool  # connected to this control plane


class Sidecar:
    """One sidecar process. `watch` is its open stream, None without."""

    __slots__ = ("acked_ms", "changed", "dropped", "hello", "load", "loaded_ms", "record", "seen_ms", "watch")

    def __init__(self, record: operator_pb2.SidecarRecord, watch: Watch | None, now_ms: int):
        self.record = record  # without what changes from second to second
        self.watch = watch
        self.seen_ms = now_ms
        self.acked_ms = 0
        self.load: mesh_pb2.LoadReport | None = None
        self.loaded_ms = 0
        self.dropped = 0
        self.changed = True


class Fleet:
    """`on_dropped(instance_id, agent_id, growth)` is called for spans a sidecar says it lost.

    `on_waiting(agent_id)` is called for every report that says that calls of an agent wait."""

    def __init__(
        self,
        control_id: str,
        clock_ms: Callable[[], int],
        on_dropped: Callable[[str, str, int], None] = lambda _instance_id, _agent_id, _growth: None,
    ):
        self.control_id = control_id
        self.catalog = Catalog()
        self.leases = Leases()
        self.agents: dict[str, Agent] = {}  # in force, by key
        self.on_dropped = on_dropped
        self.alone = False  # no other control plane can be on this store: what others say there is of the past
        self._peers: dict[str, tuple[int, int]] = {}  # id -> by its clock, and by ours when it last said something new
        self._met_ms = 0
        self.on_waiting: Callable[[str], None] = lambda _agent_id: None
        self._clock_ms = clock_ms
        self._sidecars: dict[str, Sidecar] = {}
        self._foreign: dict[str, SidecarRow] = {}

    @property
    def connected(self) -> int:
        """Streams of this control plane."""
        return sum([sidecar.watch is not None for sidecar in self._sidecars.values()])

    # What operators ask.

    def sidecars(self) -> list[operator_pb2.SidecarRecord]:
        """All that are known, at any control plane: connected ones first, then by node and instance."""
        now_ms = self._clock_ms()
        records = {instance_id: self._foreign_record(row, now_ms) for instance_id, row in self._foreign.items()}
        for instance_id, sidecar in self._sidecars.items():
            other = records.get(instance_id)
            if sidecar.watch is not None or other is None or other.seen_unix_ms <= sidecar.seen_ms:
                records[instance_id] = self.record(sidecar, now_ms)
        return sorted(records.values(), key=lambda record: (not record.connected, record.node, record.instance_id))

    def loads(self) -> dict[str, mesh_pb2.LoadReport]:
        """Fresh load reports of the whole mesh, by instance id."""
        now_ms = self._clock_ms()
        foreign = [self._foreign_record(row, now_ms) for row in self._foreign.values()]
        loads = {record.instance_id: record.load for record in foreign if record.HasField("load")}
        for instance_id, sidecar in self._sidecars.items():
            if sidecar.load is not None and self._is_loaded(sidecar, now_ms):
                loads[instance_id] = sidecar.load
        return loads

    def reports(self) -> list[Report]:
        """The last one of every sidecar that is known, at any control plane."""
        now_ms = self._clock_ms()
        found: dict[str, Report] = {}
        for instance_id, row in self._foreign.items():
            record = operator_pb2.SidecarRecord.FromString(row.record)
            connected = self._is_connected(row, now_ms)
            fresh = connected and now_ms - row.seen_ms <= LOAD_STALE_MS
            if record.HasField("load"):
                found[instance_id] = Report(instance_id, record.load, row.seen_ms, fresh, connected, False)
            else:
                found[instance_id] = Report(instance_id, None, 0, False, connected, False)
        for instance_id, sidecar in self._sidecars.items():
            connected = sidecar.watch is not None
            foreign = found.get(instance_id)
            if connected or foreign is None or not foreign.connected:
                fresh = sidecar.load is not None and self._is_loaded(sidecar, now_ms)
                found[instance_id] = Report(instance_id, sidecar.load, sidecar.loaded_ms, fresh, connected, True)
        return list(found.values())

    def endpoints(self, agent_id: str = "") -> list[operator_pb2.EndpointRecord]:
        """Of one agent, or of all, by agent and address: declared, registered and announced.

        An address that is declared and registered is named as registered, as sidecars use it.
        """
        in_flight = self._ingress_in_flight()
        found: dict[tuple[str, str], operator_pb2.EndpointRecord] = {}
        for agent in self.agents.values() if not agent_id else filter(None, [self.agents.get(agent_id)]):
            for declared in agent.endpoints:
                endpoint = mesh_pb2.Endpoint(
                    agent_id=agent.agent_id,
                    address=declared.address,
                    weight=declared.weight,
                    labels=declared.labels,
                    capacity=declared.capacity,
                )
                found[agent.agent_id, declared.address] = operator_pb2.EndpointRecord(
                    endpoint=endpoint, source="declared"
                )
        for lease in self.leases if not agent_id else self.leases.of_agent(agent_id):
            record = operator_pb2.EndpointRecord(
                endpoint=mesh_pb2.Endpoint.FromString(lease.endpoint),
                source=lease.source,
                node=lease.node,
                expires_unix_ms=lease.expires_ms,
            )
            calls = in_flight.get((lease.owner, lease.agent_id))
            if calls is not None:
                record.in_flight = calls
            found[lease.key] = record
        return [found[key] for key in sorted(found)]

    def clock_offset_ms(self, instance_id: str) -> int:
        """The sidecar's clock minus ours as its hello had it, the way of the hello included; 0: not known."""
        sidecar = self._sidecars.get(instance_id)
        if sidecar is not None:
            return sidecar.record.clock_offset_ms
        foreign = self._foreign.get(instance_id)
        return operator_pb2.SidecarRecord.FromString(foreign.record).clock_offset_ms if foreign is not None else 0

    def _ingress_in_flight(self) -> dict[tuple[str, str], int]:
        return {
            (instance_id, agent.agent_id): agent.in_flight
            for instance_id, load in self.loads().items()
            for agent in load.agents
            if agent.ingress
        }

    # What streams say.

    def is_full(self, instance_id: str) -> bool:
        """Whether one more sidecar is too many."""
        return instance_id not in self._sidecars and self.connected >= MAX_SIDECARS

    def open(self, hello: mesh_pb2.Hello, watch: Watch, peer: str) -> Sidecar:
        """A stream has begun. An older stream of the same instance does not count any more."""
        now_ms = self._clock_ms()
        record = operator_pb2.SidecarRecord(
            instance_id=hello.instance_id,
            node=hello.node[:MAX_TEXT],
            agent_id=hello.agent_id[:MAX_TEXT],
            version=hello.version[:MAX_TEXT],
            connected_unix_ms=now_ms,
            capabilities=[text[:MAX_TEXT] for text in hello.capabilities[:MAX_CAPABILITIES]],
            clock_offset_ms=hello.now_unix_ms - now_ms if hello.now_unix_ms else 0,
            admin=hello.admin[:MAX_TEXT],
            peer=peer[:MAX_TEXT],
            control_id=self.control_id,
            compiled=hello.compiled,
        )
        before = self._sidecars.pop(hello.instance_id, None)
        sidecar = Sidecar(record, watch, now_ms)
        if before is not None:
            sidecar.dropped = before.dropped
        if (foreign := self._foreign.get(hello.instance_id)) is not None:  # counted by whom it was connected to
            counted = operator_pb2.SidecarRecord.FromString(foreign.record).load.spans_dropped
            sidecar.dropped = max(sidecar.dropped, counted)
        self._sidecars[hello.instance_id] = sidecar
        self._forget(now_ms)
        return sidecar

    def acked(self, sidecar: Sidecar) -> None:
        sidecar.seen_ms = sidecar.acked_ms = self._clock_ms()
        sidecar.changed = True

    def loaded(self, sidecar: Sidecar, load: mesh_pb2.LoadReport) -> None:
        sidecar.seen_ms = sidecar.loaded_ms = self._clock_ms()
        if len(load.agents) > MAX_LOADED_AGENTS:
            del load.agents[MAX_LOADED_AGENTS:]
        sidecar.load = load
        growth = load.spans_dropped - sidecar.dropped
        if growth > 0:
            sidecar.dropped = load.spans_dropped
            sidecar.changed = True
            self.on_dropped(sidecar.record.instance_id, sidecar.record.agent_id, growth)
        for agent in load.agents:
            if agent.queued:
                self.on_waiting(agent.agent_id)

    def closed(self, sidecar: Sidecar) -> bool:
        """A stream has ended. False: a newer one of the same instance had taken its place."""
        sidecar.watch = None
        sidecar.seen_ms = self._clock_ms()
        sidecar.changed = True
        return self._sidecars.get(sidecar.record.instance_id) is sidecar

    def elsewhere(self, own: Container[str], since_ms: int) -> int:
        """Sidecars that other control planes have heard since then, without `own`."""
        return sum([row.seen_ms >= since_ms and row.instance_id not in own for row in self._foreign.values()])

    def is_elsewhere(self, instance_id: str, now_ms: int) -> bool:
        """Whether another control plane serves it now."""
        row = self._foreign.get(instance_id)
        sidecar = self._sidecars.get(instance_id)
        if row is None or (sidecar is not None and (sidecar.watch is not None or sidecar.seen_ms > row.seen_ms)):
            return False
        return row.connected and now_ms - row.seen_ms <= FOREIGN_STALE_MS

    def watching(self) -> list[Sidecar]:
        return [sidecar for sidecar in self._sidecars.values() if sidecar.watch is not None]

    # What the store says and is told.

    def record(self, sidecar: Sidecar, now_ms: int) -> operator_pb2.SidecarRecord:
        """One of our own, with its load if that is fresh."""
        record = self._stored_record(sidecar)
        if not self._is_loaded(sidecar, now_ms):
            record.ClearField("load")
        return record

    @staticmethod
    def _is_loaded(sidecar: Sidecar, now_ms: int) -> bool:
        return sidecar.watch is not None and now_ms - sidecar.loaded_ms <= LOAD_STALE_MS

    def _stored_record(self, sidecar: Sidecar) -> operator_pb2.SidecarRecord:
        record = operator_pb2.SidecarRecord()
        record.CopyFrom(sidecar.record)
        record.seen_unix_ms = sidecar.seen_ms
        record.acked_unix_ms = sidecar.acked_ms
        if sidecar.load is not None:
            record.load.CopyFrom(sidecar.load)
        if sidecar.watch is not None:
            record.connected = True
            record.behind = sidecar.watch.behind(self.catalog)
            for key, version, reason in sidecar.watch.refused:
                kind = mesh_pb2.ResourceKind.ValueType(key.kind)
                record.refused.add(
                    resource=mesh_pb2.ResourceVersion(kind=kind, name=key.name, version=version), reason=reason
                )
        return record

    def _foreign_record(self, row: SidecarRow, now_ms: int) -> operator_pb2.SidecarRecord:
        record = operator_pb2.SidecarRecord.FromString(row.record)
        record.connected = self._is_connected(row, now_ms)
        if not record.connected or now_ms - row.seen_ms > LOAD_STALE_MS:
            record.ClearField("load")
        return record

    def _is_connected(self, row: SidecarRow, now_ms: int) -> bool:
        """Whether another control plane has the sidecar's stream, as far as that can be known: it said so lately, and
        is itself still there."""
        if self.alone or not row.connected or now_ms - row.seen_ms > FOREIGN_STALE_MS:
            return False
        peer = self._peers.get(row.control_id)
        if peer is None:  # it came after the last look at who is there, or was gone by then
            return row.seen_ms > self._met_ms
        return now_ms - max(peer) <= PEER_STALE_MS

    def meet(self, peers: Mapping[str, int]) -> None:
        """The control planes on this store: id -> when each last said, by its own clock, that it is there."""
        now_ms, before = self._clock_ms(), self._peers
        self._peers = {}
        for control_id, said_ms in peers.items():
            last_ms, heard_ms = before.get(control_id, (said_ms, 0))
            self._peers[control_id] = said_ms, now_ms if said_ms != last_ms else heard_ms
        self._met_ms = now_ms

    def to_store(self, with_loads: bool) -> list[SidecarRow]:
        """What to write for the others. `with_loads`: also sidecars of which nothing is new but load."""
        rows = []
        for instance_id, sidecar in self._sidecars.items():
            if sidecar.changed or (with_loads and sidecar.watch is not None):
                sidecar.changed = False
                connected = sidecar.watch is not None
                record = self._stored_record(sidecar).SerializeToString()
                rows.append(SidecarRow(instance_id, self.control_id, connected, sidecar.seen_ms, record))
        return rows

    def not_stored(self, rows: Iterable[SidecarRow]) -> None:
        """The store did not take them: they are for the next time."""
        for row in rows:
            if (sidecar := self._sidecars.get(row.instance_id)) is not None:
                sidecar.changed = True

    def learn(self, rows: Iterable[SidecarRow]) -> None:
        """What the store holds of sidecars of other control planes, and of those before this start."""
        now_ms = self._clock_ms()
        fresh = [row for row in rows if row.control_id != self.control_id and now_ms - row.seen_ms <= REMEMBERED_MS]
        fresh.sort(key=lambda row: row.seen_ms)
        self._foreign = {row.instance_id: row for row in fresh[-MAX_SIDECARS:]}
        self._forget(now_ms)

    def _forget(self, now_ms: int) -> None:
        gone = [
            instance_id
            for instance_id, sidecar in self._sidecars.items()
            if sidecar.watch is None and now_ms - sidecar.seen_ms > REMEMBERED_MS
        ]
        for instance_id in gone:
            del self._sidecars[instance_id]
        over = len(self._sidecars) - MAX_SIDECARS
        if over > 0:  # the dict is in the order of connecting
            away = [instance_id for instance_id, sidecar in self._sidecars.items() if sidecar.watch is None]
            for instance_id in away[:over]:
                del self._sidecars[instance_id]

    def confirmed(self, kind: int, name: str, version: int) -> tuple[int, int, int]:
        """Of own sidecars: how many are connected, hold that version or a newer one, refuse the newest."""
        key = resources.ResourceId(kind, name)
        watches = [sidecar.watch for sidecar in self._sidecars.values() if sidecar.watch is not None]
        holding = sum([watch.holds(key, version, self.catalog) for watch in watches])
        return len(watches), holding, sum([watch.refuses(key) for watch in watches])
