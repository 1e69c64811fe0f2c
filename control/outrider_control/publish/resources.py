"""What sidecars are told, as resources: a kind, a name, a version and bytes that are encoded once for all of them.

Always holds: a version only grows; what is in the catalog is the newest of each resource; the bytes of an update are
made of the bytes of its resources, and the body of an update that many sidecars need is one object that they share.

Deliberately not here: where policies and endpoints come from (`publisher`), what one sidecar holds (`watch`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from outrider.codec import encode_agent
from outrider.policy import Agent
from outrider.v1 import mesh_pb2

POLICY = int(mesh_pb2.RESOURCE_KIND_POLICY)
ENDPOINTS = int(mesh_pb2.RESOURCE_KIND_ENDPOINTS)
EPOCHS = int(mesh_pb2.RESOURCE_KIND_EPOCHS)
MESH = int(mesh_pb2.RESOURCE_KIND_MESH)
SPLITS = int(mesh_pb2.RESOURCE_KIND_SPLITS)

MAX_TOMBS = 16_384  # removed resources whose last version is remembered, for sidecars that have not heard of it yet
MAX_BODIES = 32  # shared bodies of one generation
MAX_UPDATE_BYTES = 16 * 1024 * 1024  # what a sidecar takes in one message


class ResourceId(NamedTuple):
    """`kind` is a value of outrider.v1.ResourceKind."""

    kind: int
    name: str


class Resource(NamedTuple):
    """One resource at its newest version. `wire` is it as a field of an Update."""

    key: ResourceId
    version: int
    wire: bytes
    changed_us: int  # unix microseconds


def varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def field(number: int, payload: bytes) -> bytes:
    """A field of bytes, a text or a message."""
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def _versioned(key: ResourceId, version: int) -> bytes:
    return mesh_pb2.ResourceVersion(
        kind=mesh_pb2.ResourceKind.ValueType(key.kind), name=key.name, version=version
    ).SerializeToString()


def _resource(key: ResourceId, version: int, body: bytes, changed_us: int) -> Resource:
    # In an Update resources are field 3; in a Resource `id` is field 1 and the bodies stand at kind + 1.
    wire = field(3, field(1, _versioned(key, version)) + field(key.kind + 1, body))
    return Resource(key, version, wire, changed_us)


def policy(agent: Agent, version: int, changed_us: int) -> Resource:
    body = encode_agent(agent).SerializeToString(deterministic=True)
    return _resource(ResourceId(POLICY, agent.agent_id), version, body, changed_us)


def endpoints(agent_id: str, version: int, encoded: Sequence[bytes], changed_us: int) -> Resource:
    """`encoded`: each an outrider.v1.Endpoint, in the order of their addresses."""
    body = b"".join([field(1, endpoint) for endpoint in encoded])
    return _resource(ResourceId(ENDPOINTS, agent_id), version, body, changed_us)


def splits(agent_id: str, version: int, encoded: Sequence[bytes], changed_us: int) -> Resource:
    """`encoded`: each an outrider.v1.SplitPolicy, in the order of their names."""
    body = b"".join([field(1, split) for split in encoded])
    return _resource(ResourceId(SPLITS, agent_id), version, body, changed_us)


def epochs(floor: int, rows: Iterable[tuple[str, str, str, int]], version: int, changed_us: int) -> Resource:
    message = mesh_pb2.Epochs(floor=floor)
    for agent_id, tenant_id, tag, value in rows:
        message.epochs.add(agent_id=agent_id, tenant_id=tenant_id, tag=tag, value=value)
    return _resource(ResourceId(EPOCHS, ""), version, message.SerializeToString(), changed_us)


def mesh(default_agent: str, version: int, changed_us: int) -> Resource:
    body = mesh_pb2.MeshPolicy(default_agent=default_agent).SerializeToString()
    return _resource(ResourceId(MESH, ""), version, body, changed_us)


class Catalog:
    """The newest version of every resource, and the last version of those that are gone."""

    def __init__(self) -> None:
        self.resources: dict[ResourceId, Resource] = {}
        self._tombs: dict[ResourceId, tuple[int, int]] = {}
        self._bodies: dict[tuple[bool, frozenset[ResourceId], frozenset[ResourceId]], bytes] = {}

    def version(self, key: ResourceId) -> int:
        """Of the resource, or of its removal; 0: never heard of."""
        resource = self.resources.get(key)
        return resource.version if resource is not None else self._tombs.get(key, (0, 0))[0]

    def put(self, resource: Resource) -> bool:
        """False: it is not newer than what is there."""
        if resource.version <= self.version(resource.key):
            return False
        self._tombs.pop(resource.key, None)
        self.resources[resource.key] = resource
        self._bodies.clear()
        return True

    def remove(self, key: ResourceId, version: int, changed_us: int) -> bool:
        """False: there is nothing to remove, or something newer."""
        if version <= self.version(key):
            return False
        known = self.resources.pop(key, None) is not None
        self._tombs.pop(key, None)
        self._tombs[key] = version, changed_us
        if len(self._tombs) > MAX_TOMBS:
            del self._tombs[next(iter(self._tombs))]
        self._bodies.clear()
        return known

    def split(self, claimed: Mapping[ResourceId, int]) -> tuple[frozenset[ResourceId], frozenset[ResourceId]]:
        """Of all there is: what somebody who holds `claimed` lacks, and what it holds at the newest version."""
        current = frozenset([key for key, version in claimed.items() if version and self._is_newest(key, version)])
        return frozenset(self.resources) - current, current

    def _is_newest(self, key: ResourceId, version: int) -> bool:
        resource = self.resources.get(key)
        return resource is not None and resource.version == version

    def full(self, lacking: frozenset[ResourceId], current: frozenset[ResourceId]) -> bytes:
        """The body of a full update, all but its nonce."""
        return self._body(True, lacking, current)

    def delta(self, changed: frozenset[ResourceId]) -> bytes:
        """The body of an update about these, all but its nonce; those that are not there any more are gone."""
        return self._body(False, changed, frozenset())

    def _body(self, full: bool, ids: frozenset[ResourceId], current: frozenset[ResourceId]) -> bytes:
        wanted = full, ids, current
        body = self._bodies.get(wanted)
        if body is not None:
            return body
        parts = [b"\x10\x01"] if full else []
        newest_us = 0
        for key in sorted(ids):
            resource = self.resources.get(key)
            if resource is not None:
                parts.append(resource.wire)
                changed_us = resource.changed_us
            else:
                version, changed_us = self._tombs.get(key, (0, 0))
                parts.append(field(4, _versioned(key, version)))
            newest_us = max(newest_us, changed_us)
        parts.extend([field(5, _versioned(key, self.resources[key].version)) for key in sorted(current)])
        if newest_us:
            parts.append(b"\x30" + varint(newest_us))
        body = b"".join(parts)
        if len(self._bodies) >= MAX_BODIES:
            del self._bodies[next(iter(self._bodies))]
        self._bodies[wanted] = body
        return body


def message(nonce: int, body: bytes) -> bytes:
    """A WatchResponse that carries the update."""
    prefix = b"\x08" + varint(nonce)
    return b"\x12" + varint(len(prefix) + len(body)) + prefix + body
