import random

import pytest
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased

from outrider_sidecar.engines.sampler import parse_sampler
from outrider_sidecar.engines.trace_context import new_ids

LOW = b"f" * 16 + b"0" * 15 + b"1"
HIGH = b"0" * 15 + b"1" + b"f" * 16


@pytest.mark.parametrize(
    ("name", "root", "unsampled_parent", "sampled_parent"),
    [
        ("always_on", 1, 1, 1),
        ("always_off", 0, 0, 0),
        ("parentbased_always_on", 1, 0, 1),
        ("parentbased_always_off", 0, 0, 1),
        ("", 1, 0, 1),
    ],
)
def test_fixed_samplers(name: str, root: int, unsampled_parent: int, sampled_parent: int):
    sampler = parse_sampler(name, "0.5")
    for trace_id in (LOW, HIGH):
        assert sampler.flags(None, trace_id) == root
        assert sampler.flags(0, trace_id) == unsampled_parent
        assert sampler.flags(1, trace_id) == sampled_parent


def test_other_flags_of_the_parent_stay():
    assert parse_sampler("always_on").flags(2, LOW) == 3
    assert parse_sampler("always_off").flags(3, LOW) == 2
    assert parse_sampler("parentbased_always_off").flags(3, LOW) == 3


def test_a_ratio_decides_by_the_low_half_of_the_trace_id():
    sampler = parse_sampler("traceidratio", "0.5")
    assert sampler.flags(None, LOW) == 1
    assert sampler.flags(None, HIGH) == 0
    assert sampler.flags(1, HIGH) == 0
    boundary = b"0" * 16 + b"8" + b"0" * 15
    assert sampler.flags(None, boundary) == 0
    assert sampler.flags(None, b"0" * 16 + b"7" + b"f" * 15) == 1


def test_a_parent_based_ratio_asks_the_parent_first():
    sampler = parse_sampler("parentbased_traceidratio", "0.25")
    assert sampler.flags(1, HIGH) == 1
    assert sampler.flags(0, LOW) == 0
    assert sampler.flags(None, HIGH) == 0


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.9, 1.0])
def test_the_share_taken_is_the_ratio(ratio: float):
    source = random.Random(3)
    sampler = parse_sampler("TraceIdRatio", str(ratio))
    taken = sum(sampler.flags(None, new_ids(source.getrandbits)[0]) for _ in range(20_000))
    assert taken / 20_000 == pytest.approx(ratio, abs=0.01)


def test_agrees_with_the_sdk():
    source = random.Random(5)
    theirs = TraceIdRatioBased(0.3)
    ours = parse_sampler("traceidratio", "0.3")
    for _ in range(500):
        trace_id = new_ids(source.getrandbits)[0]
        decision = theirs.should_sample(None, int(trace_id, 16), "call").decision
        assert bool(ours.flags(None, trace_id)) == decision.is_sampled()


@pytest.mark.parametrize(
    ("name", "argument", "says"),
    [
        ("jaeger_remote", "", "OTEL_TRACES_SAMPLER: 'jaeger_remote' is not known"),
        ("traceidratio", "half", "OTEL_TRACES_SAMPLER_ARG: 'half'"),
        ("traceidratio", "1.5", "OTEL_TRACES_SAMPLER_ARG"),
        ("parentbased_traceidratio", "nan", "OTEL_TRACES_SAMPLER_ARG"),
        ("traceidratio", "-0.1", "OTEL_TRACES_SAMPLER_ARG"),
    ],
)
def test_what_cannot_be_meant_is_refused(name: str, argument: str, says: str):
    with pytest.raises(ValueError, match=says):
        parse_sampler(name, argument)
