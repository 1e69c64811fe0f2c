"""A rollout after another one of the same agent: what is stable now, and the split that goes on.

Always holds: where units and layer are the same and what is stable now stands in the split of the rollout before, the
new one goes on in that split with one variant more, so that live sessions keep theirs; a new candidate always has a
name that the split has not had, for its units are counted anew.

Deliberately not here: writing any of it (`act`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Final

from sqlalchemy import Connection

from outrider.split import Split, Variant
from outrider.v1 import experiment_pb2 as pb
from outrider.v1 import policy_pb2
from outrider_control.loops.rollout import spec
from outrider_control.loops.rollout.types import SUCCEEDED
from outrider_control.state import rollouts
from outrider_control.state.rollouts import RolloutRow

MAX_KEPT: Final = 20  # variants of one split; the oldest go, and their sessions with them


def before(connection: Connection, standing: Sequence[Split]) -> tuple[RolloutRow, Split] | None:
    """The newest rollout of which a split stands, and the split."""
    rows = [(rollouts.of_split(connection, one.name), one) for one in standing]
    found = [(row, one) for row, one in rows if row is not None]
    return max(found, key=lambda pair: pair[0].created_ms, default=None)


def with_stable(wanted: pb.RolloutSpec, row: RolloutRow) -> pb.RolloutSpec:
    """Where nothing is said of the stable version: what the rollout before has left in force, and the candidate is
    that with what is said of it."""
    found = pb.RolloutSpec()
    found.CopyFrom(wanted)
    if not wanted.stable.ByteSize():
        left = pb.RolloutSpec.FromString(row.spec)
        found.stable.CopyFrom(left.candidate if row.phase == SUCCEEDED else left.stable)
        if found.stable.name == (wanted.candidate.name or spec.CANDIDATE):
            found.stable.name = spec.STABLE
        found.candidate.CopyFrom(_upon(found.stable, wanted.candidate))
    return found


def continued(ready: pb.RolloutSpec, split: Split) -> tuple[pb.RolloutSpec, Split] | None:
    """A checked spec under the names of the split before, and that split with the new candidate, which has nothing
    yet; None: the two do not go together."""
    own = spec.split_of(ready)
    stable = next((one for one in split.variants if _alike(one, own.variants[0]) and not one.aborted), None)
    if stable is None or (own.unit, own.layer) != (split.unit, split.layer):
        return None
    named = pb.RolloutSpec()
    named.CopyFrom(ready)
    named.stable.name = stable.name
    named.candidate.name = _new_name(ready.candidate.name, {one.name for one in split.variants})
    renamed = {ready.stable.name: named.stable.name, ready.candidate.name: named.candidate.name}
    for unit, name in ready.overrides.items():
        named.overrides[unit] = renamed.get(name, name)
    candidate = dataclasses.replace(own.variants[1], name=named.candidate.name)
    others = [one for one in split.variants if one is not stable]
    variants = (stable, *others[2 - MAX_KEPT :], candidate)  # the newest are the last
    if len(variants) < len(split.variants) + 1:  # what the oldest had is to be divided anew
        variants = tuple([dataclasses.replace(one, ranges=()) for one in variants])
    overrides = dict(named.overrides)
    return named, dataclasses.replace(split, variants=variants, idle_s=own.idle_s, overrides=overrides)


def _upon(stable: policy_pb2.VariantPolicy, candidate: policy_pb2.VariantPolicy) -> policy_pb2.VariantPolicy:
    """The candidate, with what it leaves out as it is in the stable version; labels count as a whole."""
    found = policy_pb2.VariantPolicy()
    found.CopyFrom(stable)
    for field in ("name", "share", "ranges", "aborted"):
        found.ClearField(field)
    if candidate.labels:
        found.ClearField("labels")
    found.MergeFrom(candidate)
    return found


def _alike(one: Variant, other: Variant) -> bool:
    """Whether two variants set the same."""
    bare = {"name": "", "share": 0.0, "ranges": (), "aborted": False}
    return dataclasses.replace(one, **bare) == dataclasses.replace(other, **bare)


def _new_name(name: str, taken: set[str]) -> str:
    """With the next number: the newest variant is always among those that are kept."""
    numbers = [1 if one == name else int(one.removeprefix(f"{name}-")) for one in taken if _is_numbered(one, name)]
    return f"{name}-{max(numbers) + 1}" if numbers else name


def _is_numbered(name: str, base: str) -> bool:
    number = name.removeprefix(f"{base}-")
    return name == base or (name != number and number.isdecimal() and len(number) < 10)
