"""Agent configurations: apply, read, take away, go back, compare.

Always holds: what is stored is a whole policy that sidecars can enforce; a request is done whole or not at all.

Deliberately not here: how versions are kept (`state.agents`), how sidecars learn of them (`publish`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from sqlalchemy import Connection

from outrider import codec, tree
from outrider.policy import Agent, PolicyError
from outrider.v1 import operator_pb2, policy_pb2
from outrider_control.api import convert, requests
from outrider_control.api.auth import current_caller
from outrider_control.api.errors import Exhausted, Invalid
from outrider_control.state import agents
from outrider_control.state.agents import AgentRecord, FieldChange, UnknownVersion, Wanted
from outrider_control.state.database import Database

_SLICE: Final = 25  # agents that are checked without a pause: some 10 ms
_VERSION_MAX: Final = 2**63 - 1


class AgentsApi:
    """`defaults` gives the fields that an applied policy leaves out."""

    def __init__(self, db: Database, clock_ms: Callable[[], int], defaults: Agent):
        self._db = db
        self._clock_ms = clock_ms
        self._defaults = defaults

    async def apply(self, request: operator_pb2.ApplyAgentsRequest) -> operator_pb2.ApplyAgentsReply:
        """Make each named agent what is given."""
        why = request.reason if request.dry_run and not request.reason else requests.reason(request)
        requests.count(request.agents, "agents", requests.MAX_AGENTS)
        wanted = await self._wanted(request.agents)
        author, now_ms = current_caller().name, self._clock_ms()
        run = self._db.read if request.dry_run else self._db.write
        done = await run(agents.apply, wanted, author, why, now_ms, request.dry_run)
        return operator_pb2.ApplyAgentsReply(agents=convert.applied(done))

    async def _wanted(self, given: Sequence[operator_pb2.AgentConfiguration]) -> list[Wanted]:
        wanted: list[Wanted] = []
        places: dict[str, int] = {}
        for at, one in enumerate(given):
            if at % _SLICE == _SLICE - 1:
                await asyncio.sleep(0)
            path = f"agents[{at}]"
            agent = decode(one.policy, self._defaults, path)
            first = places.setdefault(agent.agent_id, at)
            if first != at:
                raise PolicyError(f"{path}.agent_id", f"{tree.show(agent.agent_id)} is already agents[{first}]")
            expected = one.expected_version if one.HasField("expected_version") else None
            if expected is not None and expected > _VERSION_MAX:
                raise Invalid(f"{path}.expected_version", f"{expected} is no version")
            wanted.append(Wanted(agent, expected))
        return wanted

    async def get(self, request: operator_pb2.GetAgentRequest) -> operator_pb2.AgentRecord:
        """One agent, now or at a version."""
        agent_id = requests.name(request.agent_id, "agent_id", required=True)
        return convert.record(await self._db.read(agents.get, agent_id, _version(request.version, "version")))

    async def list_all(self, _request: operator_pb2.ListAgentsRequest) -> operator_pb2.ListAgentsReply:
        """All agents, by id."""
        stored, default = await self._db.read(_all)
        records: list[operator_pb2.AgentRecord] = []
        for at, one in enumerate(stored):
            if at % _SLICE == _SLICE - 1:
                await asyncio.sleep(0)
            records.append(convert.record(one))
        if sum([one.ByteSize() for one in records]) > requests.REPLY_BYTES:
            for one in records:  # ListVersions says them
                del one.version.changes[:]
            if sum([one.ByteSize() for one in records]) > requests.REPLY_BYTES:
                raise Exhausted(f"{len(records):,} agents are more than one reply holds: get them one by one")
        return operator_pb2.ListAgentsReply(agents=records, default_agent=default)

    async def delete(self, request: operator_pb2.DeleteAgentsRequest) -> operator_pb2.DeleteAgentsReply:
        """Take agents away."""
        why = request.reason if request.dry_run and not request.reason else requests.reason(request)
        requests.count(request.agent_ids, "agent_ids", requests.MAX_AGENTS)
        ids = [requests.name(one, f"agent_ids[{at}]", required=True) for at, one in enumerate(request.agent_ids)]
        author, now_ms = current_caller().name, self._clock_ms()
        run = self._db.read if request.dry_run else self._db.write
        done = await run(agents.delete, ids, author, why, now_ms, request.dry_run)
        return operator_pb2.DeleteAgentsReply(agents=convert.applied(done))

    async def versions(self, request: operator_pb2.ListVersionsRequest) -> operator_pb2.ListVersionsReply:
        """An agent's versions, newest first."""
        agent_id = requests.name(request.agent_id, "agent_id", required=True)
        found = await self._db.read(agents.versions, agent_id, requests.limit(request.limit, 100))
        messages = [convert.version(one) for one in found]
        return operator_pb2.ListVersionsReply(versions=requests.slim(messages, ("changes",)))

    async def rollback(self, request: operator_pb2.RollbackAgentRequest) -> operator_pb2.AgentRecord:
        """Make an older version the newest again."""
        why = requests.reason(request)
        agent_id = requests.name(request.agent_id, "agent_id", required=True)
        version = _version(request.version, "version")
        expected = request.expected_version if request.HasField("expected_version") else None
        author, now_ms = current_caller().name, self._clock_ms()
        done = await self._db.write(agents.rollback, agent_id, version, author, why, now_ms, expected)
        return convert.record(done)

    async def diff(self, request: operator_pb2.DiffAgentRequest) -> operator_pb2.DiffAgentReply:
        """What differs between two versions."""
        agent_id = requests.name(request.agent_id, "agent_id", required=True)
        first = _version(request.from_version, "from_version")
        last = _version(request.to_version, "to_version")
        first, last, changed = await self._db.read(_diff, agent_id, first, last)
        return operator_pb2.DiffAgentReply(from_version=first, to_version=last, changes=convert.changes(changed))

    async def set_default(self, request: operator_pb2.SetDefaultAgentRequest) -> operator_pb2.SetDefaultAgentReply:
        """Name the agent of calls that name none."""
        why = requests.reason(request)
        agent_id = requests.name(request.agent_id, "agent_id")
        await self._db.write(agents.set_default_agent, agent_id, current_caller().name, why, self._clock_ms())
        return operator_pb2.SetDefaultAgentReply()


