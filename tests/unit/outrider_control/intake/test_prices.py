"""Prices: the operator's, the table's, or none."""

from __future__ import annotations

from decimal import Decimal

import pytest
from genai_prices import Usage, calc_price
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider_control.intake.prices import Prices

NOW_S = 1_763_800_000


def cost(prices: Prices, model: str, *tokens: int, provider: str = "") -> int | None:
    return prices.cost_nano_usd(model, provider, *(tokens + (0,) * (4 - len(tokens))), now_s=NOW_S)


def test_the_operator_s_price_goes_first():
    own = {"input_usd_per_mtok": 10, "output_usd_per_mtok": 20.5, "cache_read_usd_per_mtok": 1}
    prices = Prices({"gpt-4o": own})
    assert cost(prices, "gpt-4o", 1_000, 100) == 10_000_000 + 2_050_000
    assert cost(prices, "gpt-4o", 1_000, 0, 400) == 6_000_000 + 400_000
    assert cost(prices, "gpt-4o", 1_000, 0, 0, 400) == 10_000_000  # written at the price of input
    assert Prices({})._look_up("gpt-4o", "", NOW_S) is not None


@pytest.mark.parametrize("model", ["", "no such model of anybody"])
def test_unknown_is_none_and_never_zero(model: str):
    assert cost(Prices(), model, 1_000, 1_000) is None


@given(
    st.sampled_from(("gpt-4o", "claude-sonnet-4-5", "gemini-2.5-pro")),
    st.integers(1, 400_000), st.integers(0, 50_000), st.integers(0, 400_000), st.integers(0, 400_000),
)  # fmt: skip
@settings(max_examples=60)
def test_costs_agree_with_the_library(model: str, given_input: int, output: int, read: int, write: int):
    read = min(read, given_input)
    write = min(write, given_input - read)
    usage = Usage(input_tokens=given_input, output_tokens=output, cache_read_tokens=read, cache_write_tokens=write)
    try:
        wanted = calc_price(usage, model).total_price
    except ValueError:  # the library asks for cached kinds it has a price for
        return
    found = cost(PRICES, model, given_input, output, read, write)
    assert found is not None
    assert abs(Decimal(found) - wanted * 10**9) <= 1


PRICES = Prices()


def test_cached_parts_that_exceed_the_whole_were_counted_apart():
    prices = Prices({"m": {"input_usd_per_mtok": 1, "cache_read_usd_per_mtok": 0.1}})
    assert cost(prices, "m", 100, 0, 1_000) == 100_000 + 100_000


def test_provider_names_of_the_conventions_are_understood():
    assert cost(Prices(), "claude-sonnet-4-5", 1_000, 0, provider="gcp.vertex_ai") is not None
    assert cost(Prices(), "gpt-4o", 1_000, 0, provider="a house of our own") is not None


def test_made_up_names_cost_a_bounded_number_of_lookups(monkeypatch: pytest.MonkeyPatch):
    prices = Prices()
    asked: list[str] = []
    monkeypatch.setattr(prices, "_look_up", lambda model, provider, now_s: asked.append(model))
    for number in range(5_000):
        assert cost(prices, f"model {number}", 1, 1) is None
    assert len(asked) == 200
    for _ in range(10):
        cost(prices, "model 1", 1, 1)
    assert len(asked) == 200
    prices.cost_nano_usd("late", "", 1, 1, 0, 0, NOW_S + 1)
    assert asked[-1] == "late"
