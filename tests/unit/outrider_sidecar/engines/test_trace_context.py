import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider_sidecar.engines import trace_context

TRACE = b"4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = b"00f067aa0ba902b7"
HEX = st.text("0123456789abcdef")


def header(version: bytes = b"00", trace: bytes = TRACE, span: bytes = SPAN, flags: bytes = b"01") -> bytes:
    return b"-".join((version, trace, span, flags))


@pytest.mark.parametrize("flags", [0, 1, 2, 3, 0xFF])
def test_parse_gives_ids_and_all_flags(flags: int):
    assert trace_context.parse(header(flags=b"%02x" % flags)) == (TRACE, SPAN, flags)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"00",
        header(version=b"ff"),
        header(version=b"0"),
        header(version=b"0g"),
        header(trace=b"0" * 32),
        header(trace=TRACE.upper()),
        header(trace=TRACE[:-1]),
        header(trace=TRACE[:-1] + b"g"),
        header(span=b"0" * 16),
        header(span=SPAN.upper()),
        header(span=SPAN[:-1] + b" "),
        header(flags=b"1"),
        header(flags=b"0x"),
        header(flags=b"-1"),
        header() + b"-",
        header() + b"-extra",
        header() + b"0",
        header() + b" ",
        b" " + header(),
        header().replace(b"-", b"_"),
        header()[:2] + header()[3:36] + b"-" + header()[36:],  # the first dash too late
        header(version=b"01") + b"0",  # a later version may only append "-..."
        header(version=b"ff") + b"-extra",
        header(version=b"01", trace=b"0" * 32) + b"-extra",
        header(version=b"01", trace=TRACE.upper()) + b"-extra",
        header(version=b"01", flags=b"0x") + b"-extra",
    ],
)
def test_parse_refuses(value: bytes):
    assert trace_context.parse(value) is None


@pytest.mark.parametrize("value", [header(version=b"01"), header(version=b"cc") + b"-what-the-future-will-be like"])
def test_parse_reads_the_shared_part_of_later_versions(value: bytes):
    assert trace_context.parse(value) == (TRACE, SPAN, 1)


_FIRST_VERSION = re.compile(rb"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_LATER = re.compile(rb"(?!00|ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)
_NEAR_MISS = st.builds(
    lambda value, at, char: value[: at % len(value)] + char + value[at % len(value) + 1 :],
    st.sampled_from([header(), header(version=b"01"), header(version=b"01") + b"-x"]),
    st.integers(0, 60),
    st.sampled_from([b"", b"-", b"0", b"f", b"F", b"g", b"--", b"\xff"]),
)


@given(st.one_of(st.binary(max_size=60), _NEAR_MISS))
def test_parse_agrees_with_the_grammar(value: bytes):
    match = _FIRST_VERSION.fullmatch(value) or _LATER.fullmatch(value)
    expected = None
    if match and match[1].strip(b"0") and match[2].strip(b"0"):
        expected = (match[1], match[2], int(match[3], 16))
    assert trace_context.parse(value) == expected


@given(st.integers(0, 255), st.randoms(use_true_random=False))
def test_what_is_built_parses_and_carries_only_known_flags(flags: int, source: random.Random):
    trace_id, span_id = trace_context.new_ids(source.getrandbits)
    value = trace_context.build(trace_id, span_id, flags)
    assert trace_context.parse(value) == (trace_id, span_id, flags & 3)


def test_ids_follow_the_random_source_and_are_never_zero():
    first, second = (random.Random(7).getrandbits for _ in range(2))
    assert trace_context.new_ids(first) == trace_context.new_ids(second)
    assert trace_context.new_span_id(first) == trace_context.new_span_id(second)
    assert trace_context.new_span_id(first) != trace_context.new_span_id(first)
    assert trace_context.new_ids(first) != trace_context.new_ids(first)
    assert trace_context.new_ids(lambda bits: 0) == (b"0" * 31 + b"1", b"0" * 15 + b"1")
    assert trace_context.new_span_id(lambda bits: 0) == b"0" * 15 + b"1"


def test_tracestate_passes_byte_for_byte_and_joins_headers():
    assert trace_context.tracestate([]) == b""
    assert trace_context.tracestate([b"a=1, b=2 ,c=3"]) == b"a=1, b=2 ,c=3"
    assert trace_context.tracestate([b"a=1", b"b=2"]) == b"a=1,b=2"


@pytest.mark.parametrize("value", [b"a=\x00", b"a=\n1", b"a=\xc3\xa9", b",".join(b"k%d=1" % n for n in range(33))])
def test_tracestate_that_is_not_valid_is_dropped(value: bytes):
    assert trace_context.tracestate([value]) == b""


def test_empty_members_do_not_count_towards_the_32():
    value = b",".join([b"k%d=1" % n for n in range(30)] + [b""] * 10)
    assert trace_context.tracestate([value]) == b",".join(b"k%d=1" % n for n in range(30))


def test_too_long_tracestate_loses_long_members_first_then_the_last():
    long = b"long=" + b"x" * 200
    short = [b"k%02d=" % n + b"y" * 60 for n in range(7)]
    assert trace_context.tracestate([b",".join([long, *short])]) == b",".join(short)
    short = [b"k%02d=" % n + b"y" * 60 for n in range(12)]
    assert trace_context.tracestate([b",".join([short[0], long, *short[1:]])]) == b",".join(short[:7])


@given(st.lists(st.binary(max_size=700), max_size=4))
def test_tracestate_is_bounded_and_printable(values: list[bytes]):
    value = trace_context.tracestate(values)
    assert len(value) <= 512
    assert re.fullmatch(rb"[\x20-\x7e\t]*", value)
