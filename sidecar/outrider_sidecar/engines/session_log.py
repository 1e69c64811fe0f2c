"""The bytes of the sticky store on disk: a log of records, the newest of a unit counts.

Always holds: each record carries a checksum and begins with a mark, so that one that was torn or damaged costs itself
alone: reading goes on at the next mark. Times in records are monotonic; a clock record says once in a while what the
wall clock was then and which boot of the machine the monotonic clock belongs to. So within one boot idle time is exact
whatever the wall clock does, and only across boots it is the wall clock's, never below 0.

Deliberately not here: files (`edge.session_file`), what is kept (`engines.sessions`).

Layout of a record: 2s mark | u16 length | u32 checksum (low half of xxh3-64 of the payload) | payload, little endian.
Payload, msgpack: ["c", boot, wall_s, monotonic_s] or ["u", key, seen_at, split, variant, split, variant, ...].
"""

from __future__ import annotations

from struct import Struct
from typing import Any, Final, NamedTuple

import msgpack
from xxhash import xxh3_64_intdigest

MARK: Final = b"\xa5S"
MAX_PAYLOAD: Final = 65_535
_HEADER: Final = Struct("<2sHI")

Held = tuple[tuple[str, str], ...]


class Clocks(NamedTuple):
    """The two clocks of one moment, and the boot that the monotonic one counts from; empty: not known."""

    boot: str
    wall_s: float
    monotonic_s: float


class Logged(NamedTuple):
    """What a log holds of one unit."""

    key: bytes
    held: Held
    idle_s: float


class Log(NamedTuple):
    """A log that was read: units idle longest first, how many records there were, how many could not be read."""

    units: list[Logged]
    records: int
    lost: int


def encode_clocks(clocks: Clocks) -> bytes:
    return _record(["c", clocks.boot, clocks.wall_s, clocks.monotonic_s])


def encode_unit(key: bytes, held: Held, seen_at: float) -> bytes:
    """One unit; empty where it does not fit into a record, which no unit of sane splits does."""
    row: list[Any] = ["u", key, seen_at]
    for pair in held:
        row += pair
    return _record(row)


def _record(row: list[Any]) -> bytes:
    payload: Any = msgpack.packb(row)
    if len(payload) > MAX_PAYLOAD:
        return b""
    return _HEADER.pack(MARK, len(payload), xxh3_64_intdigest(payload) & 0xFFFF_FFFF) + payload


def read(data: bytes, now: Clocks) -> Log:
    """All that can be read of a log, at this moment."""
    boots: dict[str, Clocks] = {}  # by boot: its last clock record
    found: dict[bytes, tuple[Held, float, str]] = {}
    boot = ""
    records = lost = 0
    at, size = 0, len(data)
    while at < size:
        row, end = _row_at(data, at)
        if row is None:
            lost += 1
            at = data.find(MARK, at + 1)
            if at < 0:
                break
            continue
        at = end
        records += 1
        if row[0] == "c":
            boot = row[1]
            boots[boot] = Clocks(boot, row[2], row[3])
        elif row[0] == "u":
            key = row[1]
            found.pop(key, None)  # the newest goes last
            found[key] = (tuple(zip(row[3::2], row[4::2], strict=True)), row[2], boot)
    units = [Logged(key, held, _idle_s(seen_at, of, boots, now)) for key, (held, seen_at, of) in found.items()]
    units.sort(key=_by_idle, reverse=True)
    return Log(units, records, lost)


def _by_idle(unit: Logged) -> float:
    return unit.idle_s


def _row_at(data: bytes, at: int) -> tuple[list[Any] | None, int]:
    """The record there and where it ends; None: there is none that is whole."""
    start = at + _HEADER.size
    if start > len(data):
        return None, at
    mark, length, checksum = _HEADER.unpack_from(data, at)
    payload = data[start : start + length]
    if mark != MARK or len(payload) != length or xxh3_64_intdigest(payload) & 0xFFFF_FFFF != checksum:
        return None, at
    try:
        row = msgpack.unpackb(payload)
    except ValueError:
        return None, at
    return (row if _is_row(row) else None), start + length


def _is_row(row: Any) -> bool:
    if type(row) is not list or not row:
        return False
    if row[0] == "c":
        return len(row) >= 4 and type(row[1]) is str and type(row[2]) is float and type(row[3]) is float
    if row[0] == "u":
        whole = len(row) >= 3 and len(row) % 2 == 1 and type(row[1]) is bytes and type(row[2]) is float
        return whole and all([type(one) is str for one in row[3:]])
    return True  # of a later version: passed over


def _idle_s(seen_at: float, boot: str, boots: dict[str, Clocks], now: Clocks) -> float:
    """How long a unit has been idle."""
    if boot and boot == now.boot:
        return max(0.0, now.monotonic_s - seen_at)
    clocks = boots.get(boot)
    if clocks is None:
        return 0.0  # its clock record is lost: rather too long than lost
    return max(0.0, now.wall_s - (clocks.wall_s + seen_at - clocks.monotonic_s))
