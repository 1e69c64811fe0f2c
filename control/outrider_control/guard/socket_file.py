"""The unix socket between the guard and the gRPC server: a place only this user can reach.

Always holds: the directory is made for this process alone, mode 0700, before anything listens in it; whoever could
connect here could name himself anybody, for the peer's fields are believed behind the guard.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

_MAX_PATH_BYTES = 107  # of an address of the family AF_UNIX
_SHORT = ("/tmp", "/var/tmp")  # the directory made there is for this user alone


class SocketFile:
    """`path` is for the guard, `address` for `server.add_insecure_port`. `protect` once the server listens."""

    def __init__(self, parent: Path | None = None):
        """OSError: there is no room for a directory in `parent` (by default the system's temporary directory, or a
        usual one where its path is too long)."""
        error = OSError("no directory for a unix socket")
        for folder in (parent,) if parent is not None else (None, *_SHORT):
            try:
                self._folder = Path(tempfile.mkdtemp(prefix="outrider-control-", dir=folder))
            except OSError as refused:
                error = refused
                continue
            self.path = str(self._folder / "grpc.sock")
            if len(self.path.encode()) <= _MAX_PATH_BYTES:
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
