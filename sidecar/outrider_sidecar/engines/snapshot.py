"""Cache entries as bytes: what a sidecar writes on its way out and starts warm from.

Layout: a header, then records, each with its length and checksum, so that one can be appended at any time.
  header  8s "OUTRSNAP" | u32 schema version | u32 length | u64 xxh3 | msgpack map {saved_at, seed, count, epochs}
  record  4s mark       |                      u32 length | u64 xxh3 | msgpack list (`encode_entry`)
Numbers are little endian. Record checksums are seeded with the header's secret `seed`, so that a stored reply that
contains the bytes of a record is never taken for one.

Always holds: a damaged or missing header, or another schema version, refuses the whole (what was erased could not be
known); a damaged or cut record loses only itself, and losses are counted; reading never trusts a length. Expiry is
absolute. Records added to a list later are ignored by older readers.

Deliberately not here: files (edge `snapshot_file`), which entries are worth keeping (the caller gives them hottest
first, so that a cut tail loses the coldest).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from struct import Struct
from typing import Any, NamedTuple

import msgpack
from xxhash import xxh3_64_intdigest

from outrider_sidecar.core.entry import Entry, Fields

SCHEMA_VERSION = 1
_MAGIC = b"OUTRSNAP"
_MARK = b"\xc1REC"  # 0xc1 is the one byte msgpack never uses
_HEADER = Struct("<8sIIQ")
_RECORD = Struct("<4sIQ")
_MAX_HEADER_BYTES = 16 * 1024 * 1024
MAX_RECORD_BYTES = 72 * 1024 * 1024


class SnapshotRefused(Exception):
    """The snapshot as a whole cannot be used; the message says why."""


class Header(NamedTuple):
    """What holds for the whole snapshot. `count` is how many records were meant to follow, 0 where unknown."""

    saved_at: float
    seed: int  # the process's secret for keys (engines `cache_key`), 0 to 2**64 - 1
    epochs: dict[str, Any]  # as `Epochs.export` gives it
    count: int = 0


def encode_header(header: Header) -> bytes:
    """The beginning of a snapshot; also a snapshot of its own, of epochs alone."""
    payload = _pack(header._asdict())
    return _HEADER.pack(_MAGIC, SCHEMA_VERSION, len(payload), _header_sum(SCHEMA_VERSION, payload)) + payload


def encode_entry(agent_id: str, entry: Entry, fields_of: Callable[[Any], Fields], seed: int) -> bytes:
    """One record. `fields_of` gives the fields of the entry's head and trailers."""
    payload = _pack(
        (
            agent_id,
            entry.key,
            fields_of(entry.head),
            entry.chunks,
            entry.gaps_ms,
            fields_of(entry.trailers),
            entry.stored_at,
            entry.fresh_until,
            entry.stale_until,
            entry.used_at,
            entry.uses,
            entry.tier,
            entry.tags,
            entry.tokens,
            entry.weight_bytes,
        )
    )
    return _RECORD.pack(_MARK, len(payload), xxh3_64_intdigest(payload, seed)) + payload


def encode(header: Header, entries: Iterable[tuple[str, Entry]], fields_of: Callable[[Any], Fields]) -> Iterator[bytes]:
    """A whole snapshot, piece by piece: one piece is one entry's worth of work."""
    yield encode_header(header)
    for agent_id, entry in entries:
        yield encode_entry(agent_id, entry, fields_of, header.seed)


