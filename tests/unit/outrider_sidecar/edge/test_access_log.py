import asyncio
import json
import os
from pathlib import Path

import pytest

from outrider_sidecar.core.span import CLIENT, SERVER, Admission, Attempt, Generation, Span
from outrider_sidecar.edge import access_log
from outrider_sidecar.edge.access_log import AccessLog, line

START_NS = 1_763_800_000_000_123_456


def call(number: int = 0, **fields) -> Span:
    return Span(
        b"4bf92f3577b34da6a3ce929d0e0e4736",
        b"%016x" % number,
        b"",
        b"",
        1,
        CLIENT,
        "/a.B/C",
        "tax",
        "h:1",
        START_NS,
        77,
        0,
    )._replace(**fields)


def lines(path: Path) -> list[dict]:
    return [json.loads(text) for text in path.read_text("ascii").splitlines()]


def counts(log: AccessLog) -> dict[str, float]:
    return {labels[0]: value for labels, value in log.families()[0].samples}


def test_a_plain_call():
    assert json.loads(line(call(5))) == {
        "time": "2025-11-22T08:26:40.000123Z",
        "hop": "egress",
        "method": "/a.B/C",
        "agent": "tax",
        "endpoint": "h:1",
        "status": "OK",
        "total_us": 77,
        "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
        "span_id": "0000000000000005",
        "request_bytes": 0,
        "reply_bytes": 0,
    }


def test_everything_that_happened_is_said():
    span = call(
        kind=SERVER,
        status=14,
        error="x" * 9_999,
        admission=Admission(1, "low", ("cap_output",)),
        connect_us=2,
        first_byte_us=3,
        cache="miss",
        cache_tier="exact",
        variant="b",
        session="s",
        attempts=(Attempt("h:1", 0, 5, 14, "first"), Attempt("h:2", 6, 7, 0, "retry")),
        generation=Generation(model="m", input_tokens=8, output_tokens=9),
        notes=("cache: too large",),
    )
    entry = json.loads(line(span))
    assert entry["hop"] == "ingress"
    assert entry["status"] == "UNAVAILABLE"
    assert entry["error"] == "x" * access_log.ERROR_MAX_CHARS
    assert entry["attempts"] == [["h:1", 0, 5, "UNAVAILABLE", "first"], ["h:2", 6, 7, "OK", "retry"]]
    assert (entry["model"], entry["input_tokens"], entry["output_tokens"]) == ("m", 8, 9)
    assert entry["notes"] == ["cache: too large"]
    figures = ("queue_us", "connect_us", "first_byte_us")
    assert [entry[name] for name in figures] == [1, 2, 3]
    assert (entry["lane"], entry["degraded"]) == ("low", ["cap_output"])
    assert [entry[name] for name in ("cache", "cache_tier", "variant", "session")] == ["miss", "exact", "b", "s"]


def test_text_from_outside_cannot_forge_a_line():
    evil = 'a"}\n{"status":"OK"}\r\u2028\x1b[31m\x00\ud800é'
    text = line(call(method=evil, error=evil, session=evil))
    assert text.isascii()
    assert text.isprintable()
    assert json.loads(text)["method"] == evil


async def test_lines_are_written_in_order(tmp_path: Path):
    log = AccessLog(str(tmp_path / "access.log"))
    log.start()
    for number in range(1_000):
        log.add(call(number))
    await log.close()
    assert [int(entry["span_id"], 16) for entry in lines(tmp_path / "access.log")] == list(range(1_000))
    assert counts(log) == {"written": 1_000, "failed": 0, "dropped": 0}
    log.add(call())
    assert not log._records


async def test_lines_come_without_a_close(tmp_path: Path):
    path = tmp_path / "access.log"
    log = AccessLog(str(path))
    log.start()
    log.add(call(7))
    while not path.read_bytes().endswith(b"\n"):
        await asyncio.sleep(0.005)
    assert lines(path)[0]["span_id"] == "0000000000000007"
    await log.close()


