"""One process: who it is, how it ends; its log and its port."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from outrider_control.engines import local_log, local_process
from outrider_control.engines.local_probe import Ports, told_port
from outrider_control.engines.local_process import Process, stat_of

SLEEP = [sys.executable, "-I", "-S", "-c", "import time; time.sleep(60)"]
LOOPS = pytest.mark.asyncio(loop_factories=["uvloop", "asyncio"])


def spawn(folder: Path, *code: str) -> Process:
    command = [sys.executable, "-I", "-S", "-c", *code] if code else SLEEP
    return Process.spawn(command, {"PATH": os.environ["PATH"]}, folder, folder / "log")


async def code_of(process: Process) -> int | None:
    async with asyncio.timeout(15):
        return await process.exited


@LOOPS
async def test_codes(tmp_path: Path) -> None:
    assert await code_of(spawn(tmp_path, "raise SystemExit(7)")) == 7
    process = spawn(tmp_path)
    process.terminate()
    assert await code_of(process) == -signal.SIGTERM
    process.terminate()  # nobody any more
    process.kill()
    assert stat_of(process.pid) is None


@pytest.mark.parametrize("missing", ["pidfd_open", "proc", "both"])
async def test_without_what_linux_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    if missing != "proc":
        monkeypatch.delattr(os, "pidfd_open")
    if missing != "pidfd_open":
        monkeypatch.setattr(local_process, "_HAS_PROC", False)
        monkeypatch.setattr(local_process, "_PROC", tmp_path / "none")
    assert await code_of(spawn(tmp_path, "raise SystemExit(7)")) == 7
    process = spawn(tmp_path)
    assert Process.adopt(os.getpid(), process.start) is None
    process.kill()
    assert await code_of(process) == -signal.SIGKILL


@LOOPS
async def test_a_stranger_is_adopted_by_pid_and_start(tmp_path: Path) -> None:
    with subprocess.Popen(SLEEP, start_new_session=True) as child:
        stat = stat_of(child.pid)
        assert stat is not None
        assert Process.adopt(child.pid, stat.start + 1) is None
        assert Process.adopt(child.pid, 0) is None
        process = Process.adopt(child.pid, stat.start)
        assert process is not None
        child.kill()
        child.wait()  # somebody else reaps it
        assert await code_of(process) is None


async def test_a_process_that_is_let_go_of_goes_on(tmp_path: Path) -> None:
    process = spawn(tmp_path)
    process.release()
    stat = stat_of(process.pid)
    assert stat is not None
    assert stat.runs
    again = Process.adopt(process.pid, process.start)
    assert again is not None
    again.kill()
    assert await code_of(again) == -signal.SIGKILL


async def test_the_whole_session_is_killed(tmp_path: Path) -> None:
    code = f"import subprocess, time; print(subprocess.Popen({SLEEP!r}).pid, flush=True); time.sleep(60)"
    process = spawn(tmp_path, code)
    while not (text := (tmp_path / "log").read_text()):
        await asyncio.sleep(0.01)
    other = spawn(tmp_path)
    process.kill()
    await code_of(process)
    while (stat := stat_of(int(text))) is not None and stat.runs:
        await asyncio.sleep(0.01)
    assert not other.exited.done()
    other.kill()
    await code_of(other)


def test_a_name_may_hold_anything(tmp_path: Path) -> None:
    program = tmp_path / "a) R 1 1"
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([program, "60"], start_new_session=True) as child:
        stat = stat_of(child.pid)
        child.kill()
    assert stat is not None
    assert (stat.pid, stat.session, stat.parent) == (child.pid, child.pid, os.getpid())


def test_no_such_process() -> None:
    assert stat_of(2**31 - 1) is None


def test_a_log_is_bounded_while_it_is_written(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "tax-1.log"
    local_log.begin(log)
    with log.open("ab", buffering=0) as writer:  # as an instance has it
        writer.write(b"a" * 5_000 + b"b" * 5_000)
        local_log.bound([log, tmp_path / "none"], 20_000)
        assert log.stat().st_size == 10_000
        local_log.bound([log], 6_000)
        assert log.stat().st_size == 0
        assert (tmp_path / "logs" / "tax-1.log.1").read_bytes() == b"a" * 1_000 + b"b" * 5_000
        writer.write(b"c\n")
    assert log.read_bytes() == b"c\n"
    local_log.begin(log)
    assert not log.exists()
    assert (tmp_path / "logs" / "tax-1.log.1").read_bytes() == b"c\n"


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (b"", ""),
        (b"\n\n \n", ""),
        (b"one\n\n  two \nthree", "one | two | three"),
        (b"1\n2\n3\n4\n5\n6\n7\n", "3 | 4 | 5 | 6 | 7"),
        (b"\x1b[31mred\x00\xff\n", "[31mred \ufffd"),
        (b"x" * 10_000 + b"\nend\n", "end"),
        (b"x" * 10_000, "x" * 400),
    ],
)
def test_last_lines(tmp_path: Path, text: bytes, lines: str) -> None:
    log = tmp_path / "log"
    log.write_bytes(text)
    assert local_log.last_lines(log) == lines


def test_last_lines_of_nothing(tmp_path: Path) -> None:
    assert local_log.last_lines(tmp_path / "log") == ""


@pytest.mark.parametrize(
    ("text", "port"),
    [
        ('{"port": 9001}', 9001),
        *((text, 0) for text in ("", "{", "[]", "9001", '{"port": "9001"}', '{"port": 0}', '{"port": 65536}')),
        *((text, 0) for text in ('{"port": true}', '{"port": -1}', "[" * 4_096, "\xff")),
    ],
)
def test_a_port_that_is_written_down(tmp_path: Path, text: str, port: int) -> None:
    file = tmp_path / "ports.json"
    assert told_port(file) == 0
    file.write_text(text, encoding="latin-1")
    assert told_port(file) == port


def test_ports_are_given_once() -> None:
    ports = Ports()
    several = [ports.take("127.0.0.1", None) for _ in range(20)]
    assert len(set(several)) == 20


def test_ports_of_a_range_take_turns() -> None:
    ports, span = Ports(), (21_160, 21_162)
    with socket.create_server(("127.0.0.1", 21_161)):
        assert [ports.take("127.0.0.1", span), ports.take("127.0.0.1", span)] == [21_160, 21_162]
        with pytest.raises(OSError, match="all ports from 21160 to 21162 are taken"):
            ports.take("127.0.0.1", span)
        ports.give(21_160)
        assert ports.take("127.0.0.1", span) == 21_160
        ports.hold(21_162)
    assert ports.take("127.0.0.1", span) == 21_161
