"""What the admin port is shown: figures of this moment, as plain data."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from outrider.policy import Optimization
from outrider_sidecar.config import Settings, Tls
from outrider_sidecar.core.metric import Family
from outrider_sidecar.edge.exposition import expose
from outrider_sidecar.edge.view import SidecarView
from outrider_sidecar.engines.series import Series
from tests.wire import ECHO, Wire, agent, message

ASK, ANSWER = message(b"ask"), message(b"answer")
CACHED = agent("a:1", "b:1", optimization=Optimization(cache_enabled=True, cache_methods=(ECHO,)))


def shown(wire: Wire, **more: Any) -> tuple[SidecarView, Any]:
    """A view of a data path, and the composition root it believes to see."""
    sidecar: Any = SimpleNamespace(
        version="1.2.3",
        settings=Settings(),
        draining=False,
        started=True,
        last_reload="applied",
        reloads={"applied": 2, "refused": 1},
        runtime=wire.runtime,
        reactor=wire.reactor,
        series=Series(),
        export=SimpleNamespace(families=list),
        feedback=SimpleNamespace(families=list),
        compressor=SimpleNamespace(families=list),
        session_file=None,
        access_log=None,
        link=None,
        waiting_for_policy=False,
        listeners={"egress": SimpleNamespace(connections=3)},
        purged=[],
        stopped=[],
    )
    sidecar.purge = lambda *scope: sidecar.purged.append(scope) or 7
    sidecar.request_stop = lambda: sidecar.stopped.append(True)
    vars(sidecar).update(more)
    return SidecarView(sidecar), sidecar


def figures(view: SidecarView) -> dict[str, dict[tuple[str, ...], float]]:
    return {family.name: dict(family.samples) for family in view.metrics_families() if isinstance(family, Family)}


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ({}, (True, "")),
        ({"draining": True}, (False, "draining")),
        ({"started": False}, (False, "starting")),
        (
            {"waiting_for_policy": True},
            (False, "no agent is known yet: waiting for the control plane's first update"),
        ),
    ],
)
def test_ready(state: dict[str, bool], expected: tuple[bool, str]) -> None:
    view, _ = shown(Wire(agent()), **state)
    assert view.ready() == expected
    assert view.healthy() == (True, "")


def test_agents_with_their_endpoints_and_scores() -> None:
    wire = Wire(CACHED)
    wire.call(body=ASK)
    wire.link("b:1").set_reachable(False)
    wire.link("b:1").last_error = "refused"
    view, _ = shown(wire)
    (found,) = view.agents()["agents"]
    assert (found["agent_id"], found["strategy"], found["in_flight"], found["panic"]) == ("a", "peak_ewma", 1, False)
    by_address = {one["address"]: one for one in found["endpoints"]}
    assert sum(one["pending"] for one in found["endpoints"]) == 1
    assert by_address["b:1"]["state"] == "unreachable (refused)"
    assert {one["address"] for one in found["scores"]} == {"a:1"}
    json.dumps(view.agents())


def test_the_cache_in_figures() -> None:
    wire = Wire(CACHED)
    view, _ = shown(wire)
    assert view.cache()["agents"][0]["hit_rate"] is None
    wire.call(body=ASK)
    wire.call(body=ASK)
    assert view.cache()["agents"][0]["in_flight"] == 1
    next(one for one in wire.served).reply(ANSWER)
    wire.call(body=ASK)
    (found,) = view.cache()["agents"]
    assert found["verdicts"] == {"hit": 1, "stale": 0, "miss": 1, "coalesced": 1, "bypass": 0}
    assert found["hit_rate"] == pytest.approx(2 / 3)
    assert found["in_flight"] == 0
    json.dumps(view.cache())


def test_a_purge_of_an_unknown_agent_is_refused() -> None:
    view, sidecar = shown(Wire(agent()))
    with pytest.raises(ValueError, match="no agent 'x' is configured"):
        view.purge("x", "", "")
    assert view.purge("a", "t", "tag") == {"epoch": 7}
    assert view.purge("", "", "") == {"epoch": 7}
    assert sidecar.purged == [("a", "t", "tag"), ("", "", "")]


def test_drain_asks_the_process_to_stop() -> None:
    view, sidecar = shown(Wire(agent()))
    assert view.drain() == {"draining": True}
    assert sidecar.stopped == [True]


def test_the_configuration_is_plain_data_with_the_last_reload() -> None:
    settings = replace(Settings(), tls=Tls())
    view, _ = shown(Wire(agent()), settings=settings, last_reload="refused: why")
    found = view.config()
    assert found["last_reload"] == "refused: why"
    assert found["listen"]
    json.dumps(found)


def test_metrics_tell_of_calls_endpoints_and_cache_and_can_be_exposed() -> None:
    wire = Wire(CACHED)
    wire.call(body=ASK)
    wire.call(body=message(b"x" * 60_000), path="/test.Other/Unary")
    view, _ = shown(wire)
    found = figures(view)
    assert found["outrider_calls_in_flight"] == {(): 2}
    assert found["outrider_held_bytes"] == {(): wire.reactor.ledger.held_bytes}
    assert found["outrider_held_bytes"][()] > 0
    assert found["outrider_connections"] == {("egress",): 3}
    assert found["outrider_reloads"] == {("applied",): 2, ("refused",): 1}
    assert found["outrider_agent_in_flight"] == {("a",): 2}
    assert found["outrider_endpoint_ready"] == {("a", "a:1"): 1.0, ("a", "b:1"): 1.0}
    assert sum(found["outrider_endpoint_pending"].values()) == 2
    assert found["outrider_cache_verdicts"][("a", "miss")] == 1
    assert found["outrider_build_info"] == {("1.2.3", "false"): 1} or ("1.2.3", "true") in found["outrider_build_info"]
    _, text = expose(view.metrics_families())
    assert b"outrider_cache_verdicts" in b"".join(text)


def test_the_link_to_the_control_plane_where_there_is_one() -> None:
    family = Family("outrider_control_connected", "gauge", "1: watched here.", ("address",), [(("a:1",), 1.0)])
    link = SimpleNamespace(state=lambda: {"connected_to": "a:1"}, families=lambda: [family])
    view, _ = shown(Wire(agent()), link=link)
    assert view.config()["control_link"] == {"connected_to": "a:1"}
    assert figures(view)["outrider_control_connected"] == {("a:1",): 1.0}
    view, _ = shown(Wire(agent()))
    assert view.config()["control_link"] is None
    assert "outrider_control_connected" not in figures(view)
