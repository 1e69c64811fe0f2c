"""Carries out what is decided of an experiment: its row, its split, its course and the journal.

Always holds: all of it changes in one transaction or not at all, by who knows the row's newest version; so whoever
comes after a kill finds an experiment exactly where it stood. A split ends in two steps: closed, so that who has a
variant keeps it and nobody else gets one; then, when no unit has made a call for as long as a session is kept, taken
away. What did harm is aborted: its units go back to the first variant at once.

Deliberately not here: the decision (`decide`), when it is looked at (`loop`).
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import Connection

from outrider.policy import PolicyError
from outrider.split import PARTS, Split, decided, ranges_in_force, reallocated
from outrider.v1 import experiment_pb2 as pb
from outrider_control.loops.experiment import record, spec
from outrider_control.loops.experiment.types import RESHARE, STOP, STOPPED, WIN, Decision, Seen, State
from outrider_control.loops.rollout import act as rollout_act
from outrider_control.state import agents, experiments, journal, revision, rollouts, splits, unit_sums
from outrider_control.state.experiments import ExperimentRow

DRAFT = "draft"
RUNNING = "running"
PAUSED = "paused"
ENDED = "stopped"


class UnknownExperiment(LookupError):
    """There is none of that name."""


class Refused(Exception):
    """What is asked for is not possible as things stand; the text says why, and what is."""


class Overtaken(Exception):
    """Somebody else has changed the experiment: what was decided is void."""


def create(connection: Connection, wanted: pb.ExperimentSpec, author: str, reason: str, now_ms: int) -> ExperimentRow:
    """A draft. PolicyError for what is wrong in it, UnknownAgent, Refused for what is in its way."""
    revision.lock(connection)
    ready = spec.checked(wanted)
    agents.get(connection, ready.agent_id)  # UnknownAgent
    if experiments.get(connection, ready.name) is not None:
        raise Refused(f"experiment {ready.name!r} exists already: choose another name")
    if rollouts.get(connection, ready.name) is not None or splits.get(connection, ready.name) is not None:
        raise Refused(f"{ready.name!r} is the name of a rollout: choose another name")
    if experiments.count(connection) >= experiments.MAX_EXPERIMENTS:
        raise Refused(f"{experiments.MAX_EXPERIMENTS:,} experiments are kept already: wait until old ones are gone")
    ready.seed = ready.seed or secrets.token_hex(8)
    row = ExperimentRow(
        ready.name, ready.agent_id, 1, DRAFT, ready.SerializeToString(deterministic=True), "", "",
        "", "", reason, "", author, now_ms,
    )  # fmt: skip
    unit_sums.forget(connection, ready.name)
    if ready.history:
        observed = dataclasses.replace(spec.split_of(ready), variants=(), overrides={}, observed=True)
        splits.put(connection, _placed(connection, observed, ready))
    row = experiments.add(connection, row)
    journal.append(connection, record.entry(row, "create", author, reason, now_ms))
    return row


def start(connection: Connection, name: str, author: str, reason: str, now_ms: int) -> ExperimentRow:
    """Units are assigned and counted from now on. UnknownExperiment, Refused."""
    row = _standing(connection, name, (DRAFT,), "start")
    ready = pb.ExperimentSpec.FromString(row.spec)
    agents.get(connection, row.agent_id)
    split = spec.split_of(ready)
    _check_free(connection, split)
    splits.put(connection, _placed(connection, split, ready))
    return _changed(
        connection, row._replace(state=RUNNING, started_ms=max(1, now_ms), reason=reason), "start", author, now_ms
    )


def pause(connection: Connection, name: str, author: str, reason: str, now_ms: int) -> ExperimentRow:
    """No new unit is assigned and nothing is decided until it is resumed."""
    row = _standing(connection, name, (RUNNING,), "pause")
    _open(connection, name, False)
    return _changed(connection, row._replace(state=PAUSED, reason=reason), "pause", author, now_ms)


def resume(connection: Connection, name: str, author: str, reason: str, now_ms: int) -> ExperimentRow:
    """It goes on."""
    row = _standing(connection, name, (PAUSED,), "resume")
    _open(connection, name, True)
    carried = dataclasses.replace(record.state_of(row.carried), last_ms=0)  # the time that it was paused does not count
    row = row._replace(state=RUNNING, reason=reason, carried=record.state_json(carried))
    return _changed(connection, row, "resume", author, now_ms)


def stop(
    connection: Connection, name: str, author: str, reason: str, winner: str, abort: bool, now_ms: int
) -> ExperimentRow:
    """Its end by hand. A winner that is named may begin the rollout that the experiment asks for."""
    row = _standing(connection, name, (DRAFT, RUNNING, PAUSED), "stop")
    ready = pb.ExperimentSpec.FromString(row.spec)
    names = [one.name for one in ready.variants]
    if winner and winner not in names:
        raise Refused(f"{winner!r} is no variant of it: {', '.join(names)}")
    if winner and abort:
        raise Refused("either a variant has won, or everything goes back to the first one")
    if row.state == DRAFT:
        splits.remove(connection, name)
    else:
        _end(connection, name, names[1:] if abort else ())
    row = row._replace(state=ENDED, stopped_ms=max(1, now_ms), verdict=STOPPED, winner=winner, reason=reason)
    if row.started_ms:
        row = _with_rollout(connection, row, ready, reason, now_ms)
    return _changed(connection, row, "stop", author, now_ms, winner=winner, aborted=abort)


def set_traffic(
    connection: Connection, name: str, traffic: float, author: str, reason: str, now_ms: int
) -> ExperimentRow:
    """More units take part; who does already goes on."""
    row = _standing(connection, name, (DRAFT, RUNNING, PAUSED), "give more traffic to")
    ready = pb.ExperimentSpec.FromString(row.spec)
    if not 0.0 < traffic <= 1.0:
        raise Refused(f"traffic: {traffic:g} is not above 0 and up to 1")
    if row.state != DRAFT and traffic < ready.traffic:
        raise Refused(f"traffic may only be raised while it runs: it is {ready.traffic:g}")
    ready.traffic = traffic
    split = splits.get(connection, name)
    if split is not None:
        to = split.layer_from + spec.parts_of(traffic)
        taken = _taken(connection, split)
        if to > PARTS or any([start < to and end > split.layer_from for start, end in taken]):
            raise Refused(f"layer {split.layer!r} has no room for so much beside its other experiments")
        splits.put(connection, dataclasses.replace(split, layer_to=to))
    row = row._replace(spec=ready.SerializeToString(deterministic=True), reason=reason)
    return _changed(connection, row, "traffic", author, now_ms, traffic=traffic)


def look(
    connection: Connection, row: ExperimentRow, decision: Decision, state: State, seen: Seen, now_ms: int
) -> ExperimentRow:
    """What one look came to. Overtaken: somebody else has changed it, and nothing is done."""
    acts = decision.action in (STOP, RESHARE) or bool(decision.harmful)
    if acts:
        revision.lock(connection)
    ready = pb.ExperimentSpec.FromString(row.spec)
    after = row._replace(carried=record.state_json(state), decision=record.decision_json(decision, seen))
    if decision.action == STOP:
        _end(connection, row.name, decision.harmful)
        after = after._replace(
            state=ENDED,
            stopped_ms=max(1, now_ms),
            verdict=decision.verdict,
            winner=decision.winner,
            reason=decision.reason,
        )
        if decision.verdict == WIN:
            after = _with_rollout(connection, after, ready, decision.reason, now_ms)
    elif acts:
        _reshare(connection, row.name, decision)
        after = after._replace(reason=decision.reason)
    shown = record.look_of(row, decision, seen, state.looks)
    if shown is not None:
        experiments.put_look(connection, shown)
    stored = experiments.change(connection, after)
    if stored is None:
        raise Overtaken
    if acts:
        said = {
            "verdict": decision.verdict,
            "winner": decision.winner,
            "harmful": decision.harmful,
            "shares": decision.shares,
            "conclusion": decision.conclusion,
            "rollout": after.rollout,
        }
        entry = record.entry(
            stored, decision.action, record.AUTHOR, decision.reason, now_ms, decision.inputs,
            **{name: value for name, value in said.items() if value},
        )  # fmt: skip
        journal.append(connection, entry)
    return stored


def tidy(connection: Connection, now_ms: int) -> int:
    """Take away splits of experiments that ended, once no session holds a variant of them; how many."""
    gone = 0
    for row in experiments.ended_before(connection, now_ms):
        split = splits.get(connection, row.name)
        if split is None or rollouts.of_split(connection, row.name) is not None:  # a rollout has taken it over
            continue
        if now_ms - max(row.stopped_ms, unit_sums.last_ms(connection, row.name)) > split.idle_s * 1_000:
            splits.remove(connection, row.name)
            why = f"no call of its units for {split.idle_s:,} s: its split is taken away"
            journal.append(connection, record.entry(row, "tidy", record.AUTHOR, why, now_ms))
            gone += 1
    return gone


# -- splits ----------------------------------------------------------------------------------------------------------


def _placed(connection: Connection, split: Split, ready: pb.ExperimentSpec) -> Split:
    """The split where its layer has room. Refused: it has none."""
    size = spec.parts_of(ready.traffic)
    start = 0
    for begin, end in _taken(connection, split):
        if begin - start >= size:
            break
        start = max(start, end)
    if start + size > PARTS:
        reason = f"layer {split.layer!r} has no room for {ready.traffic:.0%} beside its other experiments"
        raise Refused(f"{reason}: ask for less traffic, stop one of them, or name another layer")
    return dataclasses.replace(split, layer_from=start, layer_to=start + size)


def _taken(connection: Connection, split: Split) -> list[tuple[int, int]]:
    """What others have of its layer, in order."""
    if not split.layer:
        return []
    others = [
        one
        for one in splits.of_agent(connection, split.agent_id)
        if one.layer == split.layer and one.name != split.name
    ]
    return sorted([(one.layer_from, one.layer_to) for one in others])


def _check_free(connection: Connection, split: Split) -> None:
    """Refused: a call would be told two things. What an ended rollout has left in force is what is tried against:
    it counts where the experiment says nothing else."""
    for one in splits.of_agent(connection, split.agent_id):
        both = sorted(decided(one) & decided(split))
        if one.name == split.name or not both or (split.layer and one.layer == split.layer):
            continue
        rollout = rollouts.of_split(connection, one.name)
        if rollout is not None and rollout.ended_ms:
            continue
        what = f"{', '.join(both)} of calls of {split.agent_id!r}"
        if rollout is not None:
            raise Refused(f"rollout {rollout.name!r} decides on {what} as well: wait for its end, or abort it")
        reason = f"experiment {one.name!r} decides on {what} as well, and its sessions keep their variants for"
        raise Refused(f"{reason} {one.idle_s:,} s after their last call: put both in one layer, or wait")


def _open(connection: Connection, name: str, is_open: bool) -> None:
    split = splits.get(connection, name)
    if split is not None:
        splits.put(connection, dataclasses.replace(split, is_open=is_open))


def _end(connection: Connection, name: str, aborted: Collection[str]) -> None:
    split = splits.get(connection, name)
    if split is not None:
        splits.put(connection, _aborted(dataclasses.replace(split, is_open=False), aborted))


def _aborted(split: Split, names: Collection[str]) -> Split:
    variants = [dataclasses.replace(one, aborted=one.aborted or one.name in names) for one in split.variants]
    return dataclasses.replace(split, variants=tuple(variants))


def _reshare(connection: Connection, name: str, decision: Decision) -> None:
    split = splits.get(connection, name)
    if split is None:
        return
    split = _aborted(split, decision.harmful)
    shares: Sequence[float] = decision.shares
    if shares:
        ranges = reallocated(ranges_in_force(split.variants), shares)
        variants = [
            dataclasses.replace(one, share=share, ranges=own)
            for one, share, own in zip(split.variants, shares, ranges, strict=True)
        ]
        split = dataclasses.replace(split, variants=tuple(variants))
    splits.put(connection, split)


# -- rows ------------------------------------------------------------------------------------------------------------


def _standing(connection: Connection, name: str, states: Sequence[str], what: str) -> ExperimentRow:
    """The row, of which nobody else writes the split before this transaction ends."""
    revision.lock(connection)
    row = experiments.get(connection, name)
    if row is None:
        raise UnknownExperiment(name)
    if row.state not in states:
        raise Refused(f"it is {row.state}: to {what} it, it has to be {' or '.join(states)}")
    return row


def _changed(
    connection: Connection, row: ExperimentRow, action: str, author: str, now_ms: int, **outcome: Any
) -> ExperimentRow:
    stored = experiments.change(connection, row)
    if stored is None:
        raise Overtaken
    if stored.rollout:
        outcome["rollout"] = stored.rollout
    journal.append(connection, record.entry(stored, action, author, row.reason, now_ms, **outcome))
    return stored


def _with_rollout(
    connection: Connection, row: ExperimentRow, ready: pb.ExperimentSpec, reason: str, now_ms: int
) -> ExperimentRow:
    """With the rollout that the experiment asks for, where it can be begun; else its reason says why not."""
    try:
        begun = rollout_act.create_of_verdict(connection, ready, row.winner, reason, now_ms)
    except (rollout_act.Conflict, PolicyError, agents.UnknownAgent) as error:  # raised before anything is written
        return row._replace(reason=f"{row.reason}; its rollout was not begun: {error}")
    return row._replace(rollout=begun.name) if begun is not None else row
