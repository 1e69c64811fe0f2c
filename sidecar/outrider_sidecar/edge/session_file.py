"""The sticky store on disk: what sessions and users hold of splits, so that a restart moves nobody.

Always holds: what a unit is given is written when the loop comes round, in one `os.write` for all that came meanwhile,
so a process that is killed has lost no more than that turn's; `flush` before splits change makes sure of the rest. A
disk that cannot be written costs restarts their memory, never a call; what was not written is tried again. The log is
made anew, aside, when most of it is of the past.

Deliberately not here: the layout (`engines.session_log`), what is kept (`engines.sessions`). Nothing is synced to the
disk itself: a machine that loses its power may lose the last moments.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path

from outrider_sidecar.core.metric import Family
from outrider_sidecar.edge import snapshot_file
from outrider_sidecar.engines import session_log
from outrider_sidecar.engines.session_log import Clocks
from outrider_sidecar.engines.sessions import Sessions

log = logging.getLogger(__name__)

FILE = "sessions.log"
MAX_BYTES = 512 * 1024 * 1024  # of a log that is read
COMPACT_BYTES = 4 * 1024 * 1024  # a smaller log is not made anew
COMPACT_GAP_S = 60.0  # between two beginnings of that
SLICE = 250  # units in one loop turn of it: under a millisecond
RETRY_S = 5.0  # after a write that failed
_CLOCK_DRIFT_S = 1.0  # between the two clocks: from here on it is written down
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class SessionFile:
    """`restore` at the start, then `flush` whenever it must be on disk; `close` at the end. Both clocks are seconds."""

    def __init__(
        self,
        directory: Path,
        sessions: Sessions,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        boot: str | None = None,
    ):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path = directory / FILE
        self._sessions = sessions
        self._loop = loop
        self._clock = clock
        self._wall_clock = wall_clock
        self._boot = boot if boot is not None else _boot_id()
        self._descriptor = -1
        self._drift_s = 0.0  # wall less monotonic, as last written
        self._due = False
        self._compact_at = 0.0  # not before
        self._failed_at = 0.0  # 0: the last write went well
        self._compacting: asyncio.Task[None] | None = None
        self._meanwhile: list[bytes] | None = None  # written while the log is made anew
        self._records = 0  # how long they are: so many have so many bytes
        self._record_bytes = 0
        self.size_bytes = 0
        self.counts = {"written": 0, "failed": 0, "compacted": 0, "restored": 0, "lost": 0}

    # -- start and end ---------------------------------------------------------------------------------------------

    def restore(self) -> int:
        """Take back what was written, and write from now on; how many units there are. Blocks."""
        now = self._clocks()
        try:
            data = b"".join(snapshot_file.load(self._path, MAX_BYTES))
        except FileNotFoundError:
            data = b""
        except OSError as error:
            log.warning("%s is not used: %s", self._path, error)
            data = b""
        found = session_log.read(data, now)
        self.counts["restored"] = self._sessions.restore(found.units, now.monotonic_s)
        self.counts["lost"] = found.lost
        if found.lost:
            log.warning("%s: %d pieces could not be read and are passed over", self._path, found.lost)
        self._records, self._record_bytes = max(1, found.records), len(data)
        self._open()
        self._sessions.wants_saving = self._wanted
        return self.counts["restored"]

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self._descriptor = os.open(self._path, flags, 0o600)
            self.size_bytes = os.fstat(self._descriptor).st_size
            now = self._clocks()
            self._write(session_log.encode_clocks(now))
            self._drift_s = now.wall_s - now.monotonic_s
        except OSError as error:
            self._fail(error)

    async def close(self) -> None:
        """Write what there is, and stop."""
        self._sessions.wants_saving = None
        if self._compacting is not None:
            self._compacting.cancel()
            await asyncio.gather(self._compacting, return_exceptions=True)
        self.flush()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    # -- writing ---------------------------------------------------------------------------------------------------

    def _wanted(self) -> None:
        """A unit was given something: it is written when this turn of the loop is over."""
        if not self._due and not self._failed_at:
            self._due = True
            self._loop.call_soon(self.flush)

    def flush(self) -> bool:
        """Write all that has changed; False where the disk refuses."""
        self._due = False
        sessions = self._sessions
        if not sessions.unsaved:
            return not self._failed_at
        changed = sessions.take_changed()
        pieces = [session_log.encode_unit(unit.key, unit.held, unit.seen_at) for unit in changed]
        now = self._clocks()
        drift_s = now.wall_s - now.monotonic_s
        if abs(drift_s - self._drift_s) > _CLOCK_DRIFT_S:
            pieces.insert(0, session_log.encode_clocks(now))
        else:
            drift_s = self._drift_s
        data = b"".join(pieces)
        try:
            if self._descriptor < 0:
                self._open()
            self._write(data)
            self._drift_s = drift_s
        except OSError as error:
            sessions.put_back(changed)
            self._fail(error)
            return False
        if self._failed_at:
            self._failed_at = 0.0
            log.info("%s can be written again", self._path)
        self.counts["written"] += len(changed)
        self._records += len(pieces)
        self._record_bytes += len(data)
        return True

    def _write(self, data: bytes) -> None:
        if self._descriptor < 0:
            raise OSError(0, "it is not open")
        left = memoryview(data)
        while left:
            left = left[os.write(self._descriptor, left) :]
        self.size_bytes += len(data)
        if self._meanwhile is not None:
            self._meanwhile.append(data)

    def _fail(self, error: OSError) -> None:
        self.counts["failed"] += 1
        if not self._failed_at:
            log.error("%s cannot be written, sessions are kept in memory: %s", self._path, error.strerror or error)
        self._failed_at = self._clock()

    def tick(self, now: float, owns: bool = True) -> None:
        """Time passes: forget who is idle, write who is alive, try a failed disk again, make the log anew. The last is
        left to the process that `owns` the log: one that drains knows nothing of what its successor has written."""
        self._sessions.sweep(now)
        if self._sessions.unsaved and (not self._failed_at or now - self._failed_at >= RETRY_S):
            self.flush()
        if not owns or self._failed_at or (self._compacting is not None and not self._compacting.done()):
            return
        live_bytes = len(self._sessions) * self._record_bytes // max(1, self._records)
        if self.size_bytes > max(COMPACT_BYTES, 3 * live_bytes) and now >= self._compact_at:
            self._compact_at = now + COMPACT_GAP_S
            self._compacting = self._loop.create_task(self.compact())

    async def compact(self) -> None:
        """Write a log of what is alive aside and put it in the place of this one; gives way to calls as it goes."""
        self._meanwhile = []
        pieces = [session_log.encode_clocks(self._clocks())]
        aside = self._path.with_name(f"{FILE}.new")
        try:
            for at, unit in enumerate(self._sessions):
                pieces.append(session_log.encode_unit(unit.key, unit.held, unit.seen_at))
                if at % SLICE == SLICE - 1:
                    await asyncio.sleep(0)
            size = await asyncio.to_thread(snapshot_file.save, aside, pieces)
            self._swap(aside, size)
            self._records, self._record_bytes = len(pieces), size
            self.counts["compacted"] += 1
        except OSError as error:
            log.warning("%s could not be made anew, it grows on: %s", self._path, error.strerror or error)
        finally:
            self._meanwhile = None
            aside.unlink(missing_ok=True)

    def _swap(self, aside: Path, size: int) -> None:
        written = b"".join(self._meanwhile or ())
        descriptor = os.open(aside, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            left = memoryview(written)
            while left:
                left = left[os.write(descriptor, left) :]
            aside.replace(self._path)
        except OSError:
            os.close(descriptor)
            raise
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = descriptor
        self.size_bytes = size + len(written)

    def _clocks(self) -> Clocks:
        return Clocks(self._boot, float(self._wall_clock()), float(self._clock()))

    def families(self) -> list[Family]:
        """For the metrics page."""
        events = [((name,), float(count)) for name, count in self.counts.items()]
        return [
            Family("outrider_session_file_units", "counter", "Units written, restored, lost.", ("event",), events),
            Family("outrider_session_file_bytes", "gauge", "Of the log of sessions.", (), [((), self.size_bytes)]),
        ]


def _boot_id() -> str:
    """Which boot of the machine this is; empty where the system does not say."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""
