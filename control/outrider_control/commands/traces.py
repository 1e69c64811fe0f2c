"""`outrider traces`: calls that were kept, and one of them as a timeline."""

from __future__ import annotations

from typing import Any

from rich.bar import Bar
from rich.table import Table
from rich.text import Text

from outrider.v1 import operator_pb2 as pb
from outrider_control.commands.arguments import add_common, add_since, command_parser, count, duration_ms
from outrider_control.commands.output import NONE, clock_time, milliseconds, plain, shown, status, table
from outrider_control.commands.session import CommandError, Session, add_actions, run

WIDE_COLUMNS = 110
_MAX_DEPTH = 8  # of the indentation


def main(arguments: list[str]) -> int:
    """calls that were kept: a list, or one as a timeline"""
    parser = command_parser("traces", main.__doc__)
    actions = add_actions(parser)
    listing = actions.add_parser("list", help="kept calls, newest first")
    listing.add_argument("--agent", metavar="AGENT", default="", help="which (default: all)")
    listing.add_argument("--errors", action="store_true", help="only failed ones")
    listing.add_argument("--slower", metavar="TIME", type=duration_ms, default=0, help="only those that took so long")
    listing.add_argument("--limit", metavar="N", type=count, default=50, help="default: 50")
    add_since(listing, "1h")
    add_common(listing)
    showing = actions.add_parser("show", help="a call as a timeline")
    showing.add_argument("trace", metavar="TRACE", help="trace id, or the call id that x-outrider-call-id gave")
    showing.add_argument("--attributes", action="store_true", help="with all attributes and events")
    add_common(showing)
    return run(parser, arguments, lambda session: _ACTIONS[session.options.action](session))


def _list(session: Session) -> None:
    options, out = session.options, session.out
    reply = session.operator.list_traces(options.agent, options.since, options.errors, options.slower, options.limit)
    if out.is_json:
        out.json({"traces": [plain(trace) for trace in reply.traces]})
        return
    if not reply.traces:
        out.line("no kept call: failed and slow ones are kept, and a share of the others", "yellow")
        return
    columns = ["|TRACE", "|TIME", "AGENT", "STATUS", ">TOOK", "|KEPT"]
    if out.console.width >= WIDE_COLUMNS:
        columns += ["METHOD", "|CACHE"]
    out.show(table(columns, (_row(trace)[: len(columns)] for trace in reply.traces)))


def _row(trace: pb.TraceSummary) -> list[Any]:
    return [
        trace.trace_id,
        clock_time(trace.at_unix_ms),
        trace.agent_id or NONE,
        status(trace.status),
        milliseconds(trace.duration_ms),
        trace.kept or NONE,
        trace.method or NONE,
        trace.cache or NONE,
    ]


def _show(session: Session) -> None:
    out = session.out
    trace = session.operator.get_trace(session.options.trace)
    if out.is_json:
        out.json(plain(trace))
        return
    if not trace.spans:
        raise CommandError(f"trace {trace.trace_id or session.options.trace} has no kept span")
    first_ns = min(span.start_unix_ns for span in trace.spans)
    last_ns = max(span.end_unix_ns for span in trace.spans)
    out.line(Text.assemble(("trace ", "bold"), shown(trace.trace_id)))
    took_ms = (last_ns - first_ns) / 1e6
    out.line(f"{clock_time(first_ns // 1_000_000, with_date=True)}, {milliseconds(took_ms)}", "dim")
    out.show(timeline(trace, out.console.width))
    for span in trace.spans:
        if session.options.attributes:
            _print_attributes(session, span, first_ns)
        elif span.message:
            out.line(Text.assemble((f"{shown(span.name)}: ", "red"), shown(span.message)))


def timeline(trace: pb.Trace, width: int) -> Table:
    """A row per span: its name beneath its parent's, how it ended, and a bar where it lies in the whole."""
    first_ns = min(span.start_unix_ns for span in trace.spans)
    whole_ns = max(1, max(span.end_unix_ns for span in trace.spans) - first_ns)
    made = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    made.add_column("SPAN", overflow="fold", ratio=3)
    made.add_column("AGENT", overflow="fold", ratio=2)
    made.add_column("STATUS", overflow="fold")
    made.add_column("AT", justify="right", no_wrap=True)
    made.add_column("TOOK", justify="right", no_wrap=True)
    bar_width = max(12, width // 4)
    made.add_column("", no_wrap=True, width=bar_width)
    depths = span_depths(trace)
    for span in trace.spans:
        begin, end = span.start_unix_ns - first_ns, max(span.end_unix_ns, span.start_unix_ns) - first_ns
        # A bar thinner than an eighth of a character would not show.
        end = min(whole_ns, max(end, begin + whole_ns // (bar_width * 4)))
        color = "green" if span.status in ("OK", "") else "red"
        made.add_row(
            Text("  " * min(depths[span.span_id], _MAX_DEPTH) + shown(f"{span.name} ({span.kind})")),
            Text(shown(span.agent_id or span.service) or NONE),
            status(span.status),
            milliseconds(begin / 1e6),
            milliseconds((span.end_unix_ns - span.start_unix_ns) / 1e6),
            Bar(whole_ns, begin, end, width=bar_width, color=color),
        )
    return made


def span_depths(trace: pb.Trace) -> dict[str, int]:
    """How many kept ancestors each span has; a circle of parents counts each of its spans once."""
    parents = {span.span_id: span.parent_id for span in trace.spans}
    depths = {}
    for span_id in parents:
        seen = {span_id}
        at = parents[span_id]
        while at in parents and at not in seen:
            seen.add(at)
            at = parents[at]
        depths[span_id] = len(seen) - 1
    return depths


def _print_attributes(session: Session, span: pb.SpanRecord, first_ns: int) -> None:
    out = session.out
    data = plain(span)
    out.line("")
    out.line(Text.assemble((shown(span.name), "bold"), f"  {shown(span.span_id)}  kept: {shown(span.kept)}"))
    rows = [(name, text(value)) for name, value in sorted(data["attributes"].items())] if data["attributes"] else []
    if span.message:
        rows.insert(0, ("message", span.message))
    for event in data["events"]:
        at = milliseconds((event["at_unix_ns"] - first_ns) / 1e6)
        facts = " ".join(f"{name}={text(value)}" for name, value in sorted((event["attributes"] or {}).items()))
        rows.append((f"at {at}", f"{event['name']} {facts}".strip()))
    grid = table(("", ""), rows)
    grid.show_header = False
    out.show(grid)


def text(value: Any) -> str:
    """An attribute's value on one line."""
    if isinstance(value, list):
        return ", ".join(text(item) for item in value)
    return f"{value:.6g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)


_ACTIONS = {"list": _list, "show": _show}
