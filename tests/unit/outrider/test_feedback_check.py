"""What is wrong with feedback is said by field; ids are made of everything that was said."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider import feedback_check as check
from outrider.v1 import feedback_pb2

CALL, TRACE = "00f067aa0ba902b7", "4bf92f3577b34da6a3ce929d0e0e4736"


def item(**fields: Any) -> feedback_pb2.Feedback:
    return feedback_pb2.Feedback(**({"call_id": CALL, "rating": 4} | fields))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"rating": 0},
        {"rating": 5},
        {"call_id": CALL.upper()},
        {"call_id": "", "trace_id": TRACE},
        {"correction": "ü" * (check.MAX_CORRECTION_BYTES // 2)},
        {"scores": {"accuracy": -1e300}},
        {"labels": ["tone"] * check.MAX_LABELS},
        {"input": "a\nb\tc"},
    ],
)
def test_what_is_right(fields: dict[str, Any]) -> None:
    assert check.problem(item(**fields)) == ""


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("call_id", {"call_id": ""}),
        ("call_id", {"call_id": "xyz"}),
        ("call_id", {"call_id": "0" * 16}),
        ("call_id", {"call_id": CALL + "0"}),
        ("trace_id", {"trace_id": CALL}),
        ("feedback_id", {"feedback_id": "x" * 129}),
        ("feedback_id", {"feedback_id": "a\nb"}),
        ("agent_id", {"agent_id": "x" * 257}),
        ("author", {"author": "a\0"}),
        ("rating", {"rating": -0.1}),
        ("rating", {"rating": 5.1}),
        ("rating", {"rating": math.nan}),
        ("rating", {"rating": math.inf}),
        ("scores", {"scores": {"accuracy": math.nan}}),
        ("scores", {"scores": {"accuracy": -math.inf}}),
        ("scores", {"scores": {"": 1.0}}),
        ("scores", {"scores": {f"s{at}": 1.0 for at in range(check.MAX_SCORES + 1)}}),
        ("labels", {"labels": ["x"] * (check.MAX_LABELS + 1)}),
        ("labels", {"labels": [""]}),
        ("labels", {"labels": ["x" * 101]}),
        ("correction", {"correction": "ü" * (check.MAX_CORRECTION_BYTES // 2) + "x"}),
        ("complaint", {"complaint": "x" * (check.MAX_COMPLAINT_BYTES + 1)}),
        ("complaint", {"complaint": "a\0b"}),
        ("input", {"input": "x" * (check.MAX_CONTENT_BYTES + 1)}),
        ("output", {"output": "\0"}),
        ("at_unix_ms", {"at_unix_ms": -1}),
    ],
)
def test_what_is_wrong_is_named(field: str, fields: dict[str, Any]) -> None:
    assert check.problem(item(**fields)).startswith(f"{field}: ")


def test_nothing_said_is_wrong() -> None:
    assert "nothing is said" in check.problem(feedback_pb2.Feedback(call_id=CALL, author="me", input="q"))


def test_an_id_that_is_given_is_kept() -> None:
    assert check.made_id(item(feedback_id="mine")) == "mine"


OTHERS: list[dict[str, Any]] = [
    {"call_id": CALL[::-1]},
    {"trace_id": TRACE},
    {"agent_id": "a"},
    {"rating": 3.5},
    {"correction": "x"},
    {"complaint": "x"},
    {"labels": ["x"]},
    {"labels": ["x", "y"]},
    {"scores": {"x": 1.0}},
    {"scores": {"x": 2.0}},
    {"author": "x"},
    {"at_unix_ms": 7},
    {"input": "x"},
    {"output": "x"},
]


def test_every_field_is_in_the_id() -> None:
    ids = {check.made_id(item(**fields)) for fields in [{}, *OTHERS]}
    assert len(ids) == len(OTHERS) + 1
    unrated = feedback_pb2.Feedback(call_id=CALL, labels=["x"])
    assert check.made_id(unrated) != check.made_id(feedback_pb2.Feedback(call_id=CALL, labels=["x"], rating=0))


@given(st.dictionaries(st.text(min_size=1, max_size=5), st.floats(allow_nan=False), max_size=5), st.randoms())
def test_the_order_of_scores_makes_no_difference(scores: dict[str, float], random: Any) -> None:
    pairs = list(scores.items())
    random.shuffle(pairs)
    assert check.made_id(item(scores=scores)) == check.made_id(item(scores=dict(pairs)))
    assert check.made_id(item(call_id=CALL.upper(), scores=scores)) == check.made_id(item(scores=scores))


@given(st.builds(feedback_pb2.Feedback, call_id=st.text(), trace_id=st.text(), rating=st.floats(), complaint=st.text()))
def test_no_item_raises(any_item: feedback_pb2.Feedback) -> None:
    assert isinstance(check.problem(any_item), str)
    assert check.made_id(any_item)
