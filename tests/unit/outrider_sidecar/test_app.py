"""The composition root: arguments, start, reload, purge, drain and what each says."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from outrider_sidecar import app, config
from outrider_sidecar.core import errors
from outrider_sidecar.edge.parts import new_instance_id
from outrider_sidecar.edge.rpc import Rpc, RpcReply

BASE = """
listen: 127.0.0.1:0
admin: 127.0.0.1:0
drain_grace_s: 5
default_agent: a
"""
AGENT = "agents:\n  - {agent_id: %s, endpoints: ['127.0.0.1:1']}\n"
RENAMED = BASE.replace("default_agent: a", "default_agent: b") + AGENT % "b"


def written(tmp_path: Path, text: str = BASE + AGENT % "a") -> Path:
    path = tmp_path / "sidecar.yaml"
    path.write_text(text)
    return path


def settings(tmp_path: Path, text: str = BASE + AGENT % "a") -> config.Settings:
    return config.load(written(tmp_path, text), {})


@contextlib.asynccontextmanager
async def started(tmp_path: Path, text: str = BASE + AGENT % "a") -> AsyncIterator[app.Sidecar]:
    sidecar = app.Sidecar(settings(tmp_path, text), asyncio.get_running_loop())
    try:
        await sidecar.start()
        yield sidecar
    finally:
        await sidecar.close()


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


async def call(sidecar: app.Sidecar, path: str = "/test.Echo/Unary", listener: str = "egress") -> RpcReply:
    rpc = Rpc(sidecar.reactor, f"127.0.0.1:{sidecar.listeners[listener].port}")
    try:
        return await rpc.unary(path, b"", 10)
    finally:
        await rpc.close()


# -- arguments ---------------------------------------------------------------------------------------------------------


def run(*argv: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        app.main(list(argv))
    assert isinstance(exit_.value.code, int)
    return exit_.value.code


def test_a_file_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 2
    assert "--config" in capsys.readouterr().err


def test_check_says_that_a_file_is_good(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path)
    assert run("--config", str(path), "--check") == 0
    assert capsys.readouterr().out == f"{path}: 1 agents, nothing wrong\n"


@pytest.mark.parametrize("check", [True, False])
def test_a_bad_file_is_named_with_field_and_reason(
    check: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, BASE + "agents:\n  - {agent_id: a, timeout_ms: soon}\n")
    assert run("--config", str(path), *(["--check"] if check else [])) == 2
    said = capsys.readouterr().err
    assert said.startswith("outrider-sidecar: ")
    assert str(path) in said
    assert "timeout_ms" in said


def test_a_file_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--config", str(tmp_path / "none.yaml")) == 2
    assert "none.yaml" in capsys.readouterr().err


# -- start -------------------------------------------------------------------------------------------------------------


async def test_it_listens_and_tells_its_ports(tmp_path: Path) -> None:
    ports = tmp_path / "ports.json"
    text = BASE + AGENT % "a" + f"ports_file: {ports}\n"
    text += "ingress: {listen: 127.0.0.1:0, agent_id: a, target: '127.0.0.1:1'}\n"
    async with started(tmp_path, text) as sidecar:
        told = json.loads(ports.read_text())
        assert {name: listener.port for name, listener in sidecar.listeners.items()} | {"admin": told["admin"]} == told
        assert set(told) == {"egress", "ingress", "admin"}
        assert (await call(sidecar)).status == errors.UNAVAILABLE
        assert (await call(sidecar, listener="ingress")).status == errors.UNAVAILABLE
        assert (await call(sidecar, "/grpc.health.v1.Health/Check")).status == errors.OK
        assert sidecar.series.families()


@pytest.mark.parametrize("field", ["listen", "admin"])
async def test_a_port_that_is_taken_is_named_and_the_process_fails(
    field: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        text = BASE.replace(f"{field}: 127.0.0.1:0", f"{field}: 127.0.0.1:{port}") + AGENT % "a"
        assert await app.serve(settings(tmp_path, text)) == 1
    said = capsys.readouterr().err
    assert f"{field}: 127.0.0.1:{port}" in said
    assert "another process" in said


# -- reload ------------------------------------------------------------------------------------------------------------


async def test_a_reload_is_applied_whole(tmp_path: Path) -> None:
    async with started(tmp_path) as sidecar:
        written(tmp_path, RENAMED)
        assert sidecar.reload("a test")
        assert sidecar.last_reload == "applied"
        assert sidecar.reloads == {"applied": 1, "refused": 0}
        assert list(sidecar.runtime.agents) == ["b"]
        assert sidecar.runtime.snapshot.policy.default_agent == "b"


@pytest.mark.parametrize("text", ["agents: [", "nonsense: 1\n", BASE + AGENT % "a" + "  - {agent_id: a}\n"])
async def test_a_bad_reload_changes_nothing_and_says_why(
    text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with started(tmp_path) as sidecar:
        before = sidecar.runtime.snapshot
        written(tmp_path, text)
        with caplog.at_level(logging.ERROR):
            assert not sidecar.reload("a test")
        assert sidecar.runtime.snapshot is before
        assert sidecar.last_reload.startswith("refused: ")
        assert sidecar.reloads == {"applied": 0, "refused": 1}
        assert "the old policy stays" in caplog.text


async def test_a_reload_without_a_new_policy_keeps_the_snapshot_and_names_what_needs_a_restart(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with started(tmp_path) as sidecar:
        before = sidecar.runtime.snapshot
        written(tmp_path, BASE.replace("admin: 127.0.0.1:0", "admin: 127.0.0.1:1") + AGENT % "a")
        with caplog.at_level(logging.WARNING):
            assert sidecar.reload("a test")
        assert sidecar.runtime.snapshot is before
        assert "admin change only with a restart" in caplog.text


async def test_a_changed_file_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "TICK_S", 0.005)
    async with started(tmp_path) as sidecar:
        written(tmp_path, RENAMED)
        await until(lambda: "b" in sidecar.runtime.agents)
        assert sidecar.reloads["applied"] == 1


async def test_a_tick_that_fails_is_said_and_runs_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(app, "TICK_S", 0.005)
    async with started(tmp_path) as sidecar:
        runs: list[float] = []

        def break_down(now: float) -> None:
            runs.append(now)
            raise ZeroDivisionError

        state = sidecar.runtime.agents["a"]
        state.pool, pool = SimpleNamespace(tick=break_down), state.pool
        await until(lambda: len(runs) > 2)
        state.pool = pool
        assert "a periodic task failed" in caplog.text


# -- purge -------------------------------------------------------------------------------------------------------------


async def test_a_purge_is_on_disk_before_it_is_answered(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    text = BASE + AGENT % "a" + f"state_dir: {state}\n"
    async with started(tmp_path, text) as sidecar:
        first, second = sidecar.purge("a", "", ""), sidecar.purge("", "t", "")
        assert second > first
        assert (state / "epochs.snapshot").exists()
        seed = sidecar.runtime.seed
    async with started(tmp_path, text) as sidecar:
        assert sidecar.runtime.epochs.version >= second
        assert sidecar.runtime.seed == seed
        assert sidecar.purge("", "", "tag") > second


# -- the end -----------------------------------------------------------------------------------------------------------


async def test_it_drains_and_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "QUIET_S", 0.01)
    async with started(tmp_path) as sidecar:
        port = sidecar.listeners["egress"].port
        ends = asyncio.create_task(sidecar.run_until_stopped())
        await asyncio.sleep(0)
        sidecar.request_stop()
        assert sidecar.draining
        async with asyncio.timeout(20):
            await ends
        with pytest.raises(OSError):
            await asyncio.open_connection("127.0.0.1", port)


async def test_a_call_that_outlives_the_grace_is_told_why(tmp_path: Path) -> None:
    text = BASE.replace("drain_grace_s: 5", "drain_grace_s: 0.05")

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(say_nothing, "127.0.0.1", 0) as silent:
        port = silent.sockets[0].getsockname()[1]
        text += f"agents:\n  - {{agent_id: a, endpoints: ['127.0.0.1:{port}'], balancing: {{failfast_ms: 60000}}}}\n"
        async with started(tmp_path, text) as sidecar:
            asked = asyncio.create_task(call(sidecar))
            await until(lambda: sidecar.runtime.calls)
            ends = asyncio.create_task(sidecar.run_until_stopped())
            sidecar.request_stop()
            reply = await asked
            assert reply.status == errors.UNAVAILABLE
            assert "shutting down" in reply.text
            await ends
            assert not sidecar.runtime.calls


def test_an_instance_has_a_uuid_of_its_own():
    ids = {new_instance_id(os.urandom(16)) for _ in range(200)}
    assert len(ids) == 200
    for one in ids:
        parsed = uuid.UUID(one)
        assert (str(parsed), parsed.version, parsed.variant) == (one, 4, uuid.RFC_4122)
