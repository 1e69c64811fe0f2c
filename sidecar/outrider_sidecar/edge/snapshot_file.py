"""Snapshots on disk: written aside and put in place by one rename, readable by the owner alone.

Always holds: after `save` returns the file is whole and on disk; when it raises, whatever was there before is
untouched and nothing is left beside it. Both calls block: the caller runs them off the event loop.

Deliberately not here: what the bytes mean (engines `snapshot`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

READ_BYTES = 1024 * 1024
_WRITE_BYTES = 256 * 1024


def save(path: Path, chunks: Iterable[bytes]) -> int:
    """Replace the file with these bytes, atomically; how many there are. OSError (no space, no right) as it comes.

    Whatever the iterator raises comes through as well, and the old file stays.
    """
    # The process id keeps an old sidecar that drains apart from the one that takes over from it.
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb", buffering=_WRITE_BYTES) as file:
            size = 0
            for chunk in chunks:
                file.write(chunk)
                size += len(chunk)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise
    _sync_directory(path.parent)
    return size


def load(path: Path, max_bytes: int | None = None) -> Iterator[bytes]:
    """The file's bytes in pieces of up to 1 MB, at most `max_bytes` in all. FileNotFoundError when there is none."""
    with path.open("rb", buffering=0) as file:
        left = max_bytes if max_bytes is not None else os.fstat(file.fileno()).st_size
        while left > 0:
            chunk = file.read(min(READ_BYTES, left))
            if not chunk:
                return
            left -= len(chunk)
            yield chunk


def _sync_directory(directory: Path) -> None:
    # Without this a crash may bring the old name back; some file systems refuse it, and then there is no better.
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
