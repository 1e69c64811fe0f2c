"""The operator's service of operator.proto on grpc.aio: each method to the part that does it.

Always holds: a handler runs only behind `auth.Interceptor`; every exception leaves as a status (`errors`).

Deliberately not here: what the methods do (the modules beside), the port (`guard`), who is let in (`auth`).
"""

# ruff: noqa: N802 - the names are those of the service

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable

import grpc.aio
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection

from outrider.policy import Agent
from outrider.v1 import mesh_pb2, operator_pb2, operator_pb2_grpc
from outrider_control.api.agents_api import AgentsApi
from outrider_control.api.cache_api import CacheApi
from outrider_control.api.errors import Context, answer, answer_stream
from outrider_control.api.examples_api import ExamplesApi
from outrider_control.api.experiment_methods import ExperimentMethods
from outrider_control.api.experiments_api import Experiments, ExperimentsApi, calls_per_day
from outrider_control.api.feedback_api import FeedbackApi
from outrider_control.api.feedback_methods import FeedbackMethods
from outrider_control.api.figures_api import FiguresApi
from outrider_control.api.fleet_api import FleetApi
from outrider_control.api.rollout_methods import RolloutMethods
from outrider_control.api.rollouts_api import Rollouts, RolloutsApi
from outrider_control.api.scale_api import ScaleApi, Scales
from outrider_control.api.status_api import StatusApi
from outrider_control.api.tokens_api import TokensApi
from outrider_control.api.traces_api import TokenPrice, TracesApi
from outrider_control.intake.reader import Reader
from outrider_control.publish.fleet import Fleet
from outrider_control.publish.publisher import Publisher
from outrider_control.state.database import Database


