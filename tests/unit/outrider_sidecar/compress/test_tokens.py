"""Counts: exact against another implementation, estimates within what is said of them."""

from __future__ import annotations

import json
import os
import random
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider_sidecar.compress import tokens

WORDS = ("the", "tax", "of", "a", "report", "was", "filed", "in", "April", "by", "office", "not", "due", "review")


def samples() -> list[str]:
    """Prose, records, logs and code of some size."""
    rng = random.Random(1)
    prose = [" ".join([rng.choice(WORDS) for _ in range(80)]).capitalize() + "." for _ in range(10)]
    rows = [{"id": at, "status": rng.choice(["ok", "late"]), "price": rng.random() * 100} for at in range(30)]
    log = [f"2026-11-23T05:00:{at:02}Z INFO handled request {rng.randrange(10**6)} in {at} ms" for at in range(40)]
    code = "def total(rows):\n    return sum([row.price for row in rows if row.status == 'ok'])\n" * 8
    return [*prose, json.dumps(rows), json.dumps(rows, indent=2), "\n".join(log), code]


@pytest.mark.parametrize("vocabulary", [tokens.O200K, tokens.CL100K])
def test_exact_counts_are_those_of_tiktoken(vocabulary: str) -> None:
    pytest.importorskip("bpe_openai")
    tiktoken = pytest.importorskip("tiktoken")
    if not os.environ.get("TIKTOKEN_CACHE_DIR"):
        pytest.skip("tiktoken would load its vocabulary over the network: TIKTOKEN_CACHE_DIR names a place that has it")
    other = tiktoken.get_encoding(vocabulary)
    count = tokens.exact(vocabulary)
    for text in [*samples(), "", "\ud800", "日本語 é 🙂"]:
        shown = text.encode("utf-8", "replace").decode()
        assert count(text) == len(other.encode_ordinary(shown))


def test_the_estimate_is_as_far_off_as_it_says() -> None:
    pytest.importorskip("bpe_openai")
    count = tokens.exact()
    errors = [abs(tokens.estimate(text) / count(text) - 1.0) for text in samples()]
    assert mean(errors) < 0.15
    assert max(errors) < 0.4


@given(st.text(max_size=2_000))
def test_an_estimate_is_a_number_of_at_least_one(text: str) -> None:
    assert tokens.estimate(text) >= 1 if text else tokens.estimate(text) == 0


def test_long_texts_are_sampled_and_come_out_alike() -> None:
    text = json.dumps([{"id": at, "name": f"name {at}"} for at in range(30_000)])
    short = text[:200_000]
    assert tokens.estimate(text) / len(text) == pytest.approx(tokens.estimate(short) / len(short), rel=0.05)


@pytest.mark.parametrize(
    ("model", "vocabulary", "own"),
    [
        ("gpt-4o-mini", tokens.O200K, True),
        ("openai/gpt-5", tokens.O200K, True),
        ("gpt-4-turbo", tokens.CL100K, True),
        ("gpt-3.5-turbo", tokens.CL100K, True),
        ("claude-sonnet-4", tokens.O200K, False),
        ("", tokens.O200K, False),
    ],
)
def test_which_vocabulary_counts(model: str, vocabulary: str, own: bool) -> None:
    assert tokens.vocabulary_of(model) == (vocabulary, own)
