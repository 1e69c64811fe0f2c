"""Rollouts for operators: begin one, see how far it is, take it on or back.

Always holds: a change says why and is in the journal with its author; what cannot be done says what can; what is shown
is what is in the store, with the sidecars of this moment.

Deliberately not here: the decisions and their effects (`loops.rollout`), who may call this (`roles`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Protocol

from outrider.v1 import experiment_pb2 as pb
from outrider_control.api import requests
from outrider_control.api.auth import current_caller
from outrider_control.api.errors import Invalid, NotFound, Unready
from outrider_control.loops.rollout.act import Conflict, Overtaken
from outrider_control.loops.rollout.by_hand import Refused
from outrider_control.loops.rollout.types import UnknownRollout

MAX_SPEC_BYTES = 256 * 1024


class Rollouts(Protocol):
    """What the rollout loop knows and can be told. See `loops.rollout.loop.RolloutLoop`."""

    async def create(self, wanted: pb.RolloutSpec, author: str, reason: str) -> pb.RolloutRecord: ...
    async def promote(self, name: str, author: str, reason: str, full: bool) -> pb.RolloutRecord: ...
    async def pause(self, name: str, author: str, reason: str) -> pb.RolloutRecord: ...
    async def resume(self, name: str, author: str, reason: str) -> pb.RolloutRecord: ...
    async def abort(self, name: str, author: str, reason: str) -> pb.RolloutRecord: ...
    async def get(self, name: str) -> pb.RolloutRecord: ...
    async def newest(self, agent_id: str = "") -> list[pb.RolloutRecord]: ...


class RolloutsApi:
    """Every RPC of rollouts."""

    def __init__(self, rollouts: Rollouts):
        self._rollouts = rollouts

    async def create(self, request: pb.CreateRolloutRequest) -> pb.RolloutRecord:
        """A new one. FAILED_PRECONDITION: another one, or an experiment, is in its way."""
        why = requests.reason(request)
        requests.name(request.spec.name, "spec.name", required=True)
        requests.name(request.spec.agent_id, "spec.agent_id", required=True)
        if request.spec.ByteSize() > MAX_SPEC_BYTES:
            raise Invalid("spec", f"has {request.spec.ByteSize():,} bytes; at most {MAX_SPEC_BYTES:,} are taken")
        with _said(request.spec.name):
            return await self._rollouts.create(request.spec, current_caller().name, why)

    async def promote(self, request: pb.ChangeRolloutRequest) -> pb.RolloutRecord:
        """On to the next step, or to the end."""
        name, why = _change(request)
        with _said(name):
            return await self._rollouts.promote(name, current_caller().name, why, request.full)

    async def pause(self, request: pb.ChangeRolloutRequest) -> pb.RolloutRecord:
        """Stay at its weight."""
        name, why = _not_full(request)
        with _said(name):
            return await self._rollouts.pause(name, current_caller().name, why)

    async def resume(self, request: pb.ChangeRolloutRequest) -> pb.RolloutRecord:
        """Go on."""
        name, why = _not_full(request)
        with _said(name):
            return await self._rollouts.resume(name, current_caller().name, why)

    async def abort(self, request: pb.ChangeRolloutRequest) -> pb.RolloutRecord:
        """Everything back on the stable version."""
        name, why = _not_full(request)
        with _said(name):
            return await self._rollouts.abort(name, current_caller().name, why)

    async def get(self, request: pb.GetRolloutRequest) -> pb.RolloutRecord:
        """One rollout."""
        name = requests.name(request.name, "name", required=True)
        with _said(name):
            return await self._rollouts.get(name)

    async def list_all(self, request: pb.ListRolloutsRequest) -> pb.ListRolloutsReply:
        """All, newest first; once they are too large together, the rest without what they measured."""
        agent_id = requests.name(request.agent_id, "agent_id")
        records = await self._rollouts.newest(agent_id)
        for record in records:
            record.spec.overrides.clear()  # testers are in the single one
        return pb.ListRolloutsReply(rollouts=requests.slim(records, ("analyses", "spec", "reason")))


def _change(request: pb.ChangeRolloutRequest) -> tuple[str, str]:
    return requests.name(request.name, "name", required=True), requests.reason(request)


def _not_full(request: pb.ChangeRolloutRequest) -> tuple[str, str]:
    if request.full:
        raise Invalid("full", "goes with promoting alone")
    return _change(request)


@contextlib.contextmanager
def _said(name: str) -> Iterator[None]:
    """Has what the loop refuses say of which rollout, and how to see what there is."""
    try:
        yield
    except UnknownRollout as error:
        raise NotFound(f"rollout {name!r} is not there: `outrider rollout list` says which are") from error
    except Refused as error:
        raise Unready(f"rollout {name!r}: {error}") from error
    except Conflict as error:
        raise Unready(str(error)) from error
    except Overtaken as error:
        raise Unready(f"rollout {name!r} was changed meanwhile: look at it, and try again") from error
