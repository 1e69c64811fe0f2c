"""Values of metrics for people: in the metric's own unit, effects with their sign, intervals over time as a picture.

Always holds: what is not known is shown as "-", never as 0.

Deliberately not here: what the values mean (the control plane's conclusion says it).
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from outrider.v1 import experiment_pb2 as pb
from outrider_control.commands.output import NONE, milliseconds, number, usd

_SHARES = ("error_rate", "slow_share", "complaint_rate")
_TIMES = ("latency_mean", "latency_quantile", "first_chunk_mean")
_ROWS = 9  # of a picture
_LABEL_COLUMNS = 11
_MOST_COLUMNS = 72
_SETTLED = 0.25  # of the course is left out where the picture's scale is chosen: first intervals are very wide


def value_text(metric: pb.Metric, value: float | None) -> str:
    """A value of a metric."""
    if value is None:
        return NONE
    if metric.name in _SHARES:
        return f"{value * 100:.3g}%" if abs(value) < 0.1 else f"{value * 100:.1f}%"
    if metric.name in _TIMES:
        return f"-{milliseconds(-value)}" if value < 0 else milliseconds(value)
    if metric.name == "cost":
        return f"-{usd(-value)}" if value < 0 else usd(value)
    if metric.name == "tokens" and abs(value) >= 100:
        return number(value)
    return f"{value:.4g}"


def effect_text(metric: pb.Metric, effect: float | None) -> str:
    """A difference of two values: a sign always stands before it. Of shares: in percentage points."""
    if effect is None:
        return NONE
    shown = value_text(metric, effect)
    if metric.name in _SHARES:
        shown = f"{shown.removesuffix('%')}pp"
    return shown if shown.startswith("-") else f"+{shown}"


def interval_text(metric: pb.Metric, low: float | None, high: float | None) -> str:
    """An interval of a difference; an end that is not known is open."""
    if low is None and high is None:
        return NONE
    ends = [effect_text(metric, end) if end is not None else "" for end in (low, high)]
    return f"{ends[0] or 'below'} to {ends[1] or 'above'}"


def band(metric: pb.Metric, looks: Sequence[pb.Look], width: int) -> list[Text]:
    """The course of one comparison, a column a look: its interval, the effect in it, and the line of no difference.

    The scale is that of the later looks; what reaches beyond it is cut off there. Nothing for less than two looks.
    """
    columns = max(8, min(_MOST_COLUMNS, width - _LABEL_COLUMNS - 2))
    if len(looks) < 2:
        return []
    shown = _thinned(looks, columns)
    bottom, top = _scale(looks)
    step = (top - bottom) / _ROWS
    lines: list[Text] = []
    for row in range(_ROWS):
        upper = top - row * step
        lower = bottom if row == _ROWS - 1 else upper - step
        is_zero = lower <= 0 < upper or (row == 0 and top == 0)
        ends = {0: top, _ROWS - 1: bottom}
        label = "0" if is_zero else effect_text(metric, ends[row]) if row in ends else ""
        cells = "".join(_cell(look, lower, upper, is_zero) for look in shown)
        lines.append(Text.assemble((f"{label:>{_LABEL_COLUMNS}} ", "dim"), (cells, "cyan")))
    first, last = f"{number(shown[0].units)} units", f"{number(shown[-1].units)} units"
    gap = max(1, len(shown) - len(first) - len(last))
    lines.append(Text(f"{'':>{_LABEL_COLUMNS}} {first}{' ' * gap}{last}", style="dim"))
    return lines


def _thinned(looks: Sequence[pb.Look], most: int) -> list[pb.Look]:
    """At most so many, evenly, the first and the last among them."""
    if len(looks) <= most:
        return list(looks)
    return [looks[round(at * (len(looks) - 1) / (most - 1))] for at in range(most)]


def _scale(looks: Sequence[pb.Look]) -> tuple[float, float]:
    """The lowest and the highest value that is shown; no difference is between them."""
    settled = looks[int(len(looks) * _SETTLED) :]
    bottom = min(0.0, min(look.low for look in settled))
    top = max(0.0, max(look.high for look in settled))
    return (bottom, top) if top > bottom else (-1.0, 1.0)


def _cell(look: pb.Look, lower: float, upper: float, is_zero: bool) -> str:
    if lower <= look.effect < upper:
        return "●"
    if look.high > lower and look.low < upper:
        return "┼" if is_zero else "│"
    return "─" if is_zero else " "
