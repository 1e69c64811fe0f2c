"""Puts together what takes feedback and learns from it.

Always holds: feedback is taken by every control plane; joining it with calls that come later, and making candidates of
it, is the leader's.

Deliberately not here: what is taken (`api.feedback_api`), a turn of joining (`intake.joining`).
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Mapping

from outrider import defaults
from outrider_control.api.feedback_api import FeedbackApi
from outrider_control.intake.joining import Joining, Mark
from outrider_control.state.database import Database, DatabaseError

MAX_CALLS = 1_000_000  # remembered, so that feedback finds them
_TURN_S = 0.5

_LOG = logging.getLogger("outrider.control.feedback")


class Feedback:
    """`api` takes feedback; `start` and `close` the leader's part. `mark` keeps the spans of a trace."""

    def __init__(
        self,
        db: Database,
        mark: Mark,
        leads: Callable[[], bool],
        clock_ms: Callable[[], int],
        environ: Mapping[str, str] = os.environ,
    ):
        self.api = FeedbackApi(db, clock_ms, mark)
        self.failing = ""  # why the last turn could not be taken; empty: it was
        self._leads = leads
        self._joining = Joining(
            db,
            clock_ms,
            mark,
            max_calls=MAX_CALLS,
            learning=defaults.learning_enabled(environ),
            min_batch=defaults.min_feedback_batch(environ),
        )
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="feedback")

    async def close(self) -> None:
        """End what is under way: what is taken is in the store."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def warnings(self) -> list[str]:
        """What is wrong, in words."""
        return [f"feedback: {self.failing}"] if self.failing else []

    async def _run(self) -> None:
        while True:
            try:
                if self._leads():
                    await self._joining.turn()
                self.failing = ""
            except DatabaseError as error:
                if not self.failing:
                    _LOG.warning("feedback waits for its calls: %s", error)
                self.failing = f"the store is away: {error}"
            except Exception:  # noqa: BLE001 - the loop goes on
                _LOG.exception("feedback: a turn failed")
                self.failing = "a defect: see the log"
            await asyncio.sleep(_TURN_S)
