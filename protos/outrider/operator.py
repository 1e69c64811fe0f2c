"""Typed clients of the control plane's operator API, blocking (`Operator`) and asyncio (`AsyncOperator`).

One method per RPC in snake_case, with the request's fields as arguments, and the names that agents' builders know:
`configure_response_optimization`, `get_dashboard_metrics`, `get_agent_health`, `stream_metrics`.

Always holds: a failed call raises an OperatorError; a read that nobody answers is asked of the next address, while a
change is sent once, and only to a control plane that has just answered.

Deliberately not here: files and tables (`outrider_control.commands`), the calls agents make (`client`).
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Sequence
from typing import Any, Self

import grpc

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
from outrider.operator_async import AsyncOperator
from outrider.operator_requests import CHANGES, Configuration, changed_optimization, configuration_of
from outrider.v1 import operator_pb2 as pb
from outrider.v1 import operator_pb2_grpc

_OPEN = Access()


class Operator:
    """Blocking client; safe to use from several threads. `control`: one address, several with commas, or a list."""

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
        self._channels: dict[int, grpc.Channel] = {}
        self._dialling = threading.Lock()

    @property
    def address(self) -> str:
        """Of the control plane in use."""
        return str(self.addresses[self._at])

    def apply_agents(self, agents: Sequence[Configuration], reason: str, dry_run: bool = False) -> pb.ApplyAgentsReply:
        message = pb.ApplyAgentsRequest(agents=map(configuration_of, agents), reason=reason, dry_run=dry_run)
        return self._call("ApplyAgents", message)

    def get_agent(self, agent_id: str, version: int = 0) -> pb.AgentRecord:
        return self._call("GetAgent", pb.GetAgentRequest(agent_id=agent_id, version=version))

    def list_agents(self) -> pb.ListAgentsReply:
        return self._call("ListAgents", pb.ListAgentsRequest())

    def delete_agents(self, agent_ids: Sequence[str], reason: str, dry_run: bool = False) -> pb.DeleteAgentsReply:
        message = pb.DeleteAgentsRequest(agent_ids=agent_ids, reason=reason, dry_run=dry_run)
        return self._call("DeleteAgents", message)

    def list_versions(self, agent_id: str, limit: int = 0) -> pb.ListVersionsReply:
        return self._call("ListVersions", pb.ListVersionsRequest(agent_id=agent_id, limit=limit))

    def rollback_agent(
        self, agent_id: str, reason: str, version: int = 0, expected_version: int | None = None
    ) -> pb.AgentRecord:
        message = pb.RollbackAgentRequest(
            agent_id=agent_id, version=version, reason=reason, expected_version=expected_version
        )
        return self._call("RollbackAgent", message)

    def diff_agent(self, agent_id: str, from_version: int = 0, to_version: int = 0) -> pb.DiffAgentReply:
        message = pb.DiffAgentRequest(agent_id=agent_id, from_version=from_version, to_version=to_version)
        return self._call("DiffAgent", message)

    def set_default_agent(self, agent_id: str, reason: str) -> pb.SetDefaultAgentReply:
        return self._call("SetDefaultAgent", pb.SetDefaultAgentRequest(agent_id=agent_id, reason=reason))

    def list_endpoints(self, agent_id: str = "") -> pb.ListEndpointsReply:
        return self._call("ListEndpoints", pb.ListEndpointsRequest(agent_id=agent_id))

    def list_sidecars(self) -> pb.ListSidecarsReply:
        return self._call("ListSidecars", pb.ListSidecarsRequest())

    def get_overview(self, since_ms: int = 0) -> pb.Overview:
        return self._call("GetOverview", pb.GetOverviewRequest(since_ms=since_ms))

    def get_agent_health(self, agent_id: str) -> pb.AgentHealth:
        return self._call("GetAgentHealth", pb.GetAgentHealthRequest(agent_id=agent_id))

    def get_metrics(self, agent_id: str = "", window: str = "", since_ms: int = 0, by: str = "") -> pb.Metrics:
        message = pb.GetMetricsRequest(agent_id=agent_id, window=window, since_ms=since_ms, by=by)
        return self._call("GetMetrics", message)

    def stream_metrics(
        self, interval_ms: int = 0, since_ms: int = 0, agent_id: str = ""
    ) -> Generator[pb.Overview, None, None]:
        """Overviews until the iterator is closed or the control plane goes away (OperatorError)."""
        message = pb.StreamMetricsRequest(interval_ms=interval_ms, since_ms=since_ms, agent_id=agent_id)
        self._find_answering()
        at = self._at
        call = self._stub(at, "StreamMetrics")(message, metadata=self._access.metadata)
        try:
            yield from call
        except grpc.RpcError as error:
            self._has_answered = False
            raise operator_error(error, self.addresses[at]) from error
        finally:
            call.cancel()

    def list_traces(
        self, agent_id: str = "", since_ms: int = 0, errors: bool = False, min_ms: int = 0, limit: int = 0
    ) -> pb.ListTracesReply:
        message = pb.ListTracesRequest(agent_id=agent_id, since_ms=since_ms, errors=errors, min_ms=min_ms, limit=limit)
        return self._call("ListTraces", message)

    def get_trace(self, trace_id: str) -> pb.Trace:
        return self._call("GetTrace", pb.GetTraceRequest(trace_id=trace_id))

    def explain_trace(self, trace_id: str) -> pb.ExplainTraceReply:
        return self._call("ExplainTrace", pb.ExplainTraceRequest(trace_id=trace_id))

    def list_decisions(
        self, agent_id: str = "", kind: str = "", since_ms: int = 0, limit: int = 0
    ) -> pb.ListDecisionsReply:
        message = pb.ListDecisionsRequest(agent_id=agent_id, kind=kind, since_ms=since_ms, limit=limit)
        return self._call("ListDecisions", message)

    def get_cache_stats(self, agent_id: str = "") -> pb.CacheStats:
        return self._call("GetCacheStats", pb.GetCacheStatsRequest(agent_id=agent_id))

    def purge_cache(
        self, reason: str, agent_id: str = "", tenant_id: str = "", tag: str = "", everything: bool = False
    ) -> pb.PurgeCacheReply:
        message = pb.PurgeCacheRequest(
            agent_id=agent_id, tenant_id=tenant_id, tag=tag, everything=everything, reason=reason
        )
        return self._call("PurgeCache", message)

    def get_status(self) -> pb.Status:
        return self._call("GetStatus", pb.GetStatusRequest())

    def who_am_i(self) -> pb.Identity:
        return self._call("WhoAmI", pb.WhoAmIRequest())

    def create_token(self, name: str, role: str, reason: str, ttl_ms: int = 0) -> pb.CreateTokenReply:
        return self._call("CreateToken", pb.CreateTokenRequest(name=name, role=role, ttl_ms=ttl_ms, reason=reason))

    def list_tokens(self) -> pb.ListTokensReply:
        return self._call("ListTokens", pb.ListTokensRequest())

    def revoke_token(self, token_id: str, reason: str) -> pb.RevokeTokenReply:
        return self._call("RevokeToken", pb.RevokeTokenRequest(id=token_id, reason=reason))

    def configure_response_optimization(self, agent_id: str, reason: str, **optimization: Any) -> pb.ApplyAgentsReply:
        """Change fields of an agent's `optimization` (`cache_enabled=True`, ...); all else stays as it is."""
        return self.apply_agents([changed_optimization(self.get_agent(agent_id), optimization)], reason)

    def get_dashboard_metrics(self, since_ms: int = 0) -> pb.Overview:
        """All agents' figures: `get_overview`."""
        return self.get_overview(since_ms)

    def close(self) -> None:
        """Close the connections; calls that are under way are cancelled."""
        with self._dialling:
            while self._channels:
                self._channels.popitem()[1].close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _call(self, method: str, message: Any) -> Any:
        if method in CHANGES:
            self._find_answering()
            return self._try_one(self._at, method, message)
        return self._try_all(method, message)

    def _find_answering(self) -> None:
        """What must not be sent twice goes to an address that has answered already."""
        if len(self.addresses) > 1 and not self._has_answered:
            self._try_all("WhoAmI", pb.WhoAmIRequest())

    def _try_all(self, method: str, message: Any) -> Any:
        error: OperatorError | None = None
        at = self._at  # of this call: others that fail at the same time go their own way
        for _ in self.addresses:
            try:
                return self._try_one(at, method, message)
            except OperatorError as failed:
                if not failed.is_unreachable:
                    raise
                error = failed
                at = (at + 1) % len(self.addresses)
        assert error is not None, "there is at least one address"
        raise OperatorError(error.status, error.text, ", ".join(map(str, self.addresses))) from error

    def _try_one(self, at: int, method: str, message: Any) -> Any:
        try:
            reply = self._stub(at, method)(message, timeout=self._timeout_s, metadata=self._access.metadata)
        except grpc.RpcError as error:
            failed = operator_error(error, self.addresses[at])
            self._has_answered = self._has_answered and not failed.is_unreachable
            raise failed from error
        self._at, self._has_answered = at, True
        return reply

    def _stub(self, at: int, method: str) -> Any:
        with self._dialling:
            channel = self._channels.get(at)
            if channel is None:
                target, credentials = dial_target(self.addresses[at]), self._access.credentials
                if credentials is None:
                    channel = grpc.insecure_channel(target, OPTIONS)
                else:
                    channel = grpc.secure_channel(target, credentials, OPTIONS)
                self._channels[at] = channel
        return getattr(operator_pb2_grpc.OperatorStub(channel), method)


__all__ = [
    "DEFAULT_CONTROL",
    "Access",
    "AsyncOperator",
    "Configuration",
    "Operator",
    "OperatorError",
    "configuration_of",
]
