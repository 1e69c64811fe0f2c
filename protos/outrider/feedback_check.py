"""Feedback as it may be: what is wrong with an item, and the id of one that has none.

Always holds: pure; sidecar and control plane find the same item right or wrong, and give it the same id. What is wrong
is said with the field's name. An id is made of all that the sender said, before anything is filled in.

Deliberately not here: protobuf (an item is anything with the fields of `outrider.v1.Feedback`), what feedback is for.
"""

from __future__ import annotations

import math
import struct
from typing import Any, Final

from outrider.digest import blake2b

MAX_ITEMS: Final = 1_000  # of one request
MAX_ID_CHARS: Final = 128
MAX_NAME_CHARS: Final = 256  # of an agent, an author
MAX_LABELS: Final = 20
MAX_LABEL_CHARS: Final = 100
MAX_SCORES: Final = 50
MAX_CORRECTION_BYTES: Final = 8 * 1024
MAX_COMPLAINT_BYTES: Final = 4 * 1024
MAX_CONTENT_BYTES: Final = 64 * 1024  # of the question, of the answer
CALL_ID_CHARS: Final = 16
TRACE_ID_CHARS: Final = 32

_HEX: Final = frozenset("0123456789abcdefABCDEF")
_MAX_MS: Final = 2**53
_ID_BYTES: Final = 16
_TEXTS: Final = (
    ("correction", MAX_CORRECTION_BYTES),
    ("complaint", MAX_COMPLAINT_BYTES),
    ("input", MAX_CONTENT_BYTES),
    ("output", MAX_CONTENT_BYTES),
)


def problem(item: Any) -> str:
    """What is wrong with an item, and where; "" where nothing is."""
    return _names(item) or _figures(item) or _texts(item)


def _names(item: Any) -> str:
    if len(item.feedback_id) > MAX_ID_CHARS or not item.feedback_id.isprintable():
        return f"feedback_id: at most {MAX_ID_CHARS} characters that can be printed are taken"
    if not item.call_id and not item.trace_id:
        return "call_id: neither a call nor a trace is named (x-outrider-call-id and x-outrider-trace-id of a reply)"
    if item.call_id and not _is_id(item.call_id, CALL_ID_CHARS):
        return f"call_id: {_shown(item.call_id)} is not {CALL_ID_CHARS} hex digits, as x-outrider-call-id has them"
    if item.trace_id and not _is_id(item.trace_id, TRACE_ID_CHARS):
        return f"trace_id: {_shown(item.trace_id)} is not {TRACE_ID_CHARS} hex digits, as x-outrider-trace-id has them"
    for field in ("agent_id", "author"):
        text = getattr(item, field)
        if len(text) > MAX_NAME_CHARS or not text.isprintable():
            return f"{field}: at most {MAX_NAME_CHARS} characters that can be printed are taken"
    return ""


def _figures(item: Any) -> str:
    has_rating = item.HasField("rating")
    if has_rating and not 0.0 <= item.rating <= 5.0:  # not a number is in no range
        return f"rating: {item.rating:g} is not between 0 and 5"
    if not 0 <= item.at_unix_ms <= _MAX_MS:
        return f"at_unix_ms: {item.at_unix_ms} are no unix milliseconds"
    if len(item.scores) > MAX_SCORES:
        return f"scores: {len(item.scores)} are too many; at most {MAX_SCORES} are taken"
    for name, score in item.scores.items():
        if not name or len(name) > MAX_LABEL_CHARS or not name.isprintable():
            return f"scores: {_shown(name)} is no name of 1 to {MAX_LABEL_CHARS} characters that can be printed"
        if not math.isfinite(score):
            return f"scores: {_shown(name)} is {score}, which is no finite number"
    if len(item.labels) > MAX_LABELS:
        return f"labels: {len(item.labels)} are too many; at most {MAX_LABELS} are taken"
    for label in item.labels:
        if not label or len(label) > MAX_LABEL_CHARS or not label.isprintable():
            return f"labels: {_shown(label)} is no word of 1 to {MAX_LABEL_CHARS} characters that can be printed"
    if not (has_rating or item.correction or item.complaint or item.labels or item.scores):
        return "rating: nothing is said; give a rating, a correction, a complaint, labels or scores"
    return ""


def _texts(item: Any) -> str:
    for field, most in _TEXTS:
        text = getattr(item, field)
        if len(text) * 4 > most:
            size = len(text.encode())
            if size > most:
                return f"{field}: {size:,} bytes are too long; at most {most:,} are taken"
        if "\0" in text:
            return f"{field}: holds a NUL character, which cannot be kept"
    return ""


def made_id(item: Any) -> str:
    """The id of an item: its own, else one made of all its other fields."""
    if item.feedback_id:
        return item.feedback_id
    digest = blake2b(digest_size=_ID_BYTES, person=b"outrider-feedbk")
    _add(digest, item.call_id.lower(), item.trace_id.lower(), item.agent_id)
    _add(digest, struct.pack("<d", item.rating).hex() if item.HasField("rating") else "")
    _add(digest, item.correction, item.complaint, str(len(item.labels)), *item.labels)
    for name in sorted(item.scores):
        _add(digest, name, struct.pack("<d", item.scores[name]).hex())
    _add(digest, "", item.author, str(item.at_unix_ms), item.input, item.output)
    return digest.hexdigest()


def _add(digest: Any, *texts: str) -> None:
    """Texts with their lengths, so that no two lists of them are one."""
    for text in texts:
        data = text.encode()
        digest.update(len(data).to_bytes(4, "big"))
        digest.update(data)


def _is_id(text: str, chars: int) -> bool:
    return len(text) == chars and _HEX.issuperset(text) and text.strip("0") != ""


def _shown(text: str) -> str:
    return repr(text[:60])
