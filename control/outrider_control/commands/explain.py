"""`outrider explain`: the decisions that were made for the calls of one trace, in the order they were taken."""

from __future__ import annotations

from typing import Any

from rich.table import Table
from rich.text import Text

from outrider.v1 import operator_pb2 as pb
from outrider_control.commands.arguments import command_parser
from outrider_control.commands.output import NONE, milliseconds, plain, shown, status
from outrider_control.commands.session import CommandError, Session, run
from outrider_control.commands.traces import text


def main(arguments: list[str]) -> int:
    """why a call went as it did: cache, endpoint scores, retries, variant, tokens"""
    parser = command_parser("explain", main.__doc__)
    parser.add_argument("trace", metavar="TRACE", help="trace id, or the call id that x-outrider-call-id gave")
    return run(parser, arguments, _explain)


def _explain(session: Session) -> None:
    reply = session.operator.explain_trace(session.options.trace)
    out = session.out
    if out.is_json:
        out.json(plain(reply))
        return
    if not reply.calls:
        raise CommandError(f"trace {reply.trace_id or session.options.trace} has no kept call")
    out.line(Text.assemble(("trace ", "bold"), shown(reply.trace_id)))
    for call in reply.calls:
        head = f"{shown(call.method)} of {shown(call.agent_id) or NONE} ({shown(call.hop)}, call {shown(call.call_id)})"
        out.line("")
        out.line(Text.assemble((head, "bold"), "  ", status(call.status), f" in {milliseconds(call.duration_ms)}"))
        out.show(_steps(call))


def _steps(call: pb.CallExplanation) -> Table:
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    made.add_column(justify="right", no_wrap=True, style="dim")
    made.add_column(no_wrap=True)
    made.add_column(overflow="fold", ratio=1)
    for step in call.steps:
        at = milliseconds(step.at_ms) if step.HasField("at_ms") else ""
        words = Text(shown(step.text))
        facts = _facts(plain(step)["facts"])
        if facts:
            words.append(f"\n{shown(facts)}", style="dim")
        made.add_row(at, Text(shown(step.what), style="bold"), words)
    return made


def _facts(facts: dict[str, Any] | None) -> str:
    return "  ".join(f"{name}={_fact(value)}" for name, value in sorted((facts or {}).items()))


def _fact(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}={_fact(item)}" for name, item in sorted(value.items())) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_fact(item) for item in value) + "]"
    return text(value)
