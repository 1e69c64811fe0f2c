"""Figures of calls in tables: what `overview`, `watch`, `metrics` and `health` show alike.

Always holds: what is not known is shown as "-", never as 0.

Deliberately not here: asking for figures.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.table import Table
from rich.text import Text

from outrider.v1 import operator_pb2 as pb
from outrider_control.commands.output import (
    NONE,
    milliseconds,
    number,
    percent,
    plain,
    shown,
    span_of_time,
    table,
    usd,
)

WIDE_COLUMNS = 104
_BAD_SUCCESS, _POOR_SUCCESS = 0.95, 0.99


def optional(message: Any, name: str) -> Any:
    """A field that may be absent."""
    return getattr(message, name) if message.HasField(name) else None


def flat(name: str, key: str, figures: pb.Figures) -> dict[str, Any]:
    """Figures and whose they are, side by side: the shape scripts read."""
    return {key: name, **plain(figures)}


def overview_data(overview: pb.Overview) -> dict[str, Any]:
    """An overview as JSON."""
    return {
        "agents": [flat(agent.agent_id, "agent_id", agent.figures) for agent in overview.agents],
        "total": plain(overview.total),
        "from_unix_ms": overview.from_unix_ms,
        "to_unix_ms": overview.to_unix_ms,
        "sidecars": overview.sidecars,
        "dropped_spans": overview.dropped_spans,
    }


def figures_table(
    first: str, rows: Iterable[tuple[str, pb.Figures]], total: pb.Figures | None, width: int, title: str = ""
) -> Table:
    """One row per name; the quantiles beside P95, errors and the first chunk only where there is room."""
    is_wide = width >= WIDE_COLUMNS
    columns = [first, ">CALLS", ">SUCCESS", ">P95", ">HIT", ">IN", ">OUT", ">COST", ">RATING"]
    if is_wide:
        columns[3:4] = [">ERRORS", ">P50", ">P95", ">P99", ">FIRST"]
    made = table(columns, (_row(name, figures, is_wide) for name, figures in rows), title)
    if total is not None and made.row_count > 1:
        made.add_section()
        made.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in _row("all", total, is_wide)))
    return made


def _row(name: str, figures: pb.Figures, is_wide: bool) -> list[Text | str]:
    cells: list[Text | str] = [
        shown(name) or "(none)",
        number(figures.requests),
        success(figures),
        milliseconds(optional(figures, "p95_ms")),
        percent(optional(figures, "hit_rate")),
        number(figures.input_tokens),
        number(figures.output_tokens),
        cost(figures),
        NONE if not figures.HasField("satisfaction") else f"{figures.satisfaction:.1f}",
    ]
    if is_wide:
        cells[3:4] = [
            number(figures.errors),
            *(milliseconds(optional(figures, name)) for name in ("p50_ms", "p95_ms", "p99_ms", "first_chunk_p50_ms")),
        ]
    return cells


def success(figures: pb.Figures) -> Text:
    """The success rate in the colour of what it means."""
    rate = optional(figures, "success_rate")
    style = "" if rate is None or rate >= _POOR_SUCCESS else "yellow" if rate >= _BAD_SUCCESS else "red"
    return Text(percent(rate), style=style)


def cost(figures: pb.Figures) -> str:
    """What it cost; "+" where there were tokens beside it that have no known price."""
    known = usd(optional(figures, "cost_usd"))
    return f"{known}+" if figures.unpriced and known != NONE else known


def caption(overview: pb.Overview) -> list[tuple[str, str]]:
    """Lines beneath an overview, with their styles."""
    looked_ms = max(0, overview.to_unix_ms - overview.from_unix_ms)
    plural = "" if overview.sidecars == 1 else "s"
    lines = [(f"last {span_of_time(looked_ms)}, {overview.sidecars} sidecar{plural} connected", "dim")]
    if overview.dropped_spans:
        lacks = f"{number(overview.dropped_spans)} spans were dropped: the figures lack them (outrider doctor)"
        lines.append((lacks, "yellow"))
    unpriced = overview.total.unpriced
    if unpriced:
        lines.append((f"cost lacks {number(unpriced)} calls whose model has no known price", "dim"))
    return lines


def details(figures: pb.Figures) -> Iterable[tuple[str, str]]:
    """All that is known, as names and values."""
    yield "calls", f"{number(figures.requests)} ({figures.rate:.4g}/s)"
    rate = percent(optional(figures, "success_rate"))
    yield "success", f"{rate}, {number(figures.errors)} failed, {number(figures.cancelled)} cancelled"
    if figures.statuses:
        yield (
            "statuses",
            ", ".join(f"{shown(name)} {number(figures.statuses[name])}" for name in sorted(figures.statuses)),
        )
    names = (("P50", "p50_ms"), ("P95", "p95_ms"), ("P99", "p99_ms"), ("mean", "mean_ms"))
    yield "latency", ", ".join(f"{name} {milliseconds(optional(figures, field))}" for name, field in names)
    if figures.HasField("first_chunk_p50_ms") or figures.HasField("first_chunk_p95_ms"):
        first = [milliseconds(optional(figures, f"first_chunk_{name}_ms")) for name in ("p50", "p95")]
        yield "first chunk", f"P50 {first[0]}, P95 {first[1]}"
    if figures.HasField("queue_p95_ms"):
        yield "queue wait", f"P95 {milliseconds(figures.queue_p95_ms)}"
    if figures.cache:
        tiers = "".join(f", {shown(tier)} {percent(figures.hit_rates[tier])}" for tier in sorted(figures.hit_rates))
        verdicts = ", ".join(f"{shown(name)} {number(figures.cache[name])}" for name in sorted(figures.cache))
        yield "cache", f"{percent(optional(figures, 'hit_rate'))} hit{tiers} ({verdicts})"
    yield "tokens", _tokens(figures)
    yield "cost", cost(figures) + (f" ({number(figures.unpriced)} calls unpriced)" if figures.unpriced else "")
    if figures.HasField("satisfaction"):
        yield "rating", f"{figures.satisfaction:.2f} of 5"


def _tokens(figures: pb.Figures) -> str:
    parts = [f"{number(figures.input_tokens)} in", f"{number(figures.output_tokens)} out"]
    more = (
        ("from our cache", figures.cached_tokens),
        ("compressed away", figures.saved_tokens),
        ("read from the provider's cache", figures.cache_read_tokens),
        ("written to it", figures.cache_write_tokens),
    )
    return ", ".join([*parts, *(f"{number(value)} {name}" for name, value in more if value)])
