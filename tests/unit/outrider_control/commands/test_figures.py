"""overview, metrics, health and watch: the JSON that scripts read, and tables at 80 columns."""

from __future__ import annotations

import json

import grpc
import pytest

from outrider.v1 import operator_pb2 as pb
from outrider_control.commands import watch
from tests.unit.outrider_control.commands.conftest import Ran, Run
from tests.unit.outrider_control.commands.operator_server import OperatorServer, Refusal, StandIn

FIGURES_KEYS = {
    *("requests", "rate", "errors", "cancelled", "success_rate", "error_rate", "p50_ms", "p95_ms", "p99_ms", "mean_ms"),
    *("first_chunk_p50_ms", "first_chunk_p95_ms", "queue_p95_ms", "hit_rate", "hit_rates", "cache", "input_tokens"),
    *("output_tokens", "cache_read_tokens", "cache_write_tokens", "cached_tokens", "saved_tokens", "cost_usd"),
    *("unpriced", "statuses", "satisfaction"),
}


def busy() -> pb.Figures:
    return pb.Figures(
        requests=1_234_567,
        rate=342.9,
        errors=1_300,
        cancelled=12,
        success_rate=0.99894,
        error_rate=0.00106,
        p50_ms=12.34,
        p95_ms=812.5,
        p99_ms=20_400.0,
        mean_ms=60.0,
        first_chunk_p50_ms=4.2,
        hit_rate=0.431,
        hit_rates={"exact": 0.4, "tool": 0.031},
        cache={"hit": 500_000, "miss": 700_000},
        input_tokens=123_456_789,
        output_tokens=9_876_543,
        saved_tokens=5_000,
        cost_usd=1_234.5678,
        unpriced=3,
        statuses={"UNAVAILABLE": 1_300},
        satisfaction=4.25,
    )


def fits(ran: Ran, columns: int = 80) -> bool:
    return max(len(line) for line in ran.out.splitlines()) <= columns


@pytest.fixture
def overview(stand_in: StandIn) -> pb.Overview:
    made = pb.Overview(
        agents=[
            pb.AgentFigures(agent_id="tax-eu-001", figures=busy()),
            pb.AgentFigures(agent_id="a-rather-long-name-of-an-agent-that-nobody-calls", figures=pb.Figures()),
        ],
        total=busy(),
        from_unix_ms=1_000,
        to_unix_ms=3_601_000,
        sidecars=51,
        dropped_spans=7,
    )
    stand_in.replies["GetOverview"] = made
    return made


def test_overview_json(run: Run, stand_in: StandIn, overview: pb.Overview) -> None:
    ran = run("overview", "--json", "--since", "15m")
    assert stand_in.requests("GetOverview")[0].since_ms == 900_000
    assert ran.data.keys() == {"agents", "total", "from_unix_ms", "to_unix_ms", "sidecars", "dropped_spans"}
    first, second = ran.data["agents"]
    assert first.keys() == second.keys() == {"agent_id", *FIGURES_KEYS}
    assert first["requests"] == 1_234_567
    assert first["hit_rates"] == {"exact": 0.4, "tool": 0.031}
    assert (second["requests"], second["success_rate"], second["p95_ms"], second["cost_usd"]) == (0, None, None, None)
    assert (second["hit_rate"], second["hit_rates"], second["satisfaction"]) == (None, {}, None)


def test_overview_table(run: Run, overview: pb.Overview) -> None:
    ran = run("overview")
    assert ran.code == 0
    assert fits(ran)
    header, first, *rest = ran.out.splitlines()
    assert header.split() == ["AGENT", "CALLS", "SUCCESS", "P95", "HIT", "IN", "OUT", "COST", "RATING"]
    assert first.split() == ["tax-eu-001", "1.23M", "99.9%", "812ms", "43.1%", "123M", "9.88M", "$1234.57+", "4.2"]
    assert "last 1h, 51 sidecars connected" in rest
    assert any("7 spans were dropped" in line for line in rest)
    quiet = next(line for line in rest if line.startswith("a-rather"))
    assert quiet.split()[1:] == ["0", "-", "-", "-", "0", "0", "-", "-"]


