"""The requests of the operator's API, made in one place for the blocking client and the asyncio one.

One function per RPC, by its name in snake_case, with the request's fields as arguments: it gives the RPC's name, the
message and, for type checkers, what the answer is. Those about experiments, rollouts and feedback stand in
`experiment_requests`.

Always holds: what a caller does not say is not sent, so that the control plane's own defaults hold.

Deliberately not here: sending (`operator`, `operator_async`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from outrider import policy_message, tree
from outrider.policy import Scaling
from outrider.v1 import operator_pb2 as pb
from outrider.v1 import policy_pb2

# What must not be sent twice.
CHANGES = frozenset(
    {
        "ApplyAgents",
        "DeleteAgents",
        "RollbackAgent",
        "SetDefaultAgent",
        "ConfigureAutoScaling",
        "PauseScaling",
        "ResumeScaling",
        "CreateExperiment",
        "StartExperiment",
        "PauseExperiment",
        "ResumeExperiment",
        "StopExperiment",
        "SetExperimentTraffic",
        "CreateRollout",
        "PromoteRollout",
        "PauseRollout",
        "ResumeRollout",
        "AbortRollout",
        "ReviewExample",
        "CreateDataset",
        "PurgeCache",
        "CreateToken",
        "RevokeToken",
    }
)

Configuration = pb.AgentConfiguration | Mapping[str, Any]  # a mapping as in the file: `agent_id`, sections, `version`
ScalingFields = policy_pb2.ScalingPolicy | Mapping[str, Any]  # a mapping as in the file: `{"max_instances": 20}`

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Request(Generic[T]):
    """One call to be made: the RPC's name and what it is sent. `T` is what it answers (of a stream: each message)."""

    method: str
    message: Message


def apply_agents(agents: Sequence[Configuration], reason: str, dry_run: bool = False) -> Request[pb.ApplyAgentsReply]:
    message = pb.ApplyAgentsRequest(agents=map(configuration_of, agents), reason=reason, dry_run=dry_run)
    return Request("ApplyAgents", message)


def get_agent(agent_id: str, version: int = 0) -> Request[pb.AgentRecord]:
    return Request("GetAgent", pb.GetAgentRequest(agent_id=agent_id, version=version))


def list_agents() -> Request[pb.ListAgentsReply]:
    return Request("ListAgents", pb.ListAgentsRequest())


def delete_agents(agent_ids: Sequence[str], reason: str, dry_run: bool = False) -> Request[pb.DeleteAgentsReply]:
    return Request("DeleteAgents", pb.DeleteAgentsRequest(agent_ids=agent_ids, reason=reason, dry_run=dry_run))


def list_versions(agent_id: str, limit: int = 0) -> Request[pb.ListVersionsReply]:
    return Request("ListVersions", pb.ListVersionsRequest(agent_id=agent_id, limit=limit))


def rollback_agent(
    agent_id: str, reason: str, version: int = 0, expected_version: int | None = None
) -> Request[pb.AgentRecord]:
    message = pb.RollbackAgentRequest(
        agent_id=agent_id, version=version, reason=reason, expected_version=expected_version
    )
    return Request("RollbackAgent", message)


def diff_agent(agent_id: str, from_version: int = 0, to_version: int = 0) -> Request[pb.DiffAgentReply]:
    message = pb.DiffAgentRequest(agent_id=agent_id, from_version=from_version, to_version=to_version)
    return Request("DiffAgent", message)


def set_default_agent(agent_id: str, reason: str) -> Request[pb.SetDefaultAgentReply]:
    return Request("SetDefaultAgent", pb.SetDefaultAgentRequest(agent_id=agent_id, reason=reason))


def list_endpoints(agent_id: str = "") -> Request[pb.ListEndpointsReply]:
    return Request("ListEndpoints", pb.ListEndpointsRequest(agent_id=agent_id))


def list_sidecars() -> Request[pb.ListSidecarsReply]:
    return Request("ListSidecars", pb.ListSidecarsRequest())


def get_overview(since_ms: int = 0) -> Request[pb.Overview]:
    """All agents' figures over a window of time."""
    return Request("GetOverview", pb.GetOverviewRequest(since_ms=since_ms))


def get_agent_health(agent_id: str) -> Request[pb.AgentHealth]:
    return Request("GetAgentHealth", pb.GetAgentHealthRequest(agent_id=agent_id))


def get_metrics(agent_id: str = "", window: str = "", since_ms: int = 0, by: str = "") -> Request[pb.Metrics]:
    message = pb.GetMetricsRequest(agent_id=agent_id, window=window, since_ms=since_ms, by=by)
    return Request("GetMetrics", message)


def stream_metrics(interval_ms: int = 0, since_ms: int = 0, agent_id: str = "") -> Request[pb.Overview]:
    message = pb.StreamMetricsRequest(interval_ms=interval_ms, since_ms=since_ms, agent_id=agent_id)
    return Request("StreamMetrics", message)


