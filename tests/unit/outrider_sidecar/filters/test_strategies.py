"""The registry of balancing strategies."""

from __future__ import annotations

import random

import pytest

from outrider.policy import STRATEGIES, Balancing
from outrider_sidecar.filters.strategies import FACTORIES, make_balancer


def test_every_strategy_of_the_policy_has_a_factory_and_no_other_has() -> None:
    assert set(FACTORIES) == set(STRATEGIES)
    assert len({type(make_balancer(Balancing(strategy=name), random.Random(1))) for name in STRATEGIES}) == 6


def test_an_unknown_strategy_is_named_with_the_choices() -> None:
    with pytest.raises(ValueError, match=r"'p2c' is unknown.*peak_ewma.*random"):
        make_balancer(Balancing(strategy="p2c"), random.Random(1))
