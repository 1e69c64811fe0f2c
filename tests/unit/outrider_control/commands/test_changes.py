"""cache purge and tokens: what is sent, and that a secret is shown once and to standard output alone."""

from __future__ import annotations

import pytest

from outrider.v1 import operator_pb2 as pb
from tests.unit.outrider_control.commands.conftest import Run
from tests.unit.outrider_control.commands.operator_server import StandIn


def test_purge(run: Run, stand_in: StandIn) -> None:
    stand_in.replies["PurgeCache"] = pb.PurgeCacheReply(epoch=9, sidecars=3, confirmed=2)
    ran = run("cache", "purge", "--agent", "a", "--tenant", "t", "--tag", "g", "--reason", "erased")
    wanted = pb.PurgeCacheRequest(agent_id="a", tenant_id="t", tag="g", reason="erased")
    assert stand_in.requests("PurgeCache") == [wanted]
    assert ran.out.startswith("purged: 2 of 3 connected sidecars have confirmed")
    assert "the others get it" in ran.out
    data = run("cache", "purge", "--everything", "--reason", "erased", "--json").data
    assert data == {"epoch": 9, "sidecars": 3, "confirmed": 2}


@pytest.mark.parametrize("scope", [(), ("--everything", "--agent", "a")])
def test_purge_of_what(run: Run, stand_in: StandIn, scope: tuple[str, ...]) -> None:
    ran = run("cache", "purge", *scope, "--reason", "r")
    assert ran.code == 2
    assert "--everything" in ran.err
    assert stand_in.asked == []


def created(expires_ms: int = 0) -> pb.CreateTokenReply:
    record = pb.TokenRecord(id="orx_abc", name="ci", role="viewer", expires_unix_ms=expires_ms)
    return pb.CreateTokenReply(token="orx_abcdef", record=record)


def test_a_new_token_is_all_there_is_on_standard_output(run: Run, stand_in: StandIn) -> None:
    stand_in.replies["CreateToken"] = created(expires_ms=1_000)
    ran = run("tokens", "create", "ci", "--role", "viewer", "--ttl", "30d", "--reason", "r")
    wanted = pb.CreateTokenRequest(name="ci", role="viewer", ttl_ms=30 * 86_400_000, reason="r")
    assert stand_in.requests("CreateToken") == [wanted]
    assert ran.out == "orx_abcdef\n"
    assert ran.err == "token orx_abc of role viewer, until 1970-01-01 00:00:01; it is not shown again\n"


def test_a_new_token_as_json(run: Run, stand_in: StandIn) -> None:
    stand_in.replies["CreateToken"] = created()
    ran = run("tokens", "create", "ci", "--role", "viewer", "--reason", "r", "--json")
    assert ran.data["token"] == "orx_abcdef"
    assert ran.data["record"]["role"] == "viewer"
    assert ran.err == ""


def test_a_role_that_there_is_not(run: Run, stand_in: StandIn) -> None:
    ran = run("tokens", "create", "ci", "--role", "root", "--reason", "r")
    assert ran.code == 2
    assert stand_in.asked == []


def test_revoke(run: Run, stand_in: StandIn) -> None:
    stand_in.replies["RevokeToken"] = pb.RevokeTokenReply()
    assert run("tokens", "revoke", "orx_abc", "--reason", "r").out == "token orx_abc is void\n"
    assert run("tokens", "revoke", "orx_abc", "--reason", "r", "--json").data == {"id": "orx_abc", "revoked": True}
