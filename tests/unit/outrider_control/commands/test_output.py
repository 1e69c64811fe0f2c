"""Numbers, times and texts for people, and messages as plain data."""

from __future__ import annotations

import argparse
import json
import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.v1 import mesh_pb2, policy_pb2
from outrider.v1 import operator_pb2 as pb
from outrider_control.commands import output
from outrider_control.commands.arguments import duration_ms, version


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0, "0"),
        (99_999, "99999"),
        (100_000, "100k"),
        (1_234_567, "1.23M"),
        (123_456_789, "123M"),
        (5.1e9, "5.10G"),
        (7e12, "7.00T"),
    ],
)
def test_number(value: float | None, text: str) -> None:
    assert output.number(value) == text


@given(st.integers(0, 10**15))
def test_a_number_is_short(value: int) -> None:
    assert len(output.number(value)) <= 6


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0.0, "0.0%"), (0.0001, "<0.1%"), (0.5, "50.0%"), (0.99999, "99.9%"), (1.0, "100%")],
)
def test_percent(value: float | None, text: str) -> None:
    assert output.percent(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0.0, "0.00ms"), (9.994, "9.99ms"), (812.5, "812ms"), (10_000, "10.0s"), (3_600_000, "1h")],
)
def test_milliseconds(value: float | None, text: str) -> None:
    assert output.milliseconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0.0, "$0.00"), (0.00001, "<$0.0001"), (0.0123, "$0.0123"), (12.345, "$12.35"), (12_345.6, "$12346")],
)
def test_usd(value: float | None, text: str) -> None:
    assert output.usd(value) == text


@pytest.mark.parametrize(
    ("value_ms", "text"), [(0, "0s"), (59_999, "59s"), (61_000, "1m 1s"), (7_200_000, "2h"), (90_000_000, "1d 1h")]
)
def test_span_of_time(value_ms: int, text: str) -> None:
    assert output.span_of_time(value_ms) == text


def test_clock_time_shows_the_date_of_other_days(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "localtime", lambda *at: time.gmtime(*at) if at else time.gmtime(86_400))
    monkeypatch.setattr(time, "strftime", _strftime(time.gmtime(86_400)))
    assert output.clock_time(1_000) == "1970-01-01 00:00:01"
    assert output.clock_time(86_401_000) == "00:00:01"
    assert output.clock_time(86_401_000, with_date=True) == "1970-01-02 00:00:01"
    assert output.clock_time(0) == "-"


def _strftime(today: time.struct_time):  # type: ignore[no-untyped-def]
    real = time.strftime
    return lambda form, at=today: real(form, at)


def test_a_time_that_is_none() -> None:
    assert output.clock_time(2**80) == str(2**80)


@pytest.mark.parametrize(
    ("text", "value_ms"),
    [("250ms", 250), ("30s", 30_000), ("1.5h", 5_400_000), ("7d", 604_800_000), (" 2w ", 1_209_600_000)],
)
def test_duration(text: str, value_ms: int) -> None:
    assert duration_ms(text) == value_ms


@pytest.mark.parametrize("text", ["", "5", "s", "-1s", "1e3s", "1 h", "9" * 20 + "d", "\u0661s", "0s", "nan"])
def test_no_duration(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"."):
        duration_ms(text)


@pytest.mark.parametrize("text", ["", "v", "-1", "1.0", "9" * 30, "\u0661"])
def test_no_version(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        version(text)


@given(st.text())
def test_what_is_shown_cannot_steer_the_terminal(text: str) -> None:
    shown = output.shown(text)
    assert all(one.isprintable() or one == "\n" for one in shown)
    if text.isprintable():
        assert shown == text


def test_plain_has_every_field_and_no_figure_that_is_not_known() -> None:
    data = output.plain(pb.Figures(requests=2**62, success_rate=math.nan))
    assert data.keys() == {field.name for field in pb.Figures.DESCRIPTOR.fields}
    assert (data["requests"], data["success_rate"], data["p95_ms"], data["statuses"]) == (2**62, None, None, {})
    json.dumps(data, allow_nan=False)


def test_plain_of_nested_messages() -> None:
    policy = policy_pb2.AgentPolicy(agent_id="a")
    policy.retry.statuses.values.append("INTERNAL")
    data = output.plain(policy)
    assert data["retry"]["statuses"] == ["INTERNAL"]
    assert (data["hedge"], data["tls"], data["endpoints"]) == (None, None, [])
    assert output.plain(mesh_pb2.CacheLoad(verdicts={"miss": 1, "hit": 2}))["verdicts"] == {"hit": 2, "miss": 1}


def test_plain_of_free_data() -> None:
    decision = pb.Decision()
    decision.inputs.update({"whole": 3, "part": 0.5, "list": [1, None, "x"], "inner": {"n": 2}, "none": math.inf})
    wanted = {"whole": 3, "part": 0.5, "list": [1, None, "x"], "inner": {"n": 2}, "none": None}
    assert output.plain(decision)["inputs"] == wanted
    assert output.plain(decision)["outcome"] is None
