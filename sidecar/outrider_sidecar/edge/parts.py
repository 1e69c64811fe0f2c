"""Factories for the composition root: connectors, exporters, the ports file."""

from __future__ import annotations

import errno
import json
import os
import random
import socket
import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from outrider.policy import Agent
from outrider_http2.shell import Reactor
from outrider_sidecar.config import Settings
from outrider_sidecar.core import attributes
from outrider_sidecar.core.endpoint import Endpoint
from outrider_sidecar.core.runtime import Runtime
from outrider_sidecar.edge.control_plane import ControlPlane
from outrider_sidecar.edge.control_rpc import ControlRpc
from outrider_sidecar.edge.export import CONTROL, PATH, Answer, Collector, Export, Send
from outrider_sidecar.edge.feedback import Feedback
from outrider_sidecar.edge.feedback_spool import FileSpool, MemorySpool, Spool
from outrider_sidecar.edge.rpc import Rpc
from outrider_sidecar.edge.upstream import Connector
from outrider_sidecar.engines.export_queue import ExportPolicy
from outrider_sidecar.engines.otlp import Encoder


class Contexts(Protocol):
    """Whoever holds the TLS context for dialling."""

    def context(self) -> ssl.SSLContext: ...


def _context_for(tls: Contexts | None, wanted: bool | None) -> Callable[[], ssl.SSLContext | None]:
    """A policy may ask for TLS or for none; where it says nothing the sidecar's file decides."""
    if wanted is False or (wanted is None and tls is None):
        return lambda: None
    if tls is not None:
        return tls.context
    plain = ssl.create_default_context()
    plain.set_alpn_protocols(["h2"])
    return lambda: plain


def connector_factory(
    reactor: Reactor,
    rng: random.Random,
    tls: Contexts | None,
    max_age_s: float,
    name_of: Callable[[str, str], str],
) -> Callable[[Endpoint, Agent], Connector]:
    """What a pool calls for each new endpoint. `name_of(agent_id, address)`: the host name it was resolved from."""

    def connector(endpoint: Endpoint, agent: Agent) -> Connector:
        return Connector(
            reactor,
            endpoint,
            rng,
            _context_for(tls, agent.tls),
            agent.server_name or name_of(agent.agent_id, endpoint.address),
            agent.balancing.failfast_ms / 1e3,
            max_age_s,
        )

    return connector


def rpc_factory(
    reactor: Reactor, tls: Contexts | None, name_of: Callable[[str, str], str]
) -> Callable[[Endpoint, Agent], Rpc]:
    """Calls of our own to an endpoint (health checks)."""

    def rpc(endpoint: Endpoint, agent: Agent) -> Rpc:
        server_name = agent.server_name or name_of(agent.agent_id, endpoint.address)
        return Rpc(reactor, endpoint.address, _context_for(tls, agent.tls), server_name)

    return rpc


def control_plane(settings: Settings, tls: Contexts | None) -> ControlPlane | None:
    """The control planes of the settings; None: standalone."""
    return ControlPlane(settings, lambda wanted: _context_for(tls, wanted)) if settings.control else None


def control_rpc(plane: ControlPlane, reactor: Reactor) -> ControlRpc:
    """Calls to the control planes, beside the watch."""
    links = [Rpc(reactor, address, plane.context(at), "", plane.fields) for at, address in enumerate(plane.addresses)]
    return ControlRpc(plane, links)


def exporters(
    settings: Settings, reactor: Reactor, tls: Contexts | None, control: ControlRpc | None, instance_id: str
) -> tuple[Export, list[Rpc]]:
    """The exporter, and its connections besides those to the control plane.

    One collector for the control plane, which gets every span, and one for `telemetry.otlp`.
    """
    telemetry = settings.telemetry
    encoder = Encoder({**telemetry.resource, attributes.SERVICE_INSTANCE_ID: instance_id})
    policy = ExportPolicy(
        max_queue=telemetry.max_queue_size,
        max_batch=telemetry.max_export_batch_size,
        schedule_delay_ms=telemetry.schedule_delay_ms,
        timeout_ms=telemetry.export_timeout_ms,
    )
    collectors = []
    rpcs = []
    fields = tuple((name.lower().encode(), value.encode()) for name, value in telemetry.headers)
    if telemetry.otlp is not None:
        rpc = Rpc(reactor, str(telemetry.otlp), _context_for(tls, telemetry.otlp_tls), "", fields)
        rpcs.append(rpc)
        collectors.append(Collector("otlp", _sender(rpc, policy), encoder, policy, random.Random()))
    if control is not None:
        send = _sender(control, policy)
        collectors.append(Collector(CONTROL, send, encoder, policy, random.Random(), every_span=True))
    return Export(encoder, collectors), rpcs


def _sender(rpc: Rpc | ControlRpc, policy: ExportPolicy) -> Send:
    async def send(request: bytes) -> Answer:
        reply = await rpc.unary(PATH, request, policy.timeout_ms / 1e3)
        return Answer(reply.status, reply.message, reply.details, reply.pushback_ms, reply.text)

    return send


def new_instance_id(random: bytes) -> str:
    """A UUID (RFC 9562, version 4) of 16 random bytes. Not by `uuid`: its import costs more memory than it is worth."""
    value = int.from_bytes(random, "big") & ~(0xF << 76 | 0x3 << 62) | 0x4 << 76 | 0x2 << 62
    digits = f"{value:032x}"
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def feedback(settings: Settings, runtime: Runtime, control: ControlRpc | None, instance_id: str) -> Feedback:
    """What takes feedback on calls; kept on disk where there is a state directory."""
    spool: Spool
    if settings.state_dir is not None:
        spool = FileSpool(settings.state_dir, settings.feedback.spool_bytes)
    else:
        spool = MemorySpool(settings.feedback.memory_bytes)
    return Feedback(runtime, control, spool, instance_id, settings.feedback.min_batch)


def named(field: str, address: str, error: OSError) -> OSError:
    """The error of an address that cannot be listened on, for people: which field, where, why, what to do."""
    reason = error.strerror or str(error)
    if error.errno == errno.EADDRINUSE:
        reason = "another process is listening there; stop it, choose another port, or say takeover: true in both"
    return OSError(error.errno, f"{field}: {address}: {reason}")


def stamp(path: Path | None) -> tuple[int, int, int] | None:
    """What changes when a file does; None without one."""
    try:
        found = path.stat() if path is not None else None
    except OSError:
        return None
    return (found.st_mtime_ns, found.st_size, found.st_ino) if found is not None else None


def write_ports(path: Path, ports: dict[str, int], admin: int) -> None:
    """The ports really bound, as JSON, in one step."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(json.dumps({**ports, "admin": admin}) + "\n")
    aside.replace(path)


def node_name(resource: Mapping[str, str]) -> str:
    """The host's name, or what the environment calls it."""
    return resource.get(attributes.NODE_NAME) or resource.get(attributes.HOST_NAME) or socket.gethostname()
