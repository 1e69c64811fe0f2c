"""Factories: whose TLS counts, and what the ports file says."""

from __future__ import annotations

import asyncio
import json
import random
import ssl
from pathlib import Path
from typing import Any

import pytest

from outrider.address import parse_address
from outrider.policy import Agent, Balancing, EndpointPolicy
from outrider_http2.shell import Reactor
from outrider_sidecar import config
from outrider_sidecar.core.endpoint import Endpoint
from outrider_sidecar.edge import parts
from outrider_sidecar.edge.control_plane import ControlPlane


class Held:
    """Somebody who holds a TLS context."""

    def __init__(self) -> None:
        self.made = ssl.create_default_context()

    def context(self) -> ssl.SSLContext:
        return self.made


def test_the_ports_file_is_written_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "ports.json"
    path.write_text("old")
    parts.write_ports(path, {"egress": 1, "ingress": 2}, 3)
    assert json.loads(path.read_text()) == {"egress": 1, "ingress": 2, "admin": 3}
    assert [one.name for one in tmp_path.iterdir()] == ["ports.json"]


@pytest.mark.parametrize(
    ("held", "wanted", "expected"),
    [
        (False, None, "none"),
        (False, False, "none"),
        (False, True, "system"),
        (True, None, "held"),
        (True, False, "none"),
        (True, True, "held"),
    ],
)
async def test_the_policy_may_ask_for_tls_or_for_none(held: bool, wanted: bool | None, expected: str) -> None:
    tls = Held() if held else None
    reactor = Reactor(asyncio.get_running_loop())
    make = parts.connector_factory(reactor, random.Random(1), tls, 30.0, lambda agent_id, address: f"{agent_id}.name")
    agent = Agent("a", (EndpointPolicy("a:1"),), tls=wanted, balancing=Balancing(failfast_ms=250))
    connector = make(Endpoint("a:1"), agent)
    context = connector._tls()
    if expected == "none":
        assert context is None
    elif expected == "held":
        assert tls is not None
        assert context is tls.made
    else:
        assert context is not None
        assert context.verify_mode is ssl.CERT_REQUIRED
    assert (connector._failfast_s, connector._max_age_s, connector._server_name) == (0.25, 30.0, "a.name")
    assert make(Endpoint("a:1"), Agent("a", server_name="own.name"))._server_name == "own.name"


@pytest.mark.parametrize(
    ("telemetry", "control", "names"),
    [
        ("", "", []),
        ("telemetry: {otlp: 127.0.0.1:1}", "", ["otlp"]),
        ("", "control: [127.0.0.1:2]", ["control"]),
        ("telemetry: {otlp: 127.0.0.1:1}", "control: [127.0.0.1:2]", ["otlp", "control"]),
    ],
)
async def test_a_collector_for_each_who_gets_spans(
    tmp_path: Path, telemetry: str, control: str, names: list[str]
) -> None:
    path = tmp_path / "sidecar.yaml"
    path.write_text(f"{telemetry}\n{control}\nagents: []\n")
    reactor = Reactor(asyncio.get_running_loop())
    settings = config.load(path, {})
    plane = parts.control_plane(settings, None)
    rpc = parts.control_rpc(plane, reactor) if plane is not None else None
    export, rpcs = parts.exporters(settings, reactor, None, rpc, "one")
    labelled = {
        dict(zip(family.labels, sample[0], strict=True)).get("collector")
        for family in export.families()
        for sample in family.samples
    }
    assert len(rpcs) == len([name for name in names if name != "control"])
    assert labelled - {None} == set(names)


def plane_of(tls: Held | None, *addresses: str, **settings: Any) -> ControlPlane:
    upstream = config.UpstreamTls() if tls is not None else None
    made = config.Settings(
        control=tuple(parse_address(one) for one in addresses), tls=config.Tls(upstream=upstream), **settings
    )
    plane = parts.control_plane(made, tls)
    assert plane is not None
    return plane


@pytest.mark.parametrize(
    ("address", "held", "wanted", "expected"),
    [
        ("10.0.0.1:7700", True, None, True),
        ("127.0.0.1:7700", True, None, False),
        ("unix:/run/control.sock", True, None, False),
        ("10.0.0.1:7700", False, None, False),
        ("127.0.0.1:7700", True, True, True),
        ("10.0.0.1:7700", True, False, False),
        ("10.0.0.1:7700", False, True, True),
    ],
)
def test_tls_to_the_control_plane(address: str, held: bool, wanted: bool | None, expected: bool) -> None:
    plane = plane_of(Held() if held else None, address, control_tls=wanted)
    assert (plane.context(0)() is not None) is expected


def test_standalone_has_no_control_plane() -> None:
    assert parts.control_plane(config.Settings(), None) is None
