"""The watch protocol against a model: random connects, drops, changes, refusals, restarts and control planes that lag.

Every message crosses the wire as bytes. Whatever happens, once things calm down every sidecar holds the newest version
of everything, except for what it refuses: there it holds the last version that it took.
"""

from __future__ import annotations

import dataclasses
from collections import deque

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from outrider.policy import Agent
from outrider.v1 import mesh_pb2
from outrider_control.publish import resources
from outrider_control.publish.resources import EPOCHS, POLICY, Catalog, ResourceId
from outrider_control.publish.watch import Refused, Watch

NAMES = ["a", "b", "c", "d"]
BAD_TIMEOUT_MS = 13  # sidecars of this model refuse a policy with this timeout


@dataclasses.dataclass
class Fact:
    """The newest of one resource in the store."""

    version: int
    timeout_ms: int | None  # None: deleted


class Store:
    def __init__(self) -> None:
        self.revision = 0
        self.policies: dict[str, Fact] = {}
        self.epoch = 0

    def fill(self, catalog: Catalog) -> set[ResourceId]:
        """What a control plane does when it reads the store; returns what is new to it."""
        changed = set()
        for name, fact in self.policies.items():
            key = ResourceId(POLICY, name)
            if fact.timeout_ms is None:
                new = catalog.remove(key, fact.version, self.revision)
            else:
                new = catalog.put(resources.policy(Agent(name, timeout_ms=fact.timeout_ms), fact.version, 1))
            if new:
                changed.add(key)
        if self.epoch and catalog.put(resources.epochs(self.epoch, [], self.epoch, 1)):
            changed.add(ResourceId(EPOCHS, ""))
        return changed


class Control:
    """One control plane's process."""

    def __init__(self, store: Store):
        self.store = store
        self.catalog = Catalog()
        self.links: list[Link] = []
        store.fill(self.catalog)

    def read(self) -> None:
        changed = self.store.fill(self.catalog)
        for link in self.links:
            link.watch.mark(changed)

    def connect(self, sidecar: Sidecar) -> None:
        hello = sidecar.hello()
        claimed = {ResourceId(held.kind, held.name): held.version for held in hello.held}
        if any(version > self.catalog.version(key) for key, version in claimed.items()):
            self.read()
        sidecar.link = Link(self, Watch(claimed))
        self.links.append(sidecar.link)


class Link:
    """A stream, with what is under way on it in either direction."""

    def __init__(self, control: Control, watch: Watch):
        self.control = control
        self.watch = watch
        self.down: deque[bytes] = deque()
        self.up: deque[bytes] = deque()

    def say(self) -> bool:
        message = self.watch.next(self.control.catalog)
        if message is not None:
            self.down.append(message)
        return message is not None

    def hear(self) -> None:
        ack = mesh_pb2.WatchRequest.FromString(self.up.popleft()).ack
        refused = [
            Refused(ResourceId(each.resource.kind, each.resource.name), each.resource.version, each.reason)
            for each in ack.refused
        ]
        assert self.watch.ack(ack.nonce, refused)


class Sidecar:
    def __init__(self) -> None:
        self.held: dict[ResourceId, int] = {}
        self.refused: dict[ResourceId, int] = {}
        self.link: Link | None = None
        self.heard = 0

    def hello(self) -> mesh_pb2.Hello:
        self.heard = 0
        held = [
            mesh_pb2.ResourceVersion(kind=mesh_pb2.ResourceKind.ValueType(key.kind), name=key.name, version=version)
            for key, version in self.held.items()
        ]
        return mesh_pb2.Hello(instance_id="i", held=held)

    def drop(self) -> None:
        if self.link is not None:
            self.link.control.links.remove(self.link)
            self.link = None

    def take(self, link: Link) -> None:
        update = mesh_pb2.WatchResponse.FromString(link.down.popleft()).update
        assert update.full == (self.heard == 0), "the first update is full, and no other is"
        assert update.nonce > self.heard, "nonces grow"
        self.heard = update.nonce
        ack = mesh_pb2.Ack(nonce=update.nonce)
        named = set()
        for resource in update.resources:
            key = ResourceId(resource.id.kind, resource.id.name)
            named.add(key)
            assert resource.id.version != self.refused.get(key) or update.full, "a refused version is not sent again"
            assert resource.id.version > self.held.get(key, 0), "what is held is not sent again, nor anything older"
            if resource.policy.timeout_ms == BAD_TIMEOUT_MS:
                self.refused[key] = resource.id.version
                ack.refused.append(mesh_pb2.Refusal(resource=resource.id, reason="policy.timeout_ms: bad luck"))
            else:
                self.refused.pop(key, None)
                self.held[key] = resource.id.version
        for gone in update.removed:
            self.held.pop(ResourceId(gone.kind, gone.name), None)
            self.refused.pop(ResourceId(gone.kind, gone.name), None)
        for current in update.current:
            key = ResourceId(current.kind, current.name)
            assert self.held[key] == current.version, "`current` names what is held"
            named.add(key)
        if update.full:
            self.held = {key: version for key, version in self.held.items() if key in named}
            self.refused = {key: version for key, version in self.refused.items() if key in named}
        link.up.append(mesh_pb2.WatchRequest(ack=ack).SerializeToString())


