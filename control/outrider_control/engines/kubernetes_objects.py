"""Scales and pods as the API server tells of them, read into what the engine works with.

Always holds: nothing that was answered is believed unseen. What a decision hangs on (a scale's replicas, a pod's name)
raises EngineError where it is not what it must be; what is for people is left out instead. Pure.

Deliberately not here: asking (`kubernetes_api`), changing (`kubernetes`).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from outrider_control.loops.scale.types import DRAINING, FAILED, READY, STARTING, EngineError, Instance

DELETION_COST: Final = "controller.kubernetes.io/pod-deletion-cost"
TEMPLATE: Final = "pod-template-hash"  # a Deployment's: differs while it rolls out
MAX_REPLICAS: Final = 1_000_000
_MAX_NOTE = 300
# Why a container waits while nothing is wrong; every other reason is a fault that people look for.
_COMING_UP = frozenset({"", "ContainerCreating", "PodInitializing"})


@dataclass(frozen=True, slots=True)
class Scale:
    """The scale subresource of a workload."""

    replicas: int  # asked for
    present: int | None  # that the controller counts; None: not said
    selector: str  # of the pods
    version: str  # of the workload: a write that names an older one is refused


@dataclass(frozen=True, slots=True)
class Pod:
    """An instance, and what Kubernetes goes by when it picks who leaves."""

    instance: Instance
    ready: bool
    leaving: bool  # being ended, or over: none of those that replicas count
    cost: int = 0
    template: str = ""


def scale(answer: Mapping[str, Any], where: str) -> Scale:
    """`where` begins the message of the EngineError."""
    spec = answer.get("spec")
    replicas = spec.get("replicas", 0) if isinstance(spec, Mapping) else spec  # Go leaves a zero out
    if type(replicas) is not int or not 0 <= replicas <= MAX_REPLICAS:
        raise EngineError(f"{where}: the API server says spec.replicas is {text(repr(replicas), 40)}")
    status = section(answer, "status")
    present, selector = status.get("replicas", 0), status.get("selector")
    version = section(answer, "metadata").get("resourceVersion")
    if not isinstance(selector, str) or not selector:
        raise EngineError(f"{where}: its scale names no selector, so its pods cannot be told from others")
    if not isinstance(version, str) or not version:
        raise EngineError(f"{where}: its scale has no resourceVersion, so a change by others could not be seen")
    return Scale(replicas, present if type(present) is int and present >= 0 else None, selector, version)


def pod(item: Any, port: int, where: str) -> Pod:
    """One item of a list of pods; `port` as `Workload.port`."""
    metadata = section(item, "metadata")
    name = metadata.get("name")
    if not isinstance(name, str) or not name:
        raise EngineError(f"{where}: the API server's list holds a pod without a name")
    status = section(item, "status")
    phase = status.get("phase")
    ready = _condition(status, "Ready").get("status") == "True"
    over = phase in ("Failed", "Succeeded")
    ending = metadata.get("deletionTimestamp") is not None
    address, odd = _address(item, status, port)
    fault = _fault(status)
    if over:
        state, note = FAILED, _over(status, str(phase))
    elif ending:
        state, note = DRAINING, ""
    elif ready:
        state, note = READY, odd
    elif fault:
        state, note = FAILED, fault
    else:
        state, note = STARTING, _waiting_for(status)
    started = milliseconds(status.get("startTime")) or milliseconds(metadata.get("creationTimestamp"))
    return Pod(
        Instance(name, address, state, started, text(note, _MAX_NOTE)),
        ready=ready and not over,
        leaving=ending or over,
        cost=_cost(metadata),
        template=str(section(metadata, "labels").get(TEMPLATE, "")),
    )


def section(value: Any, name: str) -> Mapping[str, Any]:
    """`value[name]` where that is an object; empty else."""
    inner = value.get(name) if isinstance(value, Mapping) else None
    return inner if isinstance(inner, Mapping) else {}


def entries(value: Any, name: str) -> Iterator[Mapping[str, Any]]:
    """The objects in the list `value[name]`."""
    inner = value.get(name) if isinstance(value, Mapping) else None
    if isinstance(inner, list):
        yield from (one for one in inner if isinstance(one, Mapping))


def text(value: Any, limit: int = _MAX_NOTE) -> str:
    """What a server says, as one line that can be shown."""
    line = " ".join("".join(c if c.isprintable() else " " for c in str(value)[: 4 * limit]).split())
    return line if len(line) <= limit else f"{line[: limit - 3]}..."


def milliseconds(value: Any) -> int:
    """Unix milliseconds of a time as Kubernetes writes it; 0: none."""
    try:
        return max(0, int(datetime.fromisoformat(value).timestamp() * 1_000))
    except (TypeError, ValueError, OverflowError, OSError):
        return 0


def _condition(status: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    return next((one for one in entries(status, "conditions") if one.get("type") == kind), {})


def _cost(metadata: Mapping[str, Any]) -> int:
    """As the ReplicaSet controller reads it: what is no number counts as none."""
    try:
        return int(section(metadata, "annotations").get(DELETION_COST, 0))
    except (TypeError, ValueError, OverflowError):
        return 0


def _address(item: Any, status: Mapping[str, Any], port: int) -> tuple[str, str]:
    """(host:port or "", why not)."""
    host = status.get("podIP")
    try:
        ip = ipaddress.ip_address(host) if isinstance(host, str) else None
    except ValueError:
        ip = None
    if ip is None:
        return "", "has no IP" if not host else f"podIP {text(repr(host), 40)} is no address"
    port = port or _declared_port(item)
    if not port:
        return "", "declares no one container port and none named grpc: say `port` in the engine's section"
    return (f"[{ip}]:{port}" if ip.version == 6 else f"{ip}:{port}"), ""


def _declared_port(item: Any) -> int:
    """The pod's one container port, or the one named grpc; 0: there is no telling."""
    ports: dict[int, Any] = {}
    for kind in ("initContainers", "containers"):  # a native sidecar is an init container
        for container in entries(section(item, "spec"), kind):
            for one in entries(container, "ports"):
                number = one.get("containerPort")
                if type(number) is int and 0 < number < 65_536 and one.get("protocol", "TCP") == "TCP":
                    ports[number] = one.get("name")
    named = [number for number, name in ports.items() if name == "grpc"]
    found = named or list(ports)
    return found[0] if len(found) == 1 else 0


