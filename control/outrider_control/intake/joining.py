"""The leader's turn at feedback: joins it with calls that were heard of, keeps the index of calls small, and makes
candidates for learning examples.

Always holds: what a turn does is right with two leaders as well, by transactions; a turn with nothing to do only reads.

Deliberately not here: when it is time (`chores`), what joins with what (`state.feedback`).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import NamedTuple

from sqlalchemy import Connection

from outrider_control.state import call_index, examples, feedback
from outrider_control.state.database import Database

log = logging.getLogger(__name__)

Mark = Callable[[str], Awaitable[None]]


class _Due(NamedTuple):
    calls: bool  # were heard of
    untidy: bool
    candidates: bool


class Joining:
    """`turn` again and again. `mark` keeps the spans of a trace; `max_calls` bounds the index."""

    def __init__(
        self,
        db: Database,
        clock_ms: Callable[[], int],
        mark: Mark,
        *,
        max_calls: int,
        learning: bool,
        min_batch: int,
    ):
        self._db = db
        self._clock_ms = clock_ms
        self._mark = mark
        self._max_calls = max_calls
        self._learning = learning
        self._min_batch = min_batch
        self.gathered = 0  # pieces of feedback that became part of an example

    async def turn(self) -> None:
        """Do what is due. DatabaseError: the rest is done the next time."""
        db, now_ms = self._db, self._clock_ms()
        due = await db.read(_due, self._min_batch, now_ms)
        while due.calls:
            await keep_spans(self._mark, await db.write(feedback.join_news, now_ms))
            due = await db.read(_due, self._min_batch, now_ms)
        if due.untidy:
            await db.write(call_index.tidy, self._max_calls)
        if self._learning and due.candidates:
            more = examples.PORTION
            while more == examples.PORTION:
                more = await db.write(examples.gather, now_ms)
                self.gathered += more


async def keep_spans(mark: Mark, traces: Iterable[str]) -> None:
    """Have the spans of badly rated calls kept. Feedback does not fail for it."""
    for trace_id in sorted(traces):
        try:
            await mark(trace_id)
        except Exception as error:  # noqa: BLE001 - what is only for looking at must not undo what was said
            log.warning("the spans of trace %s cannot be kept: %s", trace_id, error)
            return


def _due(connection: Connection, min_batch: int, now_ms: int) -> _Due:
    return _Due(
        call_index.has_news(connection),
        call_index.is_untidy(connection),
        examples.are_due(connection, min_batch, now_ms),
    )
