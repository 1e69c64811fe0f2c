"""A decision: what somebody or a loop did, from what, and why. The journal's entry.

Always holds: plain data; `inputs` and `outcome` hold what JSON can hold, and never a secret.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

_NOTHING: Mapping[str, Any] = MappingProxyType({})


def _nothing() -> Mapping[str, Any]:
    return _NOTHING


@dataclass(frozen=True, slots=True)
class Decision:
    """One entry of the journal; `id` is 0 until it is in the store."""

    kind: str  # apply, delete, rollback, default_agent, purge, token, lease, ...
    author: str  # an operator's name, or a loop's
    reason: str
    agent_id: str = ""
    inputs: Mapping[str, Any] = field(default_factory=_nothing)
    outcome: Mapping[str, Any] = field(default_factory=_nothing)
    at_ms: int = 0
    id: int = 0
