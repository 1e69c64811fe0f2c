"""Which control plane leads: the one that runs loops (fold, retention, scaling) while all serve.

Always holds: at most one process holds a store's lock. On PostgreSQL it is an advisory lock on a connection of its own,
tried once a second and asked after once a second; who cannot ask within a few seconds does not lead any more, and who
does not ask loses the lock. On SQLite there is one control plane per file: it always leads, and a second is refused.

`leader` may be true for moments after the server gave the lock to another (a connection that broke unnoticed): what
loops write must be right with two of them, by transactions.

Deliberately not here: what leaders do.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import sqlalchemy as sa
from sqlalchemy import exc

from outrider_control.state import engines, failures
from outrider_control.state.failures import DatabaseError

INTERVAL_S = 1.0
_ANSWER_S = 3.0  # how long the server may take to say that the lock is still held
LOCK = 0x6F75747269646571  # the leader's, by PostgreSQL's advisory locks
_log = logging.getLogger(__name__)

Listener = Callable[[bool], None]


class Leadership:
    """This process's candidacy. `start` it, read `leader`, `close` it."""

    def __init__(self, url: str, interval_s: float = INTERVAL_S, answer_s: float = _ANSWER_S):
        self.leader = False
        self._url = engines.parse(url)
        self._interval_s = interval_s
        self._answer_s = answer_s
        self._listeners: list[Listener] = []
        self._task: asyncio.Task[None] | None = None
        self._file: int | None = None
        self._lock = _ServerLock(self._url, answer_s)

    def on_change(self, listener: Listener) -> None:
        """Have `listener(leader)` called on the loop whenever it changes."""
        self._listeners.append(listener)

    async def start(self) -> None:
        """Try for the lock once, and go on in the background. DatabaseError: an SQLite file is another's."""
        if self._url.get_backend_name() == "sqlite":
            self._file = lock_file(str(self._url.database))
            self._set(True)
            return
        await self._tick()
        self._task = asyncio.create_task(self._run(), name="leadership")

    async def close(self) -> None:
        """Give the lock up: another control plane leads within its next try."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        await self._lock.close()
        if self._file is not None:
            os.close(self._file)  # gives the lock up; the file stays, for who waits may have it open
            self._file = None
        self._set(False)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            await self._tick()

    async def _tick(self) -> None:
        try:
            # Shielded: a thread cannot be cancelled, and there is one. No `wait_for`: before Python 3.12 it loses a
            # cancellation that comes together with the answer, and `close` would wait for ever.
            async with asyncio.timeout(self._answer_s):
                held = await asyncio.shield(self._lock.ask())
        except TimeoutError:
            _log.warning("%s: no answer about the leader's lock in %g s", failures.place(self._url), self._answer_s)
            held = False
        except DatabaseError as error:
            _log.warning("the leader's lock cannot be asked for: %s", error)
            held = False
        self._set(held)

    def _set(self, leader: bool) -> None:
        if leader != self.leader:
            self.leader = leader
            for listener in tuple(self._listeners):
                listener(leader)


class _ServerLock:
    """PostgreSQL's advisory lock: held as long as its connection lives."""

    def __init__(self, url: sa.URL, answer_s: float):
        self._url = url
        self._answer_ms = int(answer_s * 1000)
        self._thread: ThreadPoolExecutor | None = None
        self._connection: sa.Connection | None = None
        self._held = False
        self._engine: sa.Engine | None = None
        self._asked: asyncio.Future[bool] | None = None

    def ask(self) -> asyncio.Future[bool]:
        """Whether the lock is held; tries to get it. One question at a time: a late answer is the next one's too."""
        if self._asked is None or self._asked.done():
            if self._thread is None:
                self._thread = ThreadPoolExecutor(1, thread_name_prefix="store-lock")
            self._asked = asyncio.get_running_loop().run_in_executor(self._thread, self._ask)
            self._asked.add_done_callback(_look)
        return self._asked

    async def close(self) -> None:
        """Give the lock up with its connection."""
        if self._thread is not None:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._disconnect)
            self._thread.shutdown(wait=False)
            self._thread = None

    def _ask(self) -> bool:
        try:
            if self._engine is None:
                self._engine = engines.lone(self._url, self._answer_ms)
            if self._connection is None:
                self._connection = self._engine.connect()
            if self._held:
                self._connection.execute(sa.text("SELECT 1"))
            else:
                self._held = self._connection.execute(sa.select(sa.func.pg_try_advisory_lock(LOCK))).scalar_one()
        except exc.DBAPIError as error:
            self._disconnect()
            raise failures.explain(error, self._url) from error
        return self._held

    def _disconnect(self) -> None:
        self._held = False
        if self._connection is not None:
            connection, self._connection = self._connection, None
            with contextlib.suppress(exc.SQLAlchemyError):
                connection.invalidate()  # not back to a pool: the lock goes with it
                connection.close()
        if self._engine is not None:
            self._engine.dispose()


def _look(asked: asyncio.Future[bool]) -> None:
    if not asked.cancelled():
        asked.exception()  # a late error is nobody's: the next question meets it again


def lock_file(database: str) -> int:
    """The descriptor that holds the lock on an SQLite file until it is closed; DatabaseError if another holds it."""
    path = f"{database}.lock"
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise DatabaseError(path, f"cannot be made: {error.strerror}", failures.READONLY) from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(file, 0)
        os.write(file, f"{os.getpid()}\n".encode())
    except BlockingIOError:
        owner = os.read(file, 20).decode("ascii", "replace").strip()
        os.close(file)
        reason = f"another control plane (process {owner or 'unknown'}) runs on this file; end it, or use PostgreSQL"
        raise DatabaseError(database, f"{reason} for several", failures.BUSY) from None
    except OSError as error:
        os.close(file)
        raise DatabaseError(path, f"cannot be locked: {error.strerror}", failures.FULL) from None
    return file
