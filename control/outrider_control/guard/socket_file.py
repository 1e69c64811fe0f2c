"""The unix socket between the guard and the gRPC server: a place only this user can reach.

Always holds: the directory is made for this process alone, mode 0700, before anything listens in it; whoever could
connect here could name himself anybody, for the peer's fields are believed behind the guard. What processes that were
killed have left there is taken away by the next one: only this user's own, only where nobody listens any more.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

_PREFIX = "outrider-control-"
_NAME = "grpc.sock"
_MAX_PATH_BYTES = 107  # of an address of the family AF_UNIX
_SHORT = ("/tmp", "/var/tmp")  # the directory made there is for this user alone
_LOOKED_AT = 10_000  # names in the directory, at most
_TAKEN_AWAY = 256  # at once, at most
_YOUNG_S = 60.0  # a socket that was made lately may be about to be listened on


class SocketFile:
    """`path` is for the guard, `address` for `server.add_insecure_port`. `protect` once the server listens."""

    def __init__(self, parent: Path | None = None):
        """OSError: there is no room for a directory in `parent` (by default the system's temporary directory, or a
        usual one where its path is too long)."""
        error = OSError("no directory for a unix socket")
        for folder in (parent,) if parent is not None else (None, *_SHORT):
            try:
                self._folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=folder))
            except OSError as refused:
                error = refused
                continue
            self.path = str(self._folder / _NAME)
            if len(self.path.encode()) <= _MAX_PATH_BYTES:
                remove_stale(self._folder.parent, time.time())
                return
            self.remove()
            error = OSError(f"{self.path}: longer than {_MAX_PATH_BYTES} bytes, which a unix socket cannot have")
        raise error

    @property
    def address(self) -> str:
        return f"unix:{self.path}"

    def protect(self) -> None:
        """Readable and writable by this user alone."""
        Path(self.path).chmod(0o600)

    def remove(self) -> None:
        """Remove socket and directory."""
        shutil.rmtree(self._folder, ignore_errors=True)


def remove_stale(parent: Path, now_s: float) -> int:
    """Take away what killed processes of this user have left in `parent`; how many. `now_s` is unix seconds.

    What cannot be looked at or removed stays: this is no reason not to start."""
    removed = 0
    with contextlib.suppress(OSError):
        for folder in itertools.islice(_stale(parent, now_s), _TAKEN_AWAY):
            with contextlib.suppress(OSError):
                (folder / _NAME).unlink()
                folder.rmdir()
                removed += 1
    return removed


def _stale(parent: Path, now_s: float) -> Iterator[Path]:
    with os.scandir(parent) as entries:
        for entry in itertools.islice(entries, _LOOKED_AT):
            if entry.name.startswith(_PREFIX) and _is_left(Path(entry.path), now_s):
                yield Path(entry.path)


def _is_left(folder: Path, now_s: float) -> bool:
    """Whether it is ours, old enough, and nobody listens in it."""
    path = folder / _NAME
    try:
        outer, inner = folder.lstat(), path.lstat()
    except OSError:  # gone meanwhile, or without a socket: it may be about to get one
        return False
    ours = outer.st_uid == inner.st_uid == os.geteuid()
    if not (ours and stat.S_ISDIR(outer.st_mode) and stat.S_ISSOCK(inner.st_mode)):
        return False
    if now_s - inner.st_mtime < _YOUNG_S:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
        link.setblocking(False)  # one that is too busy to answer at once is there
        try:
            link.connect(str(path))
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False
