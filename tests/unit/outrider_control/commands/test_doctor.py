"""doctor: what it finds, what it says to do, and how it ends."""

from __future__ import annotations

import http.server
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from outrider import __version__
from outrider.v1 import mesh_pb2, policy_pb2
from outrider.v1 import operator_pb2 as pb
from outrider_control.commands import doctor, findings, ports
from outrider_control.commands.findings import Finding
from tests.unit.outrider_control.commands.conftest import Run
from tests.unit.outrider_control.commands.operator_server import OperatorServer, Refusal, StandIn

NOW_MS = 1_700_000_000_000


def scaled(agent_id: str = "tax", state: str = "scaling", **fields: Any) -> pb.ScaleRecord:
    given: dict[str, Any] = {"desired": 2, "max_instances": 10} | fields
    return pb.ScaleRecord(agent_id=agent_id, state=state, **given)


@pytest.fixture
def well(stand_in: StandIn) -> StandIn:
    """A mesh with nothing wrong."""
    endpoint = pb.EndpointRecord(endpoint=mesh_pb2.Endpoint(agent_id="tax", address="127.0.0.1:9001"))
    sidecar = pb.SidecarRecord(instance_id="i", node="n1", connected=True, version=__version__)
    stand_in.replies |= {
        "GetStatus": lambda _: pb.Status(
            version=__version__, now_unix_ms=int(time.time() * 1_000), store="sqlite", leader=True
        ),
        "ListSidecars": pb.ListSidecarsReply(sidecars=[sidecar]),
        "ListAgents": pb.ListAgentsReply(agents=[pb.AgentRecord(policy=policy_pb2.AgentPolicy(agent_id="tax"))]),
        "ListEndpoints": pb.ListEndpointsReply(endpoints=[endpoint]),
        "GetOverview": pb.Overview(total=pb.Figures(requests=5)),
        "ListScales": pb.ListScalesReply(scales=[scaled(capacity=4.0)]),
    }
    return stand_in


def test_nothing_is_wrong(run: Run, well: StandIn) -> None:
    ran = run("doctor", "--no-ports")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines()[-1] == "nothing is wrong"
    assert "->" not in ran.out
    data = run("doctor", "--no-ports", "--json").data
    assert data["ok"] is True
    assert {finding["level"] for finding in data["findings"]} == {"ok"}
    assert {"control", "version", "clock", "store", "sidecars", "endpoints", "scaling", "traffic"} == {
        finding["check"] for finding in data["findings"]
    }


def test_something_is_wrong(run: Run, well: StandIn) -> None:
    well.replies["ListEndpoints"] = pb.ListEndpointsReply()
    ran = run("doctor", "--no-ports")
    assert ran.code == 1
    assert "wrong no endpoint, so that calls fail: tax" in ran.out
    assert "      -> declare endpoints in their policy" in ran.out
    assert ran.out.splitlines()[-1] == "1 wrong"


def test_no_control_plane(run_alone: Run) -> None:
    ran = run_alone("doctor", "--no-ports", "--json", "--control", "127.0.0.1:1")
    assert ran.code == 3
    assert ran.data["findings"][0]["level"] == "wrong"
    assert ran.data["findings"][0]["todo"]


def test_one_control_plane_of_two(run_alone: Run, well: StandIn, server: OperatorServer) -> None:
    ran = run_alone("doctor", "--no-ports", "--json", "--control", f"127.0.0.1:1,{server.address}")
    assert ran.code == 1
    wrong = [finding["text"] for finding in ran.data["findings"] if finding["level"] == "wrong"]
    assert len(wrong) == 1
    assert wrong[0].startswith("no control plane answers at 127.0.0.1:1")


def test_a_call_that_is_refused_does_not_end_it(run: Run, well: StandIn) -> None:
    well.replies["ListSidecars"] = Refusal(grpc.StatusCode.INTERNAL, "broken")
    ran = run("doctor", "--no-ports")
    assert ran.code == 1
    assert "INTERNAL: broken" in ran.out


def levels(found: Iterator[Finding]) -> list[tuple[str, str]]:
    return [(finding.check, finding.level) for finding in found]


@pytest.mark.parametrize(
    ("theirs", "ours", "level"),
    [
        ("0.3.1", "0.3.1", "ok"),
        ("0.3.1", "0.3.2", "note"),
        ("0.2.9", "0.3.0", "note"),
        ("0.1.0", "0.3.0", "wrong"),
        ("1.0.0", "0.9.0", "wrong"),
        ("", "0.3.0", "wrong"),
    ],
)
def test_versions(theirs: str, ours: str, level: str) -> None:
    finding = findings.judge_version("x", theirs, ours, "y")
    assert finding.level == level
    assert bool(finding.todo) == (level != "ok")


