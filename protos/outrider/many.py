"""Parallel calls of a client under one deadline, one budget and one cancellation.

    async with client.invoke_many(requests, timeout_s=30, budget=Budget(max_in_flight=8)) as many:
        async for outcome in many:
            ...

Always holds: there is exactly one Outcome for each request, in the order given or as they come; a call that was never
started has one too, with the reason. Calls start when iteration does, and the next one the moment another ends, however
slowly outcomes are taken. Leaving the block, or `cancel`, cancels all that is under way.

Deliberately not here: what may start when (`fanout`), retries (the sidecar's).
"""

from __future__ import annotations

import asyncio
import functools
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Self, TypeVar

import grpc

from outrider.fanout import Budget, FanOut
from outrider.reply import BudgetExhausted, Cancelled, DeadlineExceeded, OutriderError, Reply

Started = TypeVar("Started")
_CANCELLED = "cancelled by the caller"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of request number `index`: a reply or an error, never both."""

    index: int
    reply: Reply | None = None
    error: OutriderError | None = None

    def unwrap(self) -> Reply:
        """The reply; raises the error where there is none."""
        if self.reply is None:
            assert self.error is not None
            raise self.error
        return self.reply


class _Fan(Generic[Started]):
    """What both forms share: which calls are out, and the outcome of each. Its owner guards it against threads."""

    __slots__ = ("_deadline", "_refusal", "_start", "_state", "_timeout_s", "out")

    def __init__(
        self, count: int, start: Callable[[int, float | None], Started], timeout_s: float | None, budget: Budget
    ):
        self._state = FanOut(count, budget)
        self._start = start
        self._timeout_s = timeout_s
        self._deadline: float | None = None
        self._refusal: OutriderError | None = None  # what cut calls get; None: the budget's reason
        self.out: dict[int, Started] = {}

    def advance(self) -> tuple[list[tuple[int, Started]], list[Outcome]]:
        """Start what may start now. Gives the started calls, and the outcomes of those that never start."""
        if self._deadline is None and self._timeout_s is not None:
            self._deadline = time.monotonic() + self._timeout_s
        started: list[tuple[int, Started]] = []
        over: list[Outcome] = []
        while (at := self._state.next_call()) is not None:
            left_s = None if self._deadline is None else self._deadline - time.monotonic()
            if left_s is not None and left_s <= 0:
                self.stop(DeadlineExceeded(grpc.StatusCode.DEADLINE_EXCEEDED, "not started: the time is over"))
                over.append(self._ended(Outcome(at, error=self._cut_error())))
                break
            try:
                self.out[at] = self._start(at, left_s)
            except (ValueError, RuntimeError, grpc.RpcError) as error:  # the channel is closed
                over.append(self._ended(Outcome(at, error=failure(error))))
            else:
                started.append((at, self.out[at]))
        over += (Outcome(at, error=self._cut_error()) for at in self._state.not_started())
        return started, over

    def ended(self, outcome: Outcome) -> Outcome:
        """A started call is over; gives the outcome to report."""
        del self.out[outcome.index]
        if self._state.must_cancel and isinstance(outcome.error, Cancelled):
            outcome = Outcome(outcome.index, error=self._cut_error())
        return self._ended(outcome)

    def stop(self, refusal: OutriderError) -> None:
        """Start nothing any more; what was not answered by now gets `refusal`."""
        if not self._state.must_cancel:
            self._refusal = refusal
        self._state.stop(refusal.details)

    def to_cancel(self) -> list[Started]:
        """The calls to cancel now."""
        return list(self.out.values()) if self._state.must_cancel else []

    def _ended(self, outcome: Outcome) -> Outcome:
        tokens = 0
        if outcome.reply is not None and not outcome.reply.info.is_from_cache:
            usage = outcome.reply.message.usage
            tokens = usage.input_tokens + usage.output_tokens
        self._state.ended(outcome.error is not None, tokens)
        return outcome

    def _cut_error(self) -> OutriderError:
        if self._refusal is None:
            return BudgetExhausted(grpc.StatusCode.RESOURCE_EXHAUSTED, self._state.stopped)
        return type(self._refusal)(self._refusal.code, self._refusal.details)


class Many:
    """Blocking form: iterate once, or take `results()`."""

    def __init__(
        self,
        count: int,
        start: Callable[[int, float | None], Any],
        read: Callable[[int, Any], Reply],
        timeout_s: float | None,
        budget: Budget,
        in_order: bool,
    ):
        self._count = count
        self._fan: _Fan[Any] = _Fan(count, start, timeout_s, budget)
        self._read = read
        self._in_order = in_order
        self._outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[Outcome]:
        try:
            self._advance()
            order = _Order(self._in_order)
            for _ in range(self._count):
                yield from order.ready(self._outcomes.get())
        finally:
            self.cancel()

    def results(self) -> list[Outcome]:
        """All outcomes, when the last one is there."""
        return list(self)

    def cancel(self) -> None:
        """Cancel what is under way and start nothing more; safe from any thread and any number of times."""
        with self._lock:
            self._fan.stop(Cancelled(grpc.StatusCode.CANCELLED, _CANCELLED))
        self._advance()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.cancel()

    def _advance(self) -> None:
        with self._lock:
            started, over = self._fan.advance()
            cancel = self._fan.to_cancel()
        for outcome in over:
            self._outcomes.put(outcome)
        # Outside the lock: a callback runs at once when its call is already over.
        for at, call in started:
            call.add_done_callback(functools.partial(self._ended, at))
        for call in cancel:
            call.cancel()

    def _ended(self, at: int, call: Any) -> None:  # in a thread of grpcio
        try:
            outcome = Outcome(at, self._read(at, call))
        except OutriderError as error:
            outcome = Outcome(at, error=error)
        with self._lock:
            outcome = self._fan.ended(outcome)
        self._outcomes.put(outcome)
        self._advance()


class AsyncMany:
    """asyncio form: iterate once inside `async with`, or `await results()`."""

    def __init__(
        self,
        count: int,
        start: Callable[[int, float | None], asyncio.Task[Reply]],
        timeout_s: float | None,
        budget: Budget,
        in_order: bool,
    ):
        self._count = count
        self._fan = _Fan(count, start, timeout_s, budget)
        self._in_order = in_order
        self._outcomes: asyncio.Queue[Outcome] = asyncio.Queue()

    async def __aiter__(self) -> AsyncIterator[Outcome]:
        try:
            self._advance()
            order = _Order(self._in_order)
            for _ in range(self._count):
                for outcome in order.ready(await self._outcomes.get()):
                    yield outcome
        finally:
            self.cancel()

    async def results(self) -> list[Outcome]:
        """All outcomes, when the last one is there."""
        async with self:
            return [outcome async for outcome in self]

    def cancel(self) -> None:
        """Cancel what is under way and start nothing more; any number of times."""
        self._fan.stop(Cancelled(grpc.StatusCode.CANCELLED, _CANCELLED))
        self._advance()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.cancel()
        if self._fan.out:
            await asyncio.wait(list(self._fan.out.values()))

    def _advance(self) -> None:
        started, over = self._fan.advance()
        for outcome in over:
            self._outcomes.put_nowait(outcome)
        for at, task in started:
            task.add_done_callback(functools.partial(self._ended, at))
        for task in self._fan.to_cancel():
            task.cancel()

    def _ended(self, at: int, task: asyncio.Task[Reply]) -> None:
        if task.cancelled():
            outcome = Outcome(at, error=Cancelled(grpc.StatusCode.CANCELLED, _CANCELLED))
        elif (error := task.exception()) is not None:
            outcome = Outcome(at, error=failure(error))
        else:
            outcome = Outcome(at, task.result())
        self._outcomes.put_nowait(self._fan.ended(outcome))
        self._advance()


class _Order:
    """Holds outcomes back until those before them are there, where order is asked for."""

    __slots__ = ("_held", "_in_order", "_next")

    def __init__(self, in_order: bool):
        self._in_order = in_order
        self._held: dict[int, Outcome] = {}
        self._next = 0

    def ready(self, outcome: Outcome) -> Iterator[Outcome]:
        if not self._in_order:
            yield outcome
            return
        self._held[outcome.index] = outcome
        while self._next in self._held:
            yield self._held.pop(self._next)
            self._next += 1


def failure(error: BaseException) -> OutriderError:
    """Any exception of a call as an OutriderError."""
    return error if isinstance(error, OutriderError) else OutriderError(grpc.StatusCode.UNKNOWN, repr(error))
