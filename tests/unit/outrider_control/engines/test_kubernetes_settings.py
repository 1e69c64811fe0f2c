"""The section of a `kubernetes` engine: what is read, what is refused, and where a token may travel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from outrider.policy import PolicyError
from outrider_control.engines import kubernetes_settings
from outrider_control.engines.kubernetes import settings
from outrider_control.engines.kubernetes_settings import Workload

MINIMAL = {
    "kind": "kubernetes",
    "namespace": "agents",
    "server": "https://k8s:6443",
    "deployments": {"tax": "tax-agent"},
}
IN_POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_SERVICE_PORT": "443"}


def read(**fields: Any) -> kubernetes_settings.KubernetesSettings:
    given = {key: value for key, value in {**MINIMAL, **fields}.items() if value is not ...}
    return settings(given, "scaling.engines.prod", Path("/etc/outrider"), {})


def test_defaults() -> None:
    found = read()
    assert found.deployments == {"tax": Workload("Deployment", "tax-agent", "agents")}
    assert found.server == "https://k8s:6443"
    assert (found.token_file, found.ca_file, found.timeout_ms, found.yield_s) == (None, None, 5_000, 300)
    assert found.chooses


def test_a_workload_says_more(tmp_path: Path) -> None:
    one = {"kind": "ReplicaSet", "name": "law.v2", "namespace": "other", "port": 9000}
    found = read(deployments={"law": one, "tax": "tax-agent"}, port=7601)
    assert found.deployments["law"] == Workload("ReplicaSet", "law.v2", "other", 9000)
    assert found.deployments["tax"].port == 7601
    assert found.deployments["law"].resource == "replicasets"


def test_inside_a_pod_nothing_need_be_said() -> None:
    given = {"namespace": "agents", "deployments": {"tax": "tax-agent"}}
    account = kubernetes_settings.ACCOUNT
    found = settings(given, "", Path("/"), IN_POD)
    assert found.server == "https://10.0.0.1:443"
    assert (found.token_file, found.ca_file) == (account / "token", account / "ca.crt")
    assert settings(given, "", Path("/"), {"KUBERNETES_SERVICE_HOST": "fd00::1"}).server == "https://[fd00::1]:443"


def test_the_account_is_used_elsewhere_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubernetes_settings, "ACCOUNT", tmp_path)
    (tmp_path / "token").write_text("x")
    found = read()
    assert (found.token_file, found.ca_file) == (tmp_path / "token", None)


def test_files_are_relative_to_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("x")
    found = settings({**MINIMAL, "token_file": "token"}, "", tmp_path, {})
    assert found.token_file == tmp_path / "token"


def test_who_leaves_cannot_be_chosen_in_a_stateful_set() -> None:
    law = {"kind": "StatefulSet", "name": "law"}
    assert not read(deployments={"law": law}).chooses
    assert not read(deployments={"law": law, "tax": "tax-agent"}, pod_deletion_cost=False).chooses
    with pytest.raises(PolicyError, match="StatefulSets and others"):
        read(deployments={"law": law, "tax": "tax-agent"})


@pytest.mark.parametrize(
    ("fields", "path", "reason"),
    [
        ({"deployments": ...}, "deployments", "is not a mapping of agents"),
        ({"deployments": {}}, "deployments", "is not a mapping of agents"),
        ({"deployments": ["tax"]}, "deployments", "is not a mapping of agents"),
        ({"deployments": {"tax": 7}}, "deployments.tax", "is not a mapping of fields"),
        ({"deployments": {7: "tax"}}, "deployments", "is not text"),
        ({"deployments": {"tax": {}}}, "deployments.tax.name", "is missing"),
        ({"deployments": {"tax": "../../secrets"}}, "deployments.tax.name", "is no name in Kubernetes"),
        ({"deployments": {"tax": "Tax"}}, "deployments.tax.name", "is no name in Kubernetes"),
        ({"deployments": {"tax": "x\n"}}, "deployments.tax.name", "cannot be printed"),
        ({"deployments": {"tax": {"name": "x", "kind": "DaemonSet"}}}, "deployments.tax.kind", "known: Deployment"),
        ({"deployments": {"tax": {"name": "x", "kind": "deployment"}}}, "deployments.tax.kind", "did you mean"),
        ({"deployments": {"tax": {"name": "x", "port": 0}}}, "deployments.tax.port", "is not between 1 and 65535"),
        ({"deployments": {"tax": {"name": "x", "image": "y"}}}, "deployments.tax.image", "is not a field"),
        ({"deployments": {"tax": "a", "law": "a"}}, "deployments.law", "is already that of 'tax'"),
        ({"namespace": ...}, "deployments.tax.namespace", "is missing"),
        ({"namespace": "a/b"}, "namespace", "is no name in Kubernetes"),
        ({"server": ...}, "server", "this is no pod"),
        ({"server": "k8s:6443"}, "server", "is not https://HOST:PORT"),
        ({"server": "ftp://k8s"}, "server", "is not https://HOST:PORT"),
        ({"server": "https://"}, "server", "is not https://HOST:PORT"),
        ({"server": "https://k8s:99999"}, "server", "is no URL"),
        ({"server": "https://[k8s"}, "server", "is no URL"),
        ({"server": "http://k8s:8080"}, "server", "would send the token in the clear"),
        ({"server": "https://k8s/?a=b"}, "server", "holds more"),
        ({"token_file": "nowhere"}, "token_file", "is not a file"),
        ({"ca_file": ""}, "ca_file", "is empty"),
        ({"timeout_ms": 0}, "timeout_ms", "is not between"),
        ({"timeout_ms": 1.5}, "timeout_ms", "is not a whole number"),
        ({"yield_s": float("nan")}, "yield_s", "is not a whole number"),
        ({"pod_deletion_cost": "yes"}, "pod_deletion_cost", "is not true or false"),
        ({"tokenfile": "x"}, "tokenfile", "did you mean 'token_file'"),
    ],
)
def test_what_is_refused(fields: dict[str, Any], path: str, reason: str) -> None:
    with pytest.raises(PolicyError) as caught:
        read(**fields)
    assert caught.value.path == f"scaling.engines.prod.{path}"
    assert reason in caught.value.reason


def test_a_password_is_not_repeated() -> None:
    with pytest.raises(PolicyError) as caught:
        read(server="https://me:hunter2@k8s")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("server", ["http://127.0.0.1:8001/", "http://localhost:8001", "http://[::1]:8001"])
def test_a_proxy_on_this_machine_may_do_without_tls(server: str) -> None:
    assert read(server=server).server == server.rstrip("/")
