"""The real program over a store in trouble: a full disk, a kill in the middle of a write, files it must not touch."""

from __future__ import annotations

import random
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

from outrider.v1 import mesh_pb2
from outrider_control.state.database import Database
from tests.controls import Control, holds, watching
from tests.integration.control.exports import request, send, span
from tests.sidecars import WAIT_S, Calls, Mesh, Peer, Sidecar, agent, channel_to, eventually

SPANS = 50  # of a batch
SOURCES = 4
BATCHES = 40  # of a source


def batch(source: str, sequence: int, size: int = SPANS) -> Any:
    """A numbered batch: the same each time it is made."""
    rng = random.Random(f"{source}/{sequence}")
    return request([span(rng, "numbered", duration_ms=rng.uniform(1, 90)) for _ in range(size)], source, sequence)


# -- a full disk -------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    mounted = subprocess.run(["mount", *options], capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill(folder: Path) -> Path:
    ballast = folder / "ballast"
    ballast.write_bytes(bytes(shutil.disk_usage(folder).free))
    return ballast


def until_refused(port: grpc.Channel) -> tuple[int, Any]:
    """Batches are sent until one is refused: how many were taken (files that exist have room for some), and why."""
    for taken in range(1_000):
        try:
            send(port, batch("pod", taken))
        except grpc.RpcError as error:
            return taken, error
    raise AssertionError("the disk does not get full")


def test_a_full_disk_costs_no_call_and_no_figure(mesh: Mesh, peer: Peer, small_disk: Path) -> None:
    control = Control(mesh, "full", database=f"sqlite:///{small_disk / 'outrider.db'}")
    try:
        _fill_and_make_room(mesh, control, peer, small_disk)
    finally:
        control.stop()  # else the disk cannot be unmounted


def _fill_and_make_room(mesh: Mesh, control: Control, peer: Peer, small_disk: Path) -> None:
    control.apply(agent("one", peer))
    sidecar = mesh.sidecar({"control": [control.target]}, "on-full")
    eventually(lambda: holds(sidecar, "one"), "the agent reaches the sidecar")
    ballast = fill(small_disk)
    with channel_to(sidecar.target) as agents, channel_to(control.target) as port:
        calls = Calls(agents, [("x-agent-id", "one")])
        taken, error = until_refused(port)
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert "disk is full" in error.details()
        refused = control.cli(
            *("agents", "apply", "-f", "-", "--reason", "no room"),
            stdin=yaml.safe_dump({"agents": [agent(f"more-{n}", peer) for n in range(200)]}),
        )
        assert refused.returncode == 1, refused.stderr
        assert "disk is full" in refused.stderr
        assert refused.stderr.count("\n") == 1
        assert "is it running" not in refused.stderr, "it answers"
        for number in range(100):
            assert calls.unary(b"%d" % number).result() == b"%d" % number
        assert watching(sidecar)
        assert control.requests("numbered") == taken * SPANS, "what was acknowledged is there, and can be read"
        assert len(control.json("agents", "list")["agents"]) == 1, "half of a change is none"
        ballast.unlink()
        for sequence in range(taken + 1):  # the exporter sends what was refused again; and all, as after a crash
            send(port, batch("pod", sequence))
        control.apply(agent("one", peer), agent("two", peer))
        eventually(lambda: holds(sidecar, "two"), "a change reaches the sidecar again")
        assert control.requests("numbered") == (taken + 1) * SPANS
        eventually(lambda: control.requests("one") == 100, "calls made meanwhile are counted", 40.0)
    eventually(lambda: not control.json("status")["warnings"], "nothing is wrong any more")
    control.kill()
    control.start()
    assert control.requests("numbered") == (taken + 1) * SPANS
    assert control.requests("one") == 100


# -- killed ------------------------------------------------------------------------------------------------------------


