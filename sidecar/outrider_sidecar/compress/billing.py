"""What prompts cost under a provider's rules of prefix caching, turn by turn.

Always holds: pure arithmetic over token counts; a prompt is a list of blocks (hash, tokens), and only a prefix of
blocks that is the same byte for byte is read from a cache. Prices are relative to the uncached input token, which
costs 1, unless a policy gives them in dollars.

Rules (as the providers document them, 2026-11): Anthropic reads at 0.1, writes at 1.25 (kept for 5 minutes), from a
minimum of 1,024 tokens on, where a breakpoint stands: callers are taken to have one at the end of every prompt, and a
prefix is found up to 20 blocks before a breakpoint. OpenAI reads at 0.1 without being asked, in steps of 128 tokens,
from 1,024 tokens on; writing costs nothing more.

Deliberately not here: counting (`tokens`), what to do about it (`controller`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from outrider.policy import Compression

Blocks = Sequence[tuple[bytes, int]]  # (hash, tokens), oldest first

_LOOKBACK_BLOCKS: Final = 20
_OUTPUT: Final = 5.0  # times the input, where a policy says nothing


@dataclass(frozen=True, slots=True)
class Rules:
    """A provider's rules. Prices are per token, relative or in any currency."""

    provider: str  # of policy.PROVIDERS, never empty
    input: float = 1.0
    read: float = 1.0  # of a token that is read from the cache
    write: float = 1.0  # of a token that is not
    output: float = _OUTPUT
    min_prefix: int = 0  # tokens from which on a prefix is cached; 0: none is
    step: int = 1  # what is read is a multiple of it
    lookback: int = 0  # blocks before the end among which a written prefix is found; 0: any

    @property
    def caches(self) -> bool:
        return self.min_prefix > 0


_RULES: Final = {
    "anthropic": Rules("anthropic", read=0.1, write=1.25, min_prefix=1_024, lookback=_LOOKBACK_BLOCKS),
    "openai": Rules("openai", read=0.1, min_prefix=1_024, step=128),
    "none": Rules("none"),
}


def provider_of(model: str) -> str:
    """Whose rules a model's calls are billed by, as its name says; "none" where it does not."""
    name = model.rpartition("/")[2].lower()
    if "claude" in name:
        return "anthropic"
    if name.startswith(("gpt-", "o1", "o3", "o4", "chatgpt-")):
        return "openai"
    return "none"


def rules_of(policy: Compression, model: str = "") -> Rules:
    """The rules for calls of one agent; what the policy leaves at 0 is the provider's ratio to the input's price."""
    usual = _RULES[policy.provider or provider_of(model or policy.model)]
    price = policy.input_usd or 1.0
    return Rules(
        usual.provider,
        price,
        policy.cache_read_usd or usual.read * price,
        policy.cache_write_usd or usual.write * price,
        policy.output_usd or usual.output * price,
        usual.min_prefix,
        usual.step,
        usual.lookback,
    )


@dataclass(slots=True)
class Bill:
    """The input of some turns."""

    cost: float = 0.0
    tokens: int = 0
    read_tokens: int = 0
    turns: int = 0

    @property
    def cached_share(self) -> float:
        """Of all tokens, those read from the cache."""
        return self.read_tokens / self.tokens if self.tokens else 0.0


class Meter:
    """One conversation's prompts, in order. The cache holds what earlier prompts have written, while it is a prefix."""

    __slots__ = ("_ends", "_last", "_rules", "bill")

    def __init__(self, rules: Rules):
        self._rules = rules
        self._last: Blocks = ()
        self._ends: list[int] = []  # numbers of blocks of `_last` at which a prefix was written, rising
        self.bill = Bill()

    def turn(self, prompt: Blocks) -> float:
        """What this prompt costs."""
        rules = self._rules
        total = sum([tokens for _, tokens in prompt])
        same = self._same(prompt)
        read = self._read(prompt, same)
        uncached = rules.input
        self._ends = [end for end in self._ends if end <= same]
        if rules.caches and total >= rules.min_prefix:
            uncached = rules.write
            if not self._ends or self._ends[-1] < len(prompt):
                self._ends.append(len(prompt))
        self._last = tuple(prompt)
        cost = read * rules.read + (total - read) * uncached
        bill = self.bill
        bill.cost += cost
        bill.tokens += total
        bill.read_tokens += read
        bill.turns += 1
        return cost

    def _same(self, prompt: Blocks) -> int:
        """How many blocks are those of the last prompt."""
        same = 0
        for one, other in zip(self._last, prompt, strict=False):
            if one[0] != other[0]:
                break
            same += 1
        return same

    def _read(self, prompt: Blocks, same: int) -> int:
        rules = self._rules
        if not rules.caches or not self._ends:
            return 0
        if rules.lookback:
            # A prefix is found where one was written, and not too far before the end.
            found = [end for end in self._ends if end <= same and len(prompt) - end <= rules.lookback]
            same = found[-1] if found else 0
        tokens = sum([count for _, count in prompt[:same]])
        return tokens - tokens % rules.step if tokens >= rules.min_prefix else 0