async def test_too_many_records_are_dropped_counted_and_said(tmp_path: Path):
    log = AccessLog(str(tmp_path / "access.log"), max_records=10)
    log.start()
    for number in range(25):
        log.add(call(number))
    await log.close()
    entries = lines(tmp_path / "access.log")
    assert [entry for entry in entries if "dropped_lines" in entry] == [{"dropped_lines": 15}]
    assert [int(entry["span_id"], 16) for entry in entries if "span_id" in entry] == list(range(10))
    assert counts(log)["dropped"] == 15


async def test_a_stalled_pipe_holds_nobody_and_memory_is_bounded(tmp_path: Path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        log = AccessLog(str(path), max_bytes=100_000)
        log.start()
        writer = log._writer
        assert writer is not None
        for number in range(4_000):  # about 1 MB into a pipe of 64 KB
            log.add(call(number))
        while log._records:
            await asyncio.sleep(0.001)
            assert writer.waiting_bytes <= 100_000
        await log.close(0.05)
        assert writer.is_alive()  # stuck in the pipe, as it may be
        assert log.dropped > 1_000
        text = b""
        while writer.is_alive():
            try:
                text += os.read(reader, 1 << 20)
            except BlockingIOError:
                await asyncio.sleep(0.001)
        text += os.read(reader, 1 << 20)
        entries = [json.loads(part) for part in text.splitlines()]
        said = sum(entry.get("dropped_lines", 0) for entry in entries)
        written = sum("span_id" in entry for entry in entries)
        assert said == log.dropped
        assert written + said == 4_000
    finally:
        os.close(reader)


async def test_reopen_follows_a_rename(tmp_path: Path):
    path = tmp_path / "access.log"
    log = AccessLog(str(path))
    log.start()
    log.add(call(1))
    while log._records or not path.stat().st_size:
        await asyncio.sleep(0.005)
    path.rename(tmp_path / "access.log.1")
    log.reopen()
    log.add(call(2))
    await log.close()
    assert [entry["span_id"] for entry in lines(tmp_path / "access.log.1")] == [f"{1:016x}"]
    assert [entry["span_id"] for entry in lines(path)] == [f"{2:016x}"]


async def test_a_failed_reopen_keeps_the_old_file(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    folder = tmp_path / "logs"
    folder.mkdir()
    log = AccessLog(str(folder / "access.log"))
    log.start()
    folder.rename(tmp_path / "elsewhere")
    log.reopen()
    log.add(call(1))
    await log.close()
    assert len(lines(tmp_path / "elsewhere" / "access.log")) == 1
    assert "access log: cannot write to" in caplog.text


async def test_a_full_disk_costs_lines_not_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog):
    path = tmp_path / "access.log"
    log = AccessLog(str(path))
    log.start()
    write, budget = os.write, [300]

    def full_disk(descriptor: int, data: bytes) -> int:
        if descriptor != log._writer._descriptor:  # type: ignore[union-attr]
            return write(descriptor, data)
        if budget[0] == 0:
            raise OSError(28, "No space left on device")
        done = write(descriptor, data[: budget[0]])
        budget[0] -= done
        return done

    monkeypatch.setattr(os, "write", full_disk)
    for number in range(10):
        log.add(call(number))
    while counts(log)["failed"] == 0:
        await asyncio.sleep(0.005)
    budget[0] = 10_000
    log.add(call(99))
    await log.close()
    assert counts(log) == {"written": 2, "failed": 9, "dropped": 0}
    whole, torn, after = path.read_text().splitlines()
    assert json.loads(whole)["span_id"] == f"{0:016x}"
    assert json.loads(after)["span_id"] == f"{99:016x}"
    assert not torn.endswith("}")
    assert caplog.text.count("No space left") == 1


async def test_a_path_that_cannot_be_opened_is_an_error_at_the_start(tmp_path: Path):
    with pytest.raises(OSError, match="missing"):
        AccessLog(str(tmp_path / "missing" / "access.log")).start()


async def test_standard_output(capfd: pytest.CaptureFixture[str]):
    log = AccessLog("-")
    log.start()
    log.add(call(3))
    log.reopen()
    await log.close()
    assert json.loads(capfd.readouterr().out)["span_id"] == f"{3:016x}"