def decode(policy: policy_pb2.AgentPolicy, defaults: Agent, path: str) -> Agent:
    """The agent of a message, checked; PolicyError names the field."""
    if not policy.agent_id:
        raise PolicyError(f"{path}.agent_id", "is missing")
    return codec.decode_agent(policy, defaults, path)


def _version(value: int, field: str) -> int:
    if value > _VERSION_MAX:
        raise Invalid(field, f"{value} is no version")
    return value


def _all(connection: Connection) -> tuple[list[AgentRecord], str]:
    return agents.current(connection), agents.default_agent(connection)[0]


def _diff(connection: Connection, agent_id: str, first: int, last: int) -> tuple[int, int, tuple[FieldChange, ...]]:
    """(from, to, what differs); the version before the first is that of no agent."""
    newest = agents.versions(connection, agent_id, 1)[0].version
    last = last or newest
    first = first or last - 1
    before, after = (_policy(connection, agent_id, version, newest) for version in (first, last))
    return first, last, agents.difference(before, after)


def _policy(connection: Connection, agent_id: str, version: int, newest: int) -> Agent | None:
    """None for a version that took the agent away, and for 0."""
    if not version:
        return None
    try:
        return agents.get(connection, agent_id, version).agent
    except UnknownVersion:
        if 0 < version <= newest:
            for one in agents.versions(connection, agent_id, newest - version + 1):
                if one.version == version and one.deleted:
                    return None
        raise
