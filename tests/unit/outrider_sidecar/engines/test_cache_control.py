from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider_sidecar.engines import cache_control
from outrider_sidecar.engines.cache_control import DEFAULT, CacheControl, parse


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, DEFAULT),
        (b"", DEFAULT),
        (b"no-cache", CacheControl(no_cache=True)),
        (b"No-Store", CacheControl(no_store=True)),
        (b"no-cache, no-store", CacheControl(True, True)),
        (b"max-age=60", CacheControl(max_age_s=60.0)),
        (b' max-age = "60" ,no-cache', CacheControl(True, False, 60.0)),
        (b"max-age=60, max-age=10", CacheControl(max_age_s=10.0)),
        (b"max-age=0", CacheControl(max_age_s=0.0)),
        (b"max-age=soon", CacheControl(max_age_s=0.0)),
        (b"max-age=-1", CacheControl(max_age_s=0.0)),
        (b"max-age", CacheControl(max_age_s=0.0)),
        (b"max-age=99999999999999999999999", CacheControl(max_age_s=float(1 << 31))),
        (b"only-if-cached, max-stale=3, private", DEFAULT),
        (b",,;", DEFAULT),
        (b"x" * 2_000, CacheControl(True, True)),
    ],
)
def test_directives(value: bytes | None, expected: CacheControl):
    assert parse(value) == expected
    assert parse(value) == expected


@given(st.binary(max_size=64))
def test_nothing_makes_it_fail(value: bytes):
    control = parse(value)
    assert control.max_age_s is None or control.max_age_s >= 0.0


def test_the_memo_is_bounded():
    for number in range(1_000):
        assert parse(b"max-age=%d" % number).max_age_s == number
    assert len(cache_control._memo) <= 256
