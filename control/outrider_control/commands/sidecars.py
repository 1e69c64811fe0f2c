"""`outrider sidecars`: who is connected, what they hold and what they refuse."""

from __future__ import annotations

from typing import Any

from rich.text import Text

from outrider.v1 import mesh_pb2
from outrider.v1 import operator_pb2 as pb
from outrider_control.commands.arguments import command_parser
from outrider_control.commands.output import NONE, ago, plain, shown, table
from outrider_control.commands.session import Session, run

_KINDS = {
    mesh_pb2.RESOURCE_KIND_POLICY: "policy",
    mesh_pb2.RESOURCE_KIND_ENDPOINTS: "endpoints",
    mesh_pb2.RESOURCE_KIND_EPOCHS: "epochs",
    mesh_pb2.RESOURCE_KIND_MESH: "mesh",
}


def main(arguments: list[str]) -> int:
    """sidecars: connected or gone, up to date or behind, what they refuse and why"""
    parser = command_parser("sidecars", main.__doc__)
    return run(parser, arguments, _sidecars)


def _sidecars(session: Session) -> None:
    reply = session.operator.list_sidecars()
    out = session.out
    if out.is_json:
        out.json({"sidecars": [sidecar_data(record) for record in reply.sidecars]})
        return
    if not reply.sidecars:
        out.line("no sidecar: start one with `control: [HOST:PORT]` in its file", "yellow")
        return
    columns = ("NODE", "AGENT", "STATE", "POLICY", ">ACKED", ">CALLS", "VERSION", "INSTANCE")
    out.show(table(columns, (_row(record) for record in reply.sidecars)))
    for record in reply.sidecars:
        for refusal in record.refused:
            text = Text(f"{shown(record.node or record.instance_id)} refuses ", style="red")
            out.line(text.append(shown(f"{named(refusal.resource)}: {refusal.reason}")))


def named(resource: mesh_pb2.ResourceVersion) -> str:
    """A resource for people."""
    kind = _KINDS.get(resource.kind, str(resource.kind))
    return (
        f"{kind} {resource.name} version {resource.version}" if resource.name else f"{kind} version {resource.version}"
    )


def sidecar_data(record: pb.SidecarRecord) -> dict[str, Any]:
    """One sidecar as JSON; kinds of resources by name."""
    data = plain(record)
    data["refused"] = [
        {
            "kind": _KINDS.get(refusal.resource.kind, ""),
            "name": refusal.resource.name,
            "version": refusal.resource.version,
            "reason": refusal.reason,
        }
        for refusal in record.refused
    ]
    return data


def in_flight(record: pb.SidecarRecord) -> int | None:
    """Calls at a sidecar now; None without a fresh report."""
    return sum(load.in_flight for load in record.load.agents) if record.HasField("load") else None


def _row(record: pb.SidecarRecord) -> list[Any]:
    if record.connected:
        presence = Text("connected", style="green")
    else:
        presence = Text(f"gone {ago(record.seen_unix_ms)}", style="red")
    if record.refused:
        held = Text(f"refuses {len(record.refused)}", style="red")
    elif record.behind:
        held = Text(f"{record.behind} behind", style="yellow")
    else:
        held = Text("up to date")
    now = in_flight(record)
    return [
        record.node or NONE,
        record.agent_id or NONE,
        presence,
        held,
        ago(record.acked_unix_ms),
        NONE if now is None else now,
        record.version or NONE,
        record.instance_id[:12],
    ]
