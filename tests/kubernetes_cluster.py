"""A Kubernetes API server for tests: kmock's, with Deployments whose pods come, serve and go as a real one's would.

Always holds: who may do what is checked by rules as in a Role; every write raises the workload's version, and one that
names an older version is refused; pods leave in the order of the ReplicaSet controller. Every request is in `requests`.

Deliberately not here: scheduling, rollouts, watches.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from kmock import KubernetesError, KubernetesScaffold, Request, Server

COST = "controller.kubernetes.io/pod-deletion-cost"
NAMESPACE = "agents"


@dataclass(frozen=True)
class Allowed:
    """One rule of a Role."""

    groups: Sequence[str]
    resources: Sequence[str]
    verbs: Sequence[str]
    names: Sequence[str] = ()

    def allows(self, group: str, resource: str, verb: str, name: str) -> bool:
        fits = group in self.groups and resource in self.resources and verb in self.verbs
        return fits and (not self.names or name in self.names)


@dataclass
class FakeWorkload:
    """A Deployment or StatefulSet."""

    name: str
    kind: str = "deployments"
    replicas: int = 0
    version: int = 1
    labels: dict[str, str] = field(default_factory=dict)
    made: int = 0  # pods, ever
    scale: Callable[[dict[str, Any]], Any] | None = None  # what is answered instead of the scale object


class FakeCluster:
    """One namespace."""

    def __init__(self) -> None:
        self.server = KubernetesScaffold()
        answers(self.server[lambda request: request.resource is not None], self._serve)
        self.workloads: dict[str, FakeWorkload] = {}
        self.pods: dict[str, dict[str, Any]] = {}
        self.allowed: list[Allowed] | None = None  # None: everything
        self.token: str | None = None  # None: nobody is asked for one
        self.lies = False  # a change of replicas is answered as done, and is not
        self.before_patch: list[Callable[[], None]] = []  # run one by one, before a scale is patched
        self.ready = True  # whether new pods are at once
        self.page = 10_000  # pods of one answer at most

    @asynccontextmanager
    async def open(self, client: Any = None) -> AsyncIterator[str]:
        """The cluster's address while it is up."""
        async with self.server as handler, Server(handler) as server:
            yield str(server.url).rstrip("/")

    @property
    def requests(self) -> list[Request]:
        return list(self.server)

    @property
    def writes(self) -> list[tuple[str, Any]]:
        """(path, body) of every change asked for."""
        return [(one.url.path, one.data) for one in self.requests if one.method.value == "PATCH"]

    def add(self, name: str, replicas: int, kind: str = "deployments", **pod: Any) -> FakeWorkload:
        """A workload with its pods."""
        workload = self.workloads[name] = FakeWorkload(name, kind, replicas, labels={"app": name})
        self.reconcile(workload)
        for one in self.pods_of(workload):
            one.update(pod)
        return workload

    def pods_of(self, workload: FakeWorkload) -> list[dict[str, Any]]:
        labels = workload.labels
        return [pod for pod in self.pods.values() if labels.items() <= pod["metadata"]["labels"].items()]

    def set_by_others(self, name: str, replicas: int) -> None:
        """An HPA at work."""
        workload = self.workloads[name]
        workload.replicas = replicas
        workload.version += 1
        self.reconcile(workload)

    def reconcile(self, workload: FakeWorkload) -> None:
        """As the controllers do: make what is missing, end what is too much."""
        pods = [pod for pod in self.pods_of(workload) if "deletionTimestamp" not in pod["metadata"]]
        for _ in range(workload.replicas - len(pods)):
            pod = self._pod(workload)
            self.pods[pod["metadata"]["name"]] = pod
        if workload.kind == "statefulsets":
            pods.sort(key=lambda pod: -int(pod["metadata"]["name"].rpartition("-")[2]))
        else:
            pods.sort(key=_leaves)
        for pod in pods[: max(0, len(pods) - workload.replicas)]:
            del self.pods[pod["metadata"]["name"]]

    def _pod(self, workload: FakeWorkload) -> dict[str, Any]:
        number = workload.made
        workload.made += 1
        labels = dict(workload.labels)
        if workload.kind == "deployments":
            labels["pod-template-hash"] = "5d7"
        return {
            "metadata": {
                "name": f"{workload.name}-{number}",
                "labels": labels,
                "creationTimestamp": f"2026-11-22T10:00:{number % 60:02}Z",
            },
            "spec": {"containers": [{"name": "agent", "ports": [{"containerPort": 7601}]}]},
            "status": {
                "phase": "Running",
                "podIP": f"10.1.0.{number + 1}",
                "conditions": [{"type": "Ready", "status": "True" if self.ready else "False"}],
            },
        }

    # -- the API ---------------------------------------------------------------------------------------------------

    async def _serve(self, request: Request) -> Any:
        await asyncio.sleep(0)
        resource = request.resource
        assert resource is not None
        group, plural, name = str(resource.group or ""), str(resource.plural), request.name or ""
        if self.token is not None and request.headers.get("Authorization") != f"Bearer {self.token}":
            raise KubernetesError(401, "Unauthorized", "Unauthorized")
        full = f"{plural}/{request.subresource}" if request.subresource else plural
        verb = {"GET": "get" if name else "list", "PATCH": "patch"}[request.method.value]
        if self.allowed is not None and not any(rule.allows(group, full, verb, name) for rule in self.allowed):
            raise KubernetesError(403, "Forbidden", f'cannot {verb} resource "{full}" in API group "{group}"')
        if request.namespace != NAMESPACE:
            raise KubernetesError(404, "NotFound", f'namespaces "{request.namespace}" not found')
        if plural == "pods":
            return self._patch_pod(request, name) if verb == "patch" else self._list_pods(request)
        workload = self.workloads.get(name)
        if workload is None or workload.kind != plural or request.subresource != "scale":
            raise KubernetesError(404, "NotFound", f'{plural} "{name}" not found')
        if verb == "patch":
            self._patch_scale(request, workload)
        return self._scale(workload, request)

    def _scale(self, workload: FakeWorkload, request: Request) -> Any:
        replicas = workload.replicas
        if self.lies and request.method.value == "PATCH":
            replicas = request.data["spec"]["replicas"]
        scale = {
            "kind": "Scale",
            "apiVersion": "autoscaling/v1",
            "metadata": {"name": workload.name, "namespace": NAMESPACE, "resourceVersion": str(workload.version)},
            "spec": {"replicas": replicas} if replicas else {},  # as Go writes a zero
            "status": {
                "replicas": len(self.pods_of(workload)),
                "selector": ",".join(f"{key}={value}" for key, value in workload.labels.items()),
            },
        }
        return workload.scale(scale) if workload.scale is not None else scale

    def _patch_scale(self, request: Request, workload: FakeWorkload) -> None:
        assert request.headers["Content-Type"] == "application/merge-patch+json"
        if self.before_patch:
            self.before_patch.pop(0)()
        version = request.data.get("metadata", {}).get("resourceVersion")
        if version is not None and version != str(workload.version):
            raise KubernetesError(409, "Conflict", "the object has been modified; please apply your changes")
        if self.lies:
            return
        workload.replicas = request.data["spec"]["replicas"]
        workload.version += 1
        self.reconcile(workload)

    def _list_pods(self, request: Request) -> Any:
        wanted = dict(pair.split("=") for pair in request.params["labelSelector"].split(","))
        pods = [pod for pod in self.pods.values() if wanted.items() <= pod["metadata"]["labels"].items()]
        start = int(request.params.get("continue", "0"))
        end = start + min(self.page, int(request.params["limit"]))
        rest = {"continue": str(end)} if end < len(pods) else {}
        return {"kind": "PodList", "metadata": rest, "items": pods[start:end] or None}

    def _patch_pod(self, request: Request, name: str) -> Any:
        pod = self.pods.get(name)
        if pod is None:
            raise KubernetesError(404, "NotFound", f'pods "{name}" not found')
        annotations = pod["metadata"].setdefault("annotations", {})
        for key, value in request.data["metadata"]["annotations"].items():
            assert value is None or isinstance(value, str)
            annotations.pop(key, None) if value is None else annotations.update({key: value})
        return pod


def answers(view: Any, *payload: Any) -> None:
    """Have what a view of kmock's selects answered with a payload: status, headers, content."""
    for one in payload:
        view = view << one


def is_ready(pod: dict[str, Any]) -> bool:
    return any(one == {"type": "Ready", "status": "True"} for one in pod["status"].get("conditions", ()))


def _leaves(pod: dict[str, Any]) -> tuple[int, int, str]:
    """What sorts first leaves first: not ready, then the lowest cost, then the newest."""
    cost = int(pod["metadata"].get("annotations", {}).get(COST, 0))
    made = pod["metadata"]["creationTimestamp"]
    return int(is_ready(pod)), cost, "".join(chr(0x10FFFF - ord(c)) for c in made)
