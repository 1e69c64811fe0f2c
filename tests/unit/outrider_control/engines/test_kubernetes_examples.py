"""The manifests of examples/kubernetes do what they say: the rights are those that the engine needs, no more and no
less, the names fit together, and what is configured in them is read by the programs."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import descriptor

from outrider_control import config as control_settings
from outrider_control.engines import externalscaler_pb2, keda, kubernetes
from outrider_control.loops.scale.types import EngineError
from outrider_sidecar import config as sidecar_config
from tests.kubernetes_cluster import Allowed, FakeCluster

FOLDER = Path(__file__).parents[4] / "examples" / "kubernetes"


def documents(file: str) -> Iterator[dict[str, Any]]:
    yield from yaml.safe_load_all((FOLDER / file).read_text(encoding="utf-8"))


def find(file: str, kind: str) -> dict[str, Any]:
    (found,) = [one for one in documents(file) if one["kind"] == kind]
    return found


def rules() -> list[Allowed]:
    return [
        Allowed(one["apiGroups"], one["resources"], one["verbs"], one.get("resourceNames", ()))
        for one in find("rbac.yaml", "Role")["rules"]
    ]


def control_config() -> dict[str, Any]:
    return yaml.safe_load(find("control.yaml", "ConfigMap")["data"]["control.yaml"])


def engine_section() -> dict[str, Any]:
    return control_config()["scaling"]["engines"]["prod"]


@asynccontextmanager
async def running(allowed: list[Allowed]) -> AsyncIterator[tuple[kubernetes.KubernetesEngine, FakeCluster]]:
    """The engine as control.yaml configures it, on a cluster that enforces the rules."""
    cluster = FakeCluster()
    cluster.allowed = allowed
    cluster.add("tax-agent", 3)
    async with cluster.open() as url:
        settings = kubernetes.settings({**engine_section(), "server": url}, "prod", Path())
        engine = kubernetes.KubernetesEngine("prod", settings, lambda: 0)
        try:
            yield engine, cluster
        finally:
            await engine.close()


async def everything(engine: kubernetes.KubernetesEngine) -> None:
    await engine.replicas("tax")
    await engine.grow("tax", 5)
    first, *_ = await engine.instances("tax")
    await engine.shrink("tax", 4, [first])


async def test_the_rights_are_enough() -> None:
    async with running(rules()) as (engine, cluster):
        await everything(engine)
        assert len(cluster.pods) == 4
        assert "tax-agent-0" not in cluster.pods


@pytest.mark.parametrize("left_out", range(len(rules())))
async def test_none_of_the_rights_is_too_many(left_out: int) -> None:
    kept = [rule for at, rule in enumerate(rules()) if at != left_out]
    async with running(kept) as (engine, _):
        with pytest.raises(EngineError, match=r"the service account needs the right to (get|list|patch) "):
            await everything(engine)


def test_the_rights_are_exactly_those_the_engine_asks_for() -> None:
    settings = kubernetes.settings({**engine_section(), "server": "https://k8s"}, "prod", Path())
    (needed,) = kubernetes.rights(settings).values()
    given = {
        (verb, resource, name)
        for rule in rules()
        for resource in rule.resources
        for verb in rule.verbs
        for name in rule.names or ("",)
    }
    assert given == {(one.verb, one.resource, one.name) for one in needed}
    assert {one.namespace for one in needed} == {find("rbac.yaml", "Role")["metadata"]["namespace"]}
    assert not any("*" in (*rule.groups, *rule.resources, *rule.verbs) for rule in rules())


async def test_without_deletion_cost_the_last_rule_is_not_needed() -> None:
    cluster = FakeCluster()
    cluster.allowed = rules()[:-1]
    cluster.add("tax-agent", 3)
    async with cluster.open() as url:
        section = {**engine_section(), "server": url, "pod_deletion_cost": False}
        engine = kubernetes.KubernetesEngine("prod", kubernetes.settings(section, "", Path()), lambda: 0)
        await everything(engine)
        await engine.close()
        assert len(cluster.pods) == 4


def test_the_names_fit_together() -> None:
    account, role, binding = (find("rbac.yaml", kind) for kind in ("ServiceAccount", "Role", "RoleBinding"))
    (subject,) = binding["subjects"]
    assert (subject["name"], subject["namespace"]) == (account["metadata"]["name"], account["metadata"]["namespace"])
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert binding["metadata"]["namespace"] == role["metadata"]["namespace"]
    control, agent = find("control.yaml", "Deployment"), find("agent.yaml", "Deployment")
    assert control["metadata"]["namespace"] == account["metadata"]["namespace"]
    assert control["spec"]["template"]["spec"]["serviceAccountName"] == account["metadata"]["name"]
    assert engine_section()["namespace"] == agent["metadata"]["namespace"] == role["metadata"]["namespace"]
    assert list(engine_section()["deployments"].values()) == [agent["metadata"]["name"]]
    assert find("scaledobject.yaml", "ScaledObject")["spec"]["scaleTargetRef"]["name"] == agent["metadata"]["name"]
    for one in (control, agent):
        labels = one["spec"]["template"]["metadata"]["labels"]
        assert one["spec"]["selector"]["matchLabels"] == labels
    service = find("control.yaml", "Service")
    assert service["spec"]["selector"] == control["spec"]["template"]["metadata"]["labels"]
    place = (
        f"{service['metadata']['name']}.{service['metadata']['namespace']}.svc:{service['spec']['ports'][0]['port']}"
    )
    (trigger,) = find("scaledobject.yaml", "ScaledObject")["spec"]["triggers"]
    assert trigger["metadata"]["scalerAddress"] == place
    assert place in find("agent.yaml", "ConfigMap")["data"]["sidecar.yaml"]
    for pod in (control, agent):
        spec = pod["spec"]["template"]["spec"]
        volumes = {one["name"] for one in spec["volumes"]}
        assert {mount["name"] for box in spec["containers"] for mount in box.get("volumeMounts", ())} == volumes


def test_the_scaled_object_asks_the_real_scaler() -> None:
    spec = find("scaledobject.yaml", "ScaledObject")["spec"]
    (trigger,) = spec["triggers"]
    assert trigger["type"] == "external-push"
    assert trigger["metadata"][keda.AGENT] == "tax"
    assert (
        trigger["authenticationRef"]["name"] == find("scaledobject.yaml", "TriggerAuthentication")["metadata"]["name"]
    )
    assert "metricType" not in trigger  # AverageValue, the default: the demand over the target is the size
    assert spec["fallback"]["behavior"] == "currentReplicasIfHigher"
    assert keda.settings(control_config()["scaling"]["engines"]["keda"], "", Path()) == keda.KedaSettings()
    assert control_config()["auth"]["certificates"] == {"keda-operator": "viewer"}


def test_the_control_plane_reads_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    text = find("control.yaml", "ConfigMap")["data"]["control.yaml"].replace("/tls/", f"{tmp_path}/")
    for name in ("tls.crt", "tls.key", "ca.crt"):
        (tmp_path / name).write_text("x")
    (tmp_path / "control.yaml").write_text(text)
    settings = control_settings.load(tmp_path / "control.yaml", {})
    engines = settings.scaling.engines
    assert {name: section.kind for name, section in engines.items()} == {"prod": "kubernetes", "keda": "keda"}
    assert engines["prod"].settings.server == "https://10.0.0.1:443"
    assert engines["prod"].settings.chooses


def test_the_sidecar_reads_its_file(tmp_path: Path) -> None:
    text = find("agent.yaml", "ConfigMap")["data"]["sidecar.yaml"].replace("POD_IP", "10.1.0.7")
    for mounted in ("/token/token", "/ca/ca.crt"):
        file = tmp_path / mounted.removeprefix("/")
        file.parent.mkdir()
        file.write_text("x")
        assert mounted in text
        text = text.replace(mounted, str(file))
    (tmp_path / "sidecar.yaml").write_text(text)
    settings = sidecar_config.load(tmp_path / "sidecar.yaml", {})
    assert settings.ingress is not None
    assert str(settings.ingress.advertise) == f"10.1.0.7:{engine_section()['port']}"
    assert settings.ingress.agent_id in engine_section()["deployments"]
    spec = find("agent.yaml", "Deployment")["spec"]["template"]["spec"]
    assert spec["terminationGracePeriodSeconds"] >= settings.drain_grace_s + 10  # what is left is the agent's
    agent, sidecar = spec["containers"]
    assert "preStop" not in sidecar.get("lifecycle", {})  # SIGTERM at once: it is what begins the drain
    hook = agent["lifecycle"]["preStop"]["exec"]["command"]
    assert hook[:2] == ["python", "-c"]
    compile(hook[2], "preStop", "exec")
    assert settings.admin is not None
    assert re.search(r'\("127\.0\.0\.1", (\d+)\)', hook[2])[1] == str(settings.admin.port)  # pyright: ignore[reportOptionalSubscript]
    assert spec["automountServiceAccountToken"] is False
    assert "replicas" not in find("agent.yaml", "Deployment")["spec"]


def test_the_contract_is_kedas() -> None:
    """Names and numbers as kedacore/keda has them; a change here breaks every KEDA there is."""
    file = externalscaler_pb2.DESCRIPTOR
    text, integer, number, flag = (
        getattr(descriptor.FieldDescriptor, f"TYPE_{kind}") for kind in ("STRING", "INT64", "DOUBLE", "BOOL")
    )
    message = descriptor.FieldDescriptor.TYPE_MESSAGE
    wanted = {
        "ScaledObjectRef": [("name", 1, text), ("namespace", 2, text), ("scalerMetadata", 3, message)],
        "IsActiveResponse": [("result", 1, flag)],
        "GetMetricSpecResponse": [("metricSpecs", 1, message)],
        "MetricSpec": [("metricName", 1, text), ("targetSize", 2, integer), ("targetSizeFloat", 3, number)],
        "GetMetricsRequest": [("scaledObjectRef", 1, message), ("metricName", 2, text)],
        "GetMetricsResponse": [("metricValues", 1, message)],
        "MetricValue": [("metricName", 1, text), ("metricValue", 2, integer), ("metricValueFloat", 3, number)],
    }
    found = {
        name: [(field.name, field.number, field.type) for field in one.fields]
        for name, one in file.message_types_by_name.items()
    }
    assert found == wanted
    assert keda.SERVICE == "externalscaler.ExternalScaler"
    methods = file.services_by_name["ExternalScaler"].methods
    assert {(one.name, one.server_streaming) for one in methods} == {
        ("IsActive", False),
        ("StreamIsActive", True),
        ("GetMetricSpec", False),
        ("GetMetrics", False),
        ("StreamMetricSpec", True),
    }
