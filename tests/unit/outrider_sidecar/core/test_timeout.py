"""`grpc-timeout` upstream: never zero, never more than is left, at most eight digits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider_http2.hpack import Decoder
from outrider_sidecar.core.timeout import timeout_literal
from outrider_sidecar.filters.deadline import parse_timeout_s


@pytest.mark.parametrize(
    ("left_us", "said"),
    [
        (-5, b"1u"),
        (0, b"1u"),
        (99_999_999, b"99999999u"),
        (100_000_000, b"100000m"),
        (99_999_999_999, b"99999999m"),
        (100_000_000_000, b"100000S"),
        (10**15, b"99999999S"),
    ],
)
def test_what_is_said(left_us: int, said: bytes) -> None:
    assert Decoder().decode(timeout_literal(left_us)) == ((b"grpc-timeout", said),)


@given(st.integers(1, 10**13))
def test_it_is_read_back_as_no_more_than_is_left(left_us: int) -> None:
    ((_, said),) = Decoder().decode(timeout_literal(left_us))
    read_s = parse_timeout_s(said)
    assert read_s is not None
    assert left_us / 1e6 * 0.999 - 1e-6 <= read_s <= left_us / 1e6 + 1e-9