class Decoder:
    """Reads a snapshot fed in pieces of any size.

    `make_head` and `make_trailers` turn fields back into the caller's objects; an entry they refuse (ValueError)
    counts as damaged. `header` is None until it has been read.
    """

    __slots__ = ("_buffer", "_damaged", "_in_damage", "_make_head", "_make_trailers", "_max_record", "good", "header")

    def __init__(
        self,
        make_head: Callable[[Fields], Any],
        make_trailers: Callable[[Fields], Any],
        max_record_bytes: int = MAX_RECORD_BYTES,
    ):
        self._buffer = bytearray()
        self._make_head = make_head
        self._make_trailers = make_trailers
        self._max_record = max_record_bytes
        self._damaged = 0  # runs of bytes that are no record
        self._in_damage = False
        self.good = 0
        self.header: Header | None = None

    @property
    def lost(self) -> int:
        """How many records could not be read; final after `finish`."""
        expected = self.header.count if self.header is not None else 0
        return max(expected - self.good, self._damaged)

    def feed(self, data: bytes) -> list[tuple[str, Entry]]:
        """The (agent id, entry) pairs that became complete. SnapshotRefused when the header is no good."""
        self._buffer += data
        if self.header is None and not self._read_header():
            return []
        return self._records(final=False)

    def finish(self) -> list[tuple[str, Entry]]:
        """No more comes: what can still be saved from the tail. SnapshotRefused when there never was a header."""
        if self.header is None:
            raise SnapshotRefused("the snapshot ends before its header does")
        entries = self._records(final=True)
        if self._buffer:
            self._damage()
            self._buffer.clear()
        return entries

    def _read_header(self) -> bool:
        buffer = self._buffer
        if not _MAGIC.startswith(buffer[: len(_MAGIC)]):
            raise SnapshotRefused("this is not a snapshot: it does not begin with OUTRSNAP")
        if len(buffer) < _HEADER.size:
            return False
        _, version, length, checksum = _HEADER.unpack_from(buffer)
        if version != SCHEMA_VERSION:
            raise SnapshotRefused(f"the snapshot has schema version {version}; this sidecar reads {SCHEMA_VERSION}")
        if length > _MAX_HEADER_BYTES:
            raise SnapshotRefused("the snapshot's header is damaged")
        if len(buffer) < _HEADER.size + length:
            return False
        payload = bytes(buffer[_HEADER.size : _HEADER.size + length])
        if checksum != _header_sum(version, payload):
            raise SnapshotRefused("the snapshot's header is damaged: its checksum does not match")
        try:
            fields = msgpack.unpackb(payload)
            self.header = Header(
                float(fields["saved_at"]), int(fields["seed"]), dict(fields["epochs"]), int(fields["count"])
            )
        except (ValueError, TypeError, KeyError, msgpack.UnpackException) as error:
            raise SnapshotRefused(f"the snapshot's header cannot be read: {error!r}") from error
        del buffer[: _HEADER.size + length]
        return True

    def _records(self, final: bool) -> list[tuple[str, Entry]]:
        buffer = self._buffer
        found: list[tuple[str, Entry]] = []
        at = 0
        while len(buffer) - at >= _RECORD.size:
            mark, length, checksum = _RECORD.unpack_from(buffer, at)
            end = at + _RECORD.size + length
            if mark == _MARK and length <= self._max_record:
                if end > len(buffer) and not final:
                    break
                entry = self._entry(bytes(buffer[at + _RECORD.size : end]), length, checksum)
                if entry is not None:
                    found.append(entry)
                    self.good += 1
                    self._in_damage = False
                    at = end
                    continue
            self._damage()
            # The next mark may lie anywhere: inside what claimed to be this record, too.
            at = buffer.find(_MARK, at + 1)
            if at < 0:
                at = len(buffer) - len(_MARK) + 1
        del buffer[:at]
        return found

    def _entry(self, payload: bytes, length: int, checksum: int) -> tuple[str, Entry] | None:
        assert self.header is not None
        if len(payload) != length or xxh3_64_intdigest(payload, self.header.seed) != checksum:
            return None
        try:
            return _unpack(payload, self._make_head, self._make_trailers)
        except (ValueError, TypeError, AttributeError, msgpack.UnpackException):
            return None

    def _damage(self) -> None:
        if not self._in_damage:
            self._in_damage = True
            self._damaged += 1


def _unpack(
    payload: bytes, make_head: Callable[[Fields], Any], make_trailers: Callable[[Fields], Any]
) -> tuple[str, Entry]:
    agent_id, key, head, chunks, gaps, trailers, *times, uses, tier, tags, tokens, weight = msgpack.unpackb(
        payload, use_list=False
    )[:15]
    entry = Entry(
        key,
        make_head(head),
        chunks,
        make_trailers(trailers),
        head_bytes=0,
        gaps_ms=gaps,
        tier=tier,
        tags=tags,
        tokens=tokens,
    )
    entry.stored_at, entry.fresh_until, entry.stale_until, entry.used_at = times
    entry.uses = uses
    entry.weight_bytes = max(entry.weight_bytes, weight)
    return agent_id, entry


def _pack(value: Any) -> bytes:
    packed = msgpack.packb(value)
    assert packed is not None  # only a streaming packer gives nothing
    return packed


def _header_sum(version: int, payload: bytes) -> int:
    return xxh3_64_intdigest(version.to_bytes(4, "little") + payload)
