"""Decodes and encodes the load report an endpoint puts into its trailers (`endpoint-load-metrics-bin`).

The bytes are an `xds.data.orca.v3.OrcaLoadReport`, after base64. Read by hand: the sidecar loads no protobuf for it.

Always holds: any input gives a report of finite figures >= 0, or None; work is bounded by MAX_BYTES and MAX_ENTRIES.
Unknown fields are skipped. A figure sent twice counts as sent last, as protobuf says.

Deliberately not here: base64, and the deprecated integer `rps` (field 2 of old drafts and 3 of this one).
"""

from __future__ import annotations

from math import inf
from struct import Struct
from typing import Any

from outrider_sidecar.core.load_report import LoadReport

MAX_BYTES = 8 * 1024
MAX_ENTRIES = 64  # of one map

_DOUBLE = Struct("<d").unpack_from
_FIELD = Struct("<Bd").pack
_FIGURES = {
    1: "cpu_utilization",
    2: "mem_utilization",
    6: "rps_fractional",
    7: "eps",
    9: "application_utilization",
}
_MAPS = {4: "request_cost", 5: "utilization", 8: "named_metrics"}
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class _Malformed(Exception):
    pass


def decode_load_report(data: bytes) -> LoadReport | None:
    """The report, or None if the bytes are no OrcaLoadReport, too long or hold figures that are none."""
    if len(data) > MAX_BYTES:
        return None
    fields: dict[str, Any] = {}
    try:
        at, end = 0, len(data)
        while at < end:
            tag, at = _varint(data, at, end)
            field, wire = tag >> 3, tag & 7
            if wire == _FIXED64 and field in _FIGURES:
                fields[_FIGURES[field]] = _figure(data, at, end)
                at += 8
            elif wire == _BYTES and field in _MAPS:
                size, at = _varint(data, at, end)
                if size > end - at:
                    return None
                name, value = _entry(data, at, at + size)
                entries = fields.setdefault(_MAPS[field], {})
                entries[name] = value
                if len(entries) > MAX_ENTRIES:
                    return None
                at += size
            else:
                at = _skip(data, at, end, tag)
    except (_Malformed, UnicodeDecodeError):
        return None
    return LoadReport(**fields)


def encode_load_report(application_utilization: float, rps: float, eps: float) -> bytes:
    """The report of these figures; those that are 0.0 are left out, as "not reported"."""
    encoded = b""
    for field, figure in ((6, rps), (7, eps), (9, application_utilization)):
        if figure:
            encoded += _FIELD(field << 3 | _FIXED64, figure)
    return encoded


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 64:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at
        shift += 7
    raise _Malformed


def _figure(data: bytes, at: int, end: int) -> float:
    if end - at < 8:
        raise _Malformed
    value: float = _DOUBLE(data, at)[0]
    if not 0.0 <= value < inf:  # NaN fails both
        raise _Malformed
    return value


def _entry(data: bytes, at: int, end: int) -> tuple[str, float]:
    """One map entry; an absent name or figure is empty or 0."""
    name, value = "", 0.0
    while at < end:
        tag, at = _varint(data, at, end)
        if tag == (1 << 3 | _BYTES):
            size, at = _varint(data, at, end)
            if size > end - at:
                raise _Malformed
            name = data[at : at + size].decode()
            at += size
        elif tag == (2 << 3 | _FIXED64):
            value = _figure(data, at, end)
            at += 8
        else:
            at = _skip(data, at, end, tag)
    return name, value


def _skip(data: bytes, at: int, end: int, tag: int) -> int:
    """The position after a field nobody reads. Groups are refused: no version of the message has one."""
    wire = tag & 7
    if not 1 <= tag >> 3 < 1 << 29:
        raise _Malformed
    if wire == _VARINT:
        return _varint(data, at, end)[1]
    if wire == _BYTES:
        size, at = _varint(data, at, end)
    elif wire == _FIXED64:
        size = 8
    elif wire == _FIXED32:
        size = 4
    else:
        raise _Malformed
    if size > end - at:
        raise _Malformed
    return at + size
