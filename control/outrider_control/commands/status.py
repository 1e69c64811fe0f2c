"""`outrider status`: the control plane itself, and who it takes us for."""

from __future__ import annotations

from rich.text import Text

from outrider import __version__
from outrider_control.commands.arguments import command_parser
from outrider_control.commands.output import ago, clock_time, number, plain, shown, table
from outrider_control.commands.session import Session, run


def main(arguments: list[str]) -> int:
    """the control plane: version, store, leader, intake, warnings; and who you are"""
    parser = command_parser("status", main.__doc__)
    return run(parser, arguments, _status)


def _status(session: Session) -> None:
    status = session.operator.get_status()
    identity = session.operator.who_am_i()
    out, address = session.out, session.operator.address
    if out.is_json:
        out.json({**plain(status), "control": address, "client_version": __version__, "caller": plain(identity)})
        return
    leader = "leads" if status.leader else "follows"
    spans = ", ".join(
        f"{shown(name)} {number(status.intake[name])}" for name in sorted(status.intake) if status.intake[name]
    )
    rows = [
        ("control plane", f"{address}, {status.version}, instance {status.instance_id}, {leader}"),
        ("started", f"{clock_time(status.started_unix_ms, True)} ({ago(status.started_unix_ms, status.now_unix_ms)})"),
        ("store", f"{status.store}, schema {status.schema}"),
        ("peers", ", ".join(status.peers) or "none"),
        ("spans", spans or "none yet"),
        (
            "series",
            f"{number(status.series)}" + (f", {number(status.overflowed)} past the bound" * bool(status.overflowed)),
        ),
    ]
    if status.forward:
        sent = ", ".join(f"{name} {number(status.forwarded[name])}" for name in sorted(status.forwarded))
        rows.append(("forwards to", f"{status.forward} ({sent or 'nothing yet'})"))
    rows.append(("you are", f"{identity.name}, role {identity.role}"))
    grid = table(("", ""), rows)
    grid.show_header = False
    out.show(grid)
    for warning in status.warnings:
        out.line(Text.assemble(("warning: ", "yellow"), shown(warning)))
