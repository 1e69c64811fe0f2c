"""Which windows answer a question about a span of time: pure.

The rollups come in four widths. A span of time is covered from its begin in the finest width that is still kept, up
to the next border of a coarser one, and so on: few rows, and no call outside of the span is counted, but for the
width of the finest window at its begin.

Always holds: the pieces of a cover are in order, do not overlap and leave nothing out; each is within one window of
the coarsest width that was asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from outrider_control.core.sample import SeriesKey

LEVELS_S: Final = (10, 60, 600, 3600)  # widths of windows that are stored
# Widths of points that can be asked for, by name. Windows of ten minutes only make covers short.
NAMED_S: Final[Mapping[str, int]] = MappingProxyType({"10s": 10, "1m": 60, "1h": 3600})
KEEP_S: Final[Mapping[int, int]] = MappingProxyType({10: 7_200, 60: 172_800, 600: 172_800, 3600: 90 * 86_400})
SPLITS: Final = ("method", "variant", "endpoint", "tenant")
_FINE_SPAN_S = 1_800  # up to which points are 10 s apart when nobody says
_MIDDLE_SPAN_S = 21_600  # up to which they are a minute apart


class Piece(NamedTuple):
    """All windows of one width that begin in [from, to)."""

    window_s: int
    from_s: int
    to_s: int


class Span(NamedTuple):
    """A span of time as it can be answered."""

    from_s: int  # a border of the finest width that is kept at that time
    now_s: int
    point_s: int  # width of the points

    @property
    def window(self) -> str:
        """Name of the points' width."""
        return next(name for name, width in NAMED_S.items() if width == self.point_s)


def span(since_ms: int, now_ms: int, window: str = "", keep_s: Mapping[int, int] = KEEP_S) -> Span:
    """What can be answered of the time from `since_ms` to `now_ms`, unix milliseconds.

    Points get the width that was asked for, or a coarser one where that is not kept for so long; "": what suits.
    ValueError: no such window.
    """
    if window and window not in NAMED_S:
        raise ValueError(f"window: one of {', '.join(NAMED_S)} or nothing, not {window[:32]!r}")
    now_s = now_ms // 1000
    since_s = min(max(since_ms // 1000, now_s - keep_s[LEVELS_S[-1]]), now_s)
    border_s = next((level for level in LEVELS_S if since_s // level * level >= now_s - keep_s[level]), LEVELS_S[-1])
    length_s = now_s - since_s
    if window:
        wanted_s = NAMED_S[window]
    else:
        wanted_s = 10 if length_s <= _FINE_SPAN_S else 60 if length_s <= _MIDDLE_SPAN_S else 3600
    point_s = next(width for width in NAMED_S.values() if width >= max(wanted_s, border_s))
    return Span(since_s // border_s * border_s, now_s, point_s)


def cover(from_s: int, now_s: int, coarsest_s: int) -> list[Piece]:
    """Pieces from a border to now, of windows up to a width. The last window may reach past now."""
    pieces: list[Piece] = []
    at_s = from_s
    levels = [level for level in LEVELS_S if level <= coarsest_s]
    for level, coarser in zip(levels, (*levels[1:], 0), strict=True):
        if at_s > now_s:
            break
        if at_s % level:
            raise ValueError(f"{at_s} is not a border of windows of {level} s")
        to_s = -(-at_s // coarser) * coarser if coarser else now_s + 1
        if to_s > now_s:
            # Behind now nothing was called yet: whole windows up to now are a cover.
            to_s = now_s // level * level + level
        if to_s > at_s:
            pieces.append(Piece(level, at_s, to_s))
        at_s = to_s
    return pieces


def keep(of_10s: int, of_1m: int, of_1h: int) -> dict[int, int]:
    """How long windows of each width are kept, seconds; those of ten minutes as long as those of one."""
    return {10: of_10s, 60: of_1m, 600: of_1m, 3600: of_1h}


def split_name(series: SeriesKey, by: str) -> str:
    """The part of a split that a series belongs to."""
    return getattr(series, by)


def check_split(by: str) -> None:
    """ValueError: nothing that figures are kept apart by."""
    if by and by not in SPLITS:
        raise ValueError(f"by: one of {', '.join(SPLITS)} or nothing, not {by[:32]!r}")
