"""What every request is held to: bounds on texts, times and lists, and the size of replies.

Always holds: pure; a request past a bound is refused with the field's name; a reply is never larger than clients take
by default (4 MB), and what it leaves out for that is said in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, Protocol, TypeVar

from outrider import tree
from outrider_control.api.errors import Invalid

MAX_AGENTS: Final = 1_000  # of one request
MAX_NAME: Final = 256  # characters of an id, a name, a tag
MAX_REASON: Final = 1_000  # characters
MAX_LIST: Final = 1_000  # entries of a list that has a limit
MAX_SINCE_MS: Final = 366 * 86_400_000
HOUR_MS: Final = 3_600_000
REPLY_BYTES: Final = 3_500_000  # of 4 MB that grpcio takes by default


class _Sized(Protocol):
    def ByteSize(self) -> int: ...  # noqa: N802
    def ClearField(self, field_name: Any) -> None: ...  # noqa: N802


M = TypeVar("M", bound=_Sized)


def reason(request: Any) -> str:
    """Why a change is made; Invalid where it is not said."""
    if not request.reason.strip():
        raise Invalid("reason", "say why: it is kept in the journal")
    return text(request.reason, "reason", MAX_REASON)


def name(value: str, field: str, required: bool = False) -> str:
    """An id, a name, a tag."""
    if required and not value:
        raise Invalid(field, "is missing")
    return text(value, field, MAX_NAME)


def text(value: str, field: str, max_chars: int) -> str:
    """`value`; Invalid if it is too long or cannot be printed."""
    if len(value) > max_chars:
        raise Invalid(field, f"has {len(value):,} characters; at most {max_chars:,} are taken")
    if not value.isprintable():
        raise Invalid(field, f"{tree.show(value)} holds characters that cannot be printed")
    return value


def number(value: int, low: int, high: int, field: str) -> int:
    """`value`; Invalid if it is not between the two."""
    if not low <= value <= high:
        raise Invalid(field, f"{value} is not between {low} and {high}")
    return value


def limit(value: int, default: int) -> int:
    """How many entries of a list are wanted; 0: the default."""
    return number(value, 0, MAX_LIST, "limit") or default


def since_ms(value: int, default: int) -> int:
    """How far back; 0: the default."""
    return number(value, 0, MAX_SINCE_MS, "since_ms") or default


def count(of: Sequence[Any], field: str, most: int) -> None:
    """Invalid if a list is empty or too long."""
    if not of:
        raise Invalid(field, "is empty")
    if len(of) > most:
        raise Invalid(field, f"has {len(of):,} entries; at most {most:,} are taken at once")


def slim(messages: Iterable[M], heavy: Sequence[str], budget_bytes: int = REPLY_BYTES) -> list[M]:
    """The messages; once they are too large together, the rest of them without their `heavy` fields."""
    kept: list[M] = []
    left_bytes = budget_bytes
    for message in messages:
        size = message.ByteSize()
        if size > left_bytes:
            for field in heavy:
                message.ClearField(field)
            size = message.ByteSize()
        left_bytes -= size
        kept.append(message)
    return kept
