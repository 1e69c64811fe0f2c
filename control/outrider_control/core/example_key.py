"""What makes two learning examples one, which part of a dataset an example belongs to, and how it is written down.

Always holds: pure; the same example has the same key and the same bytes for ever. Examples of the same question, as
`normalised` sees it, are in one part, so that none is trained on and judged by.

Deliberately not here: where examples are kept (`state.examples`, `state.datasets`).
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Sequence
from typing import Final, NamedTuple

PARTS: Final = ("train", "validation", "holdout")
_KEY_BYTES: Final = 16
_SCALE: Final = 2**64
_LINE_ENDS: Final = str.maketrans({"\u2028": "\\u2028", "\u2029": "\\u2029", "\x85": "\\u0085"})


class Shares(NamedTuple):
    """Of the examples, in the order of PARTS; together 1."""

    train: float = 0.7
    validation: float = 0.15
    holdout: float = 0.15


def normalised(text: str) -> str:
    """A text as it is compared: compatible forms of characters, case and whitespace make no difference."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def key_of(agent_id: str, question: str, correction: str, complaint: str) -> str:
    """Feedback of the same key is one example."""
    return _digest("key", agent_id, normalised(question), normalised(correction), normalised(complaint))


def group_of(agent_id: str, question: str, key: str) -> str:
    """Examples of the same group are in one part: those of one question; one without a question is alone."""
    asked = normalised(question)
    return _digest("group", agent_id, asked) if asked else key


def part_of(group: str, shares: Shares) -> str:
    """The part of a group, by its hash alone."""
    place = int(_digest("part", group)[:16], 16) / _SCALE
    if place < shares.train:
        return PARTS[0]
    # A rest that only rounding has left belongs to no part that was not asked for.
    return PARTS[1] if place < shares.train + shares.validation or not shares.holdout else PARTS[2]


def line(
    example_id: int,
    part: str,
    question: str,
    answer: str,
    correction: str,
    complaint: str,
    labels: Sequence[str],
    trace_ids: Sequence[str],
) -> str:
    """One line of JSONL, with its end."""
    value = {
        "id": example_id,
        "part": part,
        "input": question,
        "output": answer,
        "correction": correction,
        "complaint": complaint,
        "labels": list(labels),
        "trace_ids": list(trace_ids),
    }
    # Line ends of Unicode would part a line for some readers.
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).translate(_LINE_ENDS) + "\n"


def _digest(*texts: str) -> str:
    digest = hashlib.blake2b(digest_size=_KEY_BYTES, person=b"outrider-example")
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(4, "big"))
        digest.update(data)
    return digest.hexdigest()
