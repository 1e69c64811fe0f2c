"""The control plane itself, its journal, and who the caller is."""

from __future__ import annotations

from collections.abc import Callable

from outrider.v1 import operator_pb2
from outrider_control.api import convert, requests
from outrider_control.api.auth import current_caller
from outrider_control.state import journal
from outrider_control.state.database import Database


class StatusApi:
    """`status` says how the process is."""

    def __init__(self, db: Database, status: Callable[[], operator_pb2.Status], clock_ms: Callable[[], int]):
        self._db = db
        self._status = status
        self._clock_ms = clock_ms

    async def status(self, _request: operator_pb2.GetStatusRequest) -> operator_pb2.Status:
        """The control plane."""
        return self._status()

    async def who_am_i(self, _request: operator_pb2.WhoAmIRequest) -> operator_pb2.Identity:
        """The caller."""
        caller = current_caller()
        return operator_pb2.Identity(name=convert.text(caller.name), role=caller.role)

    async def decisions(self, request: operator_pb2.ListDecisionsRequest) -> operator_pb2.ListDecisionsReply:
        """The journal, newest first."""
        agent_id = requests.name(request.agent_id, "agent_id")
        kind = requests.name(request.kind, "kind")
        back_ms = requests.since_ms(request.since_ms, 0)
        since_ms = self._clock_ms() - back_ms if back_ms else 0
        found = await self._db.read(journal.read, agent_id, kind, since_ms, requests.limit(request.limit, 100))
        messages = [convert.decision(one) for one in found]
        return operator_pb2.ListDecisionsReply(decisions=requests.slim(messages, ("inputs", "outcome")))
