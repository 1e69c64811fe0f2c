"""What tokens cost: the operator's own prices, then genai-prices' bundled table.

Always holds: integer nano-dollars; a model that neither knows, or no model, is unpriced (None), never 0. Nothing is
fetched: the table is the one that was installed. A model is looked up once an hour at most, unknown ones included, and
lookups are bounded per second: a stream of made-up names costs no more than a known one.

`input_tokens` counts all input, what was read from or written to the provider's prefix cache included (OpenTelemetry's
GenAI conventions); where the parts are larger than the whole, the exporter counts them apart, and so are they here.

Deliberately not here: prices by request (web searches, images, audio) and by service tier: spans do not say.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

_PICO: Final = 1_000_000  # one dollar per million tokens is a million pico-dollars per token
_MEMO_S: Final = 3_600  # prices may depend on the time of day
_MEMO_MAX: Final = 4_096
_LOOKUPS_PER_S: Final = 20
_LOOKUPS_BURST: Final = 200
_KINDS: Final = ("input", "output", "cache_read", "cache_write")

# gen_ai.provider.name -> the id in genai-prices, where they differ.
_PROVIDERS: Final = {
    "aws.bedrock": "aws",
    "aws_bedrock": "aws",
    "az.ai.inference": "azure",
    "az.ai.openai": "azure",
    "azure.ai.inference": "azure",
    "azure.ai.openai": "azure",
    "gcp.gemini": "google",
    "gcp.gen_ai": "google",
    "gcp.vertex_ai": "google",
    "mistral_ai": "mistral",
    "vertex_ai": "google",
    "x_ai": "x-ai",
    "xai": "x-ai",
}


class Rate(NamedTuple):
    """Pico-dollars per token, by how many input tokens the request has: the last step whose `above` is exceeded."""

    base: int
    steps: tuple[tuple[int, int], ...] = ()  # (above, rate)

    def at(self, input_tokens: int) -> int:
        rate = self.base
        for above, step in self.steps:
            if input_tokens > above:
                rate = step
        return rate


class Rates(NamedTuple):
    """A model's prices. What has none of its own costs as input does."""

    input: Rate
    output: Rate
    cache_read: Rate
    cache_write: Rate


class Prices:
    """Prices by model. `overrides`: model -> {input_usd_per_mtok, output_.., cache_read_.., cache_write_..}."""

    def __init__(self, overrides: Mapping[str, Mapping[str, float]] | None = None):
        self._overrides = {model: _override(rates) for model, rates in (overrides or {}).items()}
        self._memo: dict[tuple[str, str], tuple[Rates | None, int]] = {}
        self._snapshot: Any = None
        self._lookups_left = float(_LOOKUPS_BURST)
        self._lookups_s = 0

    def load(self) -> None:
        """Loads the table: 0.3 s and 30 MB, so not before the first priced call, or in a thread at the start."""
        if self._snapshot is None:
            from genai_prices.data_snapshot import get_snapshot

            self._snapshot = get_snapshot()

    def cost_nano_usd(
        self,
        model: str,
        provider: str,
        input_tokens: int,
        output_tokens: int,
        cache_read_tokens: int,
        cache_write_tokens: int,
        now_s: int,
    ) -> int | None:
        """What these tokens cost; None: the model's price is not known."""
        known = self._memo.get((model, provider))
        if known is not None and now_s < known[1]:
            rates = known[0]
        else:
            rates = self._find(model, provider, now_s)
        if rates is None:
            return None
        fresh = input_tokens - cache_read_tokens - cache_write_tokens
        if fresh < 0:
            fresh = input_tokens
            input_tokens += cache_read_tokens + cache_write_tokens
        pico = fresh * rates.input.at(input_tokens) + output_tokens * rates.output.at(input_tokens)
        if cache_read_tokens:
            pico += cache_read_tokens * rates.cache_read.at(input_tokens)
        if cache_write_tokens:
            pico += cache_write_tokens * rates.cache_write.at(input_tokens)
        return (pico + 500) // 1_000

    def _find(self, model: str, provider: str, now_s: int) -> Rates | None:
        if not model:
            return None
        rates = self._overrides.get(model)
        if rates is None:
            if not self._may_look_up(now_s):
                return None
            rates = self._look_up(model, provider, now_s)
        if len(self._memo) >= _MEMO_MAX:
            self._memo.clear()
        self._memo[model, provider] = (rates, now_s + _MEMO_S)
        return rates

    def _may_look_up(self, now_s: int) -> bool:
        passed_s = max(0, now_s - self._lookups_s)
        self._lookups_left = min(_LOOKUPS_BURST, self._lookups_left + passed_s * _LOOKUPS_PER_S)
        self._lookups_s = now_s
        if self._lookups_left < 1:
            return False
        self._lookups_left -= 1
        return True

    def _look_up(self, model: str, provider: str, now_s: int) -> Rates | None:
        self.load()
        provider = provider.lower()
        for provider_id in dict.fromkeys((_PROVIDERS.get(provider, provider) or None, None)):
            try:
                _, found = self._snapshot.find_provider_model(model, None, provider_id, None)
            except LookupError:
                continue
            return _rates(found.get_prices(datetime.fromtimestamp(now_s, UTC)))
        return None


def _rates(price: Any) -> Rates | None:
    """genai-prices' `ModelPrice`; None where it has no price of tokens."""
    found = {kind: _rate(getattr(price, f"{kind}_mtok", None)) for kind in _KINDS}
    read, written = found["input"], found["output"]
    if read is None and written is None:
        return None
    read = read or Rate(0)
    return Rates(read, written or Rate(0), found["cache_read"] or read, found["cache_write"] or read)


def _rate(price: Any) -> Rate | None:
    if price is None:
        return None
    tiers = getattr(price, "tiers", None)
    if tiers is None:
        return Rate(round(price * _PICO))
    return Rate(round(price.base * _PICO), tuple((tier.start, round(tier.price * _PICO)) for tier in tiers))


def _override(given: Mapping[str, float]) -> Rates:
    rates = {
        kind: Rate(round(given[f"{kind}_usd_per_mtok"] * _PICO)) for kind in _KINDS if f"{kind}_usd_per_mtok" in given
    }
    read = rates.get("input", Rate(0))
    return Rates(read, rates.get("output", Rate(0)), rates.get("cache_read", read), rates.get("cache_write", read))
