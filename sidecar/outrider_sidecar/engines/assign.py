"""Assignment: which variant of each split of an agent a call is served with.

Always holds: what a session held before wins, then what its user held (of splits by user), then what the caller says
it held, then the hash of (seed, unit); so shares decide about new units only. The part of a million that a unit falls
on is uniform and independent between seeds and layers: a share or a layer's range that is raised only adds units. A
unit that holds a variant of a split of a layer takes part in no other split of that layer. Two things alone move a unit
from what it held, and both are said: its variant is aborted, or has vanished (the split has no such variant, or no
configured endpoint carries its labels while the agent has others); it goes to the split's first variant. Where that one
has no endpoint either the split steps aside. Testers' overrides stand above what is kept, are not kept themselves and
are not counted.

A live session that was given no variant keeps that too, so that nothing changes in mid-conversation; users and requests
take part as soon as a range reaches them.

Deliberately not here: what is kept and for how long (`engines.sessions`), who the caller is (filter `experiment`).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from xxhash import xxh3_64_intdigest, xxh3_128_digest

from outrider.digest import blake2b
from outrider.split import PARTS, Split, Variant, ranges_in_force
from outrider_sidecar.core.assigned import Decision, Held, Moved, Ready
from outrider_sidecar.core.treatment import Arm, Treatment

SESSION: Final = 0
USER: Final = 1
REQUEST: Final = 2
KINDS: Final = {"session": SESSION, "user": USER, "request": REQUEST}

ABORTED: Final = "aborted"
VANISHED: Final = "vanished"
NO_VARIANT: Final = ""  # kept for a live session that is outside a split

_DIGEST_BYTES: Final = 16
_MAX_KEY_BYTES: Final = 64  # of blake2b
_MAX_FOREIGN: Final = 32  # pairs of splits that are not in force at present, of one unit
_MAX_INTERNED: Final = 4_096
_MAX_ECHO_BYTES: Final = 8_192
_DEFAULT_IDLE_S: Final = 86_400.0


NOWHERE: Final = Arm("", Variant(""))  # settled: no variant


class _Place:
    """Where the units of one variant are served: `arm` None: nowhere; `kept` is the name that is kept for them."""

    __slots__ = ("arm", "kept", "reason")

    def __init__(self, arm: Arm | None, kept: str, reason: str):
        self.arm = arm
        self.kept = kept
        self.reason = reason


class _Plan:
    """One split, prepared."""

    __slots__ = (
        "_fallback", "_hasher", "_layer_seed", "_seed", "_starts", "_whole", "by_name", "gives", "idle_s", "kind",
        "layer", "layer_from", "layer_to", "name", "names", "observed", "overrides", "prefix", "ready",
    )  # fmt: skip

    def __init__(self, split: Split, gone: Mapping[str, bool]):
        self.name = split.name
        self.kind: int = KINDS[split.unit]
        self.idle_s = float(split.idle_s)
        self.layer = split.layer
        self.layer_from, self.layer_to = split.layer_from, split.layer_to
        self._whole = split.layer_from <= 0 and split.layer_to >= PARTS
        self._layer_seed = _seed64(b"layer" if split.layer else b"split", split.layer or split.name)
        self.observed = split.observed or not split.variants
        self.gives = split.is_open and not self.observed
        self.overrides = {unit.encode(): name for unit, name in split.overrides.items()}
        self.prefix = f"{split.name}="
        self._hasher: Any = unit_hasher(split)
        self._seed = _seed64(b"request", split.seed or split.name)
        self.by_name: dict[str, _Place] = {}
        self._fallback = _Place(None, NO_VARIANT, VANISHED)
        arms = [Arm(split.name, variant) for variant in split.variants]
        if arms:
            first = arms[0]
            fallback = None if gone[first.name] else first
            self._fallback = _Place(fallback, first.name, VANISHED)
            for arm in arms:
                if arm.variant.aborted:
                    self.by_name[arm.name] = _Place(fallback, first.name, ABORTED)
                elif gone[arm.name]:
                    self.by_name[arm.name] = self._fallback
                else:
                    self.by_name[arm.name] = _Place(arm, arm.name, "")
        ranges = ranges_in_force(split.variants)
        owners = sorted([(start, arm.name) for arm, own in zip(arms, ranges, strict=True) for start, _ in own])
        self._starts = [start for start, _ in owners]
        self.names = [name for _, name in owners]
        self.ready: list[Ready] = []
        if self.gives and self._whole and not self.overrides:
            self.ready = self._make_ready()

    def _make_ready(self) -> list[Ready]:
        """By range; empty where something has to be said of those that fall in one of them."""
        ready: list[Ready] = []
        for name in self.names:
            place = self.place(name)
            if place.arm is None or place.reason == VANISHED:
                return []
            ready.append(Ready(place.arm, ((self.name, place.kept),), Treatment((place.arm,))))
        return ready

    def digest(self, unit: bytes) -> bytes:
        """The hash of (seed, unit): its first 40 bits place the unit, the whole names it on spans."""
        if self.kind == REQUEST:  # nobody's secret, and there is one per call
            return xxh3_128_digest(unit, self._seed)
        hasher = self._hasher.copy()
        hasher.update(unit)
        digest: bytes = hasher.digest()
        return digest

    def takes_part(self, unit: bytes) -> bool:
        """Whether the unit's place in the layer is in the split's range."""
        if self._whole:
            return True
        place = xxh3_64_intdigest(unit, self._layer_seed) * PARTS >> 64
        return bool(self.layer_from <= place < self.layer_to)

    def part_of(self, digest: bytes) -> int:
        """Index of the range that the unit falls in."""
        # As much as a machine word holds after the product: half the time of more, and even to one in a million.
        place = digest[0] << 32 | digest[1] << 24 | digest[2] << 16 | digest[3] << 8 | digest[4]
        return bisect_right(self._starts, place * PARTS >> 40) - 1

    def place(self, name: str) -> _Place:
        return self.by_name.get(name, self._fallback)


class Assigner:
    """The splits of one agent under one policy. `endpoints` are the labels of its configured endpoints, those its
    balancing leaves out not among them; with none at all nothing can have vanished."""

    __slots__ = (
        "_foreign_idle_s", "_interned", "_kept", "_overridden", "_plans", "_shares_layers", "calm_s", "per_call",
        "splits",
    )  # fmt: skip

    def __init__(self, splits: Sequence[Split], endpoints: Iterable[Mapping[str, str]]):
        labels = [one.items() for one in endpoints]

        def is_gone(variant: Variant) -> bool:
            wanted = variant.labels.items()
            return bool(wanted) and bool(labels) and not any([wanted <= one for one in labels])

        self.splits = tuple(splits)
        self._plans = [_Plan(split, {one.name: is_gone(one) for one in split.variants}) for split in splits]
        layers = [plan.layer for plan in self._plans if plan.layer]
        self._shares_layers = len(set(layers)) < len(layers)
        self._overridden = any([bool(plan.overrides) for plan in self._plans])
        self.per_call = any([plan.kind == REQUEST for plan in self._plans])
        self.calm_s = min([plan.idle_s for plan in self._plans], default=_DEFAULT_IDLE_S)
        self._interned: dict[tuple[Arm, ...], Treatment] = {}
        self._kept: dict[Held, Held] = {}
        self._foreign_idle_s = max([_DEFAULT_IDLE_S, *[plan.idle_s for plan in self._plans]])

    @property
    def sticky(self) -> bool:
        """Whether anything is kept for anybody."""
        return any([plan.kind != REQUEST for plan in self._plans])

    def warnings(self) -> list[str]:
        """For people: what moves units away from their variants."""
        found = []
        for plan in self._plans:
            for name, place in plan.by_name.items():
                if place.reason:
                    to = place.arm.name if place.arm is not None else "no variant"
                    why = "is aborted" if place.reason == ABORTED else "has no endpoint with its labels"
                    found.append(f"split {plan.name}: variant {name} {why}; its units get {to}")
        return found

    def alive(self, held: Held, idle_s: float) -> Held:
        """What is left of what a unit held, after it made no call for so long."""
        limits = {plan.name: plan.idle_s for plan in self._plans}
        return tuple([pair for pair in held if idle_s <= limits.get(pair[0], self._foreign_idle_s)])

    @property
    def by_user(self) -> frozenset[str]:
        """Names of the splits that go by users."""
        return frozenset([plan.name for plan in self._plans if plan.kind == USER])

    def of_user(self, held: Held, before: Held) -> Held:
        """What is to be kept of a session's user, so that all sessions it begins are alike: what it held `before`, else
        what its session holds."""
        mine, drawn = dict(before), dict(held)
        pairs: list[tuple[str, str]] = []
        for plan in self._plans:
            if plan.kind == USER:
                name = mine.get(plan.name, NO_VARIANT)
                if not name or (not plan.observed and plan.place(name).reason):
                    name = drawn.get(plan.name, NO_VARIANT)
                if name:
                    pairs.append((plan.name, name))
        return self._merged(pairs, before)

    def decide(
        self, session: bytes, user: bytes, request: bytes, held: Held = (), echo: Mapping[str, str] | None = None
    ) -> Decision:
        """Assign one call. Empty: it has no such identity. `held`: what is kept under its session, else its user."""
        state = _State(session, user, request)
        if held or echo is not None or self._overridden:
            self._decide_given(state, dict(held), echo)
        else:
            for plan in self._plans:
                self._draw(plan, state)
        treatment: Treatment | None = None
        if state.arms:
            arms = tuple(state.arms)
            treatment = self._interned.get(arms)
            if treatment is None:
                treatment = self._intern(arms)
        kept: Held = ()
        if state.kept or held:
            kept = self._merged(state.kept, held)
        return Decision(treatment, state.units, kept, state.fresh, state.moved, state.missing)

    def draw(self, unit: bytes) -> tuple[Ready, str]:
        """What a unit comes to that nothing is known of, and its hash, where `lone_kind` says that nothing else
        counts."""
        plan = self._plans[0]
        digest = plan.digest(unit)
        return plan.ready[plan.part_of(digest)], plan.prefix + digest.hex()

    @property
    def lone_kind(self) -> int:
        """The kind of unit that alone decides: one split by it, for everybody. -1: it is not as simple as that."""
        return self._plans[0].kind if len(self._plans) == 1 and self._plans[0].ready else -1

    def _decide_given(self, state: _State, known: Mapping[str, str], echo: Mapping[str, str] | None) -> None:
        """The same where something may be settled without a draw: that first, as it takes layers; and what is kept
        here before what the caller says."""
        arms = [self._given(plan, state, known) for plan in self._plans]
        if echo is not None:
            arms = [
                arm if arm is not None else self._echoed(plan, state, echo)
                for plan, arm in zip(self._plans, arms, strict=True)
            ]
        for plan, arm in zip(self._plans, arms, strict=True):
            if arm is None:
                self._draw(plan, state)
            elif arm is not NOWHERE:
                state.arms.append(arm)

    def _given(self, plan: _Plan, state: _State, known: Mapping[str, str]) -> Arm | None:
        """The unit's arm where an override or what is kept settles it."""
        if plan.overrides:
            unit = state.unit_of(plan.kind)
            name = plan.overrides.get(unit) if plan.kind != REQUEST else state.override_of(plan.overrides)
            if name is not None:
                state.take(plan.layer)
                if plan.name in known:
                    state.keep(plan.name, known[plan.name])
                return plan.place(name).arm or NOWHERE
        if plan.kind == REQUEST:
            return None
        name = known.get(plan.name)
        if plan.observed:
            if name is not None:
                state.keep(plan.name, name)
            return None
        if name is None:
            return None
        if name == NO_VARIANT:
            state.keep(plan.name, NO_VARIANT)
            return NOWHERE
        return self._settled(plan, state, name)

    def _echoed(self, plan: _Plan, state: _State, echo: Mapping[str, str]) -> Arm | None:
        """The arm of a unit that nothing is kept of and whose caller says what it held."""
        name = echo.get(plan.name)
        if name is None or plan.kind == REQUEST or plan.observed or not state.unit_of(plan.kind):
            return None
        if self._shares_layers and plan.layer and state.has_taken(plan.layer):
            return None
        return self._settled(plan, state, name)

    def _settled(self, plan: _Plan, state: _State, name: str) -> Arm:
        """The arm of a unit that has held this variant before; `NOWHERE` where nobody can serve it."""
        place = plan.place(name)
        if place.reason:
            state.move(plan.name, place.reason, name, place.arm)
        state.keep(plan.name, place.kept)
        state.take(plan.layer)
        if place.arm is None:
            return NOWHERE
        unit = state.unit_of(plan.kind)
        if unit:
            state.count(plan.prefix, plan.digest(unit))
        return place.arm

    def _draw(self, plan: _Plan, state: _State) -> None:
        """Whoever holds nothing: by the hash."""
        unit = state.unit_of(plan.kind)
        if not unit:
            state.missing = state.missing or ("session" if plan.kind == SESSION else "user")
            return
        taken = self._shares_layers and plan.layer and state.has_taken(plan.layer)
        if taken or not (plan.gives or plan.observed) or not plan.takes_part(unit):
            if state.session and plan.kind != REQUEST and not plan.observed:
                state.keep(plan.name, NO_VARIANT)
            return
        digest = plan.digest(unit)
        if plan.gives:
            name = plan.names[plan.part_of(digest)]
            place = plan.place(name)
            if place.reason == VANISHED:
                state.move(plan.name, VANISHED, name, place.arm)
            if plan.kind != REQUEST:
                state.keep(plan.name, place.kept)
            state.take(plan.layer)
            arm = place.arm
            if arm is None:
                return
            state.arms.append(arm)
            if state.fresh is None:
                state.fresh = [arm]
            else:
                state.fresh.append(arm)
        state.count(plan.prefix, digest)

    def _intern(self, arms: tuple[Arm, ...]) -> Treatment:
        if len(self._interned) >= _MAX_INTERNED:
            self._interned.clear()
        treatment = self._interned[arms] = Treatment(arms)
        return treatment

    def _merged(self, pairs: list[tuple[str, str]], before: Held) -> Held:
        """What is to be kept: as decided, and what splits that are not in force at present gave before."""
        if before:
            mine = {plan.name for plan in self._plans}
            pairs = pairs + [pair for pair in before if pair[0] not in mine][:_MAX_FOREIGN]
        held = tuple(pairs)
        known = self._kept.get(held)
        if known is None:
            if len(self._kept) >= _MAX_INTERNED:
                self._kept.clear()
            known = self._kept[held] = held
        return known


