"""A control plane that is killed or lets go leaves its instances running; the next one takes them over."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.process import ROOT, python_environment
from outrider_control.engines.local import LocalEngine
from outrider_control.engines.local_process import boot_id, stat_of
from outrider_control.loops.scale.types import DRAINING, FAILED, READY, EngineError
from tests.local_engine import Yard, come_to, eventually, serving, states


async def orphans(yard: Yard, count: int) -> None:
    """So many instances, whose control plane was killed by SIGKILL."""
    command = [sys.executable, "-m", "tests.local_engine", str(yard.folder), yard.mark, str(count)]
    with subprocess.Popen(command, cwd=ROOT, env=python_environment(), stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        line = await asyncio.to_thread(owner.stdout.readline)
        os.kill(owner.pid, signal.SIGKILL)
    assert line == b"ready\n"


def edit(yard: Yard, **changes: Any) -> None:
    """Changes the state of tax-1 on disk."""
    data = json.loads(yard.state_file.read_text(encoding="utf-8"))
    data["instances"] = [one | changes if one["name"] == "tax-1" else one for one in data["instances"]]
    yard.state_file.write_text(json.dumps(data), encoding="utf-8")


async def end(engine: LocalEngine) -> None:
    await engine.shrink("tax", 0, await engine.instances("tax"))
    await come_to(engine, lambda found: not [one for one in found if one.state != FAILED])
    await engine.close()


async def test_after_kill_9_the_instances_are_taken_over(yard: Yard) -> None:
    await orphans(yard, 3)
    before, running = yard.state(), yard.running()
    assert len(running) == 3
    os.kill(before["tax-2"]["pid"], signal.SIGKILL)
    await eventually(lambda: len(yard.running()) == 2, "one dies while nobody looks")
    engine = yard.engine()
    await engine.start()
    found = await come_to(engine, lambda found: states(found) == [READY, READY])
    assert [(one.name, one.address, one.started_ms) for one in found] == [
        (name, before[name]["address"], before[name]["started_ms"]) for name in ("tax-1", "tax-3")
    ]
    assert stat_of(before["tax-1"]["pid"]).parent != os.getpid()  # pyright: ignore[reportOptionalMemberAccess]
    assert set(yard.state()) == {"tax-1", "tax-3"}

    os.kill(before["tax-3"]["pid"], signal.SIGTERM)  # of a stranger the end is seen as well
    found = await come_to(engine, lambda found: sorted(states(found)) == [FAILED, READY, READY])
    assert [one.note[:5] for one in found if one.state == FAILED] == ["ended"]
    await engine.grow("tax", 3)
    await come_to(engine, lambda found: states(found).count(READY) == 3)
    await end(engine)
    assert yard.running() == set()


async def test_the_engine_after_one_that_let_go(yard: Yard) -> None:
    first = yard.engine()
    await first.start()
    before = await serving(first, 2)
    await first.close()
    engine = yard.engine()
    await engine.start()
    assert list(await engine.instances("tax")) == before
    pid = yard.state()["tax-1"]["pid"]
    os.kill(pid, signal.SIGKILL)
    found = await come_to(engine, lambda found: FAILED in states(found))
    assert "was ended by SIGKILL" in next(one.note for one in found if one.state == FAILED)
    assert stat_of(pid) is None  # no zombie is left
    await end(engine)


async def test_a_drain_goes_on(yard: Yard) -> None:
    first = yard.engine(yard.agent("--mode", "stubborn", drain_s=60))
    await first.start()
    found = await serving(first, 2)
    await first.shrink("tax", 1, found[:1])
    await eventually(lambda: yard.state()["tax-1"]["leaving"], "it is written down")
    await first.close()
    assert len(yard.running()) == 2
    engine = yard.engine(yard.agent(drain_s=0.2))
    await engine.start()
    assert states(await engine.instances("tax")) == [DRAINING, READY]
    await come_to(engine, lambda found: [one.name for one in found] == ["tax-2"])
    await asyncio.sleep(0.1)
    assert states(await engine.instances("tax")) == [READY]  # nothing takes its place
    await end(engine)


async def test_killed_before_the_pid_was_known(yard: Yard) -> None:
    await orphans(yard, 1)
    (pid,) = yard.running()
    edit(yard, pid=0, start=0, ready=False)
    engine = yard.engine()
    await engine.start()
    await come_to(engine, lambda found: states(found) == [READY])
    assert yard.state()["tax-1"]["pid"] == pid
    await end(engine)
    assert yard.running() == set()


async def test_killed_before_it_was_started(yard: Yard) -> None:
    await orphans(yard, 1)
    yard.end_all()
    edit(yard, pid=0, start=0, ready=False)
    engine = yard.engine()
    await engine.start()
    assert await engine.instances("tax") == []
    await engine.close()


@pytest.mark.parametrize("change", ["start", "boot"])
async def test_a_pid_that_is_somebody_elses_now(yard: Yard, change: str) -> None:
    stranger = subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(60)"])
    try:
        first = yard.engine()
        await first.start()
        await first.close()
        stat = stat_of(stranger.pid)
        assert stat is not None
        entry = {"name": "tax-1", "agent_id": "tax", "token": "t", "started_ms": 1, "address": "127.0.0.1:1"}
        entry |= {"pid": stranger.pid, "start": stat.start - (change == "start"), "ready": True, "leaving": True}
        boot = "of another day" if change == "boot" else boot_id()
        text = json.dumps({"version": 1, "boot": boot, "instances": [entry]})
        yard.state_file.write_text(text, encoding="utf-8")
        engine = yard.engine()
        await engine.start()
        assert await engine.instances("tax") == []
        assert yard.state() == {}
        await engine.close()
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


async def test_who_is_not_configured_any_more_is_left_alone(yard: Yard, caplog: pytest.LogCaptureFixture) -> None:
    await orphans(yard, 1)
    edit(yard, agent_id="sea")
    for _ in range(2):
        engine = yard.engine(stop_on_exit=True)
        await engine.start()
        assert await engine.instances("tax") == []
        await engine.close()
        assert len(yard.running()) == 1
        assert "sea is not in the configuration any more" in caplog.text
        caplog.clear()
    yard.end_all()


async def test_two_control_planes_on_one_state(yard: Yard) -> None:
    first, second = yard.engine(), yard.engine()
    await first.start()
    with pytest.raises(EngineError, match=r"held by another control plane: give each a state_dir of its own"):
        await second.start()
    with pytest.raises(EngineError, match="is not started"):
        await second.grow("tax", 1)
    await second.close()
    await first.close()
    await second.start()
    await second.close()


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "null", '{"version": 2, "instances": []}', '{"version": 1, "instances": {}}', "[" * 100_000),
        '{"version": 1, "boot": "BOOT", "instances": [{}]}',
        '{"version": 1, "boot": "BOOT", "instances": ["tax-1"]}',
        *(
            f'{{"version": 1, "boot": "BOOT", "instances": [{{"name": {name}, "agent_id": "tax", "token": "t", '
            f'"started_ms": 1, "address": "", "pid": {pid}, "start": 1, "ready": true, "leaving": true}}]}}'
            for name, pid in (
                ('"tax-1"', -1),
                ('"tax-1"', 1),
                ('"tax-1"', 1 << 40),
                ('"tax-1"', 1.5),
                ('"../x"', 4),
                ("7", 4),
            )
        ),
    ],
)
async def test_a_state_that_cannot_be_read_is_set_aside(
    yard: Yard, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    yard.state_file.parent.mkdir()
    yard.state_file.write_text(text.replace("BOOT", boot_id()), encoding="utf-8")
    engine = yard.engine()
    await engine.start()
    assert await engine.instances("tax") == []
    await engine.close()
    assert yard.state() == {}
    assert yard.state_file.with_suffix(".broken").exists()
    assert "end them by hand" in caplog.text


async def test_a_state_that_cannot_be_kept(yard: Yard, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    engine = yard.engine(state_dir="file/state")
    with pytest.raises(EngineError, match=r"its state cannot be kept in .*file/state"):
        await engine.start()
    await engine.close()