class WatchMachine(RuleBasedStateMachine):
    sidecars = Bundle("sidecars")

    @initialize()
    def begin(self) -> None:
        self.store = Store()
        self.controls = [Control(self.store), Control(self.store)]
        self.all: list[Sidecar] = []

    @rule(target=sidecars)
    def start_sidecar(self) -> Sidecar:
        sidecar = Sidecar()
        self.all.append(sidecar)
        return sidecar

    @rule(sidecar=sidecars, at=st.integers(0, 1))
    def connect(self, sidecar: Sidecar, at: int) -> None:
        sidecar.drop()
        self.controls[at].connect(sidecar)

    @rule(sidecar=sidecars)
    def drop(self, sidecar: Sidecar) -> None:
        sidecar.drop()

    @rule(sidecar=sidecars)
    def lose_memory(self, sidecar: Sidecar) -> None:
        sidecar.drop()
        sidecar.held, sidecar.refused = {}, {}

    @rule(name=st.sampled_from(NAMES), timeout_ms=st.sampled_from([1, 2, 3, BAD_TIMEOUT_MS]))
    def apply(self, name: str, timeout_ms: int) -> None:
        self._change(name, timeout_ms)

    @rule(name=st.sampled_from(NAMES))
    def delete(self, name: str) -> None:
        if name in self.store.policies and self.store.policies[name].timeout_ms is not None:
            self._change(name, None)

    def _change(self, name: str, timeout_ms: int | None) -> None:
        self.store.revision += 1
        before = self.store.policies.get(name)
        self.store.policies[name] = Fact(before.version + 1 if before else 1, timeout_ms)

    @rule()
    def purge(self) -> None:
        self.store.revision += 1
        self.store.epoch = self.store.revision

    @rule(at=st.integers(0, 1))
    def control_reads(self, at: int) -> None:
        self.controls[at].read()

    @rule(at=st.integers(0, 1))
    def control_restarts(self, at: int) -> None:
        for sidecar in self.all:
            if sidecar.link is not None and sidecar.link.control is self.controls[at]:
                sidecar.drop()
        self.controls[at] = Control(self.store)

    @rule(sidecar=sidecars)
    def control_says(self, sidecar: Sidecar) -> None:
        if sidecar.link is not None:
            sidecar.link.say()

    @rule(sidecar=sidecars)
    def sidecar_takes(self, sidecar: Sidecar) -> None:
        if sidecar.link is not None and sidecar.link.down:
            sidecar.take(sidecar.link)

    @rule(sidecar=sidecars)
    def control_hears(self, sidecar: Sidecar) -> None:
        if sidecar.link is not None and sidecar.link.up:
            sidecar.link.hear()

    @invariant()
    def memory_is_bounded_by_resources(self) -> None:
        for control in self.controls:
            for link in control.links:
                assert link.watch.behind(control.catalog) <= len(NAMES) + 1

    @invariant()
    def what_is_confirmed_is_held(self) -> None:
        for sidecar in self.all:
            link = sidecar.link
            if link is None:
                continue
            for key, resource in link.control.catalog.resources.items():
                if link.watch.holds(key, resource.version, link.control.catalog):
                    assert sidecar.held[key] >= resource.version

    def teardown(self) -> None:
        for control in self.controls:
            control.read()
        for sidecar in self.all:
            if sidecar.link is None:
                self.controls[0].connect(sidecar)
            link = sidecar.link
            assert link is not None
            link.say()
            while link.down:
                sidecar.take(link)
                link.say()
            while link.up:
                link.hear()
            self._is_at_the_newest(sidecar, link)

    def _is_at_the_newest(self, sidecar: Sidecar, link: Link) -> None:
        refused = {refusal.key: refusal.version for refusal in link.watch.refused}
        for name, fact in self.store.policies.items():
            key = ResourceId(POLICY, name)
            if fact.timeout_ms is None:
                assert key not in sidecar.held
            elif fact.timeout_ms == BAD_TIMEOUT_MS:
                assert refused.pop(key) == fact.version
                assert sidecar.held.get(key, 0) < fact.version
            else:
                assert sidecar.held[key] == fact.version
        assert refused == {}
        if self.store.epoch:
            assert sidecar.held[ResourceId(EPOCHS, "")] == self.store.epoch
        bad = sum([fact.timeout_ms == BAD_TIMEOUT_MS for fact in self.store.policies.values()])
        assert link.watch.behind(link.control.catalog) == bad


TestWatch = WatchMachine.TestCase
TestWatch.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
