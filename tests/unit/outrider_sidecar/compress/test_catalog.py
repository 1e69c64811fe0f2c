"""What always holds of every compressor, on drawn blocks and odd ones."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider_sidecar.compress import catalog, json_text, structured
from outrider_sidecar.compress.block import (
    ASSISTANT,
    CONTEXT,
    SYSTEM,
    TOOL,
    USER,
    Block,
    Budget,
    Context,
    marked,
    size,
)
from tests.unit.outrider_sidecar.compress.made import (
    BLOCKS,
    CODE,
    DIFF,
    ODD,
    PAGE,
    json_lines,
    json_texts,
    logs,
    tables,
)

STEPS = 50_000_000


def lossless(text: str, role: str = TOOL, **context: object) -> str:
    """What stands for the text."""
    result = catalog.lossless(Block(text, role), Context(Budget(STEPS), **context))  # type: ignore[arg-type]
    return result.text if result is not None else text


@given(BLOCKS)
@settings(max_examples=300)
def test_reversible_results_are_restored_to_the_character(text: str) -> None:
    result = catalog.lossless(Block(text), Context(Budget(STEPS)))
    if result is not None and result.reversible:
        assert catalog.restore(result.text) == text


@given(BLOCKS)
@settings(max_examples=200)
def test_a_result_is_smaller_and_says_by_how_much(text: str) -> None:
    result = catalog.lossless(Block(text), Context(Budget(STEPS)))
    if result is not None:
        assert size(result.text) < size(text)
        assert result.saved_bytes == size(text) - size(result.text)
        assert not result.handle


@given(BLOCKS)
@settings(max_examples=200)
def test_compressing_twice_is_compressing_once(text: str) -> None:
    once = lossless(text)
    assert lossless(once) == once or not marked(once)
    assert lossless(lossless(once)) == lossless(once)


@given(BLOCKS)
@settings(max_examples=100)
def test_the_same_block_gives_the_same_bytes(text: str) -> None:
    assert lossless(text) == lossless(text)


@given(BLOCKS)
@settings(max_examples=200)
def test_text_that_imitates_ours_is_what_it_is(text: str) -> None:
    for mark in ("#columns/1 ", "#lines/1 ", "#rows/1 "):
        imitation = mark + text
        assert catalog.restore(lossless(imitation)) == catalog.restore(imitation)
        assert lossless(imitation) == imitation


@given(json_texts())
@settings(max_examples=200)
def test_json_keeps_its_meaning_numbers_and_order(text: str) -> None:
    result = catalog.lossless(Block(text), Context(Budget(STEPS)))
    if result is None:
        return
    back = catalog.restore(result.text)
    if not result.reversible:  # white space of the writer's own is lost, no more
        back = structured.restore_columns(result.text) or back
    pairs = {"object_pairs_hook": list, "parse_float": str, "parse_int": str}
    assert json.loads(back, **pairs) == json.loads(text, **pairs)  # type: ignore[arg-type]


@pytest.mark.parametrize("role", [USER, SYSTEM, ASSISTANT])
@given(text=json_texts() | logs())
@settings(max_examples=20)
def test_what_others_said_is_theirs(role: str, text: str) -> None:
    assert lossless(text, role) == text
    assert catalog.lossy(Block(text, role), Context(Budget(STEPS), question="what?")) is None


@pytest.mark.parametrize("name", sorted(CODE))
def test_code_is_never_touched(name: str) -> None:
    code = CODE[name]
    assert lossless(code) == code
    assert catalog.lossy(Block(code), Context(Budget(STEPS), question="what is the total?", keep=0.3)) is None


@pytest.mark.parametrize(
    ("strategy", "compressors"),
    [
        (json_texts(), {"json/1", "columns/1"}),
        (json_lines(), {"columns/1"}),
        (logs(), {"lines/1"}),
    ],
)
def test_each_kind_has_its_compressors(strategy: st.SearchStrategy[str], compressors: set[str]) -> None:
    found: set[str] = set()

    @given(strategy)
    @settings(max_examples=150)
    def collect(text: str) -> None:
        result = catalog.lossless(Block(text), Context(Budget(STEPS)))
        if result is not None:
            found.add(result.compressor)

    collect()
    assert found & compressors
    assert found <= compressors | {"json/1", "columns/1", "rows/1", "lines/1"}


@given(tables())
@settings(max_examples=60)
def test_tables_come_back_to_the_character(text: str) -> None:
    assert catalog.restore(lossless(text)) == text


def test_columns_of_text_become_rows() -> None:
    rows = [f"{at},node-{at % 4},running,eu-central,standard" for at in range(40)]
    text = "id,node,state,region,class\n" + "\n".join(rows)
    result = catalog.lossless(Block(text), Context(Budget(STEPS)))
    assert result is not None
    assert result.compressor == "rows/1"
    assert size(result.text) < 0.7 * size(text)
    assert catalog.restore(result.text) == text


def test_a_block_that_was_there_before_is_pointed_to() -> None:
    text = json.dumps({"name": "x" * 300})
    result = catalog.lossless(Block(text), Context(Budget(), {Block(text).digest(): "get_user"}))
    assert result is not None
    assert result.text.startswith("#outrider:same/1 ")
    assert catalog.restore(result.text, lambda _: text) == text
    assert catalog.restore(result.text, lambda _: "another") == result.text
    assert catalog.restore(result.text) == result.text


@given(ODD | BLOCKS)
@settings(max_examples=150)
def test_work_is_bounded_by_the_budget(text: str) -> None:
    budget = Budget(100)
    result = catalog.lossless(Block(text), Context(budget))
    assert budget.steps >= 0
    if len(text) > 100:
        assert result is None
        assert catalog.lossy(Block(text), Context(Budget(100), question="what?")) is None


@pytest.mark.parametrize(
    ("text", "kind", "compressor"),
    [(PAGE, "html", "html/1"), (DIFF, "diff", "diff/1"), ("iVBORw0KGgo" + "Aa1B" * 2_000, "binary", "binary/1")],
)
def test_lossy_results_have_a_handle_and_are_smaller(text: str, kind: str, compressor: str) -> None:
    result = catalog.lossy(Block(text, CONTEXT), Context(Budget(STEPS), node="here"))
    assert result is not None
    assert (result.kind, result.reversible) == (kind, False)
    assert result.handle.endswith("@here")
    assert result.handle in result.text
    assert size(result.text) < size(text)
    assert result.compressor.split("/")[0].startswith(compressor.split("/")[0][:4]) or result.compressor


def test_markdown_keeps_words_links_and_cells() -> None:
    result = catalog.lossy(Block(PAGE, CONTEXT), Context(Budget(STEPS)))
    assert result is not None
    assert "# Tax & law" in result.text
    assert "[here](/p/39?q=1)" in result.text
    assert "var x" not in result.text
    assert "1 | 2" in result.text


def test_a_diff_keeps_every_change() -> None:
    result = catalog.lossy(Block(DIFF), Context(Budget(STEPS)))
    assert result is not None
    for line in ("-old value", "+new value", "@@ -1,40 +1,40 @@", "--- a/x", "+++ b/x"):
        assert line in result.text.split("\n")
    assert " line 3" not in result.text.split("\n")


PROSE = "\n\n".join(
    [
        f"Topic {at}\nThe report number {at} was filed in {1900 + at} by the office of region {at}. It was not late."
        f" See https://example.org/reports/{at} for all of it. Nobody has said that it is wrong."
        for at in range(40)
    ]
)


def test_a_selection_keeps_sentences_to_the_character_and_is_within_its_share() -> None:
    question = "When was report number 17 filed?"
    result = catalog.lossy(Block(PROSE, CONTEXT), Context(Budget(STEPS), question=question, keep=0.3, count=size))
    assert result is not None
    assert size(result.text) <= 0.3 * size(PROSE)
    assert "The report number 17 was filed in 1917" in result.text
    body = result.text.partition("\n")[2]
    for piece in body.replace("[...]", "\n").split("\n"):
        assert piece.strip() in PROSE


def test_without_a_question_nothing_is_selected() -> None:
    assert catalog.lossy(Block(PROSE, CONTEXT), Context(Budget(STEPS), keep=0.3)) is None


@given(json_texts(), st.integers(0, 10**6), st.sampled_from(["", " ", "  ", "\n", "\t", "\n  ", ": ", "\r"]))
@settings(max_examples=300)
def test_a_style_is_named_only_where_it_gives_the_text_back(text: str, at: int, blank: str) -> None:
    """White space put anywhere, mostly where a style has none: what is found is what would be put back."""
    place = at % (len(text) + 1)
    for odd in (text, text[:place] + blank + text[place:], text[:place].rstrip() + text[place:]):
        document = json_text.read(odd)
        if document is not None and document.style:
            compact = document.compact or document.encode(document.tree)
            assert json_text.restyled(compact, document.style) == odd
