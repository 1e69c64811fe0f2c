"""What commands print: JSON with stable keys, or tables and lines for people.

Always holds: JSON holds every field of a message, null where a figure is not known; nothing that came over the network
can steer the terminal; nothing is cut off, at 80 columns a cell breaks into lines.

Deliberately not here: what is printed (each command).
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterable, Sequence
from typing import IO, Any

from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct, Value
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

NONE = "-"  # for what is not known
_GOOD, _BAD, _MIDDLING, _DIM = "green", "red", "yellow", "dim"
_STYLES = {
    "healthy": _GOOD,
    "ok": _GOOD,
    "created": _GOOD,
    "changed": _MIDDLING,
    "degraded": _MIDDLING,
    "note": _MIDDLING,
    "unhealthy": _BAD,
    "wrong": _BAD,
    "deleted": _BAD,
    "scaling": _GOOD,
    "ready": _GOOD,
    "paused": _MIDDLING,
    "no engine": _MIDDLING,
    "no data": _MIDDLING,
    "starting": _MIDDLING,
    "draining": _MIDDLING,
    "disabled": _DIM,
    "failing": _BAD,
    "failed": _BAD,
    "draft": _DIM,
    "running": _GOOD,
    "win": _GOOD,
    "better": _GOOD,
    "harm": _BAD,
    "worse": _BAD,
    "srm": _BAD,
    "kept": _GOOD,
    "breached": _BAD,
    "open": _MIDDLING,
    "unknown": _MIDDLING,
    "inconclusive": _MIDDLING,
    "progressing": _GOOD,
    "promoting": _GOOD,
    "succeeded": _GOOD,
    "successful": _GOOD,
    "waiting": _MIDDLING,
    "waiting_promotion": _MIDDLING,
    "error": _BAD,
    "taken": _GOOD,
    "queued": _MIDDLING,
    "unknown_call": _MIDDLING,
    "refused": _BAD,
    "approved": _GOOD,
    "rejected": _BAD,
}


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # `session` ends the command quietly


class Output:
    """Standard output of one command."""

    def __init__(self, is_json: bool, file: IO[str] | None = None):
        self.is_json = is_json
        out = file or sys.stdout
        reconfigure = getattr(out, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")  # a terminal that lacks a character shows its number
        self.console = _Console(file=out, highlight=False, markup=False, emoji=False)

    def json(self, data: Any) -> None:
        """One JSON document: indented for people's eyes, on a terminal or not."""
        self._write(json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False))

    def json_line(self, data: Any) -> None:
        """One JSON document on one line, at once."""
        self._write(json.dumps(data, ensure_ascii=False, allow_nan=False))
        self.console.file.flush()

    def text(self, text: str) -> None:
        """Text as it is: for other programs to read."""
        self._write(text)

    def line(self, text: str | Text, style: str = "") -> None:
        """A line for people; a long one is broken by the terminal, not by us."""
        self.console.print(text if isinstance(text, Text) else Text(text, style=style), soft_wrap=True)

    def show(self, renderable: RenderableType) -> None:
        self.console.print(renderable)

    def _write(self, text: str) -> None:
        self.console.file.write(text + "\n")


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], title: str = "") -> Table:
    """A table without lines. ">" before a column's name: of numbers, to the right, never broken; "|": never broken."""
    made = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold", title=title or None)
    made.title_justify = "left"
    made.title_style = "bold"
    for column in columns:
        is_number = column.startswith(">")
        made.add_column(
            column.lstrip(">|"),
            justify="right" if is_number else "left",
            no_wrap=column.startswith((">", "|")),
            overflow="fold",
        )
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else Text(shown(str(cell))) for cell in row))
    return made


def state(text: str) -> Text:
    """A word in the colour of what it means."""
    return Text(shown(text), style=_STYLES.get(text, ""))


def status(text: str) -> Text:
    """A gRPC status in the colour of what it means."""
    return Text(shown(text) or NONE, style="" if text in ("OK", "") else _BAD)


