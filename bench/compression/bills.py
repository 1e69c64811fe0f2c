"""What whole conversations cost with compression and without, turn by turn, under the providers' caching rules.

Always holds: exact counts bill; what decides counts as it does in a sidecar, exactly or by the estimate. Every
conversation is billed as it is and with its system prompt made longer and shorter, since minimum prefixes and steps of
128 tokens make a bill jump.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from outrider.policy import Compression
from outrider_sidecar.compress import simulate, tokens
from outrider_sidecar.compress.tokens import Count

PROVIDERS = ("anthropic", "openai", "none")
MODES = ("lossless", "lossy")
_SHORT = 2_000  # characters of a system prompt that is cut


def rows(conversations: Sequence[list[dict[str, Any]]], seed: int, count: Count) -> list[dict[str, Any]]:
    """One per provider, mode and way of counting. `worst`: the highest bill of one conversation, of its bill without
    us; `above`: conversations more than 1 % above it; `rewritten`: prompts whose earlier part changed."""
    counted = lru_cache(maxsize=100_000)(count)
    found = []
    for provider in PROVIDERS:
        for mode in MODES:
            for name, deciding in (("exact", None), ("estimate", tokens.estimate)):
                policy = Compression(provider=provider, mode=mode, lossy_min_tokens=200)
                found.append(
                    {"provider": provider, "mode": mode, "decided by": name}
                    | _billed(conversations, policy, counted, deciding, random.Random(seed))
                )
    return found


def _billed(
    conversations: Sequence[list[dict[str, Any]]],
    policy: Compression,
    count: Count,
    deciding: Count | None,
    rng: random.Random,
) -> dict[str, Any]:
    before = after = 0.0
    tools_before = tools_after = rewritten = 0
    ratios = []
    for messages in conversations:
        for at, one in enumerate((messages, *_padded(messages, rng))):
            bills = simulate.simulate(one, policy, count, deciding=deciding)
            ratios.append(bills.bill_after / bills.bill_before)
            rewritten += bills.rewritten
            if at == 0:
                before, after = before + bills.bill_before, after + bills.bill_after
                tools_before += bills.tool_tokens_before
                tools_after += bills.tool_tokens_after
    return {
        "saved": 1 - after / before,
        "tool_tokens_saved": 1 - tools_after / tools_before,
        "worst": max(ratios),
        "above": sum([ratio > 1.01 for ratio in ratios]),
        "billed": len(ratios),
        "rewritten": rewritten,
    }


def _padded(messages: list[dict[str, Any]], rng: random.Random) -> list[list[dict[str, Any]]]:
    first = messages[0]
    longer = {**first, "content": first["content"] + " the" * rng.randrange(128)}
    shorter = {**first, "content": first["content"][:_SHORT]}
    return [[longer, *messages[1:]], [shorter, *messages[1:]]]
