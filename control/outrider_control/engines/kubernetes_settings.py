"""What a `kubernetes` engine is told: the API server, the credentials, and which workload is which agent.

Always holds: what is read can be put into a path of the API as it is; a bearer token travels by TLS or on loopback
alone; the agents of one engine are all of kinds that let themselves be told which pod to end, or none is.

Deliberately not here: reading the files (`kubernetes_api`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import urlsplit

from outrider import tree
from outrider.address import Address, is_host
from outrider.policy import PolicyError
from outrider.settings import check_file, file_path, whole_number

ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")  # where kubelet puts a pod's service account

DEPLOYMENT: Final = "Deployment"
STATEFUL_SET: Final = "StatefulSet"
REPLICA_SET: Final = "ReplicaSet"
_RESOURCES: Final[Mapping[str, str]] = MappingProxyType(
    {DEPLOYMENT: "deployments", STATEFUL_SET: "statefulsets", REPLICA_SET: "replicasets"}
)
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")  # RFC 1123, as Kubernetes checks a namespace
_SUBDOMAIN = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_FIELDS = (
    *("kind", "namespace", "deployments", "server", "token_file", "ca_file", "timeout_ms", "port"),
    *("pod_deletion_cost", "yield_s"),
)
_WORKLOAD_FIELDS = ("kind", "name", "namespace", "port")
_DAY_S = 86_400


@dataclass(frozen=True, slots=True)
class Workload:
    """What runs an agent's instances."""

    kind: str
    name: str
    namespace: str
    port: int = 0  # that callers' sidecars dial; 0: the pod's one container port, or the one named "grpc"

    @property
    def resource(self) -> str:
        """As paths and rights name it: "deployments"."""
        return _RESOURCES[self.kind]

    def __str__(self) -> str:
        return f"{self.kind} {self.name} in namespace {self.namespace}"


@dataclass(frozen=True, slots=True)
class KubernetesSettings:
    """One section of `scaling.engines` of kind `kubernetes`."""

    deployments: Mapping[str, Workload]  # by agent
    server: str  # "https://10.0.0.1:443", without a path at its end
    token_file: Path | None = None  # None: no `authorization` is sent
    ca_file: Path | None = None  # None: the authorities this machine trusts
    timeout_ms: int = 5_000  # of one request
    pod_deletion_cost: bool = True  # false: needs no right on pods but to list them; Kubernetes picks who leaves
    yield_s: int = 300  # how long nothing is written once another writer has undone what was set here, again

    @property
    def chooses(self) -> bool:
        """Whether the pods that leave can be named: by their deletion cost, which a StatefulSet does not look at."""
        return self.pod_deletion_cost and all(one.kind != STATEFUL_SET for one in self.deployments.values())


def settings(data: Any, path: str, folder: Path, environ: Mapping[str, str] = os.environ) -> KubernetesSettings:
    """The settings of one engine; PolicyError with the path of the first wrong field."""
    fields = tree.section(data, path, _FIELDS)
    inside = "server" not in fields  # inside a cluster: everything is where kubelet puts it
    found = KubernetesSettings(
        deployments=_deployments(fields, path),
        server=_inside_server(environ, path) if inside else _server(fields["server"], tree.join(path, "server")),
        token_file=_file(fields, "token_file", path, folder, ACCOUNT / "token", inside),
        ca_file=_file(fields, "ca_file", path, folder, ACCOUNT / "ca.crt", inside),
        timeout_ms=whole_number(fields, "timeout_ms", path, 5_000, 100, 60_000),
        pod_deletion_cost=tree.scalar(
            bool, fields.get("pod_deletion_cost", True), tree.join(path, "pod_deletion_cost")
        ),
        yield_s=whole_number(fields, "yield_s", path, 300, 1, _DAY_S),
    )
    kinds = {one.kind == STATEFUL_SET for one in found.deployments.values()}
    if found.pod_deletion_cost and len(kinds) > 1:
        reason = (
            "holds StatefulSets and others: a StatefulSet ends its newest pods, whoever was drained, so put them into "
            "an engine of their own, or say pod_deletion_cost: false"
        )
        raise PolicyError(tree.join(path, "deployments"), reason)
    return found


