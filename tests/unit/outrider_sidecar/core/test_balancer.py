"""The slow-start ramp and the avoid rule all strategies share."""

from __future__ import annotations

import pytest

from outrider_sidecar.core.balancer import SLOW_START_FLOOR, ramp_end, spared, warm_share
from outrider_sidecar.core.endpoint import Endpoint

NOW = 1_000.0


@pytest.mark.parametrize(
    ("age_s", "share"),
    [
        (-30.0, SLOW_START_FLOOR),
        (0.0, SLOW_START_FLOOR),
        (0.5, SLOW_START_FLOOR),
        (2.5, 0.25),
        (9.9, 0.99),
        (10.0, 1.0),
    ],
)
def test_the_ramp_is_linear_from_its_floor(age_s: float, share: float) -> None:
    assert warm_share(Endpoint("a:1", now=NOW - age_s), NOW, 10.0) == pytest.approx(share)


@pytest.mark.parametrize("age_s", [-5.0, 0.0, 5.0])
def test_no_ramp_means_full_traffic_at_once(age_s: float) -> None:
    assert warm_share(Endpoint("a:1", now=NOW - age_s), NOW, 0.0) == 1.0


def test_the_ramp_ends_with_the_youngest_endpoint() -> None:
    endpoints = [Endpoint("a:1", now=NOW), Endpoint("b:1", now=NOW + 3)]
    assert ramp_end(endpoints, 10.0) == NOW + 13
    assert ramp_end([], 10.0) < 0.0
    assert ramp_end(endpoints, 0.0) < 0.0


def test_spared_leaves_out_what_was_tried_unless_that_is_everything() -> None:
    first, second = endpoints = [Endpoint("a:1"), Endpoint("b:1")]
    assert spared(endpoints, (first,)) == [second]
    assert spared(endpoints, ()) == endpoints
    assert spared(endpoints, endpoints) == endpoints