def test_batches_count_once_over_kills_in_the_middle_of_writes(mesh: Mesh) -> None:
    control = Control(mesh, "shot")
    rng = random.Random(5)
    acknowledged = dict.fromkeys((f"pod-{number}" for number in range(SOURCES)), 0)

    def export(source: str) -> None:
        """As a sidecar does it: one batch after the other, each until it is acknowledged."""
        with channel_to(control.target) as channel:
            give_up_at = time.monotonic() + 120
            while acknowledged[source] < BATCHES:
                try:
                    send(channel, batch(source, acknowledged[source] + 1), timeout=10, wait_for_ready=True)
                except grpc.RpcError:
                    assert time.monotonic() < give_up_at, "the control plane is back in time"
                    time.sleep(0.01)
                else:
                    acknowledged[source] += 1

    with ThreadPoolExecutor(SOURCES) as pool:
        exporting = [pool.submit(export, source) for source in acknowledged]
        for kill in (1, 2, 3):
            wanted = SOURCES * BATCHES * kill // 4 + rng.randrange(8)
            eventually(lambda wanted=wanted: sum(acknowledged.values()) >= wanted, f"{wanted} batches", 30.0)
            time.sleep(rng.uniform(0, 0.02))  # anywhere in a write
            control.kill()
            before = sum(acknowledged.values())
            control.start()
            assert before * SPANS <= control.requests("numbered"), "nothing acknowledged is lost"
        for one in exporting:
            one.result()
    assert control.requests("numbered") == SOURCES * BATCHES * SPANS
    shown = control.json("metrics", "--agent", "numbered", "--window", "1m", "--since", "1h")
    assert sum(point["requests"] for point in shown["series"]) == SOURCES * BATCHES * SPANS
    assert control.stop() == 0


# -- what another release wrote ----------------------------------------------------------------------------------------


def held(sidecar: Sidecar, agent_id: str) -> int:
    """The version of an agent's policy that is in force in a sidecar."""
    resources = sidecar.json("/config")["control_link"]["held"]
    return next((one["version"] for one in resources if (one["kind"], one["name"]) == ("policy", agent_id)), 0)


def write_as_a_later_release(file: Path) -> None:
    """A policy and an endpoint that this release does not know what to do with."""
    endpoint = mesh_pb2.Endpoint(agent_id="leased", address="quantum:nowhere").SerializeToString()
    for_long_ms = time.time_ns() // 1_000_000 + 3_600_000
    with sqlite3.connect(file) as connection:
        connection.execute(
            """UPDATE agent_versions SET document = replace(document, '"peak_ewma"', '"quantum"')
            WHERE agent_id = 'bad' AND version = 2"""
        )
        lease = ("leased", "quantum:nowhere", "owner", "registered", "node", endpoint, 3_600_000, for_long_ms, 0)
        connection.execute("INSERT INTO leases VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", lease)
        connection.execute("UPDATE meta SET number = number + 1 WHERE name = 'revision'")
        connection.execute(
            "INSERT INTO endpoint_sets VALUES ('leased', (SELECT number FROM meta WHERE name = 'revision'))"
        )
    connection.close()


def test_what_cannot_be_enforced_is_named_and_the_rest_goes_on(mesh: Mesh, peer: Peer) -> None:
    control = Control(mesh, "older")
    control.apply(agent("bad", peer), agent("leased", peer))
    sidecar = mesh.sidecar({"control": [control.target]}, "on-older")
    eventually(lambda: holds(sidecar, "bad"), "the agents reach the sidecar")
    control.apply(agent("bad", peer, timeout_ms=5_000))
    assert control.stop() == 0
    write_as_a_later_release(control.folder / "outrider.db")
    control.start()
    control.apply(agent("new", peer))
    eventually(lambda: holds(sidecar, "new"), "what can be read reaches the sidecar")
    assert "agent bad: version 2 cannot be enforced by this program: balancing.strategy: 'quantum'" in control.log()
    got = control.cli("agents", "get", "bad")
    assert got.returncode == 1
    assert "version 2 of agent 'bad' cannot be enforced" in got.stderr
    (record,) = control.json("sidecars")["sidecars"]
    assert [(one["kind"], one["name"]) for one in record["refused"]] == [("endpoints", "leased")]
    assert "quantum:nowhere" in record["refused"][0]["reason"]
    assert "quantum:nowhere" in " ".join(control.cli("health", "leased").stdout.split())
    assert "refuses endpoints leased" in " ".join(control.cli("doctor").stdout.split())
    with channel_to(sidecar.target) as channel:
        for agent_id in ("bad", "leased", "new"):
            assert Calls(channel, [("x-agent-id", agent_id)]).unary(b"x").result() == b"x"
    control.apply(agent("bad", peer, timeout_ms=6_000))
    eventually(lambda: held(sidecar, "bad") == 3, "a new version mends it")
    assert control.stop() == 0


