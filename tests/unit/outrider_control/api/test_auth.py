"""Every method and every kind of caller, through a real server: who is let in, who is not, and with what words."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

from outrider.v1 import mesh_pb2, operator_pb2
from outrider_control.api import auth, roles
from outrider_control.api.auth import Authenticator, Caller, Interceptor, Unauthenticated
from outrider_control.engines import externalscaler_pb2

SERVED = (
    *(operator_pb2, mesh_pb2, health_pb2, reflection_pb2, metrics_service_pb2, trace_service_pb2),
    externalscaler_pb2,
)
METHODS = sorted(
    f"/{service.full_name}/{method.name}"
    for module in SERVED
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
)
LOOPBACK = ((auth.PEER, "127.0.0.1:5555"), (auth.PEER_LOOPBACK, "1"))
REMOTE = ((auth.PEER, "192.0.2.1:5555"), (auth.PEER_LOOPBACK, "0"))


class Kept(NamedTuple):
    """A token as the store gives it."""

    name: str
    role: str
    expires_ms: int


class Tokens:
    """Tokens in memory, with a count of questions."""

    def __init__(self) -> None:
        self.held = {f"secret-{role}": Kept(f"{role}-person", role, 0) for role in roles.ROLES}
        self.asked = 0
        self.fails: Exception | None = None

    async def find(self, token: str, _now_ms: int) -> Kept | None:
        self.asked += 1
        if self.fails is not None:
            raise self.fails
        await asyncio.sleep(0)
        return self.held.get(token)


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (*REMOTE, ("authorization", f"Bearer {token}"))


def authenticator(tokens: Tokens, **options: Any) -> Authenticator:
    return Authenticator(tokens.find, lambda: 1_000, **options)


class Served(NamedTuple):
    """A running server whose every method says who called."""

    channel: grpc.aio.Channel
    tokens: Tokens

    async def call(self, method: str, metadata: tuple[tuple[str, str], ...] = ()) -> tuple[grpc.StatusCode, str]:
        stream = self.channel.stream_stream(method)(metadata=metadata, timeout=5)
        return await stream.code(), await stream.details() or ""


class Echo(grpc.GenericRpcHandler):
    """Serves every path; ABORTED, which nothing else here says, with the caller's name and role."""

    def service(self, handler_call_details: Any) -> grpc.RpcMethodHandler | None:
        if handler_call_details.method == "/nobody.Serves/This":
            return None

        async def name(_requests: Any, context: Any) -> None:
            caller = auth.current_caller()
            await context.abort(grpc.StatusCode.ABORTED, f"{caller.name} {caller.role} {caller.peer}")

        return grpc.stream_stream_rpc_method_handler(name)  # pyright: ignore[reportArgumentType]


@pytest_asyncio.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    tokens = Tokens()
    certificates = {"spiffe://mesh/people/*": roles.OPERATOR}
    server = grpc.aio.server(interceptors=[Interceptor(authenticator(tokens, certificates=certificates))])
    server.add_generic_rpc_handlers((Echo(),))
    server.add_insecure_port(f"unix:{tmp_path / 'api.sock'}")
    await server.start()
    async with grpc.aio.insecure_channel(f"unix:{tmp_path / 'api.sock'}") as channel:
        yield Served(channel, tokens)
    await server.stop(None)


def test_every_method_has_a_rule_and_every_rule_a_method() -> None:
    newer = {"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"}
    assert len(METHODS) > 30
    assert set(METHODS) | newer == set(roles.RULES)


def test_what_roles_may_do() -> None:
    may = {role: {method for method, rule in roles.RULES.items() if role in rule} for role in roles.ROLES}
    operators = {method for method in METHODS if ".Operator/" in method}
    assert may["admin"] == set(roles.RULES)
    assert may["viewer"] < may["operator"] < may["admin"]
    assert {name.rpartition("/")[2] for name in may["admin"] - may["operator"]} == {
        "CreateToken",
        "ListTokens",
        "RevokeToken",
    }
    assert may["sidecar"] & operators == {"/outrider.v1.Operator/WhoAmI"}
    reads = ("Get", "List", "Stream", "Explain", "Diff", "Export", "PlanExperiment", "WhoAmI")
    viewed = {method.rpartition("/")[2] for method in may["viewer"] & operators}
    assert all(name.startswith(reads) for name in viewed)
    wanted = {method.rpartition("/")[2] for method in operators if method.rpartition("/")[2].startswith(reads)}
    assert viewed == wanted - {"ListTokens"}


async def test_every_method_with_every_role(served: Served) -> None:
    for method, role in itertools.product(METHODS, roles.ROLES):
        code, text = await served.call(method, bearer(f"secret-{role}"))
        if role in roles.RULES[method]:
            assert (code, text) == (grpc.StatusCode.ABORTED, f"{role}-person {role} 192.0.2.1:5555"), method
        else:
            assert code is grpc.StatusCode.PERMISSION_DENIED, (method, role)
            assert method in text
            assert f"is {role}" in text


@pytest.mark.parametrize(
    "metadata",
    [
        (),
        REMOTE,
        bearer("wrong"),
        bearer(""),
        bearer("x" * 600),
        (*LOOPBACK, ("authorization", "Bearer wrong")),
        (*LOOPBACK, ("authorization", "Basic secret-admin")),
        (*LOOPBACK, ("authorization", "secret-admin")),
        (*bearer("secret-admin"), ("authorization", "Bearer secret-admin")),
        (*REMOTE, (auth.PEER_LOOPBACK, "1")),
        (*REMOTE, (auth.PEER_CERTIFICATE, "a"), (auth.PEER_CERTIFICATE, "b")),
    ],
    ids=range(11),
)
async def test_strangers_are_refused_everywhere(served: Served, metadata: tuple[tuple[str, str], ...]) -> None:
    for method in (*METHODS, "/nobody.Serves/This"):
        code, text = await served.call(method, metadata)
        assert code is grpc.StatusCode.UNAUTHENTICATED, method
        assert "secret" not in text


