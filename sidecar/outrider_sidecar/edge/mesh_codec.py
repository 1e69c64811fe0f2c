"""Messages of the Mesh service to and from plain values. The one module of the sidecar that knows mesh.proto.

Always holds: a resource is read by itself; what is wrong with one becomes its `reason` and never an exception; kinds
this version does not know are passed over. Imported only where a control plane is configured: protobuf is not small.

Deliberately not here: what becomes of the values (`edge.pushed`), the stream (`edge.mesh`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError

from outrider import codec, policy_parse, split_codec
from outrider.policy import Agent, EndpointPolicy, PolicyError
from outrider.split import Split
from outrider.v1 import mesh_pb2
from outrider_sidecar.core.resource import ENDPOINTS, EPOCHS, KIND_NAMES, MESH, POLICY, SPLITS, Resource
from outrider_sidecar.edge.load import Load
from outrider_sidecar.engines.epochs import Epochs
from outrider_sidecar.engines.shares import Granted, Use

Response = mesh_pb2.WatchResponse
UpdateMessage = mesh_pb2.Update
Welcome = mesh_pb2.Welcome

CAPABILITIES = ("policy.v1", "endpoints.v1", "epochs.v1", "load.v1", "quotas.v1", "splits.v1")
_BODIES = {POLICY: "policy", ENDPOINTS: "endpoints", EPOCHS: "epochs", MESH: "mesh", SPLITS: "splits"}
_MAX_REASON_CHARS = 1_000


class Announced(NamedTuple):
    """One endpoint this sidecar speaks for."""

    agent_id: str
    address: str
    labels: Mapping[str, str]
    capacity: int


def read_response(data: bytes) -> Response:
    """What came on the stream. ValueError when it is no such message."""
    try:
        return Response.FromString(data)
    except DecodeError as error:
        raise ValueError(f"a message that is no WatchResponse: {error}") from None


def read_grants(message: mesh_pb2.Grants) -> list[Granted]:
    """The shares granted."""
    return [
        Granted(quota.agent_id, quota.scope, quota.key, quota.unit, one.share, one.version)
        for one in message.grants
        for quota in [one.quota]
    ]


def read_resource(message: mesh_pb2.Resource) -> Resource | None:
    """The resource with its value, or with the reason why it has none. None: a kind that is not known."""
    kind, name, version = message.id.kind, message.id.name, message.id.version
    if kind not in KIND_NAMES:
        return None
    body, expected = message.WhichOneof("body"), _BODIES[kind]
    if body != expected:
        return Resource(kind, name, version, reason=f"it is of kind {KIND_NAMES[kind]} and holds {body or 'nothing'}")
    try:
        value = _VALUES[kind](name, getattr(message, expected))
    except ValueError as error:  # PolicyError is one
        return Resource(kind, name, version, reason=str(error)[:_MAX_REASON_CHARS])
    return Resource(kind, name, version, message.SerializeToString(), value)


def read_body(one: Resource) -> Resource:
    """A resource from disk with its value, or with the reason why it has none."""
    try:
        message = mesh_pb2.Resource.FromString(one.body)
    except DecodeError as error:
        return one._replace(reason=str(error))
    return read_resource(message) or one._replace(reason="its kind is not known")


def read_version(message: mesh_pb2.ResourceVersion) -> Resource:
    return Resource(message.kind, message.name, message.version)


def _agent(name: str, message: Any) -> Agent:
    agent = codec.decode_agent(message)
    if agent.agent_id != name:
        raise PolicyError("agent_id", f"{agent.agent_id!r} is sent under the name {name!r}")
    return agent


def _endpoints(name: str, message: Any) -> tuple[EndpointPolicy, ...]:
    rows = []
    for at, one in enumerate(message.endpoints):
        if one.agent_id not in ("", name):
            raise PolicyError(f"endpoints[{at}].agent_id", f"{one.agent_id!r} is sent under the name {name!r}")
        capacity = max(0, one.capacity)
        rows.append(
            {"address": one.address, "weight": one.weight or 1, "labels": dict(one.labels), "capacity": capacity}
        )
    return policy_parse.agent_from_mapping({"agent_id": name, "endpoints": rows}, "").endpoints


def _epochs(_: str, message: Any) -> dict[str, Any]:
    counters = [[one.agent_id, one.tenant_id, one.tag, one.value] for one in message.epochs]
    exported = {"floor": message.floor, "counters": counters}
    Epochs().merge(exported)  # ValueError when one of them is no epoch
    return exported


def _mesh(_: str, message: Any) -> str:
    return message.default_agent


def _splits(name: str, message: Any) -> tuple[Split, ...]:
    return split_codec.decode_splits(message.splits, name)


_VALUES = {POLICY: _agent, ENDPOINTS: _endpoints, EPOCHS: _epochs, MESH: _mesh, SPLITS: _splits}


# -- what the sidecar says ---------------------------------------------------------------------------------------------


def _id(one: Resource) -> mesh_pb2.ResourceVersion:
    said = mesh_pb2.ResourceVersion(name=one.name, version=one.version)
    said.kind = one.kind  # pyright: ignore[reportAttributeAccessIssue]  # a plain number is one of the enum's
    return said


def hello(facts: Mapping[str, Any], held: Iterable[Resource]) -> bytes:
    """The first message. `facts`: the fields of Hello that have to do with the process."""
    said = mesh_pb2.Hello(capabilities=CAPABILITIES, held=[_id(one) for one in held], **facts)
    return mesh_pb2.WatchRequest(hello=said).SerializeToString()


def ack(nonce: int, refused: Sequence[Resource], applied_us: int) -> bytes:
    """The answer to an update."""
    said = mesh_pb2.Ack(
        nonce=nonce,
        refused=[mesh_pb2.Refusal(resource=_id(one), reason=one.reason) for one in refused],
        applied_us=applied_us,
    )
    return mesh_pb2.WatchRequest(ack=said).SerializeToString()


def load(loads: Iterable[Load], now_unix_ms: int, spans_dropped: int, uses: Iterable[Use] = ()) -> bytes:
    """A load report."""
    agents = []
    for one in loads:
        row = mesh_pb2.AgentLoad(
            agent_id=one.agent_id,
            ingress=one.ingress,
            in_flight=one.in_flight,
            shed=one.shed,
            capacity=one.capacity,
            calls=one.calls,
            queued=dict(one.queued),
            shed_lanes=dict(one.shed_lanes),
            longest_wait_ms=one.longest_wait_ms,
            leaving=dict(one.leaving),
            degradation=one.degradation,
            degradation_step=one.degradation_step,
        )
        if one.cache is not None:
            row.cache.CopyFrom(mesh_pb2.CacheLoad(**one.cache._asdict()))
        agents.append(row)
    quotas = [
        mesh_pb2.QuotaUse(
            quota=mesh_pb2.Quota(agent_id=use.agent_id, scope=use.scope, key=use.key, unit=use.unit),
            demand_per_s=use.demand_per_s,
            share=use.share,
            version=use.version,
        )
        for use in uses
    ]
    said = mesh_pb2.LoadReport(now_unix_ms=now_unix_ms, agents=agents, spans_dropped=spans_dropped, quotas=quotas)
    return mesh_pb2.WatchRequest(load=said).SerializeToString()


def announcement(endpoints: Iterable[Announced]) -> bytes:
    """All endpoints this sidecar speaks for."""
    rows = [
        mesh_pb2.Endpoint(
            agent_id=one.agent_id,
            address=one.address,
            weight=1,
            labels=dict(one.labels),
            capacity=one.capacity,
            ingress=True,
        )
        for one in endpoints
    ]
    return mesh_pb2.WatchRequest(announcement=mesh_pb2.Announcement(endpoints=rows)).SerializeToString()