# -- what it does not start on -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def running(mesh: Mesh) -> Control:
    return Control(mesh, "running")


def made(file: Path) -> sqlite3.Connection:
    Database.open(f"sqlite:///{file}").close_now()
    return sqlite3.connect(file)


def of_a_later_version(file: Path) -> None:
    with made(file) as connection:
        connection.execute("UPDATE outrider_schema SET version_num = '9999'")
    connection.close()


def half_a_schema(file: Path) -> None:
    with made(file) as connection:
        connection.execute("DROP TABLE agents")
    connection.close()


def corrupt(file: Path) -> None:
    made(file).close()
    content = bytearray(file.read_bytes())
    content[4_096:] = random.Random(1).randbytes(len(content) - 4_096)
    file.write_bytes(content)


def cut_short(file: Path) -> None:
    made(file).close()
    file.write_bytes(file.read_bytes()[:10_000])


def no_database(file: Path) -> None:
    file.write_text("agents:\n- agent_id: tax\n" * 500)


def of_another_program(file: Path) -> None:
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE accounts (id INTEGER PRIMARY KEY, secret TEXT)")
    connection.close()


BROKEN: dict[Callable[[Path], None], str] = {
    of_a_later_version: "run the newer outrider-control",
    half_a_schema: "table",
    corrupt: "restore the last backup",
    cut_short: "restore the last backup",
    no_database: "is not an SQLite file",
    of_another_program: "holds tables of another program (accounts)",
}


def refusal(mesh: Mesh, folder: Path, **config: Any) -> str:
    """The one line with which the program ends, with 2."""
    file = folder / "control.yaml"
    file.write_text(yaml.safe_dump({"grpc": "127.0.0.1:0", "http": "127.0.0.1:0", **config}), encoding="utf-8")
    command = [sys.executable, "-m", "outrider_control", "--config", str(file)]
    child = mesh.children.start(f"refuses-{folder.name}", command)
    code = child.process.wait(4 * WAIT_S)
    log = child.log.read_text()
    assert code == 2, log
    assert "Traceback" not in log
    said = [line for line in log.splitlines() if line.startswith("outrider-control: ")]
    assert len(said) == 1, log
    return said[0]


@pytest.mark.parametrize("breaks", BROKEN, ids=lambda breaks: breaks.__name__)
def test_a_file_it_cannot_use_is_left_as_it_is(mesh: Mesh, tmp_path: Path, breaks: Callable[[Path], None]) -> None:
    file = tmp_path / "outrider.db"
    breaks(file)
    before = file.read_bytes()
    said = refusal(mesh, tmp_path, database=f"sqlite:///{file}")
    assert str(file) in said
    assert BROKEN[breaks] in said
    assert file.read_bytes() == before


def test_a_second_one_on_the_same_file(mesh: Mesh, running: Control, tmp_path: Path) -> None:
    said = refusal(mesh, tmp_path, database=f"sqlite:///{running.folder / 'outrider.db'}")
    assert "outrider.db" in said
    assert "control plane" in said
    assert running.json("status")["leader"]


@pytest.mark.parametrize("listener", ["grpc", "http"])
def test_a_port_that_is_taken(mesh: Mesh, running: Control, tmp_path: Path, listener: str) -> None:
    taken = f"127.0.0.1:{running.ports[listener]}"
    said = refusal(mesh, tmp_path, **{listener: taken})
    assert said.startswith(f"outrider-control: {listener}: {taken}: another process is listening there")
    assert running.get("/readyz")[0] == 200


def test_a_password_is_told_to_nobody(mesh: Mesh, tmp_path: Path) -> None:
    """A server that is not there: the URL is named without it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    said = refusal(mesh, tmp_path, database=f"postgresql://outrider:s3cr3t-w0rd@127.0.0.1:{port}/mesh")
    assert "s3cr3t-w0rd" not in next(mesh.children.directory.glob(f"refuses-{tmp_path.name}.log")).read_text()
    assert f"127.0.0.1:{port}" in said
    assert "check that PostgreSQL runs" in said


def test_an_address_that_is_not_this_machines(mesh: Mesh, tmp_path: Path) -> None:
    with socket.socket() as probe, pytest.raises(OSError):
        probe.bind(("192.0.2.1", 0))
    assert "192.0.2.1" in refusal(mesh, tmp_path, grpc="192.0.2.1:7700", allow_insecure=True)
