"""The methods of experiments of the operator's service.

Always holds: as `operator_service`, which these are a part of.
"""

# ruff: noqa: N802 - the names are those of the service

from __future__ import annotations

from outrider.v1 import experiment_pb2 as pb
from outrider_control.api.errors import Context, answer
from outrider_control.api.experiments_api import ExperimentsApi


class ExperimentMethods:
    """Mixed into the service, which sets `_experiments`."""

    _experiments: ExperimentsApi

    async def CreateExperiment(self, request: pb.CreateExperimentRequest, context: Context) -> pb.ExperimentRecord:
        return await answer(context, self._experiments.create(request))

    async def StartExperiment(self, request: pb.ChangeExperimentRequest, context: Context) -> pb.ExperimentRecord:
        return await answer(context, self._experiments.start(request))

    async def PauseExperiment(self, request: pb.ChangeExperimentRequest, context: Context) -> pb.ExperimentRecord:
        return await answer(context, self._experiments.pause(request))

    async def ResumeExperiment(self, request: pb.ChangeExperimentRequest, context: Context) -> pb.ExperimentRecord:
        return await answer(context, self._experiments.resume(request))

    async def StopExperiment(self, request: pb.StopExperimentRequest, context: Context) -> pb.ExperimentRecord:
        return await answer(context, self._experiments.stop(request))

    async def SetExperimentTraffic(
        self, request: pb.SetExperimentTrafficRequest, context: Context
    ) -> pb.ExperimentRecord:
        return await answer(context, self._experiments.set_traffic(request))

    async def GetExperiment(self, request: pb.GetExperimentRequest, context: Context) -> pb.ExperimentRecord:
        return await answer(context, self._experiments.get(request))

    async def ListExperiments(self, request: pb.ListExperimentsRequest, context: Context) -> pb.ListExperimentsReply:
        return await answer(context, self._experiments.list_all(request))

    async def PlanExperiment(self, request: pb.PlanExperimentRequest, context: Context) -> pb.PlanExperimentReply:
        return await answer(context, self._experiments.plan(request))
