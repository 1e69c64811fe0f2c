"""What is sent for a conversation: a prefix that stays, budgets, epochs, and what pays."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.policy import Compression
from outrider_sidecar.compress import openai_messages, simulate
from outrider_sidecar.compress.billing import Meter, provider_of, rules_of
from outrider_sidecar.compress.block import CONTEXT, TOOL, Block
from outrider_sidecar.compress.controller import HOLDOUT, MIN_CALLS, RETRY_S, Controller, Used
from outrider_sidecar.compress.conversation import Part, Plan, Planner
from outrider_sidecar.compress.ledger import CLEARED, DROPPED, Ledger, Memo
from outrider_sidecar.compress.openai_messages import NotMessages

NONE = Compression(provider="none", min_tokens=16)


def rows(count: int, seed: int = 0) -> str:
    rng = random.Random(seed)
    found = [
        {"flight": f"HAT{rng.randrange(999):03}", "from": "JFK", "seats": rng.randrange(9), "status": "available"}
        for _ in range(count)
    ]
    return json.dumps(found)


def conversation(turns: int, size: int = 20) -> list[dict[str, Any]]:
    """Each turn: a question, a call, its result, an answer."""
    made: list[dict[str, Any]] = [{"role": "system", "content": "You help travellers. " * 30}]
    for at in range(turns):
        call = {"id": f"c{at}", "type": "function", "function": {"name": "search", "arguments": "{}"}}
        made += [
            {"role": "user", "content": f"Question {at}: which flight?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": f"c{at}", "content": rows(size, at)},
            {"role": "assistant", "content": f"Take flight {at}."},
        ]
    return made


def planner(policy: Compression = NONE) -> Planner:
    return Planner(policy, Controller(rules_of(policy)), Ledger(), Memo())


def texts(plan: Plan) -> list[str | None]:
    return [one.text for one in plan.sent]


@given(st.integers(1, 6), st.integers(0, 40), st.sampled_from(["none", "openai", "anthropic"]))
@settings(max_examples=25, deadline=None)
def test_a_prefix_that_was_sent_is_sent_again_byte_for_byte(turns: int, size: int, provider: str) -> None:
    made = planner(replace(NONE, provider=provider))
    parts = openai_messages.parts_of(conversation(turns, size))
    before: list[str | None] = []
    for end in range(1, len(parts) + 1):
        plan = made.plan(parts[:end], float(end))
        assert texts(plan)[: len(before)] == before
        assert plan.bytes_after <= plan.bytes_before
        before = texts(plan)


def test_a_ledger_that_has_forgotten_everything_sends_the_same() -> None:
    parts = openai_messages.parts_of(conversation(3))
    assert texts(planner().plan(parts, 0.0)) == texts(planner().plan(parts, 9.0))


def test_only_results_of_tools_that_may_be_are_touched() -> None:
    messages = conversation(2)
    plan = planner().plan(openai_messages.parts_of(messages), 0.0)
    changed = [one.part.block.role for one in plan.sent if one.text != one.part.block.text]
    assert changed == [TOOL, TOOL]
    denied = planner().plan(openai_messages.parts_of(messages, ("search",)), 0.0)
    assert not denied.changed
    assert plan.tokens_after < plan.tokens_before == denied.tokens_before == denied.tokens_after


def test_what_is_held_out_or_off_is_counted_and_left() -> None:
    parts = openai_messages.parts_of(conversation(2))
    assert not planner().plan(parts, 0.0, treated=False).changed
    off = planner()
    off.mode = "off"
    assert not off.plan(parts, 0.0).changed


def test_nothing_is_compressed_before_the_providers_minimum() -> None:
    small = planner(replace(NONE, provider="anthropic"))
    plan = small.plan(openai_messages.parts_of(conversation(1, 6)), 0.0)
    assert not plan.changed
    assert any(["would not pay" in one.decision.why for one in plan.sent])


def context(count: int) -> list[Part]:
    return [
        Part(f"context[{at}]", Block(f"Passage {at}. " * 60, CONTEXT), False, relevance)
        for at, relevance in enumerate([0.1 * at for at in range(count)])
    ]


def test_a_budget_leaves_out_in_the_policys_order() -> None:
    messages = openai_messages.parts_of(conversation(4, 10))
    policy = replace(NONE, max_input_tokens=1_600, drop_first=("context", "tool_results"), clear_keep=1)
    plan = planner(policy).plan([*messages, *context(4)], 0.0)
    assert plan.tokens_after <= 1_600
    dropped = [one.part.path for one in plan.sent if one.decision.action == DROPPED]
    assert dropped == [f"context[{at}]" for at in range(len(dropped))]
    tools = [one.decision.action for one in plan.sent if one.part.block.role == TOOL]
    assert tools[-1] != CLEARED
    again = planner(replace(policy, max_input_tokens=10)).plan(messages, 0.0)
    assert "more than the budget of 10" in again.notes[-1]


def test_whole_turns_go_together_and_the_last_one_stays() -> None:
    policy = replace(NONE, max_input_tokens=400, drop_first=("messages",))
    plan = planner(policy).plan(openai_messages.parts_of(conversation(4, 10)), 0.0)
    kept = {one.part.group for one in plan.sent if one.text is not None}
    gone = {one.part.group for one in plan.sent if one.text is None}
    assert kept.isdisjoint(gone)
    assert {-1, 3} <= kept
    assert gone


def test_an_epoch_clears_old_results_where_it_pays_and_keeps_their_originals() -> None:
    policy = replace(NONE, mode="lossy", clear_after_tokens=500, clear_keep=1, lossy_min_tokens=10**6)
    made = planner(policy)
    parts = openai_messages.parts_of(conversation(12, 40))
    plan = made.plan(parts, 0.0, turns=12)
    cleared = [one for one in plan.sent if one.decision.action == CLEARED]
    assert plan.epoch
    assert len(cleared) == 11
    for one in cleared:
        assert one.decision.result is not None
        assert plan.originals[one.decision.result.handle] == one.part.block.text
    after = made.plan(parts, 1.0, turns=12)
    assert texts(after) == texts(plan)
    assert not after.epoch


def test_a_summary_stands_for_an_old_result_where_there_is_one() -> None:
    policy = replace(NONE, mode="lossy", clear_after_tokens=1_500, clear_keep=1, lossy_min_tokens=10**6)
    made = planner(policy)
    parts = openai_messages.parts_of(conversation(12, 40))
    found: dict[str, str] = {}
    early = made.plan(parts[:14], 0.0, turns=6, summaries=found.get)
    assert not early.epoch
    assert early.unsummarized
    for at, (handle, block) in enumerate(early.unsummarized):
        assert block.role == TOOL
        found[handle] = f"{at} flights were found"
    late = made.plan(parts, 1.0, turns=12, summaries=found.get)
    assert late.epoch
    stands = [text for text in texts(late) if text is not None and text.startswith("#outrider:summary/1 ")]
    assert [text.partition("\n")[2] for text in stands] == list(found.values())
    assert {handle for handle, _ in late.unsummarized}.isdisjoint(found)
    assert set(found) <= set(late.originals)
    found.clear()
    assert texts(made.plan(parts, 2.0, turns=12, summaries=found.get)) == texts(late)


def test_what_a_plan_would_have_to_compress_is_told_beforehand() -> None:
    made = planner()
    parts = openai_messages.parts_of(conversation(2))
    assert [block.source for _, block, _ in made.pending(parts, 0.0)] == ["search", "search"]
    made.plan(parts, 0.0)
    assert made.pending(parts, 1.0) == []
    assert made.pending(parts, 1.0, b"another") == []  # what was made of the blocks is remembered


# -- the controller ----------------------------------------------------------------------------------------------------


def used(treated: bool, output: int, read: int = 0) -> Used:
    return Used(treated, 1_000, 100, 1_000, read, output)


def test_an_agent_whose_answers_grow_by_more_than_is_saved_is_turned_off_and_tried_again() -> None:
    controller = Controller(rules_of(Compression(provider="none")))
    rng = random.Random(1)
    for _ in range(4 * MIN_CALLS):
        controller.ended(used(False, rng.randrange(90, 110)), 10.0)
        controller.ended(used(True, rng.randrange(190, 210)), 10.0)
    assert controller.off_since
    assert "costs" in controller.reason
    assert "output 200 tokens against 100" in controller.reason.replace("199", "200").replace("201", "200")
    assert not any([controller.treats(session, 20.0) for session in range(100)])
    later = 10.0 + RETRY_S
    assert sum([controller.treats(session, later) for session in range(1_000)]) in range(50, 101)


def test_what_pays_stays_on() -> None:
    controller = Controller(rules_of(Compression(provider="openai")))
    rng = random.Random(1)
    for _ in range(4 * MIN_CALLS):
        controller.ended(used(False, rng.randrange(90, 110), 500), 10.0)
        controller.ended(used(True, rng.randrange(90, 110), 500), 10.0)
    assert not controller.off_since
    assert controller.net > 0.0
    assert controller.scale == pytest.approx(1.0)
    treated = sum([controller.treats(session, 20.0) for session in range(10_000)])
    assert treated == 10_000 - 10_000 // HOLDOUT


def test_lost_cache_reads_are_charged() -> None:
    controller = Controller(rules_of(Compression(provider="anthropic")))
    for _ in range(4 * MIN_CALLS):
        controller.ended(used(False, 100, 900), 10.0)
        controller.ended(used(True, 100, 100), 10.0)
    assert controller.off_since
    assert "provider's cache 10% against 90%" in controller.reason


def test_an_epoch_pays_after_the_break_even_turns() -> None:
    controller = Controller(rules_of(Compression(provider="anthropic")))
    assert controller.break_even_turns(1_000, 1_000) == pytest.approx(11.5)
    assert not controller.epoch_pays(1_000, 1_000, 20)
    assert controller.epoch_pays(1_000, 1_000, 24)
    assert not controller.epoch_pays(1_000, 0, 1_000)
    assert Controller(rules_of(Compression(provider="none"))).epoch_pays(1_000, 1_000, 1)


# -- bills -------------------------------------------------------------------------------------------------------------


def blocks(*sizes: int) -> list[tuple[bytes, int]]:
    return [(b"%d" % at, size) for at, size in enumerate(sizes)]


def test_bills_by_the_rules_of_providers() -> None:
    anthropic = Meter(rules_of(Compression(provider="anthropic")))
    assert anthropic.turn(blocks(2_000)) == pytest.approx(2_500.0)
    assert anthropic.turn(blocks(2_000, 100)) == pytest.approx(200.0 + 125.0)
    openai = Meter(rules_of(Compression(provider="openai")))
    assert openai.turn(blocks(2_000)) == pytest.approx(2_000.0)
    assert openai.turn(blocks(2_000, 100)) == pytest.approx(0.1 * 1_920 + 180.0)
    nothing = Meter(rules_of(Compression(provider="none")))
    assert [nothing.turn(blocks(2_000)) for _ in range(2)] == [2_000.0, 2_000.0]
    assert [provider_of(name) for name in ("claude-x", "gpt-4o", "llama", "")] == [
        "anthropic",
        "openai",
        "none",
        "none",
    ]
    priced = rules_of(Compression(provider="anthropic", input_usd=3.0, cache_read_usd=0.5))
    assert (priced.input, priced.read, priced.write, priced.output) == (3.0, 0.5, 3.75, 15.0)


@pytest.mark.parametrize("provider", ["anthropic", "openai", "none"])
@pytest.mark.parametrize("mode", ["lossless", "lossy"])
@pytest.mark.parametrize("turns", [1, 3, 10])
def test_no_conversation_costs_more_than_without(provider: str, mode: str, turns: int) -> None:
    policy = Compression(provider=provider, mode=mode, lossy_min_tokens=200, clear_after_tokens=3_000)
    for size in (1, 5, 20, 60):
        bills = simulate.simulate(conversation(turns, size), policy)
        assert bills.bill_after <= 1.01 * bills.bill_before
        assert bills.rewritten == 0
    if provider == "none" or turns == 10:
        assert bills.tool_tokens_after < bills.tool_tokens_before


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("text", "no list of messages"),
        ({"messages": 3}, "no list of messages"),
        ([3], r"messages\[0\]: int is no message"),
        ([{"role": "king"}], r"messages\[0\]\.role: 'king' is not one of"),
    ],
)
def test_what_is_no_list_of_messages_is_said(data: object, said: str) -> None:
    with pytest.raises(NotMessages, match=said):
        openai_messages.messages_in(data)


def test_texts_in_lists_of_parts_are_found_and_put_back() -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}}]}]
    assert openai_messages.texts_of(messages) == [("messages[0].content[0].text", "a")]
    changed = openai_messages.with_texts(messages, {"messages[0].content[0].text": "b"})
    assert changed == [{"role": "user", "content": [{"type": "text", "text": "b"}, messages[0]["content"][1]]}]