def _deployments(fields: Mapping[str, Any], path: str) -> Mapping[str, Workload]:
    at = tree.join(path, "deployments")
    given = fields.get("deployments")
    if not isinstance(given, Mapping) or not given:
        raise PolicyError(at, f"{tree.show(given)} is not a mapping of agents to Deployments, as in {{tax: tax-agent}}")
    namespace = fields.get("namespace")
    if namespace is not None:
        _named(_LABEL, namespace, tree.join(path, "namespace"))
    port = whole_number(fields, "port", path, 0, 1, 65_535)
    workloads: dict[str, Workload] = {}
    owners: dict[tuple[str, str, str], str] = {}
    for agent, one in given.items():
        agent_id = tree.scalar(str, agent, at)
        inner = tree.join(at, agent_id)
        workload = _workload(one, inner, namespace, port)
        key = (workload.kind, workload.namespace, workload.name)
        if key in owners:
            raise PolicyError(inner, f"{workload} is already that of {tree.show(owners[key])}")
        owners[key] = agent_id
        workloads[agent_id] = workload
    return MappingProxyType(workloads)


def _workload(data: Any, path: str, namespace: str | None, port: int) -> Workload:
    if isinstance(data, str):
        data = {"name": data}
    fields = tree.section(data, path, _WORKLOAD_FIELDS)
    if "name" not in fields:
        raise PolicyError(tree.join(path, "name"), "is missing")
    kind = tree.scalar(str, fields.get("kind", DEPLOYMENT), tree.join(path, "kind"))
    if kind not in _RESOURCES:
        raise PolicyError(tree.join(path, "kind"), f"{tree.show(kind)}: {tree.nearest(kind, list(_RESOURCES))}")
    home = fields.get("namespace", namespace)
    if home is None:
        raise PolicyError(tree.join(path, "namespace"), "is missing, here and in the engine's section")
    return Workload(
        kind=kind,
        name=_named(_SUBDOMAIN, fields["name"], tree.join(path, "name")),
        namespace=_named(_LABEL, home, tree.join(path, "namespace")),
        port=whole_number(fields, "port", path, port, 1, 65_535),
    )


def _named(pattern: re.Pattern[str], value: Any, path: str) -> str:
    text = tree.scalar(str, value, path)
    if not pattern.fullmatch(text):
        raise PolicyError(path, f"{tree.show(text)} is no name in Kubernetes: small letters, digits and `-`")
    return text


def _file(fields: Mapping[str, Any], name: str, path: str, folder: Path, default: Path, needed: bool) -> Path | None:
    """The file named; else the service account's, where there is one or must be one."""
    if name in fields:
        file = file_path(fields[name], tree.join(path, name), folder)
        check_file(file, tree.join(path, name))
        return file
    return default if needed or default.is_file() else None


def _inside_server(environ: Mapping[str, str], path: str) -> str:
    """As kubelet tells every container."""
    host, port = environ.get("KUBERNETES_SERVICE_HOST", ""), environ.get("KUBERNETES_SERVICE_PORT", "443")
    if not host:
        reason = (
            "is missing, and this is no pod (KUBERNETES_SERVICE_HOST is not set): say https://HOST:PORT, or "
            "http://127.0.0.1:8001 with `kubectl proxy`"
        )
        raise PolicyError(tree.join(path, "server"), reason)
    return _server(f"https://{f'[{host}]' if ':' in host else host}:{port}", tree.join(path, "server"))


def _server(value: Any, path: str) -> str:
    text = tree.scalar(str, value, path).rstrip("/")
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port or 0
    except ValueError as error:
        raise PolicyError(path, f"{tree.show(text)} is no URL: {error}") from None
    plain = parts.scheme == "http"
    if parts.scheme not in ("https", "http") or not (is_host(host) or ":" in host):
        raise PolicyError(path, f"{tree.show(text)} is not https://HOST:PORT")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise PolicyError(path, "holds more than scheme, host, port and path")  # maybe a password: not repeated
    if plain and not Address(host, port).is_loopback:
        raise PolicyError(path, f"{tree.show(text)} would send the token in the clear: use https")
    return text
