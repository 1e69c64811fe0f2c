"""What a caller says of a call: the request it becomes, and what became of it.

Always holds: pure; a call is named by what its reply carried, so that nobody has to know ids by heart. Feedback that is
wrong is an InvalidRequest, like any other request that is wrong.

Deliberately not here: sending it (`client`), what is wrong with it (`feedback_check`: the sidecar says it).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypedDict

import grpc

from outrider.reply import AGENT, CallInfo, InvalidRequest, Reply
from outrider.v1 import feedback_pb2

Call = Reply | CallInfo | str  # a string is the call's id
_REFUSED = "refused"


class Said(TypedDict, total=False):
    """What may be said of a call; at least one of rating, correction, complaint, labels and scores."""

    rating: float  # 0 (useless) to 5 (could not be better)
    correction: str  # what the answer should have been
    complaint: str  # what was wrong
    labels: Iterable[str]  # free words
    scores: Mapping[str, float]  # free figures by name
    author: str  # who says so
    input: str  # the question, where learning examples are to have it
    output: str  # the answer, likewise
    feedback_id: str  # makes saying it twice harmless; left out: made of all the rest
    agent_id: str  # whose call it was; left out: as the call says
    trace_id: str  # in place of the call: the trace's first one
    at_unix_ms: int  # left out: now


@dataclass(frozen=True, slots=True)
class FeedbackOutcome:
    """What became of one piece of feedback."""

    feedback_id: str
    outcome: str  # taken, unknown_call (it waits for its call), duplicate, queued (the sidecar keeps it)
    reason: str = ""  # where it is queued: why


def request_of(call: Call, said: Said) -> tuple[feedback_pb2.CollectFeedbackRequest, list[tuple[str, str | bytes]]]:
    """The request, and metadata that say the same of the agent."""
    info = call.info if isinstance(call, Reply) else call
    item = feedback_pb2.Feedback(**said)
    if isinstance(info, str):
        item.call_id = info
    elif not item.trace_id or item.trace_id == info.trace_id:
        item.call_id, item.trace_id = info.call_id, info.trace_id
    pairs: list[tuple[str, str | bytes]] = [(AGENT, item.agent_id)] if item.agent_id else []
    return feedback_pb2.CollectFeedbackRequest(feedback=[item]), pairs


def outcome_of(reply: feedback_pb2.CollectFeedbackReply) -> FeedbackOutcome:
    """What became of the one item that was sent. InvalidRequest: it was refused."""
    (told,) = reply.outcomes
    if told.outcome == _REFUSED:
        raise InvalidRequest(grpc.StatusCode.INVALID_ARGUMENT, told.reason)
    return FeedbackOutcome(told.feedback_id, told.outcome, told.reason)
