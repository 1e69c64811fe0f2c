from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from outrider_sidecar.edge.snapshot_file import READ_BYTES, load, save


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_what_is_saved_is_loaded(tmp_path: Path):
    path = tmp_path / "cache.snapshot"
    chunks = [b"a" * READ_BYTES, b"b" * 10, b""]
    assert save(path, chunks) == READ_BYTES + 10
    pieces = list(load(path))
    assert b"".join(pieces) == b"".join(chunks)
    assert max(map(len, pieces)) <= READ_BYTES
    assert names(tmp_path) == ["cache.snapshot"]


def test_only_the_owner_can_read_it(tmp_path: Path):
    path = tmp_path / "cache.snapshot"
    save(path, [b"secret"])
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path):
    path = tmp_path / "cache.snapshot"
    save(path, [b"old"])

    def failing() -> Iterator[bytes]:
        yield b"new" * 500_000
        raise OSError(errno.ENOSPC, "no space left on device")

    with pytest.raises(OSError, match="no space left"):
        save(path, failing())
    assert b"".join(load(path)) == b"old"
    assert names(tmp_path) == ["cache.snapshot"]


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "cache.snapshot"
    save(path, [b"old"])

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        save(path, [b"new"])
    assert b"".join(load(path)) == b"old"
    assert names(tmp_path) == ["cache.snapshot"]


def test_a_directory_in_the_way_is_an_error(tmp_path: Path):
    path = tmp_path / "cache.snapshot"
    path.mkdir()
    with pytest.raises(OSError, match="director"):
        save(path, [b"new"])
    assert names(tmp_path) == ["cache.snapshot"]


def test_what_a_crash_left_aside_is_written_over(tmp_path: Path):
    path = tmp_path / "cache.snapshot"
    (tmp_path / f".cache.snapshot.{os.getpid()}.tmp").write_bytes(b"half a file, longer than the new one")
    save(path, [b"new"])
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["cache.snapshot"]


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        list(load(tmp_path / "none"))


def test_no_more_is_read_than_asked_for(tmp_path: Path):
    path = tmp_path / "cache.snapshot"
    save(path, [b"x" * 100])
    assert b"".join(load(path, max_bytes=30)) == b"x" * 30
