import random
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider_sidecar.core.span import CLIENT, Admission, Compression, Generation, Span
from outrider_sidecar.engines import series
from outrider_sidecar.engines.series import BOUNDS_US, EXPOSED_BOUNDS_S, OTHER, Series


def call(method: str = "/a.B/C", agent_id: str = "tax", total_us: int = 1_000, status: int = 0, **fields) -> Span:
    endpoint = fields.pop("endpoint", "h:1")
    return Span(b"1" * 32, b"2" * 16, b"", b"", 1, CLIENT, method, agent_id, endpoint, 1, total_us, status, **fields)


def families(counted: Series) -> dict[str, Any]:
    return {family.name: family for family in counted.families()}


def test_calls_are_counted_by_all_five_labels():
    counted = Series()
    counted.record(call(cache="hit", endpoint=""))
    counted.record(call(cache="miss"))
    counted.record(call(cache="miss"))
    counted.record(call(status=14))
    assert dict(families(counted)["outrider_calls"].samples) == {
        ("tax", "/a.B/C", "OK", "hit", ""): 1,
        ("tax", "/a.B/C", "OK", "miss", "h:1"): 2,
        ("tax", "/a.B/C", "UNAVAILABLE", "", "h:1"): 1,
    }


def test_histograms_merge_statuses_and_leave_hits_out_of_endpoints():
    counted = Series()
    counted.record(call(total_us=64, cache="hit", endpoint=""))
    counted.record(call(total_us=65, cache="miss", first_byte_us=60))
    counted.record(call(total_us=10**12, cache="miss", status=4))
    shown = families(counted)
    ((labels, counts, total),) = shown["outrider_endpoint_duration_seconds"].samples
    assert labels == ("tax", "h:1")
    assert (counts[0], counts[1], counts[-2], counts[-1]) == (0, 1, 1, 2)
    assert total == pytest.approx((65 + 10**12) / 1e6)
    by_method = {labels: counts for labels, counts, _ in shown["outrider_call_duration_seconds"].samples}
    assert by_method["tax", "/a.B/C", "hit"] == [1] * len(EXPOSED_BOUNDS_S)
    ((labels, counts, total),) = shown["outrider_first_byte_seconds"].samples
    assert labels == ("tax", "/a.B/C", "miss")
    assert counts == [1] * len(EXPOSED_BOUNDS_S)
    assert total == pytest.approx(60e-6)


def test_bytes_and_tokens_are_summed():
    counted = Series()
    counted.record(call(request_bytes=10, reply_bytes=3))
    generation = Generation("chat", "asked", "answered", "stop", 5, 6, 7, 8)
    counted.record(
        call(status=13, request_bytes=1, reply_bytes=1, generation=generation, compression=Compression(10, 1))
    )
    counted.record(call(compression=Compression(3, 1)))
    shown = families(counted)
    assert shown["outrider_request_bytes"].samples == [(("tax", "/a.B/C"), 11)]
    assert shown["outrider_reply_bytes"].samples == [(("tax", "/a.B/C"), 4)]
    assert dict(shown["outrider_tokens"].samples) == {
        ("tax", "answered", "input"): 5,
        ("tax", "answered", "output"): 6,
        ("tax", "answered", "cache_read"): 7,
        ("tax", "answered", "cache_write"): 8,
        ("tax", "answered", "saved"): 9,
        ("tax", "", "saved"): 2,
    }


def test_one_agents_methods_are_bounded_and_others_keep_theirs():
    counted = Series(max_methods=2)
    for number in range(5):
        counted.record(call(method=f"/a.B/M{number}"))
    counted.record(call(method="/a.B/M0"))
    counted.record(call(method="/a.B/M4", agent_id="law"))
    counted.record(call(method="/" + "x" * 1_000, agent_id="law"))
    assert {key[:2]: row.calls for key, row in counted.rows()} == {
        ("tax", "/a.B/M0"): 2,
        ("tax", "/a.B/M1"): 1,
        ("tax", OTHER): 3,
        ("law", "/a.B/M4"): 1,
        ("law", OTHER): 1,
    }


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 16), st.sampled_from(["hit", "miss"]))),
    st.integers(1, 8),
    st.integers(1, 4),
)
def test_rows_are_bounded_and_no_call_is_lost(calls: list[tuple[int, int, int, str]], max_rows: int, max_methods: int):
    counted = Series(max_rows, max_methods)
    for agent, method, status, cache in calls:
        counted.record(call(method=f"/{method}", agent_id=str(agent), status=status, cache=cache))
    rows = dict(counted.rows())
    assert len(rows) <= max_rows + 17
    assert sum(row.calls for row in rows.values()) == len(calls)
    assert all(sum(row.buckets.values()) == row.calls for row in rows.values())
    for status in range(17):
        assert sum(row.calls for key, row in rows.items() if key[2] == status) == sum(c[2] == status for c in calls)
    assert len(counted._methods) <= max_rows


