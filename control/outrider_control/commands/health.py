"""`outrider health`: whether an agent is well, and why not."""

from __future__ import annotations

from rich.text import Text

from outrider_control.commands.arguments import command_parser
from outrider_control.commands.figures import details
from outrider_control.commands.output import plain, shown, state, table
from outrider_control.commands.session import Session, run

_MARKS = {"unhealthy": "wrong", "degraded": "note", "info": "info"}


def main(arguments: list[str]) -> int:
    """whether an agent is well, and what to do if it is not"""
    parser = command_parser("health", main.__doc__)
    parser.add_argument("agent", metavar="AGENT")
    return run(parser, arguments, _health)


def _health(session: Session) -> None:
    health = session.operator.get_agent_health(session.options.agent)
    out = session.out
    if out.is_json:
        out.json(plain(health))
        return
    out.line(Text.assemble((shown(health.agent_id), "bold"), ": ", state(health.state)))
    for reason in health.reasons:
        mark = state(_MARKS.get(reason.severity, reason.severity))
        mark.plain = shown(reason.severity)
        out.line(Text.assemble("  ", mark, "  ", shown(reason.text)))
    grid = table(("", ""), [("endpoints", health.endpoints), *details(health.figures)])
    grid.show_header = False
    out.line("last 5 minutes:", "dim")
    out.show(grid)
