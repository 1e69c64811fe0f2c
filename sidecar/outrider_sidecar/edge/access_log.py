"""The access log: one JSON line per call, to standard output or a file. Off unless configured.

Always holds: `add` costs one append; lines are made `SLICE` a loop turn and written by a thread of their own, so a
slow disk or a stalled pipe delays no call; what waits is bounded in records and bytes, and what is dropped is counted
and said in a line of its own. Text from outside is JSON-escaped to ASCII: a line is always one line.

Deliberately not here: rotation (rename the file and send SIGHUP: `reopen`), message content, any header.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import queue
import threading
from collections import deque
from datetime import UTC, datetime
from typing import Any

from outrider_sidecar.core import errors
from outrider_sidecar.core.metric import Family, Labels
from outrider_sidecar.core.span import SERVER, Span

log = logging.getLogger(__name__)

SLICE = 32  # lines made in one loop turn: about 0.3 ms
TICK_S = 0.1
STDOUT = "-"
ERROR_MAX_CHARS = 512

_dumps = json.JSONEncoder(ensure_ascii=True, separators=(",", ":"), check_circular=False).encode


def line(span: Span) -> str:
    """One call as JSON. Empty and zero fields are left out, but for those every reader expects."""
    seconds, ns = divmod(span.start_unix_ns, 1_000_000_000)
    when = datetime.fromtimestamp(seconds, UTC)
    entry: dict[str, Any] = {
        "time": f"{when:%Y-%m-%dT%H:%M:%S}.{ns // 1_000:06d}Z",
        "hop": "ingress" if span.kind == SERVER else "egress",
        "method": span.method,
        "agent": span.agent_id,
        "endpoint": span.endpoint,
        "status": errors.NAMES[span.status],
        "total_us": span.total_us,
        "trace_id": span.trace_id.decode("ascii"),
        "span_id": span.span_id.decode("ascii"),
        "request_bytes": span.request_bytes,
        "reply_bytes": span.reply_bytes,
    }
    if span.admission is not None:
        entry.update({name: value for name, value in span.admission._asdict().items() if value})
    for name in ("connect_us", "first_byte_us", "cache", "cache_tier", "variant", "session", "notes"):
        value = getattr(span, name)
        if value:
            entry[name] = value
    if span.error:
        entry["error"] = span.error[:ERROR_MAX_CHARS]
    if len(span.attempts) > 1:
        entry["attempts"] = [
            [attempt.endpoint, attempt.start_us, attempt.total_us, errors.NAMES[attempt.status], attempt.reason]
            for attempt in span.attempts
        ]
    if span.generation is not None:
        entry["model"] = span.generation.reply_model or span.generation.model
        entry["input_tokens"] = span.generation.input_tokens
        entry["output_tokens"] = span.generation.output_tokens
    return _dumps(entry)


class AccessLog:
    """`target` is a path or "-". Made and used on one loop; `start` raises OSError if the file cannot be opened."""

    def __init__(self, target: str, max_records: int = 8_192, max_bytes: int = 1024 * 1024):
        self._target = target
        self._max_records = max_records
        self._max_bytes = max_bytes
        self._records: deque[Span] = deque()
        self._scheduled = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._writer: _Writer | None = None
        self._closed = False
        self.dropped = 0  # for want of room
        self._dropped_said = 0

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._writer = _Writer(self._target)
        self._writer.start()

    def add(self, span: Span) -> None:
        if self._closed:
            return
        if len(self._records) >= self._max_records:
            self.dropped += 1  # the newest: what led to a jam is worth more than its middle
            return
        self._records.append(span)
        if not self._scheduled and self._loop is not None:
            self._scheduled = True
            self._loop.call_later(TICK_S, self._slice)

    def reopen(self) -> None:
        """Open the path again, after rotation. If that fails the old file stays, and the log says so."""
        if self._writer is not None:
            self._writer.put(None)

    async def close(self, timeout_s: float = 1.0) -> None:
        """Write what waits, for at most `timeout_s`."""
        self._closed = True
        if self._loop is None or self._writer is None:
            return
        deadline = self._loop.time() + timeout_s
        while self._records and self._loop.time() < deadline:
            self._write_slice()
            # A full writer is waited for, a free one only yielded to.
            await asyncio.sleep(0.01 if self._writer.waiting_bytes > self._max_bytes // 2 else 0)
        self.dropped += len(self._records)
        self._records.clear()
        self._say_dropped()
        self._writer.end()
        await asyncio.to_thread(self._writer.join, max(0.0, deadline - self._loop.time()))

    def families(self) -> list[Family]:
        writer = self._writer
        counts = (
            ("written", writer.written if writer else 0),
            ("dropped", self.dropped),
            ("failed", writer.failed if writer else 0),
        )
        samples: list[tuple[Labels, float]] = [((outcome,), count) for outcome, count in counts]
        return [Family("outrider_access_log_lines", "counter", "Access log lines.", ("outcome",), samples)]

    def _slice(self) -> None:
        assert self._loop is not None
        self._write_slice()
        if self._records:
            self._loop.call_soon(self._slice)
        else:
            self._scheduled = False

    def _write_slice(self) -> None:
        assert self._writer is not None
        records = self._records
        count = min(SLICE, len(records))
        block = "".join([line(records.popleft()) + "\n" for _ in range(count)]).encode("ascii")
        if self._writer.waiting_bytes + len(block) > self._max_bytes:
            self.dropped += count
            return
        self._say_dropped()
        self._writer.put(block)

    def _say_dropped(self) -> None:
        """A line about the lines lost since the last one, as soon as there is room again."""
        lost = self.dropped - self._dropped_said
        if lost and self._writer is not None:
            self._dropped_said = self.dropped
            self._writer.put(f'{{"dropped_lines":{lost}}}\n'.encode())


class _Writer(threading.Thread):
    """Writes blocks in order. A daemon: a pipe nobody reads must not keep the process from ending."""

    def __init__(self, target: str):
        super().__init__(name="access log", daemon=True)
        self._target = target
        self._descriptor = self._open()
        # None: reopen; b"": end.
        self._blocks: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._last_error = ""
        self._torn = False  # the last write broke off within a line
        self.waiting_bytes = 0
        self.written = 0  # lines
        self.failed = 0  # lines the system did not take

    def put(self, block: bytes | None) -> None:
        if block:
            with self._lock:
                self.waiting_bytes += len(block)
        self._blocks.put(block)

    def end(self) -> None:
        self._blocks.put(b"")

    def run(self) -> None:
        while (block := self._blocks.get()) != b"":
            if block is None:
                self._reopen()
                continue
            self._write(block)
            with self._lock:
                self.waiting_bytes -= len(block)
        if self._target != STDOUT:
            os.close(self._descriptor)

    def _write(self, block: bytes) -> None:
        lines = block.count(b"\n")
        data = b"\n" + block if self._torn else block
        done = 0
        try:
            while done < len(data):
                done += os.write(self._descriptor, data[done:] if done else data)
        except OSError as error:
            self._say(error)
            if done:
                self._torn = data[done - 1] != 0x0A
            lost = min(lines, data.count(b"\n", done))
            self.failed += lost
            self.written += lines - lost
            return
        self._torn = False
        self._last_error = ""
        self.written += lines

    def _say(self, error: OSError) -> None:
        """Once per kind of trouble, not once per line."""
        if str(error) != self._last_error:
            self._last_error = str(error)
            log.warning("access log: cannot write to %s: %s", self._target, error)

    def _open(self) -> int:
        if self._target == STDOUT:
            return 1
        return os.open(self._target, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)

    def _reopen(self) -> None:
        try:
            fresh = self._open()
        except OSError as error:
            self._say(error)
            return
        if self._target != STDOUT:
            os.close(self._descriptor)
        self._descriptor = fresh
