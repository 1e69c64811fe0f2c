"""Keys, parts and lines of examples."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider_control.core import example_key
from outrider_control.core.example_key import PARTS, Shares

TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=40)


@pytest.mark.parametrize(
    ("one", "other"),
    [("What is  the rate?", "what is the rate? "), ("a\nb", "A b"), ("\uff21x", "ax"), ("Stra\u00dfe", "STRASSE")],
)
def test_what_reads_alike_is_alike(one: str, other: str) -> None:
    assert example_key.key_of("a", one, "c", "") == example_key.key_of("a", other, " C", "")


def test_what_differs_differs() -> None:
    keys = {
        example_key.key_of(*fields)
        for fields in [
            ("a", "q", "c", ""),
            ("b", "q", "c", ""),
            ("a", "c", "q", ""),
            ("a", "q", "", "c"),
            ("a", "", "qc", ""),
        ]
    }
    assert len(keys) == 5


def test_one_question_is_one_group_and_none_is_its_own() -> None:
    keys = [example_key.key_of("a", "q", str(at), "") for at in range(3)]
    assert len({example_key.group_of("a", "Q ", key) for key in keys}) == 1
    assert example_key.group_of("a", " ", "k") == "k"
    assert example_key.group_of("a", "q", "k") != example_key.group_of("b", "q", "k")


@pytest.mark.parametrize("shares", [Shares(), Shares(0.5, 0.5, 0.0), Shares(1.0, 0.0, 0.0), Shares(0.0, 0.3, 0.7)])
def test_shares_hold_within_what_hashing_gives(shares: Shares) -> None:
    count = 20_000
    parts = [example_key.part_of(f"group {at}", shares) for at in range(count)]
    for part, share in zip(PARTS, shares, strict=True):
        # Five standard deviations of a binomial share.
        assert abs(parts.count(part) / count - share) <= 5 * (share * (1 - share) / count) ** 0.5


def test_a_part_only_grows_into_its_neighbour() -> None:
    names = [f"{random.Random(at).random()}" for at in range(2_000)]
    before = {name: example_key.part_of(name, Shares(0.5, 0.25, 0.25)) for name in names}
    after = {name: example_key.part_of(name, Shares(0.6, 0.2, 0.2)) for name in names}
    assert all(after[name] == "train" for name in names if before[name] == "train")


@given(TEXTS, TEXTS, TEXTS)
def test_a_line_is_one_line_and_says_what_it_holds(question: str, answer: str, correction: str) -> None:
    line = example_key.line(7, "train", question, answer, correction, "bad", ["x"], ["t"])
    assert line.endswith("\n")
    assert len(line.splitlines()) == 1
    assert json.loads(line) == {
        "id": 7, "part": "train", "input": question, "output": answer, "correction": correction, "complaint": "bad",
        "labels": ["x"], "trace_ids": ["t"],
    }  # fmt: skip