@pytest.mark.parametrize(
    ("offset_ms", "doubt_ms", "level"), [(4_000, 0, "ok"), (-6_000, 0, "wrong"), (6_000, 2_000, "ok")]
)
def test_clocks(offset_ms: float, doubt_ms: float, level: str) -> None:
    assert findings.judge_clock("x", offset_ms, doubt_ms).level == level


def test_the_control_plane_about_itself() -> None:
    status = pb.Status(warnings=["the disk is full"], overflowed=4, intake={"dropped": 2, "accepted": 9})
    assert levels(findings.judge_status(status)) == [
        ("store", "wrong"),
        ("control", "wrong"),
        ("traffic", "note"),
        ("traffic", "wrong"),
    ]


def test_what_is_said_about_scaling_is_said_once() -> None:
    status = pb.Status(leader=True, store="sqlite", warnings=["scaling of tax: tax-1 ended at once"])
    assert levels(findings.judge_status(status)) == [("store", "ok")]


def test_sidecars() -> None:
    refusal = mesh_pb2.Refusal(
        resource=mesh_pb2.ResourceVersion(kind=mesh_pb2.RESOURCE_KIND_POLICY, name="tax", version=3), reason="bad"
    )
    refusing = pb.SidecarRecord(node="n1", connected=True, version="0.3.0", refused=[refusal])
    late = pb.SidecarRecord(node="n2", connected=True, version="0.3.0", behind=1, acked_unix_ms=NOW_MS - 60_000)
    busy = pb.SidecarRecord(node="n3", connected=True, version="0.3.0", behind=1, acked_unix_ms=NOW_MS - 10)
    skewed = pb.SidecarRecord(node="n4", connected=True, version="0.2.0", clock_offset_ms=-90_000)
    gone = pb.SidecarRecord(node="n5")
    found = list(findings.judge_sidecars([refusing, late, busy, skewed, gone], "0.3.0", NOW_MS))
    assert [finding.text for finding in found] == [
        "sidecar n1 refuses policy tax version 3: bad",
        "sidecar n2 lacks 1 updates, its last answer came 1m ago",
        "the clock of sidecar n4 is 90.0 s behind the control plane's",
        "1 sidecar is 0.2.0, the control plane is 0.3.0",
        "lately connected and gone: n5",
    ]
    assert [finding.level for finding in found] == ["wrong", "wrong", "wrong", "note", "note"]
    assert all(finding.todo for finding in found)


def test_no_sidecar() -> None:
    assert levels(findings.judge_sidecars([], "0.3.0", NOW_MS)) == [("sidecars", "note")]


def test_endpoints_without_agents() -> None:
    stranger = pb.EndpointRecord(endpoint=mesh_pb2.Endpoint(agent_id="x"))
    found = list(findings.judge_endpoints([], [stranger]))
    assert [finding.level for finding in found] == ["note", "note"]
    assert "no policy: x" in found[0].text


def test_scaling() -> None:
    scales = [
        scaled("broken", "failing", problem="the engine 'prod': 403 Forbidden"),
        scaled("dies", problem="dies-1 ended at once", capacity=4.0),
        scaled("astray", "no engine", problem="scaling.engine names 'prod', which is not there"),
        scaled("alone", "no engine"),
        scaled("held", "paused", paused_by="ann", paused_reason="release"),
        scaled("full", desired=10, capacity=4.0, utilization=1.5),
        scaled("new", "no data"),
        scaled("off", "disabled"),
    ]
    found = list(findings.judge_scales(scales))
    assert [(finding.level, finding.text) for finding in found] == [
        ("wrong", "broken cannot be scaled: the engine 'prod': 403 Forbidden"),
        ("note", "dies: dies-1 ended at once"),
        ("wrong", "astray cannot be scaled: scaling.engine names 'prod', which is not there"),
        ("note", "held stays at 2: paused by ann: release"),
        ("note", "full has its most instances (10), and more calls than they can do"),
        ("note", "nothing starts and ends instances of: alone"),
        ("note", "what one instance can do is not known yet, so that it cannot be scaled by demand: new"),
    ]
    assert all(finding.todo for finding in found)
    assert {finding.check for finding in found} == {"scaling"}
    assert levels(findings.judge_scales([scaled(capacity=4.0)])) == [("scaling", "ok")]
    assert levels(findings.judge_scales([])) == []


