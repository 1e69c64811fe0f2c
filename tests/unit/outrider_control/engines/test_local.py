"""Real processes: started, looked after, ended; what dies, hangs or does not listen."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from outrider_control.engines import local
from outrider_control.engines.local import LocalEngine
from outrider_control.engines.local_process import stat_of
from outrider_control.loops.scale.types import DRAINING, FAILED, READY, STARTING, EngineError, Instance
from tests.local_engine import WAIT_S, Yard, come_to, eventually, serving, states


@asynccontextmanager
async def running(yard: Yard, *args: Any, **fields: Any) -> AsyncIterator[LocalEngine]:
    """An engine whose instances end with it."""
    engine = yard.engine(*args, **{"stop_on_exit": True, **fields})
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


def pids(yard: Yard) -> dict[str, int]:
    return {name: one["pid"] for name, one in yard.state().items()}


async def refusal(engine: LocalEngine, desired: int) -> str:
    """What who asks for more is told, once it is."""
    told: list[str] = []

    async def asks() -> bool:
        try:
            await engine.grow("tax", desired)
        except EngineError as error:
            told.append(str(error))
        return bool(told)

    give_up_at = time.monotonic() + WAIT_S
    while not await asks():
        assert time.monotonic() < give_up_at, "it was never refused"
        await asyncio.sleep(0.01)
    return told[0]


async def test_instances_start_and_know_who_they_are(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    monkeypatch.setenv("MODEL_KEY", "k1")
    (yard.folder / "work").mkdir()
    arguments = ("--ports-file", "{ports_file}", "--mode", "serve")
    tax = yard.agent(
        *arguments,
        cwd="work",
        capacity=8,
        inherit=["MODEL_KEY"],
        env={"BRACES": "{{{name} of {agent_id} for {capacity} at {control}}}"},
    )
    async with running(yard, tax) as engine:
        found = await serving(engine, 2)
        assert [one.name for one in found] == ["tax-1", "tax-2"]
        for one in found:
            said = yard.started_with(one.name)
            environment = said["environment"]
            ports = json.loads((yard.folder / "state" / "ports" / f"{one.name}.json").read_text())
            assert one.address == f"127.0.0.1:{ports['port']}"
            assert said["arguments"][:2] == ["--port", "0"]  # it is told a file to write its port to
            assert said["cwd"] == str(yard.folder / "work")
            assert said["stdin"] == ""
            assert environment["BRACES"] == f"{{{one.name} of tax for 8 at 127.0.0.1:7700}}"
            assert environment["MODEL_KEY"] == "k1"
            assert "SECRET" not in environment
            assert environment["OUTRIDER_AGENT_ID"] == "tax"
            assert environment["OUTRIDER_INSTANCE"] == one.name
            assert environment["OUTRIDER_CONTROL"] == "127.0.0.1:7700"
            assert environment["OUTRIDER_CAPACITY"] == "8"
            pid = pids(yard)[one.name]
            assert stat_of(pid).session == pid != os.getsid(0)  # pyright: ignore[reportOptionalMemberAccess]
            assert one.started_ms > 0
    assert yard.running() == set()


async def test_a_chosen_port_is_told_and_in_its_range(yard: Yard) -> None:
    async with running(yard, yard.agent(ports="21100-21139")) as engine:
        found = await serving(engine, 2)
        for one in found:
            port = one.address.rpartition(":")[2]
            assert 21_100 <= int(port) <= 21_139
            assert yard.started_with(one.name)["arguments"][:2] == ["--port", port]
            assert yard.started_with(one.name)["environment"]["OUTRIDER_PORT"] == port
    assert len({one.address for one in found}) == 2


async def test_a_few_boot_at_a_time_and_all_are_seen(yard: Yard) -> None:
    async with running(yard, yard.agent(ready="registered"), booting=1) as engine:
        await engine.grow("tax", 3)
        found = await come_to(engine, lambda found: len(yard.running()) == 1)
        assert states(found) == [STARTING] * 3
        assert sum(["waits for its turn" in one.note for one in found]) == 2
        yard.registered.add(found[0].address)
        found = await come_to(engine, lambda found: states(found)[0] == READY and len(yard.running()) == 2)
        assert states(found) == [READY, STARTING, STARTING]
        await engine.grow("tax", 2)  # who waits is not needed any more
        found = await come_to(engine, lambda found: len(found) == 2)
        assert states(found) == [READY, STARTING]
    assert yard.running() == set()


async def test_those_named_end_and_no_others(yard: Yard) -> None:
    async with running(yard, yard.agent("--mode", "sorry")) as engine:
        found = await serving(engine, 3)
        before = pids(yard)
        await engine.shrink("tax", 2, [found[1]])
        assert states(await engine.instances("tax")) == [READY, DRAINING, READY]
        left = await come_to(engine, lambda found: len(found) == 2)
        assert [one.name for one in left] == ["tax-1", "tax-3"]
        assert yard.running() == {before["tax-1"], before["tax-3"]}
        assert "good bye" in yard.log("tax-2")
        again = await serving(engine, 3)
        assert sorted(one.name for one in again) == ["tax-1", "tax-2", "tax-3"]
        assert pids(yard)["tax-2"] != before["tax-2"]
        await engine.shrink("tax", 2, [found[1], Instance("tax-9"), Instance("1")])  # of a life before, or of nobody
        await asyncio.sleep(0.1)
        assert states(await engine.instances("tax")) == [READY] * 3


async def test_who_takes_no_hint_is_killed_with_all_it_started(yard: Yard, tmp_path: Path) -> None:
    child = tmp_path / "child"
    tax = yard.agent("--mode", "stubborn", "--child", str(child), drain_s=0.2)
    async with running(yard, tax) as engine:
        found = await serving(engine, 1)
        assert yard.running() == {pids(yard)["tax-1"], int(child.read_text())}
        await engine.shrink("tax", 0, found)
        await come_to(engine, lambda found: not found)
        assert yard.running() == set()
        assert yard.state() == {}


async def test_what_a_dead_one_leaves_is_killed(yard: Yard, tmp_path: Path) -> None:
    child = tmp_path / "child"
    async with running(yard, yard.agent("--child", str(child))) as engine:
        await serving(engine, 1)
        sleeper = int(child.read_text())
        os.kill(pids(yard)["tax-1"], signal.SIGKILL)
        await eventually(lambda: sleeper not in yard.running(), "the child is killed")


async def test_who_dies_is_shown_and_replaced(yard: Yard) -> None:
    async with running(yard) as engine:
        found = await serving(engine, 2)
        os.kill(pids(yard)["tax-1"], signal.SIGSEGV)
        after = await come_to(engine, lambda found: sorted(states(found)) == [FAILED, READY, READY])
        failed = [one for one in after if one.state == FAILED]
        assert (failed[0].name, failed[0].started_ms) == (found[0].name, found[0].started_ms)
        assert failed[0].note.startswith("was ended by SIGSEGV after ")
        assert found[1] in after
        assert {one.name for one in after} == {"tax-1", "tax-2", "tax-3"}


async def test_dying_at_the_start_slows_down_and_touches_nothing_that_serves(yard: Yard) -> None:
    async with running(yard) as engine:
        first = await serving(engine, 2)
        yard.die.touch()
        await engine.grow("tax", 6)
        found = await come_to(engine, lambda found: states(found).count(FAILED) >= 4)
        failed = [one for one in found if one.state == FAILED]
        assert "ended with code 3" in failed[0].note
        assert failed[0].note.endswith("before it was ready: no model  to load")
        told = await refusal(engine, 6)
        assert re.search(r"local: tax: \d+ starts in a row have failed.*code 3.*no model", told)
        await come_to(engine, lambda found: states(found).count(STARTING) <= 1)
        tried: set[int] = set()

        def tries_one_at_a_time(found: list[Instance]) -> bool:
            starting = [one.started_ms for one in found if one.state == STARTING]
            assert len(starting) <= 1
            tried.update(starting)
            assert [one for one in found if one.state == READY] == first
            return len(tried) >= 2

        await come_to(engine, tries_one_at_a_time)
        yard.die.unlink()
        found = await come_to(engine, lambda found: states(found).count(READY) == 6)
        assert [one for one in found if one in first] == first


async def test_who_still_waits_for_its_turn_does_not_die_as_well(yard: Yard) -> None:
    yard.die.touch()
    async with running(yard, booting=1, first_s=30) as engine:
        await engine.grow("tax", 9)
        found = await come_to(engine, lambda found: states(found).count(FAILED) >= 2 and STARTING not in states(found))
        assert len(found) < 9
        assert "2 starts in a row have failed" in await refusal(engine, 9)


async def test_a_program_that_is_not_there(yard: Yard) -> None:
    async with running(yard, yard.agent() | {"command": ["no-such-program-here"]}) as engine:
        await engine.grow("tax", 1)
        found = await come_to(engine, lambda found: states(found).count(FAILED) >= 2)
        assert found[-1].note.startswith("cannot be started: [Errno 2]")
        assert "no-such-program-here" in found[-1].note
        assert "no-such-program-here" in await refusal(engine, 1)
        assert yard.running() == set()


async def test_who_does_not_become_ready_ends(yard: Yard) -> None:
    tax = yard.agent("--mode", "deaf", start_s=0.3)
    async with running(yard, tax, first_s=30) as engine:
        await engine.grow("tax", 1)
        found = await come_to(engine, lambda found: states(found) == [FAILED])
        assert found[0].note.startswith("was not ready within 0.3 s: no connection: ")
        await eventually(lambda: not yard.running(), "it ends")


async def test_who_crashes_as_soon_as_it_serves_is_not_started_without_pause(yard: Yard) -> None:
    async with running(yard, yard.agent("--mode", "crash"), first_s=30) as engine:
        await engine.grow("tax", 1)
        found = await come_to(engine, lambda found: states(found) == [FAILED])
        assert found[0].note.endswith("something went wrong")
        assert yard.running() == set()


async def test_the_silent_end_one_by_one_and_are_replaced(yard: Yard) -> None:
    tax = yard.agent("--mode", "stubborn", drain_s=0.3, check_s=0.05, unhealthy_after=2)
    async with running(yard, tax) as engine:
        found = await serving(engine, 3)
        before = pids(yard)
        for pid in before.values():
            os.kill(pid, signal.SIGUSR1)

        def all_new(found: list[Instance]) -> bool:
            mine = [one for one in found if one.name in before and one.state == FAILED and one.name in yard.state()]
            assert len(mine) <= 1, "more than a third end at a time"
            return states(found).count(READY) == 3 and not set(before.values()) & yard.running()

        after = await come_to(engine, all_new)
        failed = [one for one in after if one.state == FAILED]
        assert {one.name for one in failed} == {one.name for one in found}
        assert failed[0].note.startswith("was silent for ")


async def test_a_registered_one_whose_lease_is_gone_serves_as_long_as_it_answers(yard: Yard) -> None:
    tax = yard.agent(ready="registered", check_s=0.05, unhealthy_after=2)
    async with running(yard, tax) as engine:
        await engine.grow("tax", 1)
        (one,) = await come_to(engine, lambda found: states(found) == [STARTING] and found[0].address)
        yard.registered.add(one.address)
        await come_to(engine, lambda found: states(found) == [READY])
        yard.registered.clear()  # it is no gRPC server: nobody vouches for it now
        found = await come_to(engine, lambda found: FAILED in states(found))
        assert "its health check fails" in found[0].note


async def test_instances_go_on_unless_told(yard: Yard) -> None:
    engine = yard.engine()
    await engine.start()
    await serving(engine, 2)
    await engine.close()
    assert len(yard.running()) == 2
    with pytest.raises(EngineError, match="not started"):
        await engine.instances("tax")
    assert len(yard.end_all()) == 2


async def test_with_stop_on_exit_who_does_not_hear_is_killed(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "CLOSE_S", 0.2)
    async with running(yard, yard.agent("--mode", "stubborn", drain_s=3_600)) as engine:
        (_, second) = await serving(engine, 2)
        await engine.shrink("tax", 1, [second])  # this one drains already, and for longer
    assert yard.running() == set()
    assert yard.state() == {}


async def test_closing_that_is_broken_off(yard: Yard) -> None:
    engine = yard.engine(yard.agent("--mode", "stubborn"), stop_on_exit=True)
    await engine.start()
    await serving(engine, 2)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(engine.close(), 0.2)
    assert [one["leaving"] for one in yard.state().values()] == [True, True]  # the next engine ends them
    assert len(yard.end_all()) == 2


async def test_closing_while_instances_start_loses_none(yard: Yard) -> None:
    engine = yard.engine(yard.agent("--mode", "deaf"), booting=2)
    await engine.start()
    await engine.grow("tax", 4)
    await eventually(lambda: len(yard.running()) == 2, "two have started")
    await engine.close()
    assert {one["pid"] for one in yard.state().values() if one["pid"]} == yard.running()
    assert len(yard.end_all()) == 2


@pytest.mark.parametrize("desired", [-1, 1_001, 2.0, True, None])
async def test_numbers_that_cannot_be(yard: Yard, desired: Any) -> None:
    async with running(yard) as engine:
        for asked in (engine.grow("tax", desired), engine.shrink("tax", desired, ())):
            with pytest.raises(EngineError, match=r"engine local: "):
                await asked
        assert await engine.instances("tax") == []


async def test_agents_that_it_knows(yard: Yard) -> None:
    async with running(yard, agents={"law": yard.agent()}) as engine:
        assert [engine.has(agent_id) for agent_id in ("tax", "law", "sea")] == [True, True, False]
        with pytest.raises(EngineError, match="knows no command for 'sea'"):
            await engine.grow("sea", 1)
        await serving(engine, 1, "law")
        assert await engine.instances("tax") == []


async def test_without_a_state_nothing_is_started(yard: Yard) -> None:
    async with running(yard) as engine:
        await serving(engine, 1)
        await eventually(lambda: yard.state()["tax-1"]["ready"], "all of it is written down")
        yard.state_file.with_suffix(".new").mkdir()
        await engine.grow("tax", 2)
        found = await come_to(engine, lambda found: FAILED in states(found))
        assert next(one.note for one in found if one.state == FAILED).endswith("instances.new'")
        assert len(yard.running()) == 1
        yard.state_file.with_suffix(".new").rmdir()
        await come_to(engine, lambda found: states(found).count(READY) == 2)


async def test_ports_that_are_all_taken(yard: Yard) -> None:
    async with running(yard, yard.agent(ports="21150-21150"), first_s=30) as engine:
        await engine.grow("tax", 2)
        found = await come_to(engine, lambda found: sorted(states(found)) == [FAILED, READY])
        assert [one.note for one in found if one.state == FAILED] == [
            "cannot be started: all ports from 21150 to 21150 are taken"
        ]
