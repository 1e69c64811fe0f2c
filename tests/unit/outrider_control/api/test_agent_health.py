"""What makes an agent unwell: each reason, its severity, and what the operator is told to do."""

from __future__ import annotations

from typing import Any

import pytest

from outrider.policy import Agent, Scaling
from outrider_control.api.agent_health import AgentState, Reason, SidecarState, Verdict, judge
from outrider_control.core.figures import Figures
from outrider_control.core.sample import Sample, SeriesKey

AGENT = Agent("tax-eu-001", scaling=Scaling(min_instances=2))
SIDECAR = SidecarState("node-1", beside=True, connected=True, behind=0, silent_ms=0, clock_offset_ms=0)


def calls(ok: int, failed: int = 0, cancelled: int = 0, status: str = "UNAVAILABLE", queue_us: int = 0) -> Figures:
    figures = Figures()
    for outcome in ["OK"] * ok + [status] * failed + ["CANCELLED"] * cancelled:
        figures.add(
            Sample(
                SeriesKey("tax-eu-001"), 0, True, outcome, outcome == status, outcome == "CANCELLED", 1_000, 0,
                queue_us, "", "", 0, 0, 0, 0, 0, 0, 0, False, False,
            )
        )  # fmt: skip
    return figures


def state(figures: Figures, **more: Any) -> AgentState:
    return AgentState(figures, **({"agent": AGENT, "endpoints": 2, "sidecars": [SIDECAR]} | more))


def reason(verdict: Verdict, has: str) -> Reason:
    found = [one for one in verdict.reasons if has in one.text]
    assert len(found) == 1, verdict
    return found[0]


def test_well() -> None:
    assert judge(state(calls(ok=100))) == Verdict("healthy", ())


def test_no_calls_is_not_well_but_unknown() -> None:
    verdict = judge(state(calls(ok=0)))
    assert verdict.state == "unknown"
    assert reason(verdict, "no calls").severity == "info"


@pytest.mark.parametrize(
    ("ok", "failed", "cancelled", "wanted", "severity"),
    [
        (99, 1, 0, "healthy", "info"),
        (90, 10, 0, "degraded", "degraded"),
        (50, 50, 0, "unhealthy", "unhealthy"),
        (0, 3, 0, "degraded", "degraded"),  # three calls prove nothing
        (0, 20, 0, "unhealthy", "unhealthy"),
        (20, 20, 1_000, "unhealthy", "unhealthy"),  # cancelled ones are in neither
    ],
)
def test_errors(ok: int, failed: int, cancelled: int, wanted: str, severity: str) -> None:
    verdict = judge(state(calls(ok, failed, cancelled)))
    assert verdict.state == wanted
    one = reason(verdict, "calls failed")
    assert one.severity == severity
    assert one.text.startswith(f"{failed:,} of {ok + failed:,} calls failed")
    assert "mostly UNAVAILABLE: its endpoints cannot be reached" in one.text


def test_cancelled_alone_is_no_error() -> None:
    assert judge(state(calls(ok=0, cancelled=50))) == Verdict("healthy", ())


@pytest.mark.parametrize("status", ["INTERNAL", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "UNKNOWN", "ERROR"])
def test_every_failure_comes_with_advice(status: str) -> None:
    text = reason(judge(state(calls(ok=1, failed=9, status=status))), "calls failed").text
    assert status in text or status == "ERROR"
    assert text.partition(": ")[2]


def test_endpoints() -> None:
    assert reason(judge(state(calls(9), endpoints=0)), "no endpoint").severity == "unhealthy"
    assert reason(judge(state(calls(9), endpoints=1)), "1 of at least 2").severity == "degraded"


def test_without_a_policy() -> None:
    verdict = judge(state(calls(9), agent=None, endpoints=0))
    assert verdict.state == "degraded"
    assert "agents apply" in reason(verdict, "no policy").text
    assert not [one for one in verdict.reasons if "no endpoint" in one.text]


def test_load() -> None:
    assert "1.5 s" in reason(judge(state(calls(ok=50, queue_us=1_500_000))), "calls wait").text
    full = judge(state(calls(9), in_flight=10, queued=3, capacity=10))
    assert reason(full, "all 10 places are taken and 3 calls wait").severity == "degraded"
    assert judge(state(calls(9), in_flight=5, queued=3, capacity=10)).state == "healthy"
    assert judge(state(calls(9), in_flight=5, queued=3)).state == "healthy"


def sidecar(**fields: Any) -> SidecarState:
    base = {"name": "node-1", "beside": True, "connected": True, "behind": 0, "silent_ms": 0, "clock_offset_ms": 0}
    return SidecarState(**(base | fields))


@pytest.mark.parametrize(
    ("one", "text", "severity"),
    [
        (
            sidecar(refusals=("version 4: hedge.enabled: no",)),
            "version 4: hedge.enabled: no; mend the policy",
            "degraded",
        ),
        (sidecar(behind=2, silent_ms=60_000), "node-1 took no update for 30 s", "degraded"),
        (sidecar(connected=False), "beside it is not connected", "degraded"),
        (sidecar(connected=False, beside=False), "no sidecar is connected", "info"),
        (sidecar(clock_offset_ms=-9_000), "the clock of sidecar node-1", "info"),
    ],
)
def test_sidecars(one: SidecarState, text: str, severity: str) -> None:
    assert reason(judge(state(calls(9), sidecars=[one])), text).severity == severity


def test_sidecars_that_are_well() -> None:
    just_behind = sidecar(behind=1, silent_ms=100)
    other_gone = sidecar(name="node-2", connected=False)
    assert judge(state(calls(9), sidecars=[just_behind, other_gone])) == Verdict("healthy", ())


def test_many_sidecars_are_counted_not_listed() -> None:
    late = [sidecar(name=f"n{at}", behind=1, silent_ms=99_000) for at in range(50)]
    assert reason(judge(state(calls(9), sidecars=late)), "n0, n1, n2 and 47 more").severity == "degraded"


def test_figures_that_lack_something_say_so() -> None:
    figures = calls(9)
    figures.dropped, figures.unpriced = 7, 3
    verdict = judge(state(figures))
    assert verdict.state == "healthy"
    assert "too low" in reason(verdict, "7 spans").text
    assert "prices" in reason(verdict, "3 calls used a model").text


def test_the_worst_comes_first() -> None:
    figures = calls(ok=0, failed=50)
    figures.unpriced = 1
    severities = [one.severity for one in judge(state(figures, endpoints=1)).reasons]
    assert severities == ["unhealthy", "degraded", "info"]
