"""Odd texts, large and repeating, through every compressor: restored, and never slow.

The bound is of the thread's own processor time, and fifteen times what the slowest text needs: what is quadratic in
64 KB needs several times the bound, what is linear never comes near it, on whatever machine.
"""

from __future__ import annotations

import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from outrider_sidecar.compress import catalog, protect, tokens
from outrider_sidecar.compress.block import CONTEXT, TOOL, Block, Budget, Context

SIZE = 64 * 1024
LIMIT_S = 1.0
WORK = 40_000_000  # steps: what a worker process has
PIECES = [
    *("{}[]\",:\\ \n<>-=#|.01aB/\t()&é`*@+'"),
    *(
        "<p>",
        "</p>",
        "<table>",
        "<tr>",
        "- ",
        "+ ",
        "@@ -1 +1 @@\n",
        "2026-11-23T05:00:00Z ",
        "INFO ",
        "null.",
        "true,",
    ),
    *('  File "a", line 1\n', '"a": ', '{"a":1},', "[1],", '""', '\\"', "data:x;base64,", "QUJD", "&amp;", "```\n"),
    *(". A", "http://x/", "e9", "\ud800", "\0", "C:", "{\n ", "    x\n", "\u3002"),
]
WORDS = st.lists(st.sampled_from(PIECES), min_size=1, max_size=8).map("".join)


def spent_s(started: float) -> float:
    return time.thread_time() - started


@given(WORDS, st.one_of(st.just(""), WORDS), st.sampled_from([TOOL, CONTEXT]))
@example("é", "INFO ", TOOL)
@example("a.b-", "", CONTEXT)
@example("a+", "", TOOL)
@example("{\n ", "", TOOL)
@settings(max_examples=60, deadline=None)
def test_no_text_takes_long_and_what_can_be_is_restored(piece: str, before: str, role: str) -> None:
    text = before + piece * (SIZE // len(piece))
    started = time.thread_time()
    result = catalog.lossless(Block(text, role), Context(Budget(WORK)))
    assert spent_s(started) < LIMIT_S
    if result is not None and result.reversible:
        started = time.thread_time()
        assert catalog.restore(result.text) == text
        assert spent_s(started) < LIMIT_S
    started = time.thread_time()
    catalog.lossy(Block(text, role), Context(Budget(WORK), question="what is a?", keep=0.5, count=tokens.estimate))
    assert spent_s(started) < LIMIT_S


@pytest.mark.parametrize("piece", [*PIECES, "a.b-", "a/", "  ", "{\n  \t \n ", "~~~\n", "diff --git \n"])
def test_cutting_into_sentences_is_linear(piece: str) -> None:
    text = piece * (SIZE // len(piece))
    started = time.thread_time()
    assert "".join(protect.sentences(text)) == text
    assert spent_s(started) < LIMIT_S
