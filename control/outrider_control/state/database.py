"""The database behind the store: transactions in threads, one writer, four readers, the same for SQLite and PostgreSQL.

Always holds: a function given to `write` or `read` runs inside exactly one transaction and is committed before its
result is given out, or nothing of it is kept and an error says why. Writes of one process run one after another in the
order they were asked for. What a read sees is one moment. After a commit that raised the revision every listener is
called on its loop, before the writer's caller goes on. Waiting writes and reads are bounded.

A function may run more than once (PostgreSQL may ask for it, a lost connection too): it changes nothing but the
database.

Deliberately not here: what is stored (the modules beside), the changes of other processes (poll `revision.current`).
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Concatenate, ParamSpec, TypeVar

import sqlalchemy as sa
from sqlalchemy import Connection, exc

from outrider_control.state import engines, failures, migration, revision
from outrider_control.state.failures import DatabaseError

__all__ = ["Database", "DatabaseError"]

P = ParamSpec("P")
T = TypeVar("T")
Listener = Callable[[int], None]

_READERS = 4
_MAX_WAITING = 4_096  # functions that wait for their thread
_ATTEMPTS = 5  # of a transaction that was in another one's way, or whose connection was lost before its commit
_BACKOFF_S = 0.02


class Database:
    """One database. Made by `open`; `close` (or `close_now`, outside a loop) ends it."""

    def __init__(self, url: sa.URL):
        self.url = url
        self.dialect = url.get_backend_name()
        self.schema = ""  # the version of the schema that was found
        self._writer = engines.create(url, read_only=False, connections=1)
        self._reader = engines.create(url, read_only=True, connections=_READERS)
        self._write_thread = ThreadPoolExecutor(1, thread_name_prefix="store-write")
        self._read_threads = ThreadPoolExecutor(_READERS, thread_name_prefix="store-read")
        self._listeners: list[tuple[asyncio.AbstractEventLoop, Listener]] = []
        self._lock = threading.Lock()
        self._waiting = 0
        self._closed = False

    @classmethod
    def open(cls, url: str, migrate: bool = True) -> Database:
        """The database of a URL, its schema made or brought up to date; DatabaseError where it cannot be used.

        `migrate=False` changes nothing: the schema must be one that this version can use.
        """
        parsed = engines.parse(url)
        if parsed.get_backend_name() == "sqlite":
            engines.check_file(parsed, create=migrate)
        database = cls(parsed)
        try:
            database.schema = database.read_now(migration.usable, parsed)
            if not database.schema:
                if not migrate:
                    raise database.read_now(migration.refusal, parsed)
                database.schema = database.write_now(migration.bring_up, parsed)
        except BaseException:
            database.close_now()
            raise
        return database

    @property
    def place(self) -> str:
        """Where it is, for people; without a password."""
        return failures.place(self.url)

    async def write(self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of `function(connection, ...)`, committed. Writes are FIFO."""
        return await asyncio.wrap_future(self._submit(True, function, *args, **kwargs))

    async def read(self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of `function(connection, ...)` over one moment of the database; it cannot change anything."""
        return await asyncio.wrap_future(self._submit(False, function, *args, **kwargs))

    def write_now(self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`write` that blocks: for programs without a loop, and tests."""
        return self._submit(True, function, *args, **kwargs).result()

    def read_now(self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`read` that blocks: for programs without a loop, and tests."""
        return self._submit(False, function, *args, **kwargs).result()

    def on_change(self, listener: Listener) -> Callable[[], None]:
        """Have `listener(revision)` called on the running loop after each commit that raised the revision.

        What is returned takes the listener away.
        """
        entry = (asyncio.get_running_loop(), listener)
        self._listeners.append(entry)

        def remove() -> None:
            with contextlib.suppress(ValueError):
                self._listeners.remove(entry)

        return remove

    async def close(self) -> None:
        """Finish what was asked for, then close every connection."""
        await asyncio.get_running_loop().run_in_executor(None, self.close_now)

    def close_now(self) -> None:
        """`close` that blocks."""
        self._closed = True
        self._write_thread.shutdown()
        self._read_threads.shutdown()
        self._writer.dispose()
        self._reader.dispose()

    def _submit(
        self, is_write: bool, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> Future[T]:
        if self._closed:
            raise DatabaseError(self.place, "is closed")
        with self._lock:
            if self._waiting >= _MAX_WAITING:
                reason = f"{_MAX_WAITING} transactions wait already; the disk or the server is too slow for this load"
                raise DatabaseError(self.place, reason, failures.BUSY)
            self._waiting += 1
        threads = self._write_thread if is_write else self._read_threads
        try:
            future = threads.submit(self._run, is_write, function, *args, **kwargs)
        except RuntimeError:  # closed in between
            self._went(None)
            raise DatabaseError(self.place, "is closed") from None
        future.add_done_callback(self._went)
        return future

    def _went(self, _: object) -> None:
        with self._lock:
            self._waiting -= 1

    def _run(
        self, is_write: bool, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        attempt = 1
        while True:
            committing = False
            try:
                with (self._writer if is_write else self._reader).connect() as connection:
                    connection.info.pop(revision.RAISED, None)
                    with connection.begin():
                        result = function(connection, *args, **kwargs)
                        committing = is_write
                    self._tell(connection.info.pop(revision.RAISED, None))
                return result
            except exc.DBAPIError as error:
                explained = failures.explain(error, self.url)
                # A commit whose connection is lost may have come to pass: that one is the caller's to repeat.
                again = explained.code == failures.CONFLICT or (error.connection_invalidated and not committing)
                if not again or attempt == _ATTEMPTS:
                    raise explained from error
            time.sleep(random.uniform(0.5, 1) * _BACKOFF_S * attempt)
            attempt += 1

    def _tell(self, raised: int | None) -> None:
        if raised is None:
            return
        for loop, listener in tuple(self._listeners):
            with contextlib.suppress(RuntimeError):  # its loop is closed
                loop.call_soon_threadsafe(listener, raised)
