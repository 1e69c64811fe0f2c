"""`outrider metrics`: one agent's figures, their course, and their parts."""

from __future__ import annotations

from typing import Any

from outrider.v1 import operator_pb2 as pb
from outrider_control.commands.arguments import WINDOWS, add_since, command_parser
from outrider_control.commands.figures import details, figures_table, flat, optional, success
from outrider_control.commands.output import clock_time, milliseconds, number, percent, plain, shown, table, usd
from outrider_control.commands.session import Session, run

_PARTS = ("method", "variant", "endpoint", "tenant")


def main(arguments: list[str]) -> int:
    """one agent's figures over time, and split by method, variant, endpoint or tenant"""
    parser = command_parser("metrics", main.__doc__)
    parser.add_argument("--agent", metavar="AGENT", default="", help="which (default: all together)")
    parser.add_argument("--window", choices=WINDOWS, default="", help="of one point (default: what suits --since)")
    parser.add_argument("--by", choices=_PARTS, default="", help="split by this")
    add_since(parser, "1h")
    return run(parser, arguments, _metrics)


def _metrics(session: Session) -> None:
    options, out = session.options, session.out
    metrics = session.operator.get_metrics(options.agent, options.window, options.since, options.by)
    if out.is_json:
        out.json(metrics_data(metrics))
        return
    grid = table(("", ""), ((name, value) for name, value in details(metrics.figures)))
    grid.show_header = False
    out.line(shown(metrics.agent_id) or "all agents", "bold")
    out.show(grid)
    if metrics.series:
        rows = (_point(point) for point in metrics.series)
        columns = ("TIME", ">CALLS", ">ERRORS", ">SUCCESS", ">P50", ">P95", ">P99", ">HIT", ">COST")
        out.line("")
        out.show(table(columns, rows, f"in windows of {metrics.window}"))
    if metrics.splits:
        rows = ((split.name, split.figures) for split in metrics.splits)
        out.line("")
        out.show(figures_table((options.by or "part").upper(), rows, None, out.console.width))
    if metrics.metrics:
        out.line("")
        out.show(_named(metrics))
    if not metrics.figures.requests:
        out.line("no call in this time: outrider doctor says whether anything is wrong", "yellow")


def metrics_data(metrics: pb.Metrics) -> dict[str, Any]:
    """One agent's metrics as JSON: the keys of an overview's agent, and what is more."""
    return {
        **flat(metrics.agent_id, "agent_id", metrics.figures),
        "series": [{"at_unix_ms": point.at_unix_ms, **plain(point.figures)} for point in metrics.series],
        "splits": [flat(split.name, "name", split.figures) for split in metrics.splits],
        "window": metrics.window,
        "from_unix_ms": metrics.from_unix_ms,
        "to_unix_ms": metrics.to_unix_ms,
        "metrics": [plain(metric) for metric in metrics.metrics],
    }


def _point(point: pb.Point) -> list[Any]:
    figures = point.figures
    return [
        clock_time(point.at_unix_ms),
        number(figures.requests),
        number(figures.errors),
        success(figures),
        *(milliseconds(optional(figures, name)) for name in ("p50_ms", "p95_ms", "p99_ms")),
        percent(optional(figures, "hit_rate")),
        usd(optional(figures, "cost_usd")),
    ]


def _named(metrics: pb.Metrics) -> Any:
    rows = (
        (one.name, one.kind, f"{one.value:.6g} {one.unit}".strip(), number(one.count), _p95(one))
        for one in metrics.metrics
    )
    return table(("METRIC", "KIND", ">VALUE", ">COUNT", ">P95"), rows, "sent by the agent itself")


def _p95(metric: pb.NamedMetric) -> str:
    return f"{metric.p95:.6g}" if metric.HasField("p95") else "-"
