"""Calls as they are remembered so that feedback finds them: many of them as one run of bytes.

A run is a version byte, the number of calls, one record of fixed size for each, and the texts they point to: agent,
variant, tenant and units. Ids are searched for as bytes, so that nothing is decoded but what was found.

Always holds: pure; what `encode` makes `find_calls`, `find_traces` and `decode` read; other bytes are a ValueError. A
call takes about 40 bytes, one with units about 90, and a few microseconds.

Deliberately not here: which calls are remembered (`intake`), where runs are kept (`state.call_index`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from typing import Final, NamedTuple

VERSION: Final = 1
CALL_BYTES: Final = 8
TRACE_BYTES: Final = 16
_HEADER: Final = struct.Struct("<BI")
_RECORD: Final = struct.Struct("<8s16sqBI")  # call, trace, unix ms, rank, where its text begins
_LENGTH: Final = struct.Struct("<H")
_SEPARATOR: Final = "\0"
_FEW: Final = 8  # ids: more are looked up by one pass over all records
_TEXT_MAX_BYTES: Final = 4_096

CALLER: Final = 0  # the hop beside the caller: of a trace's calls these come first
OTHER_HOP: Final = 1


class CallRecord(NamedTuple):
    """One call. `variant` and `units` as on its span: "split=variant[,...]", "split=HASH[,...]"."""

    call_id: bytes
    trace_id: bytes
    at_ms: int  # its start
    rank: int  # CALLER or OTHER_HOP
    agent_id: str
    variant: str
    tenant: str
    units: str

    @property
    def order(self) -> tuple[int, int, bytes]:
        """The first of a trace's calls is the least."""
        return self.rank, self.at_ms, self.call_id


def encode(calls: Sequence[CallRecord]) -> bytes:
    """A run."""
    pack = _RECORD.pack
    places: dict[tuple[str, str, str, str], int] = {}
    texts = bytearray()
    records = [_HEADER.pack(VERSION, len(calls))]
    for call_id, trace_id, at_ms, rank, agent_id, variant, tenant, units in calls:
        text = (agent_id, variant, tenant, units)
        place = places.get(text)
        if place is None:
            place = places[text] = len(texts)
            data = _SEPARATOR.join(text).encode("utf-8", "replace")
            if len(data) > _TEXT_MAX_BYTES or data.count(0) != 3:
                data = _SEPARATOR.join((agent_id[:256].replace("\0", ""), "", "", "")).encode("utf-8", "replace")
            texts += _LENGTH.pack(len(data))
            texts += data
        records.append(pack(call_id, trace_id, at_ms, rank, place))
    records.append(bytes(texts))
    return b"".join(records)


def count(run: bytes) -> int:
    """How many calls are in a run."""
    if len(run) < _HEADER.size or run[0] != VERSION:
        raise ValueError("these bytes are no run of calls that this version reads")
    number: int = _HEADER.unpack_from(run)[1]
    if _HEADER.size + number * _RECORD.size > len(run):
        raise ValueError("a run of calls is cut short")
    return number


def decode(run: bytes) -> Iterator[CallRecord]:
    """All calls of a run."""
    number = count(run)
    base = _HEADER.size + number * _RECORD.size
    texts: dict[int, tuple[str, str, str, str]] = {}
    for at in range(_HEADER.size, base, _RECORD.size):
        call_id, trace_id, at_ms, rank, place = _RECORD.unpack_from(run, at)
        text = texts.get(place)
        if text is None:
            text = texts[place] = _text(run, base + place)
        yield CallRecord(call_id, trace_id, at_ms, rank, *text)


def find_calls(run: bytes, call_ids: AbstractSet[bytes]) -> list[CallRecord]:
    """Those of a run that have one of these ids."""
    return _find(run, call_ids, 0, CALL_BYTES)


def find_traces(run: bytes, trace_ids: AbstractSet[bytes]) -> list[CallRecord]:
    """Those of a run that are of one of these traces."""
    return _find(run, trace_ids, CALL_BYTES, TRACE_BYTES)


def _find(run: bytes, ids: AbstractSet[bytes], offset: int, size: int) -> list[CallRecord]:
    number = count(run)
    base = _HEADER.size + number * _RECORD.size
    places: Iterable[int]
    if len(ids) <= _FEW:
        places = [at for one in ids for at in _search(run, one, offset, base)]
    else:
        first = _HEADER.size + offset
        places = [at - offset for at in range(first, base, _RECORD.size) if run[at : at + size] in ids]
    found = []
    for at in places:
        call_id, trace_id, at_ms, rank, place = _RECORD.unpack_from(run, at)
        found.append(CallRecord(call_id, trace_id, at_ms, rank, *_text(run, base + place)))
    return found


def _search(run: bytes, wanted: bytes, offset: int, end: int) -> Iterator[int]:
    """Where records begin that have these bytes at `offset`."""
    at = run.find(wanted, _HEADER.size, end)
    while at >= 0:
        begin = at - offset
        if (begin - _HEADER.size) % _RECORD.size == 0 and begin >= _HEADER.size:
            yield begin
        at = run.find(wanted, at + 1, end)


def _text(run: bytes, at: int) -> tuple[str, str, str, str]:
    (size,) = _LENGTH.unpack_from(run, at)
    agent_id, variant, tenant, units = run[at + 2 : at + 2 + size].decode("utf-8", "replace").split(_SEPARATOR)
    return agent_id, variant, tenant, units
