"""Runs of calls: what was written is found, whatever is looked for, and nothing else is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider_control.core import call_record
from outrider_control.core.call_record import CallRecord

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=12)
CALLS = st.lists(
    st.builds(
        CallRecord,
        # Few different bytes, so that ids are found across records too.
        call_id=st.binary(min_size=8, max_size=8) | st.sampled_from([b"aaaaaaaa", b"aaaaaaab", b"baaaaaaa"]),
        trace_id=st.binary(min_size=16, max_size=16) | st.sampled_from([b"a" * 16, b"b" * 16]),
        at_ms=st.integers(0, 2**53),
        rank=st.integers(0, 1),
        agent_id=TEXT,
        variant=TEXT,
        tenant=TEXT,
        units=TEXT,
    ),
    max_size=30,
)


@given(CALLS, st.data())
def test_what_was_written_is_found(calls: list[CallRecord], data: st.DataObject) -> None:
    run = call_record.encode(calls)
    assert list(call_record.decode(run)) == calls
    assert call_record.count(run) == len(calls)
    others = st.sets(st.binary(min_size=8, max_size=8) | st.just(b"aaaaaaaa"), max_size=12)
    ids = data.draw(others) | {call.call_id for call in calls[: data.draw(st.integers(0, 30))]}
    found = sorted(call_record.find_calls(run, ids))
    assert found == sorted([call for call in calls if call.call_id in ids])
    traces = {call.trace_id for call in calls[::2]} | {b"a" * 16}
    assert sorted(call_record.find_traces(run, traces)) == sorted([one for one in calls if one.trace_id in traces])


def test_texts_that_are_too_long_lose_all_but_the_agent() -> None:
    call = CallRecord(b"c" * 8, b"t" * 16, 1, 0, "agent", "v" * 5_000, "tenant", "u")
    assert list(call_record.decode(call_record.encode([call]))) == [call._replace(variant="", tenant="", units="")]
    nul = call._replace(variant="a\0b")
    assert next(call_record.decode(call_record.encode([nul]))).variant == ""


@pytest.mark.parametrize("run", [b"", b"\x02", b"\x01\x01", b"\x01\x05\x00\x00\x00abc"])
def test_other_bytes_are_refused(run: bytes) -> None:
    with pytest.raises(ValueError, match="run of calls"):
        call_record.count(run)


def test_the_first_of_a_trace_is_beside_the_caller_and_the_earliest() -> None:
    late = CallRecord(b"a" * 8, b"t" * 16, 9, call_record.CALLER, "x", "", "", "")
    early, other = late._replace(at_ms=5, call_id=b"z" * 8), late._replace(at_ms=1, rank=call_record.OTHER_HOP)
    assert min([late, other, early], key=lambda call: call.order) == early