def test_a_control_plane_that_does_not_know_scaling_yet(run: Run, well: StandIn) -> None:
    well.replies["ListScales"] = Refusal(grpc.StatusCode.UNIMPLEMENTED, "no")
    ran = run("doctor", "--no-ports")
    assert ran.code == 0
    assert "scale" not in ran.out
    well.replies["ListScales"] = Refusal(grpc.StatusCode.INTERNAL, "broken")
    assert run("doctor", "--no-ports").code == 1


def test_calls_that_nobody_sees() -> None:
    load = mesh_pb2.LoadReport(agents=[mesh_pb2.AgentLoad(agent_id="a", calls=9)])
    old = pb.SidecarRecord(connected=True, connected_unix_ms=NOW_MS - 300_000, load=load)
    new = pb.SidecarRecord(connected=True, connected_unix_ms=NOW_MS - 1_000, load=load)
    assert levels(findings.judge_traffic(pb.Overview(), [old], NOW_MS)) == [("traffic", "wrong")]
    assert levels(findings.judge_traffic(pb.Overview(), [new], NOW_MS)) == [("traffic", "note")]
    seen = pb.Overview(total=pb.Figures(requests=1), dropped_spans=1)
    assert levels(findings.judge_traffic(seen, [old], NOW_MS)) == [("traffic", "wrong"), ("traffic", "ok")]


def port(number: int, speaks: str) -> ports.Port:
    return ports.Port(number, "the program", speaks, "start it")


def test_a_port_where_nobody_listens() -> None:
    finding = ports.look(port(1, "http2"))
    assert (finding.level, finding.todo) == ("note", "start it")


def test_a_port_that_speaks_http2(server: OperatorServer) -> None:
    finding = ports.look(port(server.port, "http2"))
    assert finding.level == "ok"
    assert "speaks HTTP/2" in finding.text


class Page(http.server.BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(b"store: \n closed")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def page() -> Iterator[int]:
    with http.server.HTTPServer(("127.0.0.1", 0), Page) as serving:
        thread = threading.Thread(target=serving.serve_forever, args=(0.01,))
        thread.start()
        yield serving.server_address[1]
        serving.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("status", "level", "said"),
    [(200, "ok", "is ready"), (503, "wrong", "not ready: store: closed"), (404, "wrong", "is not the program")],
)
def test_a_port_that_speaks_http(
    page: int, monkeypatch: pytest.MonkeyPatch, status: int, level: str, said: str
) -> None:
    monkeypatch.setattr(Page, "status", status)
    finding = ports.look(port(page, "http"))
    assert finding.level == level
    assert said in finding.text


def test_a_stranger_where_http2_is_expected(page: int) -> None:
    finding = ports.look(port(page, "http2"))
    assert finding.level == "wrong"
    assert "is not the program" in finding.text


def test_a_stranger_that_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "WAIT_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        number = silent.getsockname()[1]
        assert ports.look(port(number, "http2")).level == "wrong"
        assert ports.look(port(number, "http")).level == "wrong"
        name = ports.listener(number)
        assert not Path("/proc/net/tcp").exists() or "python" in name or "pytest" in name


def test_a_config_that_is_no_yaml(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("a: [")
    finding = doctor.check_config(str(path))
    assert finding.level == "wrong"
    assert finding.text.startswith(f"{path}: line 2")


@pytest.mark.parametrize(
    ("text", "program"), [("listen: 127.0.0.1:0", "outrider-sidecar"), ("grpc: 127.0.0.1:0", "outrider-control")]
)
def test_the_program_judges_its_own_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, program: str
) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    asked: list[list[str]] = []

    def execute(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        return subprocess.CompletedProcess(command, 2, "", f"{program}: {path}: listen: is wrong\n")

    monkeypatch.setattr(subprocess, "run", execute)
    finding = doctor.check_config(str(path))
    assert asked[0][2:] == [
        program.replace("-", "_"),
        "--config",
        str(path),
        "--check",
    ]
    assert (finding.level, finding.text) == ("wrong", f"{path}: listen: is wrong")


def test_a_real_sidecar_judges_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).resolve().parents[4]
    monkeypatch.setenv("PYTHONPATH", f"{root}/protos:{root}/sidecar:{root}/control")
    path = tmp_path / "a.yaml"
    path.write_text("listen: nowhere")
    finding = doctor.check_config(str(path))
    assert finding.level == "wrong"
    assert "listen: 'nowhere' is not an address" in finding.text
    path.write_text("listen: 127.0.0.1:0\nadmin: 127.0.0.1:0")
    assert doctor.check_config(str(path)).level == "ok"
