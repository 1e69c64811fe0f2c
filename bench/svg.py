"""Line plots as SVG: all the benches need, and no more.

Always holds: what is drawn is text any browser shows, with its own colours, axes from the data and a legend; at most
`MAX_POINTS` points a line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import floor, log10
from pathlib import Path

MAX_POINTS = 1_000
_COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b", "#17becf", "#7f7f7f")
_WIDTH, _HEIGHT, _LEFT, _TOP, _RIGHT, _BOTTOM = 860, 300, 70, 36, 200, 44


@dataclass(frozen=True, slots=True)
class Line:
    """Points (x, y) in the order they are joined; `joined` false: dots."""

    name: str
    points: Sequence[tuple[float, float]]
    joined: bool = True


@dataclass(frozen=True, slots=True)
class Plot:
    """One set of axes."""

    title: str
    x: str
    y: str
    lines: Sequence[Line]


def write(path: Path, title: str, plots: Sequence[Plot]) -> None:
    """All plots, one below the other, in one file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height = 40 + _HEIGHT * len(plots)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" font-family="sans-serif">',
        f'<rect width="100%" height="100%" fill="white"/><text x="20" y="26" font-size="18">{escape(title)}</text>',
    ]
    parts += [f'<g transform="translate(0 {40 + at * _HEIGHT})">{_plot(plot)}</g>' for at, plot in enumerate(plots)]
    path.write_text("\n".join([*parts, "</svg>"]) + "\n", encoding="utf-8")


def ticks(low: float, high: float) -> list[float]:
    """About five round numbers from `low` to `high`."""
    if high <= low:
        return [low]
    rough = (high - low) / 5
    size = 10 ** floor(log10(rough))
    step = next((size * times for times in (1, 2, 5, 10) if size * times >= rough), rough)
    first = floor(low / step) * step
    return [first + step * at for at in range(12) if low - step / 1e3 <= first + step * at <= high + step / 1e3]


def _plot(plot: Plot) -> str:
    points = [point for line in plot.lines for point in line.points] or [(0.0, 0.0)]
    low_x, high_x = min(x for x, _ in points), max(x for x, _ in points)
    low_y, high_y = min(0.0, *(y for _, y in points)), max(y for _, y in points)
    wide, tall = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - low_x) / ((high_x - low_x) or 1.0)
        up = (y - low_y) / ((high_y - low_y) or 1.0)
        return round(_LEFT + across * wide, 1), round(_TOP + (1 - up) * tall, 1)

    parts = [f'<text x="{_LEFT}" y="22" font-size="14">{escape(plot.title)}</text>']
    for y in ticks(low_y, high_y):
        at = place(low_x, y)[1]
        parts.append(f'<line x1="{_LEFT}" x2="{_LEFT + wide}" y1="{at}" y2="{at}" stroke="#ddd"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{at + 4}" font-size="11" text-anchor="end">{y:g}</text>')
    for x in ticks(low_x, high_x):
        at = place(x, low_y)[0]
        parts.append(f'<text x="{at}" y="{_TOP + tall + 16}" font-size="11" text-anchor="middle">{x:g}</text>')
    parts.append(
        f'<text x="{_LEFT + wide}" y="{_TOP + tall + 32}" font-size="11" text-anchor="end">{escape(plot.x)}</text>'
    )
    parts.append(f'<text x="6" y="{_TOP - 6}" font-size="11">{escape(plot.y)}</text>')
    for at, line in enumerate(plot.lines):
        colour = _COLOURS[at % len(_COLOURS)]
        parts.append(_line([place(x, y) for x, y in _thinned(line.points)], colour, line.joined))
        y = _TOP + 16 * at
        parts.append(f'<rect x="{_LEFT + wide + 14}" y="{y}" width="12" height="4" fill="{colour}"/>')
        parts.append(f'<text x="{_LEFT + wide + 32}" y="{y + 7}" font-size="12">{escape(line.name)}</text>')
    return "".join(parts)


def _line(places: Sequence[tuple[float, float]], colour: str, joined: bool) -> str:
    if joined:
        told = " ".join(f"{x},{y}" for x, y in places)
        return f'<polyline points="{told}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
    return "".join(f'<circle cx="{x}" cy="{y}" r="3.5" fill="{colour}"/>' for x, y in places)


def _thinned(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    every = -(-len(points) // MAX_POINTS)
    return points[::every] if every > 1 else points