def list_traces(
    agent_id: str = "", since_ms: int = 0, errors: bool = False, min_ms: int = 0, limit: int = 0
) -> Request[pb.ListTracesReply]:
    message = pb.ListTracesRequest(agent_id=agent_id, since_ms=since_ms, errors=errors, min_ms=min_ms, limit=limit)
    return Request("ListTraces", message)


def get_trace(trace_id: str) -> Request[pb.Trace]:
    return Request("GetTrace", pb.GetTraceRequest(trace_id=trace_id))


def explain_trace(trace_id: str) -> Request[pb.ExplainTraceReply]:
    return Request("ExplainTrace", pb.ExplainTraceRequest(trace_id=trace_id))


def list_decisions(
    agent_id: str = "", kind: str = "", since_ms: int = 0, limit: int = 0
) -> Request[pb.ListDecisionsReply]:
    message = pb.ListDecisionsRequest(agent_id=agent_id, kind=kind, since_ms=since_ms, limit=limit)
    return Request("ListDecisions", message)


def list_scales() -> Request[pb.ListScalesReply]:
    return Request("ListScales", pb.ListScalesRequest())


def explain_scale(agent_id: str, limit: int = 0) -> Request[pb.ExplainScaleReply]:
    """How many instances an agent has and wants, and the last decisions with what they were taken from."""
    return Request("ExplainScale", pb.ExplainScaleRequest(agent_id=agent_id, limit=limit))


def configure_auto_scaling(
    agent_id: str, scaling: ScalingFields, reason: str, expected_version: int | None = None
) -> Request[pb.AgentRecord]:
    """Change the fields of an agent's `scaling` that are given (`{"max_instances": 20}`); all else stays as it is."""
    message = pb.ConfigureAutoScalingRequest(
        agent_id=agent_id, scaling=scaling_of(scaling), reason=reason, expected_version=expected_version
    )
    return Request("ConfigureAutoScaling", message)


def pause_scaling(agent_id: str, reason: str) -> Request[pb.ScaleRecord]:
    return Request("PauseScaling", pb.PauseScalingRequest(agent_id=agent_id, reason=reason))


def resume_scaling(agent_id: str, reason: str) -> Request[pb.ScaleRecord]:
    return Request("ResumeScaling", pb.ResumeScalingRequest(agent_id=agent_id, reason=reason))


def get_cache_stats(agent_id: str = "") -> Request[pb.CacheStats]:
    return Request("GetCacheStats", pb.GetCacheStatsRequest(agent_id=agent_id))


def purge_cache(
    reason: str, agent_id: str = "", tenant_id: str = "", tag: str = "", everything: bool = False
) -> Request[pb.PurgeCacheReply]:
    message = pb.PurgeCacheRequest(
        agent_id=agent_id, tenant_id=tenant_id, tag=tag, everything=everything, reason=reason
    )
    return Request("PurgeCache", message)


def get_status() -> Request[pb.Status]:
    return Request("GetStatus", pb.GetStatusRequest())


def who_am_i() -> Request[pb.Identity]:
    return Request("WhoAmI", pb.WhoAmIRequest())


def create_token(name: str, role: str, reason: str, ttl_ms: int = 0) -> Request[pb.CreateTokenReply]:
    return Request("CreateToken", pb.CreateTokenRequest(name=name, role=role, ttl_ms=ttl_ms, reason=reason))


def list_tokens() -> Request[pb.ListTokensReply]:
    return Request("ListTokens", pb.ListTokensRequest())


def revoke_token(token_id: str, reason: str) -> Request[pb.RevokeTokenReply]:
    return Request("RevokeToken", pb.RevokeTokenRequest(id=token_id, reason=reason))


def configuration_of(data: Configuration) -> pb.AgentConfiguration:
    """An agent to apply from a mapping as in the configuration file; its `version` is the expected one.

    PolicyError where the mapping is no policy, whatever the defaults.
    """
    if isinstance(data, pb.AgentConfiguration):
        return data
    fields = dict(data)
    version = fields.pop("version", None)
    policy_message.check(fields, "")
    return pb.AgentConfiguration(policy=policy_message.message_of(fields), expected_version=version)


def changed_section(record: pb.AgentRecord, section: str, changes: Mapping[str, Any]) -> pb.AgentConfiguration:
    """The agent of a record with fields of one section changed; refused if it is another version by then."""
    whole = policy_message.merged(policy_message.plain_of(record.policy), {section: dict(changes)})
    return configuration_of({**whole, "version": record.version.version})


def scaling_of(data: ScalingFields) -> policy_pb2.ScalingPolicy:
    """The fields of a scaling policy that are given, and no other.

    PolicyError for what is no field, or not of its type; bounds that depend on fields left out are the receiver's.
    """
    if isinstance(data, policy_pb2.ScalingPolicy):
        return data
    kinds = tree.field_types(Scaling)
    fields = tree.section(data, "scaling", kinds)
    checked = {name: tree.scalar(kinds[name], value, f"scaling.{name}") for name, value in fields.items()}
    return policy_pb2.ScalingPolicy(**checked)
