"""Identify: which agent a call is for, by `x-agent-id`, else `:authority`, else the default agent.

Always holds: what a head means is worked out once per snapshot and remembered; a call that is not gRPC, or names an
unknown agent, is answered here and nothing else runs for it. Health and reflection are the sidecar's own only where
no agent is named; the sidecar's own service is, whoever is named.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from outrider_http2.head import Head
from outrider_sidecar.core import errors
from outrider_sidecar.core.call import Call, Step
from outrider_sidecar.core.runtime import Route, Runtime, Snapshot
from outrider_sidecar.payloads import NATIVE_PATHS, request_agent_id

_MAX_NATIVE_BYTES: Final = 1024 * 1024


def build(runtime: Runtime) -> Step:
    """The step that chooses the route; it runs before any step of a route."""
    local, own = runtime.local, runtime.own

    def identify(call: Call) -> bool | None:
        snapshot = call.snapshot
        found = snapshot.known(call.head)
        if found is None:
            found = _resolve(call.head, snapshot, local, own)
            snapshot.remember(call.head, found)
        if isinstance(found, Route):
            call.route = found
            call.steps = found.steps
            call.at = 0
            return None
        return found(call)

    return identify


def _resolve(head: Head, snapshot: Snapshot, local: object, always: object) -> Route | Callable[[Call], bool | None]:
    if head.method != b"POST" or not head.values.get(b"content-type", b"").startswith(b"application/grpc"):
        return _refuse_media
    own = runtime_local(always, head.path)
    if own is not None:
        return own
    named = head.values.get(b"x-agent-id")
    if named is not None:
        agent_id = named.decode("ascii", "replace")
        return snapshot.routes.get(agent_id) or _refusal(f"no agent {agent_id!r} is configured (from x-agent-id)")
    authority = head.authority.decode("ascii", "replace")
    route = snapshot.routes.get(authority) or snapshot.routes.get(authority.rpartition(":")[0])
    if route is not None:
        return route
    own = runtime_local(local, head.path)
    if own is not None:
        return own
    default = snapshot.routes.get(snapshot.policy.default_agent)
    if head.path in NATIVE_PATHS:
        return _by_message(default)
    if default is not None:
        return default
    return _refusal("the call names no agent (x-agent-id) and no default_agent is configured")


def runtime_local(local: object, path: bytes) -> Step | None:
    """The sidecar's own step for a path, if it serves that path's service."""
    return local.get(path[: path.rfind(b"/")])  # type: ignore[attr-defined]


def _by_message(default: Route | None) -> Step:
    """A native call that names its agent in the message only: read it once the request is whole."""

    def route_by_message(call: Call) -> bool | None:
        if call.want_body(_MAX_NATIVE_BYTES, route_by_message):
            return True
        if not call.request_ended:
            call.note("identify: too_large")
        agent_id = request_agent_id(b"".join(call.body or ()), call.head.values.get(b"grpc-encoding", b""))
        route = call.snapshot.routes.get(agent_id) if agent_id else default
        if route is None:
            if agent_id:
                return call.fail(errors.NOT_FOUND, f"no agent {agent_id!r} is configured (from the message's agent_id)")
            return call.fail(errors.NOT_FOUND, "the call names no agent and no default_agent is configured")
        call.route = route
        call.steps = route.steps
        call.at = 0
        return None

    return route_by_message


def _refusal(message: str) -> Step:
    def refuse(call: Call) -> bool:
        return call.fail(errors.NOT_FOUND, message)

    return refuse


def _refuse_media(call: Call) -> bool:
    call.message = "not a gRPC request: POST with content-type application/grpc is expected"
    call.replied = True
    call.ids = b""
    call.reply_tail(errors.UNSUPPORTED_MEDIA, b"", errors.INTERNAL)
    return True
