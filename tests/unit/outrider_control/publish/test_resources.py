"""Resources as bytes: what is put together by hand is what protobuf reads."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.codec import decode_agent
from outrider.policy import Agent, EndpointPolicy
from outrider.v1 import mesh_pb2
from outrider_control.publish import resources
from outrider_control.publish.resources import ENDPOINTS, EPOCHS, MESH, POLICY, Catalog, ResourceId

NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=20)
VERSIONS = st.integers(1, 2**62)


def read(message: bytes) -> mesh_pb2.Update:
    response = mesh_pb2.WatchResponse.FromString(message)
    assert response.HasField("update")
    return response.update


def filled() -> Catalog:
    catalog = Catalog()
    agent = Agent("a", endpoints=(EndpointPolicy("h:1", 2, {"zone": "eu"}),), timeout_ms=7)
    endpoints = [mesh_pb2.Endpoint(agent_id="a", address=f"h:{port}").SerializeToString() for port in (1, 2)]
    assert catalog.put(resources.policy(agent, 3, 1_000))
    assert catalog.put(resources.endpoints("a", 4, endpoints, 2_000))
    assert catalog.put(resources.epochs(5, [("a", "t", "g", 6)], 7, 3_000))
    assert catalog.put(resources.mesh("a", 8, 500))
    return catalog


def test_every_kind_reads_as_protobuf() -> None:
    catalog = filled()
    lacking, current = catalog.split({})
    update = read(resources.message(300, catalog.full(lacking, current)))
    assert (update.nonce, update.full, update.changed_unix_us) == (300, True, 3_000)
    policy, endpoints, epochs, mesh = update.resources
    assert (policy.id.kind, policy.id.name, policy.id.version) == (POLICY, "a", 3)
    assert decode_agent(policy.policy, None).endpoints == (EndpointPolicy("h:1", 2, {"zone": "eu"}),)
    assert (endpoints.id.kind, endpoints.id.version) == (ENDPOINTS, 4)
    assert [each.address for each in endpoints.endpoints.endpoints] == ["h:1", "h:2"]
    assert (epochs.id.kind, epochs.id.name, epochs.id.version, epochs.epochs.floor) == (EPOCHS, "", 7, 5)
    (epoch,) = epochs.epochs.epochs
    assert (epoch.agent_id, epoch.tenant_id, epoch.tag, epoch.value) == ("a", "t", "g", 6)
    assert (mesh.id.kind, mesh.mesh.default_agent) == (MESH, "a")


def test_what_is_held_is_named_and_not_sent() -> None:
    catalog = filled()
    claimed = {ResourceId(POLICY, "a"): 3, ResourceId(ENDPOINTS, "a"): 3, ResourceId(POLICY, "gone"): 9}
    update = read(resources.message(1, catalog.full(*catalog.split(claimed))))
    assert [(each.kind, each.name, each.version) for each in update.current] == [(POLICY, "a", 3)]
    assert [each.id.kind for each in update.resources] == [ENDPOINTS, EPOCHS, MESH]


def test_what_is_gone_is_named_with_its_last_version() -> None:
    catalog = filled()
    assert catalog.remove(ResourceId(POLICY, "a"), 4, 9_000)
    changed = frozenset([ResourceId(POLICY, "a"), ResourceId(MESH, "")])
    update = read(resources.message(1, catalog.delta(changed)))
    assert not update.full
    assert [(each.kind, each.name, each.version) for each in update.removed] == [(POLICY, "a", 4)]
    assert [each.id.kind for each in update.resources] == [MESH]
    assert update.changed_unix_us == 9_000


def test_versions_only_grow() -> None:
    catalog = Catalog()
    key = ResourceId(POLICY, "a")
    assert catalog.put(resources.policy(Agent("a"), 2, 1))
    assert not catalog.put(resources.policy(Agent("a"), 2, 1))
    assert not catalog.put(resources.policy(Agent("a"), 1, 1))
    assert not catalog.remove(key, 2, 1)
    assert catalog.remove(key, 3, 1)
    assert not catalog.put(resources.policy(Agent("a"), 3, 1))
    assert catalog.version(key) == 3
    assert catalog.put(resources.policy(Agent("a"), 4, 1))
    assert not catalog.remove(ResourceId(POLICY, "never heard of"), 1, 1)


def test_one_body_is_shared_until_something_changes() -> None:
    catalog = filled()
    changed = frozenset([ResourceId(POLICY, "a")])
    body = catalog.delta(changed)
    assert catalog.delta(frozenset([ResourceId(POLICY, "a")])) is body
    catalog.put(resources.mesh("", 9, 1))
    assert catalog.delta(changed) == body
    catalog.put(resources.policy(Agent("a", timeout_ms=8), 4, 1))
    assert catalog.delta(changed) != body


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "MAX_TOMBS", 10)
    catalog = Catalog()
    for at in range(50):
        catalog.remove(ResourceId(POLICY, f"a{at}"), 1, 1)
    assert [catalog.version(ResourceId(POLICY, f"a{at}")) for at in (0, 39, 40, 49)] == [0, 0, 1, 1]
    for at in range(100):
        catalog.delta(frozenset([ResourceId(POLICY, f"a{at}")]))
    assert len(catalog._bodies) <= resources.MAX_BODIES


@given(NAMES, VERSIONS, st.integers(1, 2**40), st.integers(1, 2**40), st.lists(st.binary(max_size=300), max_size=5))
def test_any_name_and_version_crosses_the_wire(
    name: str, version: int, changed_us: int, nonce: int, labels: list[bytes]
) -> None:
    catalog = Catalog()
    endpoints = [mesh_pb2.Endpoint(address=label.hex()).SerializeToString() for label in labels]
    catalog.put(resources.endpoints(name, version, endpoints, changed_us))
    update = read(resources.message(nonce, catalog.delta(frozenset(catalog.resources))))
    (resource,) = update.resources
    assert (resource.id.name, resource.id.version) == (name, version)
    assert (update.nonce, update.changed_unix_us) == (nonce, changed_us)
    assert [each.address for each in resource.endpoints.endpoints] == [label.hex() for label in labels]