class OperatorService(ExperimentMethods, FeedbackMethods, RolloutMethods, operator_pb2_grpc.OperatorServicer):
    """What operators call.

    `defaults` gives the fields that an applied policy leaves out, `price` what tokens cost (`Prices.cost_nano_usd`);
    `on_token_revoked` is called when a token has become void (`Authenticator.forget_tokens`), `scales` is the scale
    loop, `experiments` and `rollouts` the loops of theirs."""

    def __init__(
        self,
        db: Database,
        publisher: Publisher,
        fleet: Fleet,
        reader: Reader,
        status: Callable[[], operator_pb2.Status],
        clock_ms: Callable[[], int],
        *,
        defaults: Agent,
        on_token_revoked: Callable[[], None],
        scales: Scales,
        experiments: Experiments,
        feedback: FeedbackApi,
        rollouts: Rollouts,
        price: TokenPrice | None = None,
    ):
        self._agents = AgentsApi(db, clock_ms, defaults)
        self._fleet = FleetApi(fleet, reader, clock_ms)
        self._figures = FiguresApi(fleet, reader, clock_ms, db)
        self._traces = TracesApi(reader, clock_ms, price)
        self._cache = CacheApi(db, publisher, fleet, clock_ms)
        self._experiments = ExperimentsApi(experiments, calls_per_day(reader, clock_ms))
        self._feedback = feedback
        self._examples = ExamplesApi(db, clock_ms)
        self._rollouts = RolloutsApi(rollouts)
        self._scale = ScaleApi(db, scales, clock_ms, publisher.refresh)
        self._status = StatusApi(db, status, clock_ms)
        self._tokens = TokensApi(db, clock_ms, on_token_revoked)

    async def ApplyAgents(
        self, request: operator_pb2.ApplyAgentsRequest, context: Context
    ) -> operator_pb2.ApplyAgentsReply:
        return await answer(context, self._agents.apply(request))

    async def GetAgent(self, request: operator_pb2.GetAgentRequest, context: Context) -> operator_pb2.AgentRecord:
        return await answer(context, self._agents.get(request))

    async def ListAgents(
        self, request: operator_pb2.ListAgentsRequest, context: Context
    ) -> operator_pb2.ListAgentsReply:
        return await answer(context, self._agents.list_all(request))

    async def DeleteAgents(
        self, request: operator_pb2.DeleteAgentsRequest, context: Context
    ) -> operator_pb2.DeleteAgentsReply:
        return await answer(context, self._agents.delete(request))

    async def ListVersions(
        self, request: operator_pb2.ListVersionsRequest, context: Context
    ) -> operator_pb2.ListVersionsReply:
        return await answer(context, self._agents.versions(request))

    async def RollbackAgent(
        self, request: operator_pb2.RollbackAgentRequest, context: Context
    ) -> operator_pb2.AgentRecord:
        return await answer(context, self._agents.rollback(request))

    async def DiffAgent(self, request: operator_pb2.DiffAgentRequest, context: Context) -> operator_pb2.DiffAgentReply:
        return await answer(context, self._agents.diff(request))

    async def SetDefaultAgent(
        self, request: operator_pb2.SetDefaultAgentRequest, context: Context
    ) -> operator_pb2.SetDefaultAgentReply:
        return await answer(context, self._agents.set_default(request))

    async def ListEndpoints(
        self, request: operator_pb2.ListEndpointsRequest, context: Context
    ) -> operator_pb2.ListEndpointsReply:
        return await answer(context, self._fleet.endpoints(request))

    async def ListSidecars(
        self, request: operator_pb2.ListSidecarsRequest, context: Context
    ) -> operator_pb2.ListSidecarsReply:
        return await answer(context, self._fleet.sidecars(request))

    async def GetOverview(self, request: operator_pb2.GetOverviewRequest, context: Context) -> operator_pb2.Overview:
        return await answer(context, self._figures.overview(request))

    async def GetAgentHealth(
        self, request: operator_pb2.GetAgentHealthRequest, context: Context
    ) -> operator_pb2.AgentHealth:
        return await answer(context, self._fleet.health(request))

    async def GetMetrics(self, request: operator_pb2.GetMetricsRequest, context: Context) -> operator_pb2.Metrics:
        return await answer(context, self._figures.metrics(request))

    async def StreamMetrics(
        self, request: operator_pb2.StreamMetricsRequest, context: Context
    ) -> AsyncGenerator[operator_pb2.Overview, None]:
        async with contextlib.aclosing(answer_stream(context, self._figures.stream(request))) as overviews:
            async for overview in overviews:
                yield overview

    async def ListTraces(
        self, request: operator_pb2.ListTracesRequest, context: Context
    ) -> operator_pb2.ListTracesReply:
        return await answer(context, self._traces.list_some(request))

    async def GetTrace(self, request: operator_pb2.GetTraceRequest, context: Context) -> operator_pb2.Trace:
        return await answer(context, self._traces.get(request))

    async def ExplainTrace(
        self, request: operator_pb2.ExplainTraceRequest, context: Context
    ) -> operator_pb2.ExplainTraceReply:
        return await answer(context, self._traces.explain(request))

    async def ListDecisions(
        self, request: operator_pb2.ListDecisionsRequest, context: Context
    ) -> operator_pb2.ListDecisionsReply:
        return await answer(context, self._status.decisions(request))

    async def ListScales(
        self, request: operator_pb2.ListScalesRequest, context: Context
    ) -> operator_pb2.ListScalesReply:
        return await answer(context, self._scale.list_all(request))

    async def ExplainScale(
        self, request: operator_pb2.ExplainScaleRequest, context: Context
    ) -> operator_pb2.ExplainScaleReply:
        return await answer(context, self._scale.explain(request))

    async def ConfigureAutoScaling(
        self, request: operator_pb2.ConfigureAutoScalingRequest, context: Context
    ) -> operator_pb2.AgentRecord:
        return await answer(context, self._scale.configure(request))

    async def PauseScaling(
        self, request: operator_pb2.PauseScalingRequest, context: Context
    ) -> operator_pb2.ScaleRecord:
        return await answer(context, self._scale.pause(request))

    async def ResumeScaling(
        self, request: operator_pb2.ResumeScalingRequest, context: Context
    ) -> operator_pb2.ScaleRecord:
        return await answer(context, self._scale.resume(request))

    async def GetCacheStats(
        self, request: operator_pb2.GetCacheStatsRequest, context: Context
    ) -> operator_pb2.CacheStats:
        return await answer(context, self._cache.stats(request))

    async def PurgeCache(
        self, request: operator_pb2.PurgeCacheRequest, context: Context
    ) -> operator_pb2.PurgeCacheReply:
        return await answer(context, self._cache.purge(request))

    async def GetStatus(self, request: operator_pb2.GetStatusRequest, context: Context) -> operator_pb2.Status:
        return await answer(context, self._status.status(request))

    async def WhoAmI(self, request: operator_pb2.WhoAmIRequest, context: Context) -> operator_pb2.Identity:
        return await answer(context, self._status.who_am_i(request))

    async def CreateToken(
        self, request: operator_pb2.CreateTokenRequest, context: Context
    ) -> operator_pb2.CreateTokenReply:
        return await answer(context, self._tokens.create(request))

    async def ListTokens(
        self, request: operator_pb2.ListTokensRequest, context: Context
    ) -> operator_pb2.ListTokensReply:
        return await answer(context, self._tokens.list_all(request))

    async def RevokeToken(
        self, request: operator_pb2.RevokeTokenRequest, context: Context
    ) -> operator_pb2.RevokeTokenReply:
        return await answer(context, self._tokens.revoke(request))

    def add_to(self, server: grpc.aio.Server) -> None:
        """Serve these methods."""
        operator_pb2_grpc.add_OperatorServicer_to_server(self, server)


SERVICES = (
    *(
        service.full_name
        for module in (operator_pb2, mesh_pb2)
        for service in module.DESCRIPTOR.services_by_name.values()
    ),
    "opentelemetry.proto.collector.trace.v1.TraceService",
    "opentelemetry.proto.collector.metrics.v1.MetricsService",
)


def add_reflection(server: grpc.aio.Server) -> None:
    """Tell tools like grpcurl what is served here. What is named must be added to the server by itself."""
    reflection.enable_server_reflection((*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
