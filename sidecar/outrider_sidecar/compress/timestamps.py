"""Times at the beginning of lines, as whole steps of one clock.

Always holds: a clock reads only what it writes again to the same characters; all its times share one format, zone and
precision. It is arithmetic over the Gregorian calendar: no time zone is looked up, no leap second known.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_STAMP: Final = re.compile(
    r"(\[?)(\d{4})([-/])(\d\d)[-/](\d\d)([T ])(\d\d):(\d\d):(\d\d)(?:([.,])(\d{3}|\d{6}|\d{9}))?(Z|[+-]\d\d:?\d\d)?"
)


@dataclass(frozen=True, slots=True)
class Stamp:
    """A time as it stands in a line."""

    text: str
    end: int  # where it ends
    form: tuple[str, ...]  # what does not change from line to line
    date: tuple[int, int, int]
    seconds: int  # of the day
    fraction: str


def parts_of(line: str) -> Stamp | None:
    """The time a line begins with."""
    found = _STAMP.match(line)
    if found is None:
        return None
    opening, year, dash, month, day, middle, hour, minute, second, point, fraction, zone = found.groups("")
    seconds = int(hour) * 3_600 + int(minute) * 60 + int(second)
    form = (opening, dash, middle, point, str(len(fraction)), zone)
    return Stamp(found[0], found.end(), form, (int(year), int(month), int(day)), seconds, fraction)


class Clock:
    """Reads and writes times of one form as whole steps since year 0."""

    __slots__ = ("_form", "_scale", "base", "unit")

    def __init__(self, first: Stamp) -> None:
        self._form = first.form
        digits = len(first.fraction)
        self._scale = 10**digits
        self.base = first.text
        self.unit = f"{1 / self._scale:.{digits}f}"

    def at(self, stamp: Stamp) -> int | None:
        """The steps of a time, or None if it has another form."""
        if stamp.form != self._form:
            return None
        steps = (days_of(*stamp.date) * 86_400 + stamp.seconds) * self._scale + int(stamp.fraction or 0)
        return steps if self.text(steps) == stamp.text else None

    def text(self, steps: int) -> str:
        """The time of so many steps."""
        opening, dash, middle, point, digits, zone = self._form
        seconds, fraction = divmod(steps, self._scale)
        days, seconds = divmod(seconds, 86_400)
        year, month, day = date_of(days)
        minutes, second = divmod(seconds, 60)
        hour, minute = divmod(minutes, 60)
        tail = f"{point}{fraction:0{digits}}" if point else ""
        return f"{opening}{year:04}{dash}{month:02}{dash}{day:02}{middle}{hour:02}:{minute:02}:{second:02}{tail}{zone}"


def days_of(year: int, month: int, day: int) -> int:
    """Days from 1 March of year 0 (H. Hinnant, chrono-compatible low-level date algorithms)."""
    year -= month <= 2
    era, of_era = divmod(year, 400)
    of_year = (153 * ((month + 9) % 12) + 2) // 5 + day - 1
    return era * 146_097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year


def date_of(days: int) -> tuple[int, int, int]:
    """Year, month and day; undoes `days_of`."""
    era, of_era = divmod(days, 146_097)
    years = (of_era - of_era // 1_460 + of_era // 36_524 - of_era // 146_096) // 365
    of_year = of_era - (365 * years + years // 4 - years // 100)
    shifted = (5 * of_year + 2) // 153
    month = shifted + 3 if shifted < 10 else shifted - 9
    return era * 400 + years + (month <= 2), month, of_year - (153 * shifted + 2) // 5 + 1