class _State:
    """One decision while it is made."""

    __slots__ = ("_taken", "arms", "fresh", "kept", "missing", "moved", "request", "session", "units", "user")

    def __init__(self, session: bytes, user: bytes, request: bytes):
        self.session = session
        self.user = user
        self.request = request
        self.arms: list[Arm] = []
        self.kept: list[tuple[str, str]] = []
        self.fresh: list[Arm] | None = None
        self.moved: list[Moved] | None = None
        self.missing = ""
        self.units = ""
        self._taken: list[str] | None = None

    def unit_of(self, kind: int) -> bytes:
        if kind == SESSION:
            return self.session
        return self.user if kind == USER else self.request

    def override_of(self, overrides: Mapping[bytes, str]) -> str | None:
        """Requests have no name that a tester knows: their session's or user's counts."""
        name = overrides.get(self.session) if self.session else None
        return name if name is not None or not self.user else overrides.get(self.user)

    def keep(self, split: str, variant: str) -> None:
        if self.session or self.user:
            self.kept.append((split, variant))

    def take(self, layer: str) -> None:
        if layer:
            if self._taken is None:
                self._taken = []
            self._taken.append(layer)

    def has_taken(self, layer: str) -> bool:
        return self._taken is not None and layer in self._taken

    def move(self, split: str, reason: str, variant: str, arm: Arm | None) -> None:
        if self.moved is None:
            self.moved = []
        self.moved.append(Moved(split, reason, variant, arm.name if arm is not None else ""))

    def count(self, prefix: str, digest: bytes) -> None:
        self.units = f"{self.units},{prefix}{digest.hex()}" if self.units else prefix + digest.hex()


def unit_hasher(split: Split) -> Any:
    """What `outrider.unit` of a split is made by: blake2b of 128 bits, keyed by the seed. To be copied."""
    key = (split.seed or split.name).encode()
    if len(key) > _MAX_KEY_BYTES:
        key = blake2b(key, digest_size=_MAX_KEY_BYTES).digest()
    return blake2b(key=key, digest_size=_DIGEST_BYTES)


def parse_echo(value: bytes) -> dict[str, str] | None:
    """What a caller says its unit holds: `split=variant,split=variant`. None: nothing that can be read."""
    if not value or len(value) > _MAX_ECHO_BYTES:
        return None
    pairs = [part.partition("=") for part in value.decode("ascii", "replace").split(",")]
    found = {split.strip(): variant.strip() for split, equals, variant in pairs if equals and variant.strip()}
    return found or None


def _seed64(kind: bytes, name: str) -> int:
    return int.from_bytes(blake2b(name.encode(), digest_size=8, person=kind).digest(), "big")