async def test_loopback_is_admin_by_default(served: Served) -> None:
    code, text = await served.call("/outrider.v1.Operator/CreateToken", LOOPBACK)
    assert (code, text) == (grpc.StatusCode.ABORTED, "loopback admin 127.0.0.1:5555")


async def test_a_token_counts_more_than_loopback(served: Served) -> None:
    metadata = (*LOOPBACK, ("authorization", "bearer secret-viewer"))
    code, _ = await served.call("/outrider.v1.Operator/CreateToken", metadata)
    assert code is grpc.StatusCode.PERMISSION_DENIED


async def test_certificates_are_sidecars_but_where_said(served: Served) -> None:
    sidecar = (*REMOTE, (auth.PEER_CERTIFICATE, "spiffe://mesh/tax-eu-001"))
    person = (*REMOTE, (auth.PEER_CERTIFICATE, "spiffe://mesh/people/ann"))
    assert (await served.call("/outrider.v1.Mesh/Watch", sidecar))[1].startswith("spiffe://mesh/tax-eu-001 sidecar ")
    assert (await served.call("/outrider.v1.Operator/ListAgents", sidecar))[0] is grpc.StatusCode.PERMISSION_DENIED
    assert (await served.call("/outrider.v1.Operator/ApplyAgents", person))[0] is grpc.StatusCode.ABORTED
    assert (await served.call("/outrider.v1.Operator/CreateToken", person))[0] is grpc.StatusCode.PERMISSION_DENIED


async def test_a_method_without_a_rule_is_for_nobody(served: Served) -> None:
    code, text = await served.call("/outrider.v1.Operator/Unheard", LOOPBACK)
    assert (code, text) == (grpc.StatusCode.PERMISSION_DENIED, "nobody may call /outrider.v1.Operator/Unheard")
    assert (await served.call("/nobody.Serves/This", LOOPBACK))[0] is grpc.StatusCode.UNIMPLEMENTED


async def test_a_store_that_fails_is_not_a_wrong_token(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    served.tokens.fails = RuntimeError("no such table [parameters: secret-admin]")
    code, text = await served.call("/outrider.v1.Operator/WhoAmI", bearer("secret-admin"))
    assert code is grpc.StatusCode.UNAVAILABLE
    assert "secret" not in text + caplog.text
    assert "RuntimeError" in caplog.text


async def test_loopback_off() -> None:
    strict = authenticator(Tokens(), loopback=False)
    with pytest.raises(Unauthenticated, match=r"^no token, and auth\.loopback is off$"):
        await strict.caller(LOOPBACK)
    assert await strict.caller(bearer("secret-viewer")) == Caller("viewer-person", "viewer", "192.0.2.1:5555")


async def test_tokens_expire_while_they_are_remembered() -> None:
    tokens, now_ms = Tokens(), [1_000]
    tokens.held["brief"] = Kept("brief", "viewer", 1_500)
    here = Authenticator(tokens.find, lambda: now_ms[0])
    assert (await here.caller(bearer("brief"))).name == "brief"
    now_ms[0] = 1_500
    with pytest.raises(Unauthenticated, match="expired"):
        await here.caller(bearer("brief"))
    assert tokens.asked == 1


async def test_revoked_tokens_are_void_at_once_here_and_soon_elsewhere() -> None:
    tokens, now_ms = Tokens(), [1_000]
    here = Authenticator(tokens.find, lambda: now_ms[0])
    elsewhere = Authenticator(tokens.find, lambda: now_ms[0])
    for each in (here, elsewhere, here, elsewhere):
        await each.caller(bearer("secret-admin"))
    assert tokens.asked == 2
    del tokens.held["secret-admin"]
    here.forget_tokens()
    with pytest.raises(Unauthenticated):
        await here.caller(bearer("secret-admin"))
    now_ms[0] += auth.TOKEN_KEPT_MS
    with pytest.raises(Unauthenticated):
        await elsewhere.caller(bearer("secret-admin"))


async def test_an_answer_from_before_a_revocation_is_not_kept() -> None:
    tokens, gate = Tokens(), asyncio.Event()

    async def slow(token: str, _now_ms: int) -> Kept | None:
        found = tokens.held.get(token)
        tokens.asked += 1
        await gate.wait()
        return found

    here = Authenticator(slow, lambda: 1_000)
    early = asyncio.create_task(here.caller(bearer("secret-admin")))
    while not tokens.asked:
        await asyncio.sleep(0)
    del tokens.held["secret-admin"]
    here.forget_tokens()
    gate.set()
    await early
    with pytest.raises(Unauthenticated):
        await here.caller(bearer("secret-admin"))


async def test_remembered_answers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "_TOKENS_KEPT", 8)
    tokens = Tokens()
    here = authenticator(tokens)
    for at in range(100):
        with pytest.raises(Unauthenticated):
            await here.caller(bearer(f"guess-{at}"))
    assert len(here._known) == 8


def test_a_role_that_is_none() -> None:
    with pytest.raises(ValueError, match=r"auth\.certificates\['ops'\]: 'root' is not one of viewer"):
        authenticator(Tokens(), certificates={"ops": "root"})


def test_no_interceptor_no_caller() -> None:
    with pytest.raises(RuntimeError, match="Interceptor"):
        auth.current_caller()
