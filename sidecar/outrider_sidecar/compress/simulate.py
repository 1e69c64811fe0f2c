"""What a whole conversation costs, turn by turn, with compression and without.

Every message of the assistant is one call, whose prompt is everything before it. The planner that decides is the one
that runs in the sidecar, with a ledger of its own; outputs are the same on both sides, so inputs are billed alone.

Always holds: pure; a prompt that rewrites what was sent before is counted in `rewritten`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from outrider.policy import Compression
from outrider_sidecar.compress import openai_messages
from outrider_sidecar.compress.billing import Meter, rules_of
from outrider_sidecar.compress.block import ASSISTANT, TOOL, digest_of
from outrider_sidecar.compress.controller import Controller
from outrider_sidecar.compress.conversation import Part, Planner
from outrider_sidecar.compress.ledger import Ledger, Memo
from outrider_sidecar.compress.tokens import Count, estimate


@dataclass(frozen=True, slots=True)
class Turn:
    """One call of a conversation."""

    message: int  # the assistant's, whose prompt it is
    tokens_before: int
    tokens_after: int
    cost_before: float
    cost_after: float
    epoch: bool


@dataclass(slots=True)
class Bills:
    """A conversation with and without; costs in tokens' worth of uncached input, or dollars where the policy has
    prices."""

    bill_before: float = 0.0
    bill_after: float = 0.0
    cached_share_before: float = 0.0
    cached_share_after: float = 0.0
    tool_tokens_before: int = 0  # of tool results, in all prompts together
    tool_tokens_after: int = 0
    rewritten: int = 0  # prompts whose earlier part was not as it had been sent, but for epochs
    turns: list[Turn] = field(default_factory=list)


def simulate(
    messages: Sequence[Mapping[str, Any]],
    policy: Compression,
    count: Count = estimate,
    model: str = "",
    deciding: Count | None = None,
) -> Bills:
    """The bills of one conversation in OpenAI's form. `deciding`: what the planner counts with, if not what bills."""
    rules = rules_of(policy, model)
    planner = Planner(policy, Controller(rules), Ledger(), Memo(), deciding or count)
    parts = openai_messages.parts_of(messages, policy.deny_tools)
    places = [int(part.path[len("messages[") : part.path.index("]")]) for part in parts]
    raw = [(digest_of(part.block.text), count(part.block.text)) for part in parts]
    tokens: dict[bytes, int] = dict(raw)
    before, after = Meter(rules), Meter(rules)
    bills, last = Bills(), []
    for at, message in enumerate(messages):
        if message["role"] != ASSISTANT:
            continue
        size = sum([place < at for place in places])
        if not size:
            continue
        plan = planner.plan(parts[:size], 0.0, b"", True, len(bills.turns))
        sent = []
        for one in plan.sent:
            if one.text is None:
                continue
            digest = digest_of(one.text)
            if digest not in tokens:
                tokens[digest] = count(one.text)
            sent.append((digest, tokens[digest]))
            if one.part.block.role == TOOL:
                bills.tool_tokens_after += tokens[digest]
        bills.tool_tokens_before += _tool_tokens(parts[:size], raw)
        bills.rewritten += not plan.epoch and [one[0] for one in sent[: len(last)]] != last
        last = [one[0] for one in sent]
        bills.turns.append(
            Turn(
                at,
                sum([one[1] for one in raw[:size]]),
                sum([one[1] for one in sent]),
                before.turn(raw[:size]),
                after.turn(sent),
                plan.epoch,
            )
        )
    bills.bill_before, bills.bill_after = before.bill.cost, after.bill.cost
    bills.cached_share_before, bills.cached_share_after = before.bill.cached_share, after.bill.cached_share
    return bills


def _tool_tokens(parts: Sequence[Part], raw: Sequence[tuple[bytes, int]]) -> int:
    return sum([tokens for part, (_, tokens) in zip(parts, raw, strict=False) if part.block.role == TOOL])
