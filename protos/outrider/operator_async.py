"""The asyncio client of the control plane's operator API: method by method the same as `operator`'s blocking one."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Any, Self

import grpc
import grpc.aio

from outrider.control_channel import (
    DEFAULT_CONTROL,
    DEFAULT_TIMEOUT_S,
    OPTIONS,
    Access,
    OperatorError,
    dial_target,
    operator_error,
    parse_control,
)
from outrider.operator_requests import CHANGES, Configuration, changed_optimization, configuration_of
from outrider.v1 import operator_pb2 as pb
from outrider.v1 import operator_pb2_grpc

_OPEN = Access()


class AsyncOperator:
    """asyncio client, of the loop it is made in. `control`: one address, several with commas, or a list."""

    def __init__(
        self,
        control: str | Sequence[str] = DEFAULT_CONTROL,
        *,
        access: Access = _OPEN,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ):
        self.addresses = parse_control(control)
        self._access = access
        self._timeout_s = timeout_s
        self._at = 0  # the address that answered last
        self._has_answered = False
        self._channels: dict[int, grpc.aio.Channel] = {}

    @property
    def address(self) -> str:
        """Of the control plane in use."""
        return str(self.addresses[self._at])

    async def apply_agents(
        self, agents: Sequence[Configuration], reason: str, dry_run: bool = False
    ) -> pb.ApplyAgentsReply:
        message = pb.ApplyAgentsRequest(agents=map(configuration_of, agents), reason=reason, dry_run=dry_run)
        return await self._call("ApplyAgents", message)

    async def get_agent(self, agent_id: str, version: int = 0) -> pb.AgentRecord:
        return await self._call("GetAgent", pb.GetAgentRequest(agent_id=agent_id, version=version))

    async def list_agents(self) -> pb.ListAgentsReply:
        return await self._call("ListAgents", pb.ListAgentsRequest())

    async def delete_agents(self, agent_ids: Sequence[str], reason: str, dry_run: bool = False) -> pb.DeleteAgentsReply:
        message = pb.DeleteAgentsRequest(agent_ids=agent_ids, reason=reason, dry_run=dry_run)
        return await self._call("DeleteAgents", message)

    async def list_versions(self, agent_id: str, limit: int = 0) -> pb.ListVersionsReply:
        return await self._call("ListVersions", pb.ListVersionsRequest(agent_id=agent_id, limit=limit))

    async def rollback_agent(
        self, agent_id: str, reason: str, version: int = 0, expected_version: int | None = None
    ) -> pb.AgentRecord:
        message = pb.RollbackAgentRequest(
            agent_id=agent_id, version=version, reason=reason, expected_version=expected_version
        )
        return await self._call("RollbackAgent", message)

    async def diff_agent(self, agent_id: str, from_version: int = 0, to_version: int = 0) -> pb.DiffAgentReply:
        message = pb.DiffAgentRequest(agent_id=agent_id, from_version=from_version, to_version=to_version)
        return await self._call("DiffAgent", message)

    async def set_default_agent(self, agent_id: str, reason: str) -> pb.SetDefaultAgentReply:
        return await self._call("SetDefaultAgent", pb.SetDefaultAgentRequest(agent_id=agent_id, reason=reason))

    async def list_endpoints(self, agent_id: str = "") -> pb.ListEndpointsReply:
        return await self._call("ListEndpoints", pb.ListEndpointsRequest(agent_id=agent_id))

    async def list_sidecars(self) -> pb.ListSidecarsReply:
        return await self._call("ListSidecars", pb.ListSidecarsRequest())

    async def get_overview(self, since_ms: int = 0) -> pb.Overview:
        return await self._call("GetOverview", pb.GetOverviewRequest(since_ms=since_ms))

    async def get_agent_health(self, agent_id: str) -> pb.AgentHealth:
        return await self._call("GetAgentHealth", pb.GetAgentHealthRequest(agent_id=agent_id))

    async def get_metrics(self, agent_id: str = "", window: str = "", since_ms: int = 0, by: str = "") -> pb.Metrics:
        message = pb.GetMetricsRequest(agent_id=agent_id, window=window, since_ms=since_ms, by=by)
        return await self._call("GetMetrics", message)

    async def stream_metrics(
        self, interval_ms: int = 0, since_ms: int = 0, agent_id: str = ""
    ) -> AsyncGenerator[pb.Overview, None]:
        """Overviews until the iterator is closed or the control plane goes away (OperatorError)."""
        message = pb.StreamMetricsRequest(interval_ms=interval_ms, since_ms=since_ms, agent_id=agent_id)
        await self._find_answering()
        at = self._at
        call = self._stub(at, "StreamMetrics")(message, metadata=self._access.metadata)
        try:
            async for overview in call:
                yield overview
        except grpc.aio.AioRpcError as error:
            self._has_answered = False
            raise operator_error(error, self.addresses[at]) from error
        finally:
            call.cancel()

    async def list_traces(
        self, agent_id: str = "", since_ms: int = 0, errors: bool = False, min_ms: int = 0, limit: int = 0
    ) -> pb.ListTracesReply:
        message = pb.ListTracesRequest(agent_id=agent_id, since_ms=since_ms, errors=errors, min_ms=min_ms, limit=limit)
        return await self._call("ListTraces", message)

    async def get_trace(self, trace_id: str) -> pb.Trace:
        return await self._call("GetTrace", pb.GetTraceRequest(trace_id=trace_id))

    async def explain_trace(self, trace_id: str) -> pb.ExplainTraceReply:
        return await self._call("ExplainTrace", pb.ExplainTraceRequest(trace_id=trace_id))

    async def list_decisions(
        self, agent_id: str = "", kind: str = "", since_ms: int = 0, limit: int = 0
    ) -> pb.ListDecisionsReply:
        message = pb.ListDecisionsRequest(agent_id=agent_id, kind=kind, since_ms=since_ms, limit=limit)
        return await self._call("ListDecisions", message)

    async def get_cache_stats(self, agent_id: str = "") -> pb.CacheStats:
        return await self._call("GetCacheStats", pb.GetCacheStatsRequest(agent_id=agent_id))

    async def purge_cache(
        self, reason: str, agent_id: str = "", tenant_id: str = "", tag: str = "", everything: bool = False
    ) -> pb.PurgeCacheReply:
        message = pb.PurgeCacheRequest(
            agent_id=agent_id, tenant_id=tenant_id, tag=tag, everything=everything, reason=reason
        )
        return await self._call("PurgeCache", message)

    async def get_status(self) -> pb.Status:
        return await self._call("GetStatus", pb.GetStatusRequest())

    async def who_am_i(self) -> pb.Identity:
        return await self._call("WhoAmI", pb.WhoAmIRequest())

    async def create_token(self, name: str, role: str, reason: str, ttl_ms: int = 0) -> pb.CreateTokenReply:
        return await self._call(
            "CreateToken", pb.CreateTokenRequest(name=name, role=role, ttl_ms=ttl_ms, reason=reason)
        )

    async def list_tokens(self) -> pb.ListTokensReply:
        return await self._call("ListTokens", pb.ListTokensRequest())

    async def revoke_token(self, token_id: str, reason: str) -> pb.RevokeTokenReply:
        return await self._call("RevokeToken", pb.RevokeTokenRequest(id=token_id, reason=reason))

    async def configure_response_optimization(
        self, agent_id: str, reason: str, **optimization: Any
    ) -> pb.ApplyAgentsReply:
        """Change fields of an agent's `optimization` (`cache_enabled=True`, ...); all else stays as it is."""
        record = await self.get_agent(agent_id)
        return await self.apply_agents([changed_optimization(record, optimization)], reason)

    async def get_dashboard_metrics(self, since_ms: int = 0) -> pb.Overview:
        """All agents' figures: `get_overview`."""
        return await self.get_overview(since_ms)

    async def close(self) -> None:
        """Close the connections; calls that are under way are cancelled."""
        while self._channels:
            await self._channels.popitem()[1].close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def _call(self, method: str, message: Any) -> Any:
        if method in CHANGES:
            await self._find_answering()
            return await self._try_one(self._at, method, message)
        return await self._try_all(method, message)

    async def _find_answering(self) -> None:
        """What must not be sent twice goes to an address that has answered already."""
        if len(self.addresses) > 1 and not self._has_answered:
            await self._try_all("WhoAmI", pb.WhoAmIRequest())

    async def _try_all(self, method: str, message: Any) -> Any:
        error: OperatorError | None = None
        at = self._at  # of this call: others that fail at the same time go their own way
        for _ in self.addresses:
            try:
                return await self._try_one(at, method, message)
            except OperatorError as failed:
                if not failed.is_unreachable:
                    raise
                error = failed
                at = (at + 1) % len(self.addresses)
        assert error is not None, "there is at least one address"
        raise OperatorError(error.status, error.text, ", ".join(map(str, self.addresses))) from error

    async def _try_one(self, at: int, method: str, message: Any) -> Any:
        try:
            reply = await self._stub(at, method)(message, timeout=self._timeout_s, metadata=self._access.metadata)
        except grpc.aio.AioRpcError as error:
            failed = operator_error(error, self.addresses[at])
            self._has_answered = self._has_answered and not failed.is_unreachable
            raise failed from error
        self._at, self._has_answered = at, True
        return reply

    def _stub(self, at: int, method: str) -> Any:
        channel = self._channels.get(at)
        if channel is None:
            target, credentials = dial_target(self.addresses[at]), self._access.credentials
            if credentials is None:
                channel = grpc.aio.insecure_channel(target, OPTIONS)
            else:
                channel = grpc.aio.secure_channel(target, credentials, OPTIONS)
            self._channels[at] = channel
        return getattr(operator_pb2_grpc.OperatorStub(channel), method)
