"""Factories for the composition root: connectors, exporters, the ports file."""

from __future__ import annotations

import errno
import json
import os
import random
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from outrider.policy import Agent
from outrider_http2.shell import Reactor
from outrider_sidecar.config import Settings
from outrider_sidecar.core import attributes, errors
from outrider_sidecar.core.endpoint import Endpoint
from outrider_sidecar.edge.control_plane import ControlPlane
from outrider_sidecar.edge.export import CONTROL, PATH, Answer, Collector, Export, Send
from outrider_sidecar.edge.rpc import Rpc, RpcReply
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


def exporters(
    settings: Settings, reactor: Reactor, tls: Contexts | None, plane: ControlPlane | None, instance_id: str
) -> tuple[Export, list[Rpc]]:
    """The exporter and its connections.

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
    if plane is not None:
        links = [
            Rpc(reactor, address, plane.context(at), "", plane.fields) for at, address in enumerate(plane.addresses)
        ]
        rpcs += links
        send = _control_sender(plane, links, policy)
        collectors.append(Collector(CONTROL, send, encoder, policy, random.Random(), every_span=True))
    return Export(encoder, collectors), rpcs


def _control_sender(plane: ControlPlane, links: list[Rpc], policy: ExportPolicy) -> Send:
    """To the control plane that is watched, else to the first of the others that is there."""
    timeout_s = policy.timeout_ms / 1e3 / len(links)

    async def send(request: bytes) -> Answer:
        first = plane.current
        reply = RpcReply(errors.UNAVAILABLE)
        for step in range(len(links)):
            rpc = links[(first + step) % len(links)]
            reply = await rpc.unary(PATH, request, timeout_s)
            if reply.status == errors.UNAUTHENTICATED and rpc.forget_fields():
                reply = await rpc.unary(PATH, request, timeout_s)  # the token was exchanged since the dial
            if reply.status != errors.UNAVAILABLE:
                break
        return Answer(reply.status, reply.message, reply.details, reply.pushback_ms, reply.text)

    return send


def _sender(rpc: Rpc, policy: ExportPolicy) -> Send:
    async def send(request: bytes) -> Answer:
        reply = await rpc.unary(PATH, request, policy.timeout_ms / 1e3)
        return Answer(reply.status, reply.message, reply.details, reply.pushback_ms, reply.text)

    return send


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
