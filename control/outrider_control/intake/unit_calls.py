"""Calls of units of splits, of spans: what experiments and rollouts are decided on.

Always holds: only the hop beside the caller says it, for it alone divides; a call that its caller cancelled, and one of
nobody, says nothing of a unit. What a call came to is read from its own span, also where an ingress counts it in the
figures; tokens and costs that nobody told are None, never 0. Attributes are looked for only where an experiment's
metric is one, and only the numbers among them count.

Deliberately not here: sums (`core.unit_sums`), the store (`ledger`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from outrider_control.core.sample import Sample
from outrider_control.core.unit_sums import UnitCall
from outrider_control.intake.hop import CLIENT
from outrider_control.intake.otlp import (
    CACHE_READ_TOKENS,
    CACHE_WRITE_TOKENS,
    DETACHED,
    FIRST_BYTE_US,
    FIRST_CHUNK_S,
    INPUT_TOKENS,
    OUTPUT_TOKENS,
    PROVIDER,
    REQUEST_MODEL,
    RESPONSE_MODEL,
    UNIT,
    VARIANT,
    SpanFields,
)
from outrider_control.intake.prices import Prices
from outrider_control.intake.samples import FROM_CACHE, first_chunk_us, reported
from outrider_control.intake.wire import fields, key_value

_MAX_SPLITS: Final = 8  # of one call
_ATTRIBUTE: Final = 9  # field of a Span
_NONE: Final[Mapping[str, float]] = {}


class UnitCalls:
    """`wanted`: the names of attributes that are metrics now."""

    __slots__ = ("_prices", "_wanted")

    def __init__(self, prices: Prices) -> None:
        self._prices = prices
        self._wanted: frozenset[bytes] = frozenset()

    def want(self, names: Iterable[str]) -> None:
        """The attributes that are metrics from now on."""
        self._wanted = frozenset([name.encode() for name in names])

    def of(self, data: bytes, read: SpanFields, sample: Sample, now_ms: int) -> Sequence[UnitCall]:
        """What a span of ours with a unit says; `data` are its bytes."""
        values = read.values
        units = values[UNIT]
        if type(units) is not str or read.kind != CLIENT or sample.cancelled or values[DETACHED]:
            return ()
        variants = dict(_pairs(values[VARIANT]))
        attributes = self._attributes(data) if self._wanted else _NONE
        first_us = values[FIRST_BYTE_US]
        first_us = reported(first_us) if first_us is not None else first_chunk_us(values[FIRST_CHUNK_S])
        tokens, cost = self._spent(values, sample, now_ms)
        return [
            UnitCall(
                split,
                unit,
                variants.get(split, ""),
                sample.failed,
                sample.total_us,
                first_us,
                cost,
                tokens,
                attributes,
            )
            for split, unit in _pairs(units)
        ]

    def _spent(self, values: Sequence[Any], sample: Sample, now_ms: int) -> tuple[int | None, int | None]:
        """Tokens and what they cost, in billionths of a dollar; a reply from the cache costs nothing."""
        if sample.cache in FROM_CACHE:
            return 0, 0
        if values[INPUT_TOKENS] is None and values[OUTPUT_TOKENS] is None:
            return None, None
        given, made = reported(values[INPUT_TOKENS]), reported(values[OUTPUT_TOKENS])
        model, asked, provider = values[RESPONSE_MODEL], values[REQUEST_MODEL], values[PROVIDER]
        cost = self._prices.cost_nano_usd(
            model if type(model) is str and model else asked if type(asked) is str else "",
            provider if type(provider) is str else "",
            given,
            made,
            reported(values[CACHE_READ_TOKENS]),
            reported(values[CACHE_WRITE_TOKENS]),
            now_ms // 1_000,
        )
        return given + made, cost

    def _attributes(self, data: bytes) -> Mapping[str, float]:
        found: dict[str, float] = {}
        for number, wire, content in fields(data):
            if number != _ATTRIBUTE or wire != 2:
                continue
            key, value = key_value(content)
            if key in self._wanted and isinstance(value, int | float) and not isinstance(value, bool):
                found[key.decode()] = float(value)
        return found


def _pairs(text: object) -> list[tuple[str, str]]:
    if type(text) is not str:
        return []
    found = [pair.partition("=") for pair in text.split(",", _MAX_SPLITS)[:_MAX_SPLITS]]
    return [(name, value) for name, _, value in found if name and value and len(name) <= 256 and len(value) <= 256]
