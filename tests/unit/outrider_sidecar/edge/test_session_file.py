"""The sticky store on disk: what a restart finds, what a killed one finds, and what a bad disk costs."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from outrider_sidecar.edge import session_file
from outrider_sidecar.edge.session_file import FILE, RETRY_S, SessionFile
from outrider_sidecar.engines import session_log
from outrider_sidecar.engines.session_log import Clocks
from outrider_sidecar.engines.sessions import Sessions

A, B = (("x", "A"),), (("x", "B"), ("y", ""))


class Clock:
    """Both clocks of a machine, set by the test."""

    def __init__(self, monotonic_s: float = 1_000.0, wall_s: float = 1.7e9):
        self.monotonic_s, self.wall_s = monotonic_s, wall_s

    def pass_s(self, seconds: float) -> None:
        self.monotonic_s += seconds
        self.wall_s += seconds


def opened(folder: Path, clock: Clock, boot: str = "boot", **limits: int) -> tuple[SessionFile, Sessions]:
    """A process that starts: a store, restored from what the folder holds."""
    sessions = Sessions(**limits)
    sessions.knows([80.0])
    sessions.idle_s = 80.0
    file = SessionFile(
        folder, sessions, asyncio.get_running_loop(), lambda: clock.monotonic_s, lambda: clock.wall_s, boot
    )
    file.restore()
    return file, sessions


def held(sessions: Sessions) -> dict[bytes, Any]:
    return {unit.key: unit.held for unit in sessions}


async def turn() -> None:
    """What was put off until this turn of the loop is over has been done."""
    await asyncio.sleep(0)
    await asyncio.sleep(0)


async def test_what_was_given_is_there_after_a_restart(tmp_path: Path) -> None:
    clock = Clock()
    file, sessions = opened(tmp_path / "state", clock)
    sessions.put(b"1", A, clock.monotonic_s)
    sessions.put(b"2", A, clock.monotonic_s)
    clock.pass_s(5)
    sessions.put(b"2", B, clock.monotonic_s)
    await file.close()
    again, restored = opened(tmp_path / "state", clock)
    assert held(restored) == {b"1": A, b"2": B}
    assert (again.counts["restored"], again.counts["lost"]) == (2, 0)
    assert (tmp_path / "state" / FILE).stat().st_mode & 0o777 == 0o600
    await again.close()


async def test_a_process_that_is_killed_has_lost_no_more_than_its_turn(tmp_path: Path) -> None:
    clock = Clock()
    first, sessions = opened(tmp_path, clock)
    sessions.put(b"1", A, clock.monotonic_s)
    sessions.put(b"2", B, clock.monotonic_s)
    assert (first.counts["written"], sessions.unsaved) == (0, 2)
    await turn()
    assert (first.counts["written"], sessions.unsaved) == (2, 0)
    sessions.put(b"3", A, clock.monotonic_s)  # and here it is killed
    second, restored = opened(tmp_path, clock)
    assert held(restored) == {b"1": A, b"2": B}
    await first.close()
    await second.close()


async def test_a_flush_writes_at_once(tmp_path: Path) -> None:
    file, sessions = opened(tmp_path, Clock())
    sessions.put(b"1", A, 1_000.0)
    assert file.flush()
    assert file.counts["written"] == 1
    assert file.flush()
    assert file.counts["written"] == 1
    await turn()
    await file.close()


async def test_idle_time_goes_on_while_nobody_runs(tmp_path: Path) -> None:
    """Less what the log may lag behind (10 s of 80)."""
    clock = Clock()
    file, sessions = opened(tmp_path, clock)
    sessions.put(b"old", A, clock.monotonic_s)
    clock.pass_s(30)
    sessions.put(b"new", A, clock.monotonic_s)
    await file.close()
    clock.pass_s(61)
    for boot in ("boot", "another"):
        if boot == "another":
            clock.monotonic_s = 5.0
        again, restored = opened(tmp_path, clock, boot)
        assert list(held(restored)) == [b"new"]
        assert [clock.monotonic_s - unit.seen_at for unit in restored] == [51.0]
        await again.close()


async def test_a_wall_clock_that_jumps_costs_nobody_within_a_boot(tmp_path: Path) -> None:
    clock = Clock()
    file, sessions = opened(tmp_path, clock)
    sessions.put(b"1", A, clock.monotonic_s)
    file.flush()
    for jump in (1e9, -3e9):
        clock.wall_s += jump
        again, restored = opened(tmp_path, clock)
        assert held(restored) == {b"1": A}
        await again.close()
    await file.close()


async def test_a_clock_that_was_set_is_written_down_for_the_next_boot(tmp_path: Path) -> None:
    clock = Clock()
    file, sessions = opened(tmp_path, clock)
    clock.wall_s += 1e6  # set by hand, far forward
    sessions.put(b"1", A, clock.monotonic_s)
    await file.close()
    clock.pass_s(60)
    clock.monotonic_s = 1.0
    again, restored = opened(tmp_path, clock, "another")
    assert [clock.monotonic_s - unit.seen_at for unit in restored] == [50.0]
    await again.close()


async def test_damage_costs_what_it_hits_and_writing_goes_on_behind_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    file, sessions = opened(tmp_path, clock)
    for at in range(3):
        sessions.put(b"%d" % at, A, clock.monotonic_s)
    await file.close()
    log = tmp_path / FILE
    log.write_bytes(log.read_bytes()[:-3])  # the last record is torn
    with caplog.at_level(logging.WARNING):
        again, restored = opened(tmp_path, clock)
    assert held(restored) == {b"0": A, b"1": A}
    assert "pieces could not be read" in caplog.text
    restored.put(b"9", B, clock.monotonic_s)
    await again.close()
    third, found = opened(tmp_path, clock)
    assert held(found) == {b"0": A, b"1": A, b"9": B}
    await third.close()


@pytest.mark.parametrize("content", [b"", b"\0" * 5_000, os.urandom(5_000), b"\xa5S" * 500])
async def test_a_file_of_something_else_is_no_reason_to_stop(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    file, sessions = opened(tmp_path, Clock())
    assert held(sessions) == {}
    sessions.put(b"1", A, 1_000.0)
    await file.close()
    again, restored = opened(tmp_path, Clock())
    assert held(restored) == {b"1": A}
    await again.close()


async def test_a_full_disk_costs_restarts_their_memory_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    file, sessions = opened(tmp_path, clock)
    write = os.write

    def full(descriptor: int, data: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(session_file.os, "write", full)
    with caplog.at_level(logging.ERROR):
        sessions.put(b"1", A, clock.monotonic_s)
        assert not file.flush()
        sessions.put(b"2", B, clock.monotonic_s)
    assert (sessions.unsaved, file.counts["failed"]) == (2, 1)
    assert caplog.text.count("No space left on device") == 1
    file.tick(clock.monotonic_s + RETRY_S - 1)
    assert file.counts["failed"] == 1  # not yet
    monkeypatch.setattr(session_file.os, "write", write)
    file.tick(clock.monotonic_s + RETRY_S)
    assert (sessions.unsaved, file.counts["written"]) == (0, 2)
    await turn()
    await file.close()
    again, restored = opened(tmp_path, clock)
    assert held(restored) == {b"1": A, b"2": B}
    await again.close()


async def test_a_short_write_is_taken_up_where_it_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, sessions = opened(tmp_path, Clock())
    write = os.write
    monkeypatch.setattr(session_file.os, "write", lambda descriptor, data: write(descriptor, bytes(data[:7])))
    sessions.put(b"1", A, 1_000.0)
    assert file.flush()
    assert file.size_bytes == (tmp_path / FILE).stat().st_size
    await turn()
    await file.close()
    again, restored = opened(tmp_path, Clock())
    assert held(restored) == {b"1": A}
    await again.close()


# -- made anew ---------------------------------------------------------------------------------------------------------


async def test_a_log_of_the_past_is_made_anew_and_loses_nothing_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_file, "COMPACT_BYTES", 1_000)
    clock = Clock()
    file, sessions = opened(tmp_path, clock)
    for _ in range(100):
        for at in range(5):
            sessions.put(b"%d" % at, B if sessions.get(b"%d" % at) is None else A, clock.monotonic_s)
            sessions.put(b"%d" % at, B, clock.monotonic_s)
            file.flush()
    big = file.size_bytes
    file.tick(clock.monotonic_s, owns=False)
    assert not [file._compacting][0]  # it drains: the log is another process's
    file.tick(clock.monotonic_s)
    assert file._compacting
    sessions.put(b"late", A, clock.monotonic_s)
    sessions.put(b"1", A, clock.monotonic_s)
    file.flush()
    await file._compacting
    assert file.counts["compacted"] == 1
    assert file.size_bytes == (tmp_path / FILE).stat().st_size < big / 5
    sessions.put(b"after", A, clock.monotonic_s)
    await file.close()
    again, restored = opened(tmp_path, clock)
    assert held(restored) == {b"0": B, b"1": A, b"2": B, b"3": B, b"4": B, b"late": A, b"after": A}
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    await again.close()


async def test_a_log_that_cannot_be_made_anew_grows_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    file, sessions = opened(tmp_path, clock)
    sessions.put(b"1", A, clock.monotonic_s)

    def refuse(path: Path, chunks: Any) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(session_file.snapshot_file, "save", refuse)
    with caplog.at_level(logging.WARNING):
        await file.compact()
    assert "it grows on" in caplog.text
    sessions.put(b"2", A, clock.monotonic_s)
    await file.close()
    again, restored = opened(tmp_path, clock)
    assert held(restored) == {b"1": A, b"2": A}
    await again.close()


async def test_time_forgets_who_is_idle(tmp_path: Path) -> None:
    clock = Clock()
    file, sessions = opened(tmp_path, clock)
    sessions.put(b"1", A, clock.monotonic_s)
    clock.pass_s(81)
    sessions.put(b"2", A, clock.monotonic_s)
    file.tick(clock.monotonic_s)
    assert held(sessions) == {b"2": A}
    await file.close()


async def test_what_the_metrics_tell(tmp_path: Path) -> None:
    file, sessions = opened(tmp_path, Clock())
    sessions.put(b"1", A, 1_000.0)
    file.flush()
    units, size = (dict(family.samples) for family in file.families())
    assert (units["written",], units["failed",], size[()]) == (1.0, 0.0, (tmp_path / FILE).stat().st_size)
    await turn()
    await file.close()


async def test_a_log_of_a_later_version_is_read_as_far_as_it_is_known(tmp_path: Path) -> None:
    now = Clocks("boot", 1.7e9, 1_000.0)
    later = session_log._record(["z", "something", 1])
    pieces = [session_log.encode_clocks(now), later, session_log.encode_unit(b"1", A, 1_000.0), later]
    (tmp_path / FILE).write_bytes(b"".join(pieces))
    file, sessions = opened(tmp_path, Clock())
    assert (held(sessions), file.counts["lost"]) == ({b"1": A}, 0)
    await file.close()
