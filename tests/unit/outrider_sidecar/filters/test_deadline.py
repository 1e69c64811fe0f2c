"""Deadlines: whose counts, and what a bad one meets."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider_sidecar.core import errors
from outrider_sidecar.filters.deadline import parse_timeout_s
from tests.wire import Wire, agent, message

ASK = message(b"ask")


@pytest.mark.parametrize(
    ("raw", "seconds"),
    [
        (b"1H", 3600.0),
        (b"2M", 120.0),
        (b"3S", 3.0),
        (b"4m", 0.004),
        (b"5u", 5e-6),
        (b"6n", 6e-9),
        (b"0S", 0.0),
        (b"00000001S", 1.0),
        (b"99999999H", 10 * 366 * 86_400.0),
        (b"", None),
        (b"S", None),
        (b"1", None),
        (b"1s", None),
        (b"-1S", None),
        (b"+1S", None),
        (b" 1S", None),
        (b"1.5S", None),
        (b"1_0S", None),
        (b"123456789S", None),
    ],
)
def test_timeouts_as_grpc_writes_them(raw: bytes, seconds: float | None) -> None:
    assert parse_timeout_s(raw) == (pytest.approx(seconds) if seconds is not None else None)


@given(st.binary(max_size=12))
def test_any_bytes_are_a_timeout_or_none(raw: bytes) -> None:
    seconds = parse_timeout_s(raw)
    assert seconds is None or 0.0 <= seconds <= 10 * 366 * 86_400.0


@pytest.mark.parametrize(
    ("policy", "timeout", "ends_s"),
    [
        ({}, "", None),
        ({}, "100m", 0.1),
        ({"timeout_ms": 200}, "", 0.2),
        ({"timeout_ms": 200}, "500m", 0.5),
        ({"max_timeout_ms": 300}, "", 0.3),
        ({"max_timeout_ms": 300}, "500m", 0.3),
        ({"max_timeout_ms": 300}, "100m", 0.1),
        ({"timeout_ms": 500, "max_timeout_ms": 300}, "", 0.3),
    ],
)
def test_the_callers_deadline_within_the_policys_ceiling(
    policy: dict[str, Any], timeout: str, ends_s: float | None
) -> None:
    wire = Wire(agent(**policy))
    caller = wire.call(*([("grpc-timeout", timeout)] if timeout else []), body=ASK)
    upstream = wire.link().served[0].value("grpc-timeout")
    if ends_s is None:
        assert upstream == ""
        wire.pass_s(3_600)
        assert caller.status is None
        caller.cancel()
    else:
        assert upstream == f"{round(ends_s * 1e6)}u" or upstream == f"{round(ends_s * 1e6) - 1}u"
        wire.pass_s(ends_s - 0.01)
        assert caller.status is None
        wire.pass_s(0.03)
        assert caller.status == errors.DEADLINE_EXCEEDED
    wire.assert_clean()


@pytest.mark.parametrize("timeout", ["0S", "0n", "00000000H"])
def test_a_deadline_of_nothing_is_over_at_once(timeout: str) -> None:
    wire = Wire(agent())
    caller = wire.call(("grpc-timeout", timeout), body=ASK)
    assert caller.status == errors.DEADLINE_EXCEEDED
    assert wire.served == []
    wire.assert_clean()


def test_a_malformed_deadline_is_an_error_that_shows_it() -> None:
    wire = Wire(agent())
    for _ in range(2):
        caller = wire.call(("grpc-timeout", "5 seconds"), body=ASK)
        assert (caller.status, caller.message) == (errors.INTERNAL, "malformed grpc-timeout b'5 seconds'")
    wire.assert_clean()


def test_the_memo_of_timeouts_is_bounded() -> None:
    wire = Wire(agent())
    for number in range(1_200):
        caller = wire.call(("grpc-timeout", f"{number + 1}S"), body=ASK)
        assert wire.link().served[-1].value("grpc-timeout") != ""
        caller.cancel()
    wire.assert_clean()


def test_each_calls_deadline_is_its_own() -> None:
    wire = Wire(agent())
    callers = [wire.call(("grpc-timeout", f"{10 * n}m"), body=ASK) for n in range(1, 21)]
    wire.pass_s(0.105)
    assert [caller.status for caller in callers[:9]] == [4] * 9
    assert [caller.status for caller in callers[11:]] == [None] * 9
    wire.pass_s(0.2)
    assert {caller.status for caller in callers} == {4}
    wire.assert_clean()
