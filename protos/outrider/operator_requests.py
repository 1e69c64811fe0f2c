"""What the operator's clients ask for, where a request is more than its fields.

Always holds: what a caller does not say is not sent, so that the control plane's own defaults hold.

Deliberately not here: sending (`operator`, `operator_async`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from outrider import policy_message
from outrider.v1 import operator_pb2 as pb

CHANGES = frozenset(
    {"ApplyAgents", "DeleteAgents", "RollbackAgent", "SetDefaultAgent", "PurgeCache", "CreateToken", "RevokeToken"}
)

Configuration = pb.AgentConfiguration | Mapping[str, Any]  # a mapping as in the file: `agent_id`, sections, `version`


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


def changed_optimization(record: pb.AgentRecord, changes: Mapping[str, Any]) -> pb.AgentConfiguration:
    """The agent of a record with fields of its `optimization` changed; refused if it is another version by then."""
    whole = policy_message.merged(policy_message.plain_of(record.policy), {"optimization": dict(changes)})
    return configuration_of({**whole, "version": record.version.version})
