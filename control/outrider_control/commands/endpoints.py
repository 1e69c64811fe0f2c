"""`outrider endpoints`: where agents can be reached, and how that is known."""

from __future__ import annotations

import time
from typing import Any

from outrider.v1 import operator_pb2 as pb
from outrider_control.commands.arguments import command_parser
from outrider_control.commands.figures import optional
from outrider_control.commands.output import NONE, number, plain, span_of_time, table
from outrider_control.commands.session import Session, run

WIDE_COLUMNS = 110


def main(arguments: list[str]) -> int:
    """addresses of the agents: declared, registered or announced"""
    parser = command_parser("endpoints", main.__doc__)
    parser.add_argument("agent", metavar="AGENT", nargs="?", default="", help="which (default: all)")
    return run(parser, arguments, _endpoints)


def _endpoints(session: Session) -> None:
    reply = session.operator.list_endpoints(session.options.agent)
    out = session.out
    if out.is_json:
        out.json({"endpoints": [endpoint_data(record) for record in reply.endpoints]})
        return
    if not reply.endpoints:
        out.line("no endpoint: declare one in the agent's policy, or have its instances register", "yellow")
        return
    now_ms = time.time() * 1_000
    columns = ["AGENT", "|ADDRESS", "SOURCE", ">BUSY", ">EXPIRES", "LABELS"]
    if out.console.width >= WIDE_COLUMNS:
        columns += [">WEIGHT", ">CAPACITY", "NODE"]
    out.show(table(columns, (_row(record, now_ms)[: len(columns)] for record in reply.endpoints)))


def endpoint_data(record: pb.EndpointRecord) -> dict[str, Any]:
    """One endpoint as JSON, flat."""
    data = plain(record)
    return {**data.pop("endpoint"), **data}


def _row(record: pb.EndpointRecord, now_ms: float) -> list[Any]:
    endpoint = record.endpoint
    labels = [f"{name}={endpoint.labels[name]}" for name in sorted(endpoint.labels)]
    left_ms = record.expires_unix_ms - now_ms
    return [
        endpoint.agent_id,
        endpoint.address,
        f"{record.source} ingress" if endpoint.ingress else record.source,
        number(optional(record, "in_flight")),
        NONE if not record.expires_unix_ms else span_of_time(left_ms) if left_ms > 0 else "due",
        " ".join(labels) or NONE,
        endpoint.weight or 1,
        number(endpoint.capacity) if endpoint.capacity else NONE,
        record.node or NONE,
    ]
