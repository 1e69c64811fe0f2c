"""`outrider tokens`: credentials of operators and sidecars.

Always holds: a new token's secret is all that stands on standard output (or is `token` in the JSON), so that it can go
straight into a file; no other command shows one.
"""

from __future__ import annotations

import sys
import time

from outrider.v1 import operator_pb2 as pb
from outrider_control.commands.arguments import add_common, add_reason, command_parser, duration_ms
from outrider_control.commands.output import clock_time, plain, table
from outrider_control.commands.session import Session, add_actions, run

ROLES = ("viewer", "operator", "admin", "sidecar")


def main(arguments: list[str]) -> int:
    """credentials: create, list and revoke tokens"""
    parser = command_parser("tokens", main.__doc__)
    actions = add_actions(parser)
    create = actions.add_parser("create", help="a new token; the only time its secret is shown")
    create.add_argument("name", metavar="NAME", help="for people: whose it is")
    create.add_argument("--role", choices=ROLES, required=True)
    create.add_argument("--ttl", metavar="TIME", type=duration_ms, default=0, help="default: until it is revoked")
    add_reason(create)
    add_common(create)
    add_common(actions.add_parser("list", help="all tokens, without their secrets"))
    revoke = actions.add_parser("revoke", help="make a token void at once")
    revoke.add_argument("id", metavar="ID", help="as the list shows it")
    add_reason(revoke)
    add_common(revoke)
    return run(parser, arguments, lambda session: _ACTIONS[session.options.action](session))


def _create(session: Session) -> None:
    options, out = session.options, session.out
    reply = session.operator.create_token(options.name, options.role, session.reason(), options.ttl)
    if out.is_json:
        out.json({"token": reply.token, "record": plain(reply.record)})
        return
    out.text(reply.token)
    until = f"until {clock_time(reply.record.expires_unix_ms, True)}" if options.ttl else "until it is revoked"
    print(f"token {reply.record.id} of role {reply.record.role}, {until}; it is not shown again", file=sys.stderr)


def _list(session: Session) -> None:
    reply = session.operator.list_tokens()
    out = session.out
    if out.is_json:
        out.json({"tokens": [plain(token) for token in reply.tokens]})
        return
    if not reply.tokens:
        out.line("no token: only loopback and certificates get in; outrider tokens create NAME --role ROLE", "yellow")
        return
    now_ms = time.time() * 1_000
    rows = (
        (
            token.id,
            token.name,
            token.role,
            clock_time(token.created_unix_ms, True),
            _expiry(token, now_ms),
            token.author,
        )
        for token in reply.tokens
    )
    out.show(table(("ID", "NAME", "ROLE", "CREATED", "EXPIRES", "BY"), rows))


def _expiry(token: pb.TokenRecord, now_ms: float) -> str:
    if not token.expires_unix_ms:
        return "never"
    expired = " (expired)" if token.expires_unix_ms <= now_ms else ""
    return f"{clock_time(token.expires_unix_ms, True)}{expired}"


def _revoke(session: Session) -> None:
    options, out = session.options, session.out
    session.operator.revoke_token(options.id, session.reason())
    if out.is_json:
        out.json({"id": options.id, "revoked": True})
    else:
        out.line(f"token {options.id} is void")


_ACTIONS = {"create": _create, "list": _list, "revoke": _revoke}
