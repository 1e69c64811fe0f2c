"""`outrider overview`: all agents' figures."""

from __future__ import annotations

from outrider_control.commands.arguments import add_since, command_parser
from outrider_control.commands.figures import caption, figures_table, overview_data
from outrider_control.commands.session import Session, run


def main(arguments: list[str]) -> int:
    """all agents: calls, success, latency, hit rate, tokens, cost, rating"""
    parser = command_parser("overview", main.__doc__)
    add_since(parser, "1h")
    return run(parser, arguments, _overview)


def _overview(session: Session) -> None:
    overview = session.operator.get_overview(session.options.since)
    out = session.out
    if out.is_json:
        out.json(overview_data(overview))
        return
    rows = ((agent.agent_id, agent.figures) for agent in overview.agents)
    out.show(figures_table("AGENT", rows, overview.total, out.console.width))
    if not overview.agents:
        out.line("no agent yet: outrider agents apply -f FILE --reason TEXT", "yellow")
    for line, style in caption(overview):
        out.line(line, style)