def shown(text: str) -> str:
    """A text of somebody else's in a form that cannot steer the terminal: what cannot be printed is escaped."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or one == "\n" else one.encode("unicode_escape").decode() for one in text)


def plain(message: Message) -> dict[str, Any]:
    """A message as plain data: every field under its own name, None where it is absent, numbers as numbers."""
    data: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            data[field.name] = {key: _plain(value[key]) for key in sorted(value)}
        elif isinstance(field.default_value, list):
            data[field.name] = [_plain(item) for item in value]
        elif field.has_presence and not message.HasField(field.name):
            data[field.name] = None
        else:
            data[field.name] = _plain(value)
    return data


def _plain(value: Any) -> Any:
    if isinstance(value, Struct):
        return {name: _free(item) for name, item in value.fields.items()}
    if isinstance(value, Message):
        texts = value.DESCRIPTOR.full_name == "outrider.v1.Texts"
        return list(getattr(value, "values")) if texts else plain(value)  # noqa: B009 - only Texts have it
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, bytes):
        return value.hex()
    return value


def _free(value: Value) -> Any:
    """A value of free data. Such data know floats alone: whole numbers are shown as such."""
    match value.WhichOneof("kind"):
        case "struct_value":
            return {name: _free(item) for name, item in value.struct_value.fields.items()}
        case "list_value":
            return [_free(item) for item in value.list_value.values]
        case "number_value":
            number = value.number_value
            if not math.isfinite(number):
                return None
            return int(number) if number.is_integer() and abs(number) < 2**53 else number
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
    return None


def number(value: float | None) -> str:
    """A count in at most six characters."""
    if value is None:
        return NONE
    for bound, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if abs(value) >= bound:
            return f"{value / bound:.2f}{unit}" if abs(value) < 100 * bound else f"{value / bound:.0f}{unit}"
    return f"{value:.0f}" if abs(value) < 100_000 else f"{value / 1_000:.0f}k"


def percent(value: float | None) -> str:
    """A share; 100 % is said of nothing less."""
    if value is None:
        return NONE
    return "100%" if value >= 1 else f"{min(value * 100, 99.9):.1f}%" if value >= 0.0005 or value <= 0 else "<0.1%"


def milliseconds(value: float | None) -> str:
    """A length of time in at most seven characters."""
    if value is None:
        return NONE
    if value < 10:
        return f"{value:.2f}ms"
    if value < 10_000:
        return f"{value:.0f}ms"
    return f"{value / 1_000:.1f}s" if value < 600_000 else span_of_time(value)


def span_of_time(value_ms: float) -> str:
    """A length of time in its two largest units."""
    seconds = int(value_ms // 1_000)
    for unit_s, unit, lesser_s, lesser in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "m"), (60, "m", 1, "s")):
        if seconds >= unit_s:
            rest = seconds % unit_s // lesser_s
            return f"{seconds // unit_s}{unit}{f' {rest}{lesser}' if rest else ''}"
    return f"{seconds}s"


def usd(value: float | None) -> str:
    """Money; small sums keep their digits."""
    if value is None:
        return NONE
    if 0 < value < 0.0001:
        return "<$0.0001"
    return f"${value:.0f}" if value >= 10_000 else f"${value:.2f}" if value >= 1 or value == 0 else f"${value:.4f}"


def clock_time(at_ms: int, with_date: bool | None = None) -> str:
    """A moment by this machine's clock and zone; the date where it is not today, unless that is said."""
    if at_ms <= 0:
        return NONE
    try:
        at = time.localtime(at_ms / 1_000)
    except (OverflowError, OSError, ValueError):  # no year of any calendar
        return str(at_ms)
    is_today = time.strftime("%Y-%m-%d", at) == time.strftime("%Y-%m-%d")
    shows_date = not is_today if with_date is None else with_date
    return time.strftime("%Y-%m-%d %H:%M:%S" if shows_date else "%H:%M:%S", at)


def ago(at_ms: int, now_ms: float | None = None) -> str:
    """How long ago a moment was."""
    if at_ms <= 0:
        return NONE
    return f"{span_of_time(max(0, (now_ms or time.time() * 1_000) - at_ms))} ago"
