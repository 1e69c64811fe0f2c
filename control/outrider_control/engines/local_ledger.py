"""Which processes are an engine's own, on disk: so that a control plane that is killed finds them when it starts again.

Always holds: a process is in the file before it starts (by a token in its environment) and with its pid after; the file
is replaced whole and synced; one control plane has it at a time. A file that cannot be read is set aside and said.

Deliberately not here: whether a process that is named still runs (`local_process`).
"""

from __future__ import annotations

import asyncio
import dataclasses
import fcntl
import json
import logging
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from outrider_control.engines.local_process import boot_id
from outrider_control.engines.local_settings import MAX_INSTANCES
from outrider_control.loops.scale.types import EngineError

_VERSION: Final = 1
_MAX_BYTES: Final = 8 * 1024 * 1024
_MAX_TEXT: Final = 512

_LOG = logging.getLogger("outrider.control.engines.local")


@dataclass(frozen=True, slots=True)
class Entry:
    """One process."""

    name: str
    agent_id: str
    token: str  # in its environment
    started_ms: int
    address: str = ""
    pid: int = 0  # 0: about to be started
    start: int = 0  # as in local_process.Stat
    ready: bool = False
    leaving: bool = False


_KINDS: Final[Mapping[str, type]] = {
    **dict.fromkeys(("name", "agent_id", "token", "address"), str),
    **dict.fromkeys(("started_ms", "pid", "start"), int),
    **dict.fromkeys(("ready", "leaving"), bool),
}


class Ledger:
    """The file of one engine, in `folder`. `where` is the engine's name in messages."""

    def __init__(self, where: str, folder: Path):
        self._where = where
        self._folder = folder
        self._file = folder / "instances.json"
        self._lock: IO[str] | None = None
        self._entries: dict[str, Entry] = {}
        self._thread: ThreadPoolExecutor | None = None
        self._latest: tuple[int, tuple[Entry, ...]] = (0, ())
        self._written = 0

    def open(self) -> list[Entry]:
        """Take the file; what it names. EngineError: another has it, or it cannot be had. Blocks."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self._lock is None:
                self._lock = self._taken()
            if self._thread is None:
                self._thread = ThreadPoolExecutor(1, "outrider-instances")
            entries = self._read()
        except OSError as error:
            self.close()
            raise EngineError(f"{self._where}: its state cannot be kept in {self._folder}: {error}") from None
        self._entries = {entry.name: entry for entry in entries}
        return entries

    def close(self) -> None:
        """Give the file to whoever is next."""
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def put(self, entry: Entry) -> None:
        self._entries[entry.name] = entry

    def change(self, name: str, **fields: Any) -> None:
        if name in self._entries:
            self._entries[name] = dataclasses.replace(self._entries[name], **fields)

    def remove(self, name: str) -> None:
        self._entries.pop(name, None)

    async def save(self) -> None:
        """All that was changed until now is on disk when this returns; EngineError."""
        if self._thread is None:
            raise EngineError(f"{self._where}: is closed")
        number = self._latest[0] + 1
        self._latest = number, tuple(self._entries.values())
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._write, number)
        except OSError as error:
            raise EngineError(f"{self._where}: {self._file} cannot be written: {error}") from None

    def _write(self, number: int) -> None:
        """In the one thread: the newest there is; who comes after with an older one finds it done."""
        if self._written >= number:
            return
        newest, entries = self._latest
        data = {
            "version": _VERSION,
            "boot": boot_id(),
            "instances": [dataclasses.asdict(entry) for entry in entries],
        }
        beside = self._file.with_suffix(".new")
        with beside.open("w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(json.dumps(data))
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self._file)
        descriptor = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self._written = newest

    def _taken(self) -> IO[str]:
        path = self._folder / "lock"
        file = path.open("a+", encoding="ascii")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            reason = f"{path} is held by another control plane: give each a state_dir of its own, or end the other one"
            raise EngineError(f"{self._where}: {reason}") from None
        except OSError:
            file.close()
            raise
        return file

    def _read(self) -> list[Entry]:
        try:
            with self._file.open("rb") as file:
                text = file.read(_MAX_BYTES + 1)
        except FileNotFoundError:
            return []
        try:
            if len(text) > _MAX_BYTES:
                raise ValueError("it is too large")
            return _entries(json.loads(text))
        except (ValueError, RecursionError) as error:
            aside = self._file.with_suffix(".broken")
            self._file.replace(aside)
            _LOG.error(
                "%s: the state file cannot be read (%s) and is now %s: instances that it names, if any run, are not "
                "looked after any more; end them by hand",
                self._where,
                error,
                aside,
            )
            return []


def _entries(data: Any) -> list[Entry]:
    """ValueError: it is not what `Ledger` writes."""
    if not isinstance(data, dict) or data.get("version") != _VERSION or not isinstance(data.get("instances"), list):
        raise ValueError(f"it is no state of version {_VERSION}")
    if data.get("boot") != boot_id():
        return []  # the machine has started anew since: nothing of it runs
    entries = [_entry(one) for one in data["instances"]]
    if len(entries) > 2 * MAX_INSTANCES or len({entry.name for entry in entries}) < len(entries):
        raise ValueError("it names too many instances, or one twice")
    return entries


def _entry(data: Any) -> Entry:
    if not isinstance(data, dict) or set(data) != set(_KINDS):
        raise ValueError("an instance has not the fields it should have")
    for name, value in data.items():
        if type(value) is not _KINDS[name]:
            raise ValueError(f"{name} of an instance is not of its kind")
        if isinstance(value, str) and len(value) > _MAX_TEXT:
            raise ValueError(f"{name} of an instance is too long")
        if type(value) is int and not 0 <= value < 2**63:
            raise ValueError(f"{name} of an instance is no such number")
    entry = Entry(**data)
    if entry.pid >= 2**31 or entry.pid == 1 or not entry.token or "/" in entry.name or not entry.name:
        raise ValueError("an instance has a pid, token or name that cannot be")
    return entry
