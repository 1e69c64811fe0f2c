"""A resource of the control plane, as engines see it: a name, a version, and a value they do not look into.

Always holds: plain data. `body` is what the control plane sent, kept to be written to disk; `value` is what it means.
Deliberately not here: protobuf (`edge.mesh_codec`), what is in force (`engines.held`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

# Kinds with the numbers of outrider.v1.ResourceKind.
POLICY: Final = 1  # value: outrider.policy.Agent
ENDPOINTS: Final = 2  # value: a tuple of outrider.policy.EndpointPolicy
EPOCHS: Final = 3  # value: as `engines.epochs` exports it
MESH: Final = 4  # value: the default agent's name
SPLITS: Final = 5  # value: a tuple of outrider.split.Split, of one agent
KIND_NAMES: Final = {POLICY: "policy", ENDPOINTS: "endpoints", EPOCHS: "epochs", MESH: "mesh", SPLITS: "splits"}

Key = tuple[int, str]  # kind and name


class Resource(NamedTuple):
    """What is held, or offered. `reason` says why an offered one cannot be used; it has no value then."""

    kind: int
    name: str  # of the agent; empty for resources there is one of
    version: int
    body: bytes = b""
    value: Any = None
    reason: str = ""


class Update(NamedTuple):
    """One message of the control plane. `full`: what is neither in `resources` nor in `current` is gone."""

    full: bool
    resources: Sequence[Resource] = ()
    removed: Sequence[Resource] = ()  # their body and value are empty
    current: Sequence[Resource] = ()  # held already at this very version
