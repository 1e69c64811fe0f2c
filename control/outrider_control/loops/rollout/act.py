"""Carries out what is decided of a rollout: its row, its split, the journal and what webhooks are to be told.

Always holds: all four change in one transaction or not at all, by who knows the row's newest version; a weight that is
in the store is in the split that sidecars are told of. So whoever comes after a kill finds a rollout exactly where it
stood. The split of a rollout stays when it has ended: it is what keeps the calls where they are, until the next
rollout of the agent goes on in it or takes its place (`follow`).

Deliberately not here: the decisions (`advance`, `by_hand`), sending to webhooks (`webhook`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from sqlalchemy import Connection

from outrider.split import PARTS, Split, decided, ranges_in_force, reallocated, settings_of
from outrider.v1 import experiment_pb2 as pb
from outrider.v1 import policy_pb2
from outrider_control.loops.rollout import follow, record, spec
from outrider_control.loops.rollout.types import INITIALIZING, Rollout, Transition
from outrider_control.state import agents, experiments, journal, revision, rollouts, splits
from outrider_control.state.rollouts import RolloutRow

VERDICT_AUTHOR = "experiment"


class Conflict(Exception):
    """What else is in the mesh is in the way; the text says what, and what to do."""


def create(
    connection: Connection,
    wanted: pb.RolloutSpec,
    author: str,
    reason: str,
    now_ms: int,
    experiment: str = "",
    path: str = "spec",
) -> RolloutRow:
    """A new rollout, which begins at the next look of the leader.

    PolicyError for what is wrong in it, UnknownAgent, Conflict for what is in its way: then nothing is done.
    `experiment`: whose verdict begins it; it takes over that experiment's split, so that sessions keep their variants.
    """
    revision.lock(connection)
    agents.get(connection, wanted.agent_id)  # UnknownAgent
    standing = splits.of_agent(connection, wanted.agent_id)
    before = follow.before(connection, standing)
    ready = spec.checked(follow.with_stable(wanted, before[0]) if before is not None else wanted, path)
    _check_free(connection, ready, standing, experiment)
    taken = next((one for one in standing if experiment and one.name == experiment), None)
    split = taken or spec.split_of(ready, path, seed=f"{ready.name}/{now_ms}")
    if taken is None and before is not None and (goes_on := follow.continued(ready, before[1])) is not None:
        ready, split = goes_on
    stable, candidate = spec.split_of(ready, path).variants
    said = settings_of(stable) & settings_of(candidate)
    for one in standing:  # of rollouts before it, but for what this one says nothing of
        if one.name != split.name and rollouts.of_split(connection, one.name) is not None and decided(one) <= said:
            splits.remove(connection, one.name)
    row = RolloutRow(
        ready.name, ready.agent_id, 1, INITIALIZING, ready.SerializeToString(deterministic=True), "",
        author, experiment, split.name, 0, now_ms,
    )  # fmt: skip
    rollout = Rollout(reason=reason)
    if taken is None:  # an experiment's stays as it is until the first step begins
        splits.put(connection, _weighted(split, ready, rollout))
    version = splits.version(connection, ready.agent_id)
    row = rollouts.add(connection, row._replace(state=record.to_json(rollout), split_version=version))
    transition = Transition("create", "", INITIALIZING, 0, 0.0, 0.0, reason, author)
    _tell(connection, row, ready, transition, now_ms)
    return row


def create_of_verdict(
    connection: Connection, experiment: pb.ExperimentSpec, winner: str, reason: str, now_ms: int
) -> RolloutRow | None:
    """The rollout that an experiment asks for where a variant has won; None: it asks for none, or the first has won.

    In the transaction of the verdict, after the experiment's split was last put. Errors as `create`.
    """
    variants = {one.name: one for one in experiment.variants}
    first = experiment.variants[0].name
    if not experiment.HasField("rollout") or winner in ("", first):
        return None
    return create(
        connection, rollout_of(experiment, variants[winner]), VERDICT_AUTHOR, reason, now_ms, experiment.name,
        "spec.rollout",
    )  # fmt: skip


def rollout_of(experiment: pb.ExperimentSpec, winner: policy_pb2.VariantPolicy) -> pb.RolloutSpec:
    """An experiment's rollout for one of its variants: whatever it says of variants, units and layer is the
    experiment's. To be checked when the experiment is created: `spec.checked(rollout_of(...), "spec.rollout")`."""
    wanted = pb.RolloutSpec()
    wanted.CopyFrom(experiment.rollout)
    wanted.name = wanted.name or f"{experiment.name}-rollout"
    wanted.agent_id = experiment.agent_id
    wanted.stable.CopyFrom(experiment.variants[0])
    wanted.candidate.CopyFrom(winner)
    for variant in (wanted.stable, wanted.candidate):
        variant.ClearField("share")
        variant.ClearField("ranges")
        variant.ClearField("aborted")
    wanted.unit, wanted.layer, wanted.idle_s = experiment.unit, experiment.layer, experiment.idle_s
    wanted.overrides.clear()
    wanted.overrides.update(experiment.overrides)
    return wanted