def test_a_wide_terminal_shows_more(run: Run, overview: pb.Overview, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    header = run("overview").out.splitlines()[0].split()
    assert header[3:8] == ["ERRORS", "P50", "P95", "P99", "FIRST"]


def test_colour_is_for_terminals(run: Run, overview: pb.Overview, monkeypatch: pytest.MonkeyPatch) -> None:
    overview.agents[0].figures.success_rate = 0.5
    assert "\x1b" not in run("overview").out
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    assert "\x1b[31m" in run("overview").out
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[31m" not in run("overview").out


def test_an_empty_mesh_says_what_to_do(run: Run, stand_in: StandIn) -> None:
    stand_in.replies["GetOverview"] = pb.Overview()
    assert "outrider agents apply -f FILE" in run("overview").out


@pytest.fixture
def metrics(stand_in: StandIn) -> pb.Metrics:
    made = pb.Metrics(
        agent_id="tax-eu-001",
        figures=busy(),
        series=[pb.Point(at_unix_ms=60_000, figures=busy()), pb.Point(at_unix_ms=120_000, figures=pb.Figures())],
        splits=[pb.Split(name="/pkg.Svc/Method", figures=busy())],
        window="1m",
        to_unix_ms=3_600_000,
        metrics=[pb.NamedMetric(name="queue.depth", unit="{call}", kind="gauge", value=4, count=9, p95=7.5)],
    )
    stand_in.replies["GetMetrics"] = made
    return made


def test_metrics_json(run: Run, stand_in: StandIn, metrics: pb.Metrics) -> None:
    ran = run("metrics", "--agent", "tax-eu-001", "--window", "1h", "--since", "24h", "--by", "method", "--json")
    request = stand_in.requests("GetMetrics")[0]
    assert (request.agent_id, request.window, request.since_ms, request.by) == (
        "tax-eu-001",
        "1h",
        86_400_000,
        "method",
    )
    more = {"agent_id", "series", "splits", "window", "from_unix_ms", "to_unix_ms", "metrics"}
    assert ran.data.keys() == FIGURES_KEYS | more
    assert ran.data["errors"] == 1_300
    assert [point.keys() for point in ran.data["series"]] == [{"at_unix_ms", *FIGURES_KEYS}] * 2
    assert ran.data["splits"][0]["name"] == "/pkg.Svc/Method"
    assert ran.data["metrics"][0]["p95"] == 7.5


def test_metrics_table(run: Run, metrics: pb.Metrics) -> None:
    ran = run("metrics", "--agent", "tax-eu-001", "--by", "method")
    assert fits(ran)
    for part in ("UNAVAILABLE 1300", "in windows of 1m", "METHOD", "queue.depth", "4 {call}", "P50 12ms, P95 812ms"):
        assert part in ran.out


def test_metrics_of_an_unknown_window(run: Run) -> None:
    ran = run("metrics", "--window", "2h")
    assert ran.code == 2
    assert "'2h'" in ran.err


def test_health(run: Run, stand_in: StandIn) -> None:
    reasons = [pb.HealthReason(severity="unhealthy", text="no endpoint: have an instance register")]
    stand_in.replies["GetAgentHealth"] = pb.AgentHealth(agent_id="a", state="unhealthy", reasons=reasons, endpoints=0)
    ran = run("health", "a")
    assert ran.out.splitlines()[:2] == ["a: unhealthy", "  unhealthy  no endpoint: have an instance register"]
    data = run("health", "a", "--json").data
    assert data["state"] == "unhealthy"
    assert data["reasons"] == [{"severity": "unhealthy", "text": "no endpoint: have an instance register"}]
    assert data["figures"] is None


def test_health_of_an_unknown_agent(run: Run, stand_in: StandIn) -> None:
    stand_in.replies["GetAgentHealth"] = Refusal(grpc.StatusCode.NOT_FOUND, "agent 'x': there is none")
    ran = run("health", "x")
    assert (ran.code, ran.err) == (1, "outrider health: agent 'x': there is none\n")


def test_watch_json_is_one_object_per_line(run: Run, stand_in: StandIn) -> None:
    stand_in.replies["StreamMetrics"] = [pb.Overview(sidecars=at) for at in range(5)]
    ran = run("watch", "--json", "--count", "3", "--interval", "250ms", "--since", "30s", "--agent", "a")
    request = stand_in.requests("StreamMetrics")[0]
    assert (request.interval_ms, request.since_ms, request.agent_id) == (250, 30_000, "a")
    lines = [json.loads(line) for line in ran.out.splitlines()]
    assert [line["sidecars"] for line in lines] == [0, 1, 2]
    assert lines[0].keys() == {"agents", "total", "from_unix_ms", "to_unix_ms", "sidecars", "dropped_spans"}


def test_watch_without_a_terminal_prints_tables(run: Run, stand_in: StandIn, overview: pb.Overview) -> None:
    stand_in.replies["StreamMetrics"] = [overview, overview]
    ran = run("watch", "--count", "2")
    assert ran.out.count("tax-eu-001") == 2
    assert fits(ran)


def test_watch_outlives_a_control_plane_that_goes(run: Run, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "RETRY_S", 0.0)
    gone = Refusal(grpc.StatusCode.UNAVAILABLE, "going down")
    answers = iter([[pb.Overview(sidecars=1), gone], gone, [pb.Overview(sidecars=2)]])
    stand_in.replies["StreamMetrics"] = lambda _: next(answers)
    ran = run("watch", "--json", "--count", "2")
    assert ran.code == 0
    assert [json.loads(line)["sidecars"] for line in ran.out.splitlines()] == [1, 2]
    assert ran.err.count("does not answer; trying again") == 2


def test_watch_of_nobody_fails_at_once(run_alone: Run) -> None:
    assert run_alone("watch", "--control", "127.0.0.1:1").code == 3


def test_watch_gives_up_in_the_end(run: Run, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "RETRY_S", 0.0)
    monkeypatch.setattr(watch, "PATIENCE_S", -1.0)
    gone = Refusal(grpc.StatusCode.UNAVAILABLE, "going down")
    stand_in.replies["StreamMetrics"] = [pb.Overview(), gone]
    assert run("watch", "--json").code == 3


def test_ctrl_c_ends_watching_well(run: Run, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(watch._Lines, "show", interrupt)
    stand_in.replies["StreamMetrics"] = [pb.Overview()]
    ran = run("watch", "--json")
    assert (ran.code, ran.out, ran.err) == (0, "", "")


def test_the_live_table_fits_the_screen(
    run: Run, stand_in: StandIn, overview: pb.Overview, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("LINES", "20")
    many = [pb.AgentFigures(agent_id=f"agent-{at:02}", figures=pb.Figures(requests=at)) for at in range(51)]
    stand_in.replies["StreamMetrics"] = [pb.Overview(agents=many)]
    ran = run("watch", "--count", "1")
    assert "agent-50" in ran.out
    assert "agent-00" not in ran.out
    assert "39 quieter agents are not shown" in ran.out


def test_watch_follows_the_next_address(run_alone: Run, server: OperatorServer) -> None:
    server.stand_in.replies |= {"WhoAmI": pb.Identity(), "StreamMetrics": [pb.Overview(sidecars=4)]}
    ran = run_alone("watch", "--json", "--count", "1", "--control", f"127.0.0.1:1,{server.address}")
    assert json.loads(ran.out)["sidecars"] == 4
