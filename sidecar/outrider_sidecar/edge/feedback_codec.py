"""Feedback as it travels: what a caller sent, what the control plane is sent, and what both are told.

Always holds: what cannot be read is a ValueError; an item that is sent on is what the caller sent, unknown fields
included, with an id, a time and the agent filled in. protobuf is loaded by the first feedback, not by the import.

Deliberately not here: what is wrong with an item (`outrider.feedback_check`), calls and connections.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from outrider_sidecar.edge.protobuf import bytes_field, fields


class Outcome(NamedTuple):
    """What became of one item."""

    feedback_id: str
    outcome: str  # as in feedback.proto
    reason: str = ""


def read(message: bytes) -> Sequence[Any]:
    """The items of a CollectFeedbackRequest. ValueError: it is none."""
    from google.protobuf.message import DecodeError

    from outrider.v1 import feedback_pb2

    try:
        return feedback_pb2.CollectFeedbackRequest.FromString(message).feedback
    except DecodeError:
        raise ValueError("it is no outrider.v1.CollectFeedbackRequest") from None


def write_reply(outcomes: Sequence[Outcome]) -> bytes:
    """A CollectFeedbackReply."""
    return b"".join(
        [
            bytes_field(1, b"".join([bytes_field(at + 1, text.encode()) for at, text in enumerate(one) if text]))
            for one in outcomes
        ]
    )


def write_delivery(instance_id: str, items: Sequence[bytes]) -> bytes:
    """A DeliverFeedbackRequest of items that are encoded already."""
    return bytes_field(1, instance_id.encode()) + b"".join([bytes_field(2, item) for item in items])


def read_reply(message: bytes) -> list[Outcome]:
    """The outcomes of a CollectFeedbackReply."""
    found = []
    for number, value in fields(message):
        if number == 1 and isinstance(value, bytes):
            texts = {1: "", 2: "", 3: ""}
            texts |= {at: text.decode("utf-8", "replace") for at, text in fields(value) if isinstance(text, bytes)}
            found.append(Outcome(texts[1], texts[2], texts[3]))
    return found
