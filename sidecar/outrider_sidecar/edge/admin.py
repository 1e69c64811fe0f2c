"""The admin port: health, metrics, configuration and the cache, over HTTP/1.1.

Always holds: everything but /metrics is JSON, errors included, and an error says what to do; only POST changes
anything. A web page cannot use this port through its reader's browser: a POST must be `application/json` (which
browsers send across origins only after asking) and come from no foreign origin, and what is not plain health or
metrics is answered only under a name the operator expects, which defeats DNS rebinding.

Deliberately not here: HTTP itself (`edge.http1`), what is answered (`View`, which the composition root implements),
authentication: bind it to loopback.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Collection, Iterable
from ipaddress import ip_address
from typing import Any, Protocol

from outrider_sidecar.core.metric import Family, HistogramFamily
from outrider_sidecar.edge import exposition
from outrider_sidecar.edge.http1 import Http1Server, Request, Response

PURGE_FIELDS = ("agent", "tenant", "tag")
PURGE_MAX_CHARS = 1_024


class View(Protocol):
    """What the admin port shows and does. Every answer is made of dicts, lists, texts and numbers."""

    def healthy(self) -> tuple[bool, str]:
        """Whether the process works, and else what is wrong."""
        ...

    def ready(self) -> tuple[bool, str]:
        """Whether calls may be sent here, and else why not (starting, draining)."""
        ...

    def metrics_families(self) -> Iterable[Family | HistogramFamily]: ...

    def config(self) -> Any:
        """The configuration in force, secrets masked."""
        ...

    def cache(self) -> Any:
        """Size, hits and ghosts per agent."""
        ...

    def agents(self) -> Any:
        """Endpoints with their state and the balancer's scores, per agent."""
        ...

    def purge(self, agent: str, tenant: str, tag: str) -> Any:
        """Invalidate what the scope covers ("" covers all). ValueError: the scope names something unknown."""
        ...

    def drain(self) -> Any:
        """Begin to drain; at once, and again without effect."""
        ...


class Admin:
    """`await listen(host, port)` gives the port bound; `await close()` ends everything."""

    def __init__(self, view: View, allowed_hosts: Collection[str] = ()):
        self._view = view
        self._allowed_hosts = frozenset(host.lower().rstrip(".") for host in allowed_hosts)
        self._server = Http1Server(self.handle, refuse)
        self._reads: dict[str, Callable[[], Any]] = {
            "/config": view.config,
            "/cache": view.cache,
            "/agents": view.agents,
        }
        self._probes: dict[str, Callable[[], tuple[bool, str]]] = {"/healthz": view.healthy, "/readyz": view.ready}
        self._writes: dict[str, Callable[[Request], Response]] = {"/cache/purge": self._purge, "/drain": self._drain}

    async def listen(self, host: str, port: int) -> int:
        return await self._server.listen(host, port)

    async def close(self) -> None:
        await self._server.close()

    async def handle(self, request: Request) -> Response:
        path = request.path
        if path in self._writes:
            return self._allow(request, "POST") or self._guard(request) or self._writes[path](request)
        known = path in self._probes or path in self._reads or path == "/metrics"
        if not known:
            paths = sorted({*self._probes, *self._reads, "/metrics"})
            return refuse(404, f"nothing at {path[:200]!r}; GET {', '.join(paths)}; POST {', '.join(self._writes)}")
        refused = self._allow(request, "GET")
        if refused is not None:
            return refused
        if path in self._probes:
            good, reason = self._probes[path]()
            return answer({"status": "ok"}) if good else answer({"status": "unavailable", "reason": reason}, 503)
        if path == "/metrics":
            return await self._metrics(request)
        return self._guard(request) or answer(self._reads[path]())

    def _allow(self, request: Request, method: str) -> Response | None:
        allowed = ("GET", "HEAD") if method == "GET" else (method,)
        if request.method in allowed:
            return None
        text = ", ".join(allowed)
        return refuse(405, f"{request.path} takes {text}, not {request.method[:20]}", {"allow": text})

    def _guard(self, request: Request) -> Response | None:
        host = request.headers.get("host", "")
        name = host_name(host)
        if not (is_address(name) or name == "localhost" or name in self._allowed_hosts):
            return refuse(
                403,
                f"Host {host[:200]!r} is neither an IP address nor localhost nor an allowed name;"
                " address this port by IP or allow the name in the configuration",
            )
        origin = request.headers.get("origin")
        if origin is not None and origin.partition("://")[2].lower() != host.lower():
            return refuse(403, "requests from web pages of another origin are refused")
        if request.method == "POST":
            content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
            if content_type != "application/json":
                return refuse(415, "send JSON with the header 'content-type: application/json'")
        return None

    async def _metrics(self, request: Request) -> Response:
        # The first scrape imports prometheus_client, some 40 ms: in a thread, so that calls go on meanwhile.
        if not exposition.loaded():
            await asyncio.to_thread(exposition.load)
        content_type, slices = exposition.expose(self._view.metrics_families(), request.headers.get("accept", ""))
        parts: list[bytes] = []
        for part in slices:
            parts.append(part)
            await asyncio.sleep(0)
        return Response(200, b"".join(parts), content_type)

    def _purge(self, request: Request) -> Response:
        try:
            scope = json.loads(request.body)
        except (ValueError, RecursionError) as error:
            return refuse(400, f"the body is not JSON: {error}")
        everything = isinstance(scope, dict) and scope == {"all": True}
        if not everything:
            wrong = _wrong_scope(scope)
            if wrong:
                return refuse(400, wrong)
        names = {} if everything else scope
        try:
            result = self._view.purge(*(names.get(name, "") for name in PURGE_FIELDS))
        except ValueError as error:
            return refuse(400, str(error))
        return answer(result)

    def _drain(self, request: Request) -> Response:
        return answer(self._view.drain(), 202)


def _wrong_scope(scope: Any) -> str:
    """What is wrong with a purge request, "" if nothing."""
    fields = ", ".join(PURGE_FIELDS)
    if not isinstance(scope, dict) or not scope:
        return f'send an object with at least one of {fields}, or {{"all": true}}'
    for name, value in scope.items():
        if name not in PURGE_FIELDS:
            return f"{name[:200]!r} is not known; an object may have {fields}"
        if not isinstance(value, str) or not value or len(value) > PURGE_MAX_CHARS:
            return f"{name} must be a text of 1 to {PURGE_MAX_CHARS} characters"
    return ""


def answer(value: Any, status: int = 200) -> Response:
    return Response(status, _json(value))


def refuse(status: int, text: str, headers: dict[str, str] | None = None) -> Response:
    return Response(status, _json({"error": text}), headers=headers or {})


def _json(value: Any) -> bytes:
    try:
        text = json.dumps(value, indent=1, allow_nan=False, default=str)
    except ValueError:  # JSON knows no infinity, and a score may be one
        text = json.dumps(_finite(value), indent=1, default=str)
    return text.encode() + b"\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def host_name(host: str) -> str:
    """The name in a Host header, lower-case, without port and brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower().rstrip(".")


def is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
