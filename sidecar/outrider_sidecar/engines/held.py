"""What a sidecar holds of the control plane's resources, and how an update changes it.

Always holds: a resource is taken or refused by itself, and a refused one leaves in force what was held before; what is
held goes only by the control plane's word (`removed`, or a full update that does not name it), never because a stream
ended. A full update is the truth, whatever was held; a delta that is older than what is held changes nothing. The state
is replaced whole by `commit`, so a plan that cannot be put in force leaves no trace.

Deliberately not here: what values mean, the wire, the disk (`encode` gives the bytes).

Layout of the bytes: 8s "OUTRPOLI" | u32 schema version | u32 length | 16s xxh3-128 | msgpack map {resources: [[kind,
name, version, body], ...]}, little endian. Keys and list items added later are ignored by older readers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from struct import Struct
from typing import Any, Final, NamedTuple

import msgpack
from xxhash import xxh3_128_digest

from outrider_sidecar.core.resource import KIND_NAMES, Key, Resource, Update

SCHEMA_VERSION: Final = 1
MAX_BYTES: Final = 256 * 1024 * 1024
_MAX_REFUSED: Final = 4_096
_MAGIC: Final = b"OUTRPOLI"
_HEADER: Final = Struct("<8sII16s")


class HeldRefused(Exception):
    """Bytes that are not what `encode` wrote; the message says why."""


class Plan(NamedTuple):
    """What an update would change: `held` is the state after it, `changed` what differs from the state before."""

    held: dict[Key, Resource]
    changed: frozenset[Key]
    refused: tuple[Resource, ...]  # each with its reason
    seen: frozenset[Key]  # every resource that was offered or is gone: an older refusal of it is settled


class Held:
    """The resources in force. `plan`, put it in force, then `commit`."""

    __slots__ = ("_held", "_refused", "updates")

    def __init__(self) -> None:
        self._held: dict[Key, Resource] = {}
        self._refused: dict[Key, Resource] = {}
        self.updates = 0

    @property
    def resources(self) -> Mapping[Key, Resource]:
        return self._held

    @property
    def refused(self) -> Mapping[Key, Resource]:
        """The newest refusal of each resource that has not been mended since."""
        return self._refused

    def plan(self, update: Update) -> Plan:
        """What the update comes to; changes nothing."""
        before = self._held
        if update.full:
            named = [*update.current, *update.resources]
            keys = {(one.kind, one.name) for one in named}
            after = {key: one for key, one in before.items() if key in keys}
        else:
            after = dict(before)
        refused: list[Resource] = []
        seen = {key for key in before if key not in after}
        for one in update.removed:
            key = (one.kind, one.name)
            known = after.get(key)
            if known is not None and known.version > one.version and one.version and not update.full:
                continue  # added again since
            seen.add(key)
            after.pop(key, None)
        for one in update.resources:
            key = (one.kind, one.name)
            known = after.get(key)
            if known is not None and one.version < known.version and not update.full:
                continue
            seen.add(key)
            if one.reason:
                refused.append(one)
            else:
                after[key] = one
        changed = {key for key in seen if _differ(before.get(key), after.get(key))}
        return Plan(after, frozenset(changed), tuple(refused), frozenset(seen))

    def commit(self, plan: Plan) -> None:
        """The plan is in force."""
        self._held = plan.held
        self.updates += 1
        for key in plan.seen:
            self._refused.pop(key, None)
        for one in plan.refused:
            if len(self._refused) < _MAX_REFUSED:
                self._refused[one.kind, one.name] = one


def _differ(before: Resource | None, after: Resource | None) -> bool:
    if before is None or after is None:
        return before is not after
    return before.value != after.value


def refuse(plan: Plan, held: Mapping[Key, Resource], reasons: Mapping[Key, str]) -> Plan:
    """The plan without what turned out not to work: those resources stay as they are held."""
    after = dict(plan.held)
    refused = list(plan.refused)
    for key, reason in reasons.items():
        offered, known = after.pop(key, None), held.get(key)
        if known is not None:
            after[key] = known
        if offered is not None and offered is not known:
            refused.append(offered._replace(reason=reason, value=None, body=b""))
    changed = frozenset([key for key in plan.changed if key not in reasons])
    return Plan(after, changed, tuple(refused), plan.seen)


def encode(resources: Iterable[Resource]) -> bytes:
    """The resources as bytes for the disk."""
    rows = [[one.kind, one.name, one.version, one.body] for one in resources]
    payload: bytes = msgpack.packb({"resources": rows})  # pyright: ignore[reportAssignmentType]
    return _HEADER.pack(_MAGIC, SCHEMA_VERSION, len(payload), xxh3_128_digest(payload)) + payload


def decode(data: bytes) -> list[Resource]:
    """What `encode` was given, without values. HeldRefused when it is damaged, cut or of another schema."""
    if len(data) < _HEADER.size:
        raise HeldRefused(f"it has {len(data)} bytes, which is less than a header")
    magic, version, size, checksum = _HEADER.unpack_from(data)
    if magic != _MAGIC:
        raise HeldRefused("it does not begin with OUTRPOLI")
    if version != SCHEMA_VERSION:
        raise HeldRefused(f"it has schema version {version}; this sidecar reads {SCHEMA_VERSION}")
    payload = data[_HEADER.size : _HEADER.size + size]
    if len(payload) != size or xxh3_128_digest(payload) != checksum:
        raise HeldRefused("its checksum is wrong: it is damaged or cut")
    try:
        return [_row(row) for row in msgpack.unpackb(payload, strict_map_key=False)["resources"]]
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise HeldRefused(f"it is malformed: {error}") from None


def _row(row: Any) -> Resource:
    kind, name, version, body = row[:4]
    if kind not in KIND_NAMES or type(name) is not str or type(version) is not int or type(body) is not bytes:
        raise ValueError("a row is no resource")
    return Resource(kind, name, version, body)