def _fault(status: Mapping[str, Any]) -> str:
    """What keeps a container from coming up, with what it said last."""
    for kind in ("initContainerStatuses", "containerStatuses"):
        for container in entries(status, kind):
            waiting = section(section(container, "state"), "waiting")
            reason = str(waiting.get("reason", ""))
            if reason not in _COMING_UP:
                last = _ended(section(section(container, "lastState"), "terminated"))
                said = f"{reason}: {waiting.get('message') or 'no message'}"
                return f"container {container.get('name', '?')}: {last + '; ' if last else ''}{said}"
    return ""


def _over(status: Mapping[str, Any], phase: str) -> str:
    said = f"{status.get('reason') or phase}: {status.get('message') or 'no message'}"
    for container in entries(status, "containerStatuses"):
        ended = _ended(section(section(container, "state"), "terminated"))
        if ended:
            return f"container {container.get('name', '?')}: {ended}; {said}"
    return said


def _ended(terminated: Mapping[str, Any]) -> str:
    if not terminated:
        return ""
    message = terminated.get("message")
    reason = f"{terminated.get('reason', 'ended')}, exit code {terminated.get('exitCode', '?')}"
    return f"{reason}: {message}" if message else reason


def _waiting_for(status: Mapping[str, Any]) -> str:
    for kind in ("PodScheduled", "Initialized", "ContainersReady", "Ready"):
        condition = _condition(status, kind)
        if condition and condition.get("status") != "True":
            return f"{condition.get('reason') or kind}: {condition.get('message') or 'not yet'}"
    return ""
