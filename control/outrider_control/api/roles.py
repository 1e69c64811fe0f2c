"""Who may call what: the roles, and the least role of every method the control plane serves.

Always holds: a method that is not in the table may be called by nobody; viewer < operator < admin; a sidecar is beside
them: it speaks for agents and sees no operator's data. Pure data, so that a test can hold it against the services.

Deliberately not here: who a caller is (`auth`).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

VIEWER: Final = "viewer"
OPERATOR: Final = "operator"
ADMIN: Final = "admin"
SIDECAR: Final = "sidecar"
ROLES: Final = (VIEWER, OPERATOR, ADMIN, SIDECAR)

# The roles that meet a rule, the least first.
Rule = tuple[str, ...]
READ: Final[Rule] = (VIEWER, OPERATOR, ADMIN)
CHANGE: Final[Rule] = (OPERATOR, ADMIN)
RULE: Final[Rule] = (ADMIN,)
SPEAK: Final[Rule] = (SIDECAR, OPERATOR, ADMIN)  # for an agent: register it, take its policy, report its calls
ANYBODY: Final[Rule] = ROLES  # who is known at all

_OPERATOR = "outrider.v1.Operator"
_OTLP = "opentelemetry.proto.collector"
_SERVICES: Mapping[str, Mapping[str, Rule]] = {
    _OPERATOR: {
        **dict.fromkeys(("ApplyAgents", "DeleteAgents", "RollbackAgent", "SetDefaultAgent", "PurgeCache"), CHANGE),
        **dict.fromkeys(("ConfigureAutoScaling", "PauseScaling", "ResumeScaling"), CHANGE),
        **dict.fromkeys(("GetAgent", "ListAgents", "ListVersions", "DiffAgent"), READ),
        **dict.fromkeys(("ListEndpoints", "ListSidecars", "GetCacheStats", "GetStatus"), READ),
        **dict.fromkeys(("GetOverview", "GetAgentHealth", "GetMetrics", "StreamMetrics"), READ),
        **dict.fromkeys(("ListTraces", "GetTrace", "ExplainTrace", "ListDecisions"), READ),
        **dict.fromkeys(("ListScales", "ExplainScale"), READ),
        **dict.fromkeys(
            ("CreateExperiment", "StartExperiment", "PauseExperiment", "ResumeExperiment", "StopExperiment"), CHANGE
        ),
        "SetExperimentTraffic": CHANGE,
        **dict.fromkeys(("GetExperiment", "ListExperiments", "PlanExperiment"), READ),
        **dict.fromkeys(("CreateRollout", "PromoteRollout", "PauseRollout", "ResumeRollout", "AbortRollout"), CHANGE),
        **dict.fromkeys(("GetRollout", "ListRollouts"), READ),
        **dict.fromkeys(("CollectFeedback", "ReviewExample", "CreateDataset"), CHANGE),
        **dict.fromkeys(("ListFeedback", "GetSatisfaction", "ListExamples", "ListDatasets", "ExportDataset"), READ),
        **dict.fromkeys(("CreateToken", "ListTokens", "RevokeToken"), RULE),
        "WhoAmI": ANYBODY,
    },
    "outrider.v1.Mesh": dict.fromkeys(("Watch", "Register", "Renew", "Deregister", "DeliverFeedback"), SPEAK),
    f"{_OTLP}.trace.v1.TraceService": {"Export": SPEAK},
    f"{_OTLP}.metrics.v1.MetricsService": {"Export": SPEAK},
    # KEDA has no token to send: its client certificate is given a role by `auth.certificates`.
    "externalscaler.ExternalScaler": dict.fromkeys(
        ("IsActive", "StreamIsActive", "GetMetricSpec", "GetMetrics", "StreamMetricSpec"), READ
    ),
    # Probes without a token ask /healthz and /readyz of the HTTP port.
    "grpc.health.v1.Health": dict.fromkeys(("Check", "Watch", "List"), ANYBODY),
    "grpc.reflection.v1alpha.ServerReflection": {"ServerReflectionInfo": ANYBODY},
    "grpc.reflection.v1.ServerReflection": {"ServerReflectionInfo": ANYBODY},
}

# "/pkg.Svc/Method" -> who may call it.
RULES: Final[Mapping[str, Rule]] = MappingProxyType(
    {f"/{service}/{method}": rule for service, methods in _SERVICES.items() for method, rule in methods.items()}
)