def store(
    connection: Connection, row: RolloutRow, before: Rollout, after: Rollout, transition: Transition | None, now_ms: int
) -> RolloutRow:
    """What was decided, in the store; Overtaken: somebody else was faster, and nothing is done."""
    if transition is not None:
        revision.lock(connection)
    wanted = pb.RolloutSpec.FromString(row.spec)
    changed = row._replace(phase=after.phase, state=record.to_json(after), ended_ms=after.ended_ms)
    begins = after.step_started_ms and not before.step_started_ms
    if begins or (after.weight, after.aborted) != (before.weight, before.aborted):
        split = splits.get(connection, row.split)
        if after.aborted and not _is_there(connection, row.agent_id):
            splits.remove(connection, row.split)
        elif split is not None:
            splits.put(connection, _weighted(split, wanted, after))
            changed = changed._replace(split_version=splits.version(connection, row.agent_id))
    stored = rollouts.change(connection, changed)
    if stored is None:
        raise Overtaken
    if transition is not None:
        _tell(connection, stored, wanted, transition, now_ms)
    return stored


class Overtaken(Exception):
    """Somebody else has changed the rollout: what was decided is void."""


# -- what is in the way ----------------------------------------------------------------------------------------------


def _check_free(connection: Connection, ready: pb.RolloutSpec, standing: Sequence[Split], experiment: str) -> None:
    if rollouts.get(connection, ready.name) is not None:
        raise Conflict(f"rollout {ready.name!r} exists already: choose another name")
    if rollouts.count(connection) >= rollouts.MAX_ROLLOUTS:
        raise Conflict(f"{rollouts.MAX_ROLLOUTS} rollouts are kept already: wait until old ones are taken out")
    if others := rollouts.under_way(connection, ready.agent_id):
        raise Conflict(f"rollout {others[0].name!r} of {ready.agent_id!r} is under way: abort it, or wait for its end")
    taken = splits.get(connection, ready.name) or experiments.get(connection, ready.name)
    if taken is not None and ready.name != experiment:
        raise Conflict(f"{ready.name!r} is the name of an experiment or a rollout: choose another name")
    own = spec.split_of(ready)
    for one in standing:
        if one.name == experiment or rollouts.of_split(connection, one.name) is not None:
            continue
        if ready.layer and one.layer == ready.layer:
            reason = f"layer {ready.layer!r} has experiment {one.name!r} in it: stop it, or name another layer"
            raise Conflict(reason)
        if both := sorted(decided(one) & decided(own)):  # an abort would not bring its units back
            reason = f"experiment {one.name!r} decides on {', '.join(both)} of calls of {ready.agent_id!r} as well"
            raise Conflict(
                f"{reason}: let its verdict begin the rollout, or stop it; its sessions keep their variants for "
                f"{one.idle_s} s"
            )


def _is_there(connection: Connection, agent_id: str) -> bool:
    try:
        agents.get(connection, agent_id)
    except agents.UnknownAgent:
        return False
    return True


# -- writing ---------------------------------------------------------------------------------------------------------


def _weighted(split: Split, wanted: pb.RolloutSpec, rollout: Rollout) -> Split:
    """The split with the rollout's weight, open to everybody: no unit moves that need not."""
    candidate = wanted.candidate.name
    shares = spec.shares(split, candidate, rollout.weight)
    ranges = reallocated(ranges_in_force(split.variants), shares)
    variants = [
        dataclasses.replace(one, share=share, ranges=own, aborted=spec.aborted(one, candidate, rollout.aborted))
        for one, share, own in zip(split.variants, shares, ranges, strict=True)
    ]
    return dataclasses.replace(
        split, variants=tuple(variants), layer_from=0, layer_to=PARTS, is_open=True, observed=False
    )


def _tell(connection: Connection, row: RolloutRow, wanted: pb.RolloutSpec, transition: Transition, now_ms: int) -> None:
    """The journal, and the outbox."""
    urls = list(wanted.webhooks)
    key = f"{row.name}/{row.created_ms}/{row.version}"
    body = record.message(row, transition, key, now_ms)
    told = rollouts.tell(connection, row, urls, body, key, now_ms)
    journal.append(connection, record.entry(row, transition, now_ms, told, len(urls) - told))