def test_waits_are_counted_by_lane_and_steps_by_agent():
    counted = Series()
    for admission in (None, Admission(64, "low"), Admission(65, "low", ("cap_output",)), Admission(0, "high")):
        counted.record(call(admission=admission))
    counted.record(call(agent_id="law", admission=Admission(0, "normal", ("trim_context", "cap_output"))))
    shown = families(counted)
    ((labels, counts, total),) = shown["outrider_queue_seconds"].samples
    assert labels == ("tax", "low")
    assert (counts[0], counts[1], counts[-1], total) == (1, 2, 2, pytest.approx(129e-6))
    assert dict(shown["outrider_degraded"].samples) == {
        ("tax", "cap_output"): 1,
        ("law", "trim_context"): 1,
        ("law", "cap_output"): 1,
    }


def test_lanes_and_steps_of_too_many_agents_are_counted_together():
    counted = Series(max_rows=2)
    for number in range(5):
        counted.record(call(agent_id=str(number), admission=Admission(9, "low", ("cap_output",))))
    shown = families(counted)
    assert {labels: counts[-1] for labels, counts, _ in shown["outrider_queue_seconds"].samples} == {
        ("0", "low"): 1,
        ("1", "low"): 1,
        (OTHER, "low"): 3,
    }
    assert dict(shown["outrider_degraded"].samples)[OTHER, "cap_output"] == 3


def test_models_are_bounded():
    counted = Series(max_models=2)
    for number in range(5):
        counted.record(call(generation=Generation(model=f"m{number}", input_tokens=1)))
    assert dict(families(counted)["outrider_tokens"].samples) == {
        ("tax", "m0", "input"): 1,
        ("tax", "m1", "input"): 1,
        (OTHER, OTHER, "input"): 3,
    }


def test_bounds_grow_by_an_eighth_of_an_octave():
    assert (BOUNDS_US[0], BOUNDS_US[-1]) == (16, 2**32)
    assert all(1.0 < later / earlier < 1.14 for earlier, later in pairwise(BOUNDS_US))
    assert EXPOSED_BOUNDS_S[0] == "0.000064"
    assert EXPOSED_BOUNDS_S[14] == "1.048576"


@given(st.lists(st.integers(0, 2**33), min_size=1, max_size=50))
def test_exposed_counts_are_exact(durations_us: list[int]):
    counted = Series()
    for total_us in durations_us:
        counted.record(call(total_us=total_us))
    ((_, counts, total),) = families(counted)["outrider_call_duration_seconds"].samples
    for bound, count in zip(EXPOSED_BOUNDS_S, counts, strict=True):
        assert count == sum(total_us <= float(bound) * 1e6 + 1e-6 for total_us in durations_us)
    assert total == pytest.approx(sum(durations_us) / 1e6)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9, 0.99, 1.0])
def test_quantiles_are_within_the_stated_error(share: float):
    source = random.Random(11)
    counted = Series()
    durations_us = sorted(int(source.lognormvariate(9.0, 1.5)) + 100 for _ in range(5_000))
    for total_us in durations_us:
        counted.record(call(total_us=total_us))
    exact = durations_us[max(1, -int(-share * 5_000 // 1)) - 1]
    assert counted.quantile_us(share) == pytest.approx(exact, rel=0.045)
    assert counted.quantile_us(share, "tax") == counted.quantile_us(share)
    assert counted.quantile_us(share, "law") is None


def test_quantiles_at_both_ends_of_the_scale():
    assert series.quantile_us({0: 1}, 0.5) == 8
    assert series.quantile_us({len(BOUNDS_US): 1}, 0.5) == 2**32
    assert series.quantile_us({}, 0.5) is None
