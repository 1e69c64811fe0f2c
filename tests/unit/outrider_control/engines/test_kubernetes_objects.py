"""Pods as the API server tells of them: what state that is, where they listen, what people are told."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider_control.engines import kubernetes_objects as objects
from outrider_control.loops.scale.types import DRAINING, FAILED, READY, STARTING, EngineError, Instance


def pod(**status: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "tax-1", "creationTimestamp": "2026-11-22T10:00:00Z"},
        "spec": {"containers": [{"name": "agent", "ports": [{"containerPort": 9001}]}]},
        "status": {"phase": "Running", "podIP": "10.1.0.1", **status},
    }


def read(item: Any, port: int = 0) -> Instance:
    return objects.pod(item, port, "engine prod").instance


def condition(kind: str, status: str, **more: str) -> dict[str, str]:
    return {"type": kind, "status": status, **more}


def waiting(reason: str, **more: Any) -> list[dict[str, Any]]:
    return [{"name": "agent", "state": {"waiting": {"reason": reason}}, **more}]


CRASHED = {
    "lastState": {"terminated": {"reason": "Error", "exitCode": 1, "message": "KeyError: 'rates'\n"}},
}
OOM = {"name": "agent", "state": {"terminated": {"reason": "OOMKilled", "exitCode": 137}}}


@pytest.mark.parametrize(
    ("status", "state", "note"),
    [
        ({"conditions": [condition("Ready", "True")]}, READY, ""),
        ({"conditions": [condition("Ready", "False")]}, STARTING, "Ready: not yet"),
        (
            {"conditions": [condition("Ready", "Unknown", reason="NodeLost", message="gone")]},
            STARTING,
            "NodeLost: gone",
        ),
        ({"conditions": []}, STARTING, ""),
        (
            {
                "phase": "Pending",
                "conditions": [condition("PodScheduled", "False", reason="Unschedulable", message="0/3")],
            },
            STARTING,
            "Unschedulable: 0/3",
        ),
        ({"phase": "Pending", "containerStatuses": waiting("ContainerCreating")}, STARTING, ""),
        (
            {"containerStatuses": waiting("CrashLoopBackOff", **CRASHED)},
            FAILED,
            "container agent: Error, exit code 1: KeyError: 'rates' ; CrashLoopBackOff: no message",
        ),
        (
            {"phase": "Pending", "containerStatuses": waiting("ImagePullBackOff")},
            FAILED,
            "container agent: ImagePullBackOff: no message",
        ),
        (
            {"phase": "Pending", "initContainerStatuses": waiting("CreateContainerConfigError")},
            FAILED,
            "container agent: CreateContainerConfigError: no message",
        ),
        ({"phase": "Failed", "reason": "Evicted", "message": "disk"}, FAILED, "Evicted: disk"),
        (
            {"phase": "Failed", "containerStatuses": [OOM]},
            FAILED,
            "container agent: OOMKilled, exit code 137; Failed: no message",
        ),
        ({"phase": "Succeeded", "conditions": [condition("Ready", "True")]}, FAILED, "Succeeded: no message"),
    ],
)
def test_states(status: dict[str, Any], state: str, note: str) -> None:
    found = read(pod(**status))
    assert (found.state, found.note) == (state, note)


def test_a_pod_that_serves_is_ready_whatever_a_helper_does() -> None:
    """Ready is what Kubernetes goes by, and so do we."""
    status = {"conditions": [condition("Ready", "True")], "containerStatuses": waiting("CrashLoopBackOff")}
    assert read(pod(**status)).state == READY


def test_a_pod_that_is_being_ended() -> None:
    item = pod(conditions=[condition("Ready", "True")])
    item["metadata"]["deletionTimestamp"] = "2026-11-22T10:00:00Z"
    found = objects.pod(item, 0, "")
    assert found.instance.state == DRAINING
    assert found.leaving


@pytest.mark.parametrize(
    ("ip", "address", "note"),
    [
        ("10.1.0.1", "10.1.0.1:9001", ""),
        ("fd00::1", "[fd00::1]:9001", ""),
        (None, "", "has no IP"),
        ("", "", "has no IP"),
        ("tax.local", "", "podIP 'tax.local' is no address"),
        (7, "", "podIP 7 is no address"),
        ("10.1.0.1:80/x", "", "podIP '10.1.0.1:80/x' is no address"),
    ],
)
def test_addresses(ip: Any, address: str, note: str) -> None:
    found = read(pod(podIP=ip, conditions=[condition("Ready", "True")]))
    assert (found.address, found.state, found.note) == (address, READY, note)


@pytest.mark.parametrize(
    ("ports", "port"),
    [
        ([[{"containerPort": 7601}]], 7601),
        ([[{"containerPort": 9001}], [{"containerPort": 7601, "name": "grpc"}]], 7601),
        ([[{"containerPort": 9001}], [{"containerPort": 7601}]], 0),
        ([[{"containerPort": 9001, "name": "grpc"}, {"containerPort": 2, "name": "grpc"}]], 0),
        ([[{"containerPort": 9001, "protocol": "UDP"}]], 0),
        ([[{"containerPort": 70_000}, {"containerPort": "9001"}, {"containerPort": True}, {}]], 0),
        ([], 0),
    ],
)
def test_the_port_that_is_declared(ports: list[Any], port: int) -> None:
    item = pod()
    item["spec"] = {"containers": [{"ports": one} for one in ports]}
    assert read(item).address == (f"10.1.0.1:{port}" if port else "")
    assert read(item, 8_000).address == "10.1.0.1:8000"


def test_a_native_sidecar_declares_the_port() -> None:
    item = pod()
    item["spec"] = {"initContainers": [{"restartPolicy": "Always", "ports": [{"containerPort": 7601}]}]}
    assert read(item).address == "10.1.0.1:7601"


@pytest.mark.parametrize(
    ("value", "milliseconds"),
    [
        ("2026-11-22T10:00:00Z", 1_795_341_600_000),
        ("2026-11-22T10:00:00.5+00:00", 1_795_341_600_500),
        ("yesterday", 0),
        ("1800-01-01T00:00:00Z", 0),
        (None, 0),
        (12, 0),
    ],
)
def test_times(value: Any, milliseconds: int) -> None:
    assert objects.milliseconds(value) == milliseconds


@pytest.mark.parametrize(
    ("annotations", "cost"),
    [({objects.DELETION_COST: "-1000"}, -1_000), ({objects.DELETION_COST: "low"}, 0), ({}, 0), (None, 0), ("x", 0)],
)
def test_costs(annotations: Any, cost: int) -> None:
    item = pod()
    item["metadata"]["annotations"] = annotations
    assert objects.pod(item, 0, "").cost == cost


def test_notes_are_one_short_line() -> None:
    note = read(pod(phase="Failed", reason="x", message="a\x1b\n" * 10_000)).note
    assert note.isprintable()
    assert len(note) == 300


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just("True"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KEYS = [
    *(
        "metadata",
        "name",
        "spec",
        "status",
        "conditions",
        "phase",
        "containerStatuses",
        "containers",
        "ports",
        "labels",
    ),
    *("podIP", "annotations", "state", "waiting", "reason", "replicas", "selector", "resourceVersion", "startTime"),
]
OBJECTS = st.recursive(
    JSON, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=6)
)


@given(OBJECTS)
def test_no_pod_breaks_the_reader(item: Any) -> None:
    try:
        found = read(item)
    except EngineError as error:
        assert "without a name" in str(error)
        return
    assert found.name
    assert found.state in (STARTING, READY, DRAINING, FAILED)
    assert found.note == "" or (found.note.isprintable() and len(found.note) <= 300)


@given(st.dictionaries(st.sampled_from(KEYS), OBJECTS, max_size=6))
def test_no_scale_breaks_the_reader(answer: dict[str, Any]) -> None:
    try:
        found = objects.scale(answer, "")
    except EngineError:
        return
    assert 0 <= found.replicas <= objects.MAX_REPLICAS
    assert found.selector
    assert found.version
