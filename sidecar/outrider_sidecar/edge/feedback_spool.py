"""Feedback that waits for the control plane: on disk in an append file, or in memory where there is no state directory.

The file is a mark and records: length, CRC-32 and kind, then bytes. A record is one item, or says from which byte on
the items are not done with; when all are, the file is emptied.

Always holds: what `append` has said to have is on disk, in order, and outlives the process; what it has not said to
have leaves nothing behind, but for a process that is killed in between: then whole items of it may be there. A record
that cannot be read is passed over and counted. What is kept is bounded in bytes and items. An item that is done with
may come up again after a crash: whoever takes it knows it by its id. One process at a time has the file.

Deliberately not here: sending. The calls of `FileSpool` block: they are made off the loop, one at a time.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import struct
import zlib
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from outrider_sidecar.edge import snapshot_file

log = logging.getLogger(__name__)

MAX_ITEMS = 100_000
_MARK = b"outrider feedback 1\n"
_HEADER = struct.Struct("<IIB")  # bytes, CRC-32 of kind and bytes, kind
_DONE = struct.Struct("<Q")
_ITEM_KIND, _DONE_KIND = 1, 2
_MAX_RECORD_BYTES = 1024 * 1024


class NotKept(Exception):
    """Items that could not be kept; str() says why. `is_full`: there is no room, now."""

    def __init__(self, reason: str, is_full: bool = False):
        super().__init__(reason)
        self.is_full = is_full


class MemorySpool:
    """Items in memory: they end with the process."""

    is_durable = False

    def __init__(self, max_bytes: int):
        self._max_bytes = max_bytes
        self._items: deque[bytes] = deque()
        self.size_bytes = 0
        self.lost = 0  # always: nothing is read again

    @property
    def count(self) -> int:
        return len(self._items)

    def open(self) -> None:
        """Nothing to open."""

    def append(self, items: Sequence[bytes]) -> None:
        """Keep all of them; NotKept: none of them is."""
        more_bytes = sum(map(len, items))
        if self.size_bytes + more_bytes > self._max_bytes or len(self._items) + len(items) > MAX_ITEMS:
            raise _full(self.count, self.size_bytes)
        self._items += items
        self.size_bytes += more_bytes

    def sync(self) -> None:
        """There is no disk to wait for."""

    def first(self, max_items: int, max_bytes: int) -> list[bytes]:
        """The oldest ones, in order: at least one where there are any."""
        found: list[bytes] = []
        size = 0
        for item in self._items:
            size += len(item)
            if found and (len(found) >= max_items or size > max_bytes):
                break
            found.append(item)
        return found

    def done(self, count: int) -> None:
        """The oldest ones are done with."""
        for _ in range(count):
            self.size_bytes -= len(self._items.popleft())

    def close(self) -> None:
        """Let go of everything."""
        self._items.clear()
        self.size_bytes = 0


class FileSpool:
    """`feedback.spool` in the state directory. `open` before anything else, again where it raised."""

    is_durable = True

    def __init__(self, directory: Path, max_bytes: int):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path = directory / "feedback.spool"
        self._lock_path = directory / "feedback.lock"
        self._max_bytes = max_bytes
        self._lock = -1
        self._file = -1
        self._end = 0  # of what is whole
        self._synced = 0  # of what is known to be on disk
        self._head = 0  # where the first item that is not done with begins
        self._unsynced = 0  # items after `_synced`
        self.count = 0
        self.lost = 0  # records that could not be read

    @property
    def size_bytes(self) -> int:
        return self._end

    def open(self) -> None:
        """Take the file, with what a process before left in it. NotKept: it cannot be had."""
        if self._file >= 0:
            return
        try:
            self._take()
        except BlockingIOError:
            self._let_go()
            raise NotKept(f"{self._lock_path} is held by another sidecar process") from None
        except OSError as error:
            self._let_go()
            raise NotKept(f"{self._path}: {error.strerror or error}") from None

    def append(self, items: Sequence[bytes]) -> None:
        """Write all of them, to be on disk after `sync`; NotKept: none of them is kept."""
        self.open()
        data = b"".join([_record(_ITEM_KIND, item) for item in items])
        if self.count + len(items) > MAX_ITEMS or self._end - self._head + len(_MARK) + len(data) > self._max_bytes:
            raise _full(self.count, self._end)
        if self._end + len(data) > self._max_bytes:
            self._compact()
        self._write(data)
        self.count += len(items)
        self._unsynced += len(items)

    def sync(self) -> None:
        """What was appended is on disk; NotKept: nothing of what came after the last `sync` is kept."""
        try:
            if self._file >= 0 and self._unsynced:
                os.fdatasync(self._file)
        except OSError as error:
            self.count -= self._unsynced
            self._end, self._unsynced = self._synced, 0
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._end)
            raise NotKept(f"{self._path}: {error.strerror or error}") from None
        self._synced, self._unsynced = self._end, 0

    def first(self, max_items: int, max_bytes: int) -> list[bytes]:
        """The oldest ones, in order: at least one where there are any."""
        found: list[bytes] = []
        at = self._head
        size_bytes = 0
        while at < self._end and len(found) < max_items:
            at, kind, data = self._read(at)
            if kind != _ITEM_KIND:
                continue
            size_bytes += len(data)
            if found and size_bytes > max_bytes:
                break
            found.append(data)
        return found

    def done(self, count: int) -> None:
        """The oldest ones are done with. That this is not written down is no harm: they are sent again."""
        left = count
        while left and self._head < self._end:
            self._head, kind, _ = self._read(self._head)
            left -= kind == _ITEM_KIND
        self.count -= count
        if self.count == 0:
            self._empty()
        else:
            with contextlib.suppress(NotKept):
                self._write(_record(_DONE_KIND, _DONE.pack(self._head)))

    def close(self) -> None:
        """Let another process have the file."""
        self._let_go()

    # -- the file --------------------------------------------------------------------------------------------------

    def _take(self) -> None:
        self._lock = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        size = os.fstat(self._file).st_size
        self._head = self._end = len(_MARK)
        self.count = 0
        if os.pread(self._file, len(_MARK), 0) != _MARK:
            if size:
                log.error("%s is no spool of feedback: what is in it is passed over", self._path)
                self.lost += 1
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, _MARK, 0)
        else:
            self._scan(size)
        self._synced = self._end
        if self.count:
            log.info("%s: %d pieces of feedback wait for the control plane", self._path, self.count)

    def _scan(self, size: int) -> None:
        """Count what is there; a torn end goes."""
        at = head = len(_MARK)
        starts: list[int] = []
        while size - at >= _HEADER.size:
            length, check, kind = _HEADER.unpack(os.pread(self._file, _HEADER.size, at))
            end = at + _HEADER.size + length
            if length > _MAX_RECORD_BYTES or end > size:
                break
            data = os.pread(self._file, length, at + _HEADER.size)
            if zlib.crc32(data, kind) != check:
                self.lost += 1
                log.error("%s: a record at byte %d cannot be read and is passed over", self._path, at)
            elif kind == _ITEM_KIND:
                starts.append(at)
            elif kind == _DONE_KIND and length == _DONE.size:
                head = min(at, max(head, _DONE.unpack(data)[0]))
            at = end
        if at < size:
            log.warning("%s: the last %d bytes are no whole record: they were never confirmed", self._path, size - at)
            os.ftruncate(self._file, at)
        self._end = at
        waiting = [start for start in starts if start >= head]
        self.count = len(waiting)
        self._head = waiting[0] if waiting else at
        if not self.count:
            self._empty()

    def _read(self, at: int) -> tuple[int, int, bytes]:
        """(where the next record begins, kind, bytes); kind 0: it cannot be read."""
        header = os.pread(self._file, _HEADER.size, at)
        if len(header) < _HEADER.size:
            raise OSError(errno.EIO, f"{self._path} was cut short by somebody else")
        length, check, kind = _HEADER.unpack(header)
        data = os.pread(self._file, length, at + _HEADER.size)
        if zlib.crc32(data, kind) != check:
            kind = 0
        return at + _HEADER.size + length, kind, data

    def _write(self, data: bytes) -> None:
        try:
            written = os.pwrite(self._file, data, self._end)
            if written != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._end)
            raise NotKept(f"{self._path}: {error.strerror or error}") from None
        self._end += len(data)

    def _empty(self) -> None:
        with contextlib.suppress(OSError):
            os.ftruncate(self._file, len(_MARK))
            self._head = self._end = self._synced = len(_MARK)
            self._unsynced = 0

    def _compact(self) -> None:
        """Write what waits to a new file, without what is done with."""
        kept = [_MARK]
        at = self._head
        while at < self._end:
            at, kind, data = self._read(at)
            if kind == _ITEM_KIND:
                kept.append(_record(_ITEM_KIND, data))
        try:
            size = snapshot_file.save(self._path, kept)
            file = os.open(self._path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise NotKept(f"{self._path}: {error.strerror or error}") from None
        os.close(self._file)
        self._file = file
        self._head, self._end, self._synced = len(_MARK), size, size
        self._unsynced = 0

    def _let_go(self) -> None:
        for descriptor in (self._file, self._lock):
            if descriptor >= 0:
                os.close(descriptor)
        self._file = self._lock = -1


Spool = MemorySpool | FileSpool


def _record(kind: int, data: bytes) -> bytes:
    return _HEADER.pack(len(data), zlib.crc32(data, kind), kind) + data


def _full(count: int, size_bytes: int) -> NotKept:
    return NotKept(f"{count:,} pieces of feedback ({size_bytes:,} bytes) wait already, which is the bound", True)
