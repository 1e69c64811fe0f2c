"""Feedback on calls: taken from sidecars and operators, listed, and summed up as satisfaction.

Always holds: an item that is wrong is refused by itself, with the field and the reason; the others of the request are
taken in one transaction. What was said twice is taken once. Feedback on a call that is not known is kept and marked.

Deliberately not here: how feedback finds its call (`state.feedback`), what is learnt from it (`examples_api`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from outrider.feedback_check import MAX_ITEMS, made_id, problem
from outrider.v1 import experiment_pb2, feedback_pb2, mesh_pb2
from outrider_control.api import convert, requests
from outrider_control.api.errors import Invalid
from outrider_control.intake.joining import Mark, keep_spans
from outrider_control.state import feedback, satisfaction
from outrider_control.state.database import Database
from outrider_control.state.feedback import NewFeedback

DAY_MS = 86_400_000
REFUSED = "refused"


class FeedbackApi:
    """What was said of calls. `mark` keeps the spans of a trace: `Intake.mark`."""

    def __init__(self, db: Database, clock_ms: Callable[[], int], mark: Mark):
        self._db = db
        self._clock_ms = clock_ms
        self._mark = mark

    async def collect(self, request: feedback_pb2.CollectFeedbackRequest) -> feedback_pb2.CollectFeedbackReply:
        """Take what an operator or an agent says."""
        return await self._take(request.feedback)

    async def deliver(self, request: mesh_pb2.DeliverFeedbackRequest) -> feedback_pb2.CollectFeedbackReply:
        """Take what callers of a sidecar said."""
        return await self._take(request.feedback)

    async def _take(self, items: Sequence[feedback_pb2.Feedback]) -> feedback_pb2.CollectFeedbackReply:
        if not 0 < len(items) <= MAX_ITEMS:
            raise Invalid("feedback", f"has {len(items):,} items; 1 to {MAX_ITEMS:,} are taken at once")
        outcomes = []
        right: list[NewFeedback] = []
        places: list[int] = []
        for at, item in enumerate(items):
            reason = problem(item)
            if reason:
                outcome = feedback_pb2.FeedbackOutcome(feedback_id=item.feedback_id, outcome=REFUSED, reason=reason)
            else:
                new = _new(item)
                outcome = feedback_pb2.FeedbackOutcome(feedback_id=new.feedback_id)
                right.append(new)
                places.append(at)
            outcomes.append(outcome)
        if right:
            taken = await self._db.write(feedback.take, right, self._clock_ms())
            for place, told in zip(places, taken.outcomes, strict=True):
                outcomes[place].outcome = told
            await keep_spans(self._mark, taken.bad_traces)
        return feedback_pb2.CollectFeedbackReply(outcomes=outcomes)

    async def list_some(self, request: experiment_pb2.ListFeedbackRequest) -> experiment_pb2.ListFeedbackReply:
        """What was said, newest first."""
        rows = await self._db.read(
            feedback.of_trace_or_agent,
            self._clock_ms() - requests.since_ms(request.since_ms, DAY_MS),
            requests.name(request.agent_id, "agent_id"),
            requests.name(request.trace_id, "trace_id").lower(),
            request.unknown_only,
            requests.limit(request.limit, 100),
        )
        records = requests.slim(map(_record, rows), ("correction", "complaint"))
        return experiment_pb2.ListFeedbackReply(feedback=records)

    async def satisfaction(self, request: experiment_pb2.GetSatisfactionRequest) -> experiment_pb2.GetSatisfactionReply:
        """How content callers are, by agent and variant."""
        now_ms = self._clock_ms()
        since_ms = now_ms - requests.since_ms(request.since_ms, DAY_MS)
        agent_id = requests.name(request.agent_id, "agent_id")
        found = await self._db.read(satisfaction.by_variant, since_ms, now_ms, agent_id)
        rows = [
            experiment_pb2.Satisfaction(
                agent_id=convert.text(agent),
                variant=convert.text(variant),
                ratings=sums.ratings,
                mean=sums.mean,
                complaints=sums.complaints,
            )
            for (agent, variant), sums in found.items()
        ]
        return experiment_pb2.GetSatisfactionReply(rows=rows)


def _new(item: feedback_pb2.Feedback) -> NewFeedback:
    return NewFeedback(
        feedback_id=made_id(item),
        call_id=item.call_id.lower(),
        trace_id=item.trace_id.lower(),
        agent_id=item.agent_id,
        rating=item.rating if item.HasField("rating") else None,
        correction=item.correction,
        complaint=item.complaint,
        labels=tuple(item.labels),
        scores=dict(item.scores),
        author=item.author,
        input=item.input,
        output=item.output,
        at_ms=item.at_unix_ms,
    )


def _record(row: Any) -> experiment_pb2.FeedbackRecord:
    return experiment_pb2.FeedbackRecord(
        feedback_id=row.feedback_id,
        call_id=row.call_id,
        trace_id=row.trace_id,
        agent_id=row.agent_id,
        variant=row.variant,
        rating=row.rating,
        correction=row.correction,
        complaint=row.complaint,
        labels=json.loads(row.labels),
        scores=json.loads(row.scores),
        author=row.author,
        at_unix_ms=row.at_ms,
        received_unix_ms=row.received_ms,
        joined=bool(row.joined),
    )
