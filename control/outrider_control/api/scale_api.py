"""How many instances agents have: what is, why it is so, and what operators change of it.

Always holds: a change of a scaling policy is a version of the agent's whole policy, with author, reason and an entry in
the journal, like every other; two changes at once never undo each other. What is shown is what the loop knows; nothing
here asks an engine.

Deliberately not here: the decisions (`loops.scale`), how versions are kept (`state.agents`).
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, Final, Protocol

from sqlalchemy import Connection

from outrider.policy import PolicyError
from outrider.v1 import operator_pb2
from outrider_control.api import convert, requests
from outrider_control.api.auth import current_caller
from outrider_control.api.errors import Invalid, NotFound
from outrider_control.loops.scale import record as records
from outrider_control.loops.scale.types import Decision, Instance
from outrider_control.state import agents, journal, revision
from outrider_control.state.agents import AgentRecord, Wanted
from outrider_control.state.database import Database

DECISIONS: Final = 10
MAX_DECISIONS: Final = 100
_VERSION_MAX: Final = 2**63 - 1


class Scales(Protocol):
    """What the scale loop knows and can be told. An agent that is not configured is a KeyError."""

    def record(self, agent_id: str) -> operator_pb2.ScaleRecord: ...
    def records(self) -> list[operator_pb2.ScaleRecord]: ...
    def last(self, agent_id: str) -> Decision | None: ...
    def instances(self, agent_id: str) -> Sequence[Instance]: ...
    async def pause(self, agent_id: str, author: str, reason: str) -> operator_pb2.ScaleRecord: ...
    async def resume(self, agent_id: str, author: str, reason: str) -> operator_pb2.ScaleRecord: ...


class ScaleApi:
    """`scales` is the loop; `refresh` has it know all that is in the store (`Publisher.refresh`)."""

    def __init__(
        self, db: Database, scales: Scales, clock_ms: Callable[[], int], refresh: Callable[[], Awaitable[None]]
    ):
        self._db = db
        self._scales = scales
        self._clock_ms = clock_ms
        self._refresh = refresh

    async def list_all(self, _request: operator_pb2.ListScalesRequest) -> operator_pb2.ListScalesReply:
        """All agents' scale, in the order of their ids."""
        scales = self._scales.records()
        return operator_pb2.ListScalesReply(scales=requests.slim(scales, ("reason", "paused_reason")))

    async def explain(self, request: operator_pb2.ExplainScaleRequest) -> operator_pb2.ExplainScaleReply:
        """One agent's scale, its instances, and the last decisions with what they were taken from."""
        agent_id = requests.name(request.agent_id, "agent_id", required=True)
        limit = requests.number(request.limit, 0, MAX_DECISIONS, "limit") or DECISIONS
        await self._catch_up(agent_id)
        with _known(agent_id):
            record = self._scales.record(agent_id)
            last, instances = self._scales.last(agent_id), self._scales.instances(agent_id)
        taken = await self._db.read(journal.read, agent_id, records.KIND, 0, limit)
        messages = [convert.decision(one) for one in taken]
        return operator_pb2.ExplainScaleReply(
            scale=record,
            last=_last(last, record.engine) if last is not None else None,
            decisions=requests.slim(messages, ("inputs", "outcome"), requests.REPLY_BYTES // 2),
            instances=requests.slim(map(_instance, instances), ("note",), requests.REPLY_BYTES // 4),
        )

    async def configure(self, request: operator_pb2.ConfigureAutoScalingRequest) -> operator_pb2.AgentRecord:
        """Change the fields of an agent's scaling policy that are set."""
        why = requests.reason(request)
        agent_id = requests.name(request.agent_id, "agent_id", required=True)
        expected = request.expected_version if request.HasField("expected_version") else None
        if expected is not None and expected > _VERSION_MAX:
            raise Invalid("expected_version", f"{expected} is no version")
        change = {field.name: value for field, value in request.scaling.ListFields()}
        if not change:
            raise Invalid("scaling", "says nothing: set at least one of its fields")
        author = current_caller().name
        done = await self._db.write(_configure, agent_id, change, expected, author, why, self._clock_ms())
        return convert.record(done)

    async def pause(self, request: operator_pb2.PauseScalingRequest) -> operator_pb2.ScaleRecord:
        """Leave the number of instances as it is."""
        why = requests.reason(request)
        agent_id = requests.name(request.agent_id, "agent_id", required=True)
        await self._catch_up(agent_id)
        with _known(agent_id):
            return await self._scales.pause(agent_id, current_caller().name, why)

    async def resume(self, request: operator_pb2.ResumeScalingRequest) -> operator_pb2.ScaleRecord:
        """Decide again."""
        why = requests.reason(request)
        agent_id = requests.name(request.agent_id, "agent_id", required=True)
        await self._catch_up(agent_id)
        with _known(agent_id):
            return await self._scales.resume(agent_id, current_caller().name, why)

    async def _catch_up(self, agent_id: str) -> None:
        """An agent that was applied a moment ago may not be with the loop yet."""
        try:
            self._scales.record(agent_id)
        except KeyError:
            await self._refresh()


@contextlib.contextmanager
def _known(agent_id: str) -> Iterator[None]:
    """Has the loop's KeyError say which agent is not there, and how to see which are."""
    try:
        yield
    except KeyError as error:
        raise NotFound(f"agent {agent_id!r} is not configured: `outrider agents list` says which are") from error


def _configure(
    connection: Connection,
    agent_id: str,
    change: Mapping[str, Any],
    expected: int | None,
    author: str,
    reason: str,
    now_ms: int,
) -> AgentRecord:
    """The agent with these fields of its scaling policy, everything else as it is in this transaction.

    UnknownAgent, StaleVersion, or PolicyError with the path of the wrong field, and nothing is done.
    """
    revision.lock(connection)
    standing = agents.get(connection, agent_id)
    wanted = dataclasses.replace(standing.agent, scaling=dataclasses.replace(standing.agent.scaling, **change))
    version = standing.version.version if expected is None else expected
    try:
        agents.apply(connection, [Wanted(wanted, version)], author, reason, now_ms)
    except PolicyError as error:
        raise PolicyError(error.path.removeprefix("agents[0]."), error.reason) from None
    return agents.get(connection, agent_id)


def _last(taken: Decision, engine: str) -> operator_pb2.Decision:
    """A decision as the journal would have it."""
    return convert.decision(records.entry(taken, engine, taken.inputs.get("desired_before")))


def _instance(of: Instance) -> operator_pb2.ScaleInstance:
    return operator_pb2.ScaleInstance(
        name=convert.text(of.name),
        address=convert.text(of.address),
        state=of.state,
        started_unix_ms=of.started_ms,
        note=convert.text(of.note),
    )
