"""A process beside the sidecar's own that compresses what would hold up its loop.

Always holds: there is one at most, started when it is first wanted; until it is ready, and while too much waits for it,
`offer` says no. Who has offered is told exactly once: what was made, or None after the time it would wait, when the
process has gone, or at `close`. One that breaks or hangs is put away and another is started later, at growing
distances. It ends with the sidecar, whatever that one's end is: its input ends.

Deliberately not here: the process (`compress_process`), what is compressed, and what with the answer (filter
`compress`, `edge.compress_service`).
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from outrider_http2.shell import Reactor
from outrider_sidecar.core.metric import Family

if TYPE_CHECKING:  # compressors cost memory: they are loaded by who needs them
    from outrider_sidecar.compress.ledger import Made
    from outrider_sidecar.compress.work import Job

log = logging.getLogger(__name__)

MAX_WAITING = 32  # questions
MAX_WAITING_BYTES = 16 * 1024 * 1024
MAX_ANSWER_BYTES = 64 * 1024 * 1024
HANG_S = 20.0  # for one question
AGAIN_S = 1.0  # before a process that broke is followed by another; doubles up to a minute
_MAX_AGAIN_S = 60.0

Then = Callable[["list[Made] | None"], Any]


class _Question:
    """One that is asked; `then` is None once its asker has been told."""

    __slots__ = ("hang", "size", "then", "timer")

    def __init__(self, then: Then, size: int):
        self.then: Then | None = then
        self.size = size
        self.timer: asyncio.TimerHandle | None = None
        self.hang: asyncio.TimerHandle | None = None


class CompressWorker:
    """See the module. `offer` from the loop; `close` at the end."""

    def __init__(
        self, reactor: Reactor, command: Sequence[str] = (sys.executable, "-m", "outrider_sidecar.compress_process")
    ):
        self._reactor = reactor
        self._command = command
        self._task: asyncio.Task[None] | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._asked: deque[_Question] = deque()
        self._bytes = 0
        self._is_ready = False
        self._failures = 0
        self._again_at = 0.0
        self._closed = False
        self.counts = {"done": 0, "late": 0, "refused": 0, "lost": 0}

    def offer(self, jobs: Sequence[Job], then: Then, wait_s: float) -> bool:
        """Have blocks compressed; False: it cannot be now, and `then` is never called."""
        if not self._is_ready:
            self._start()
            self.counts["refused"] += 1
            return False
        if len(self._asked) >= MAX_WAITING or self._bytes >= MAX_WAITING_BYTES:
            self.counts["refused"] += 1
            return False
        process = self._process
        assert process is not None
        assert process.stdin is not None
        from outrider_sidecar.compress.work import LENGTH_BYTES, packed

        question = packed(jobs)
        asked = _Question(then, len(question))
        asked.timer = self._reactor.loop.call_later(wait_s, self._late, asked)
        asked.hang = self._reactor.loop.call_later(HANG_S, process.kill)
        self._asked.append(asked)
        self._bytes += asked.size
        process.stdin.write(len(question).to_bytes(LENGTH_BYTES, "big"))
        process.stdin.write(question)
        return True

    def start(self) -> None:
        """Have the process ready for the first that wants it."""
        self._start()

    async def close(self) -> None:
        """End the process; who still waits is told that nothing comes."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    # -- the process -----------------------------------------------------------------------------------------------

    def _start(self) -> None:
        running = self._task is not None and not self._task.done()
        if not self._closed and not running and self._reactor.loop.time() >= self._again_at:
            self._task = self._reactor.loop.create_task(self._run(), name="compress worker")

    async def _run(self) -> None:
        try:
            pipe = asyncio.subprocess.PIPE
            self._process = await asyncio.create_subprocess_exec(*self._command, stdin=pipe, stdout=pipe)
            await self._read(self._process.stdout)
        except (OSError, asyncio.IncompleteReadError, TimeoutError, ValueError) as error:
            self._failures += 1
            again_s = min(_MAX_AGAIN_S, AGAIN_S * 2 ** (self._failures - 1))
            self._again_at = self._reactor.loop.time() + again_s
            why = (
                "it has ended" if isinstance(error, asyncio.IncompleteReadError) else str(error) or "it does not answer"
            )
            log.warning("the process that compresses large requests is put away: %s; they go as they come", why)
        finally:
            self._is_ready = False
            await self._put_away()

    async def _read(self, answers: asyncio.StreamReader | None) -> None:
        from outrider_sidecar.compress.work import read

        assert answers is not None
        async with asyncio.timeout(HANG_S):
            await self._message(answers)
        self._is_ready = True
        while True:
            answer = await self._message(answers)
            asked = self._next()
            self._failures = 0
            self._tell(asked, read(answer), "done")

    def _next(self) -> _Question:
        asked = self._asked.popleft()
        self._bytes -= asked.size
        if asked.hang is not None:
            asked.hang.cancel()
        return asked

    async def _message(self, answers: asyncio.StreamReader) -> bytes:
        from outrider_sidecar.compress.work import LENGTH_BYTES

        head = await answers.readexactly(LENGTH_BYTES)
        size = int.from_bytes(head, "big")
        if size > MAX_ANSWER_BYTES:
            raise ValueError(f"it answers with {size:,} bytes")
        return await answers.readexactly(size)

    async def _put_away(self) -> None:
        process, self._process = self._process, None
        while self._asked:
            self._tell(self._next(), None, "lost")
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()
        if process.returncode is None:
            process.kill()  # it holds nothing that would be lost
        await process.wait()

    # -- answers ---------------------------------------------------------------------------------------------------

    def _late(self, asked: _Question) -> None:
        self._tell(asked, None, "late")

    def _tell(self, asked: _Question, made: list[Made] | None, outcome: str) -> None:
        then, asked.then = asked.then, None
        if asked.timer is not None:
            asked.timer.cancel()
            asked.timer = None
        if then is None:
            return
        self.counts[outcome] += 1
        turn = self._reactor.turn
        turn.begin()
        try:
            then(made)
        finally:
            turn.end()

    def families(self) -> list[Family]:
        """The worker as metrics."""
        rows = [((outcome,), float(count)) for outcome, count in self.counts.items()]
        return [Family("outrider_compression_worker", "counter", "Requests to the worker process.", ("outcome",), rows)]
