"""The methods of rollouts of the operator's service.

Always holds: as `operator_service`, which these are a part of.
"""

# ruff: noqa: N802 - the names are those of the service

from __future__ import annotations

from outrider.v1 import experiment_pb2 as pb
from outrider_control.api.errors import Context, answer
from outrider_control.api.rollouts_api import RolloutsApi


class RolloutMethods:
    """Mixed into the service, which sets `_rollouts`."""

    _rollouts: RolloutsApi

    async def CreateRollout(self, request: pb.CreateRolloutRequest, context: Context) -> pb.RolloutRecord:
        return await answer(context, self._rollouts.create(request))

    async def PromoteRollout(self, request: pb.ChangeRolloutRequest, context: Context) -> pb.RolloutRecord:
        return await answer(context, self._rollouts.promote(request))

    async def PauseRollout(self, request: pb.ChangeRolloutRequest, context: Context) -> pb.RolloutRecord:
        return await answer(context, self._rollouts.pause(request))

    async def ResumeRollout(self, request: pb.ChangeRolloutRequest, context: Context) -> pb.RolloutRecord:
        return await answer(context, self._rollouts.resume(request))

    async def AbortRollout(self, request: pb.ChangeRolloutRequest, context: Context) -> pb.RolloutRecord:
        return await answer(context, self._rollouts.abort(request))

    async def GetRollout(self, request: pb.GetRolloutRequest, context: Context) -> pb.RolloutRecord:
        return await answer(context, self._rollouts.get(request))

    async def ListRollouts(self, request: pb.ListRolloutsRequest, context: Context) -> pb.ListRolloutsReply:
        return await answer(context, self._rollouts.list_all(request))
