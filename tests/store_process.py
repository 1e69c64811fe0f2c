"""A process that works on a store, for tests that kill it: `python -m tests.store_process TASK URL NAME`.

It prints one line for each thing that is done and acknowledged, and goes on until it is killed or its task is over.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Mapping

from outrider.policy import Agent, Optimization
from outrider_control.state import agents, epochs, leadership
from outrider_control.state.agents import StaleVersion, UnknownAgent, Wanted
from outrider_control.state.database import Database

AGENTS = 20  # changed together by `write`
CHANGES = 40  # made by `compete`
SHARED = 3  # agents that those who compete change


def start(task: str, url: str, name: str = "") -> subprocess.Popen[str]:
    """The process; read its lines from `stdout`."""
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "tests.store_process", task, url, name]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ)


def policies(number: int) -> list[Wanted]:
    """All of one write, by its number."""
    return [Wanted(Agent(f"agent-{at}", optimization=Optimization(cache_ttl=number))) for at in range(AGENTS)]


async def write(database: Database, _: str) -> None:
    """Change all agents again and again; each line is the number of an acknowledged write."""
    number = 1
    while True:
        await database.write(agents.apply, policies(number), "writer", "again", number)
        print(number, flush=True)
        number += 1


async def compete(database: Database, name: str) -> None:
    """Raise numbers that another process raises too, and lose none of its changes; lines are epochs."""
    for count in range(CHANGES):
        agent_id = f"agent-{count % SHARED}"
        while True:
            try:
                record = await database.read(agents.get, agent_id)
                ttl, version = record.agent.optimization.cache_ttl, record.version.version
            except UnknownAgent:
                ttl, version = 0, 0
            wanted = [Wanted(Agent(agent_id, optimization=Optimization(cache_ttl=ttl + 1)), version)]
            try:
                await database.write(agents.apply, wanted, name, "one more", 1)
                break
            except StaleVersion:
                continue
        print(await database.write(epochs.bump, agent_id, "", name, 1), flush=True)


async def lead(database: Database, answer_s: str) -> None:
    """Lead; a line says so."""
    url = database.url.render_as_string(hide_password=False)
    candidate = leadership.Leadership(url, 0.05, float(answer_s or 3))
    await candidate.start()
    while not candidate.leader:
        await asyncio.sleep(0.01)
    print("leader", flush=True)
    await asyncio.sleep(600)


TASKS: Mapping[str, Callable] = {"write": write, "compete": compete, "lead": lead}


async def main(task: str, url: str, name: str) -> None:
    database = Database.open(url)
    print("open", flush=True)
    await TASKS[task](database, name)
    await database.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:4]))
