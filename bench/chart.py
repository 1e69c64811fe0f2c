"""Charts as SVG: lines over time and points in a plane, nothing but text.

Always holds: the same data give the same file; whatever is drawn lies within the frame.

Deliberately not here: what is drawn (the simulators).
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 420, 70, 20, 46, 56
COLOURS = ("#1f6fb4", "#d1495b", "#6b8f3c", "#8a8a8a")
_TICKS = 5


class Series(NamedTuple):
    name: str
    points: Sequence[tuple[float, float]]
    style: str = "line"  # "line", "step", "points"
    colour: int = 0


def chart(title: str, x_name: str, y_name: str, series: Sequence[Series]) -> str:
    """One chart; it begins at 0 upwards, and to the right at the smallest value."""
    every = [point for one in series for point in one.points] or [(0.0, 0.0)]
    low, high = min([x for x, _ in every]), max([x for x, _ in every])
    top = max([y for _, y in every]) * 1.05 or 1.0
    span = (high - low) or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - low) / span * (WIDTH - LEFT - RIGHT)
        return round(across, 1), round(HEIGHT - BOTTOM - y / top * (HEIGHT - TOP - BOTTOM), 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        _text(LEFT, 20, title, "start", 14),
        _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 14, x_name, "middle"),
        f'<g transform="rotate(-90 16 {HEIGHT / 2})">{_text(16, HEIGHT / 2, y_name, "middle")}</g>',
    ]
    for tick in range(_TICKS + 1):
        x, y = low + span * tick / _TICKS, top * tick / _TICKS
        across, down = place(x, y)
        parts.append(f'<path d="M{LEFT} {down}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts += [
            _text(LEFT - 6, down + 4, f"{y:.4g}", "end"),
            _text(across, HEIGHT - BOTTOM + 18, f"{x:.5g}", "middle"),
        ]
    for number, one in enumerate(series):
        colour = COLOURS[one.colour % len(COLOURS)]
        parts.append(_drawn(one, colour, [place(*point) for point in one.points]))
        parts.append(_text(LEFT + 10 + number * 132, TOP - 8, f"■ {one.name}", "start", 12, colour))
    return "\n".join([*parts, "</svg>", ""])


def _drawn(series: Series, colour: str, places: Sequence[tuple[float, float]]) -> str:
    if series.style == "points":
        return "".join([f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}" fill-opacity="0.6"/>' for x, y in places])
    path = ""
    for x, y in places:
        path += f"M{x} {y}" if not path else f"H{x}V{y}" if series.style == "step" else f"L{x} {y}"
    return f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="2"/>'


def _text(x: float, y: float, text: str, anchor: str, size: int = 12, fill: str = "#333") -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-size="{size}" fill="{fill}">{escape(text)}</text>'
