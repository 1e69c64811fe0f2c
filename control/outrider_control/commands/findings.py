"""What `outrider doctor` makes of what it saw: findings, each with what to do. Pure: everything seen is an argument.

Always holds: a finding is "ok", "note" (nothing is broken) or "wrong"; every one that is not "ok" says what to do.

Deliberately not here: looking (`doctor`, `ports`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from outrider.v1 import operator_pb2 as pb
from outrider_control.commands.output import number, span_of_time
from outrider_control.commands.sidecars import named

OK, NOTE, WRONG = "ok", "note", "wrong"
MAX_CLOCK_OFFSET_MS = 5_000  # past it, intake shifts spans
_AGREES_MS = 100
SILENT_MS = 60_000  # a sidecar that served calls while no span came
_DECIDED = ("scaling", "no data")  # states of agents that the scale loop decides about
_SCALING = "scaling of "  # how a warning about one agent's instances begins
_LISTED = 5  # of a kind in one line
_RELEASE = re.compile(r"(\d+)\.(\d+)")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    check: str  # control, version, clock, port, config, store, sidecars, endpoints, scaling, traffic
    level: str
    text: str
    todo: str = ""


def judge_version(what: str, theirs: str, ours: str, reference: str) -> Finding:
    """Whether two releases work together: neighbours do."""
    if theirs == ours:
        return Finding("version", OK, f"{what} is {theirs}, as {reference} is")
    text = f"{what} is {theirs or 'of an unknown version'}, {reference} is {ours}"
    them, us = _RELEASE.match(theirs), _RELEASE.match(ours)
    if them and us and them[1] == us[1] and abs(int(them[2]) - int(us[2])) <= 1:
        return Finding("version", NOTE, text, "they work together; bring both to one version when it suits")
    return Finding(
        "version", WRONG, text, "bring both to one version: only neighbouring ones are made to work together"
    )


def judge_clock(what: str, offset_ms: float, doubt_ms: float = 0) -> Finding:
    """A clock against the control plane's; `doubt_ms` is how inexact the comparison is."""
    if abs(offset_ms) - doubt_ms < _AGREES_MS:
        return Finding("clock", OK, f"the clock of {what} agrees with the control plane's")
    ahead = f"{abs(offset_ms) / 1_000:.1f} s {'ahead of' if offset_ms > 0 else 'behind'} the control plane's"
    if abs(offset_ms) - doubt_ms > MAX_CLOCK_OFFSET_MS:
        todo = "set both by NTP: times of spans and `--since` mean something else there"
        return Finding("clock", WRONG, f"the clock of {what} is {ahead}", todo)
    return Finding("clock", OK, f"the clock of {what} is {ahead}")


def judge_status(status: pb.Status) -> Iterator[Finding]:
    """What the control plane says of itself."""
    warnings = [one for one in status.warnings if not one.startswith(_SCALING)]  # those are `judge_scales`'s
    for warning in warnings:
        yield Finding("store", WRONG, warning, "the control plane's log says more")
    if not warnings:
        kind = f"{status.store} store, schema {status.schema}"
        yield Finding("store", OK, f"{kind}: no warning")
    if not status.leader and not status.peers:
        text = "this control plane does not lead, and it sees no other one"
        yield Finding("control", WRONG, text, "is another process on the same store? stop what is stale")
    if status.overflowed:
        text = (
            f"{number(status.overflowed)} calls went to series named (other): there are more names than are kept apart"
        )
        yield Finding(
            "traffic", NOTE, text, "raise the bounds of series, or send fewer distinct agent, method or tenant names"
        )
    for name in ("dropped", "rejected"):
        if status.intake.get(name):
            text = f"{number(status.intake[name])} spans were {name} at intake since the start: figures lack them"
            todo = (
                "give the control plane more CPU"
                if name == "dropped"
                else "see its log: the exporter sends what is no OTLP"
            )
            yield Finding("traffic", WRONG, text, todo)


def judge_sidecars(sidecars: Sequence[pb.SidecarRecord], version: str, now_ms: int) -> Iterator[Finding]:
    """Connected or gone, behind, refusing, and their versions and clocks."""
    connected = [record for record in sidecars if record.connected]
    if not connected:
        todo = "start one whose file says `control: [HOST:PORT]`; its admin port's /config shows what it tries"
        yield Finding("sidecars", NOTE, "no sidecar is connected", todo)
    for record in connected:
        who = f"sidecar {record.node or record.instance_id}"
        for refusal in record.refused[:_LISTED]:
            text = f"{who} refuses {named(refusal.resource)}: {refusal.reason}"
            yield Finding(
                "sidecars", WRONG, text, "mend the policy, or bring the sidecar to the control plane's version"
            )
        late_ms = now_ms - max(record.acked_unix_ms, record.connected_unix_ms)
        if record.behind and not record.refused and late_ms > MAX_CLOCK_OFFSET_MS:
            text = f"{who} lacks {record.behind} updates, its last answer came {span_of_time(late_ms)} ago"
            yield Finding("sidecars", WRONG, text, "it is overloaded or hangs: look at its log, restart it")
        if abs(record.clock_offset_ms) > MAX_CLOCK_OFFSET_MS:
            yield judge_clock(who, record.clock_offset_ms)
    for theirs, count in sorted(Counter(record.version for record in connected).items()):
        if theirs != version:
            yield judge_version(f"{count} sidecar{'s' * (count > 1)}", theirs, version, "the control plane")
    gone = [record.node or record.instance_id for record in sidecars if not record.connected]
    if gone:
        text = f"lately connected and gone: {_some(gone)}"
        yield Finding(
            "sidecars", NOTE, text, "if they were not stopped: look at their logs and at the way to this port"
        )
    if connected and not any(record.refused or record.behind for record in connected):
        yield Finding("sidecars", OK, f"all that are connected ({len(connected)}) are up to date")


def judge_endpoints(agents: Sequence[pb.AgentRecord], endpoints: Sequence[pb.EndpointRecord]) -> Iterator[Finding]:
    """Agents that nobody can reach, and endpoints of agents that there are not."""
    known = {record.policy.agent_id for record in agents}
    reachable = {record.endpoint.agent_id for record in endpoints}
    reachable |= {record.policy.agent_id for record in agents if record.policy.endpoints}
    lonely = sorted(known - reachable)
    if lonely:
        text = f"no endpoint, so that calls fail: {_some(lonely)}"
        yield Finding("endpoints", WRONG, text, "declare endpoints in their policy, or have their instances register")
    strangers = sorted(reachable - known)
    if strangers:
        text = f"endpoints registered for agents that have no policy: {_some(strangers)}"
        yield Finding("endpoints", NOTE, text, "apply a policy for them (outrider agents apply), or stop the instances")
    if not agents:
        yield Finding("endpoints", NOTE, "no agent is configured", "outrider agents apply -f FILE --reason TEXT")
    elif not lonely:
        yield Finding("endpoints", OK, f"every agent has an endpoint ({len(agents)})")


def judge_scales(scales: Sequence[pb.ScaleRecord]) -> Iterator[Finding]:
    """Agents whose number of instances is not, or cannot be, what it should be."""
    for record in scales:
        yield from _judge_scale(record)
    alone = [one.agent_id for one in scales if one.state == "no engine" and not one.problem]
    if alone:
        text = f"nothing starts and ends instances of: {_some(alone)}"
        todo = "configure scaling.engines in the control plane's file, or set scaling.enabled of the agents to false"
        yield Finding("scaling", NOTE, text, todo)
    unsized = [one.agent_id for one in scales if one.state in _DECIDED and not one.HasField("capacity")]
    if unsized:
        text = f"what one instance can do is not known yet, so that it cannot be scaled by demand: {_some(unsized)}"
        todo = "outrider scale set AGENT --capacity N, or `capacity` of its endpoints; else it is learnt under load"
        yield Finding("scaling", NOTE, text, todo)
    decided = [one for one in scales if one.state == "scaling"]
    if decided and not any(one.problem for one in decided):
        yield Finding("scaling", OK, f"{len(decided)} agent{'s are' if len(decided) > 1 else ' is'} scaled by demand")


def _judge_scale(record: pb.ScaleRecord) -> Iterator[Finding]:
    agent_id = record.agent_id
    if record.state == "failing" or (record.state == "no engine" and record.problem):
        text = f"{agent_id} cannot be scaled: {record.problem or 'its engine fails'}"
        todo = f"mend what is said there; outrider scale explain {agent_id} says more"
        yield Finding("scaling", WRONG, text, todo)
    elif record.problem:
        todo = f"outrider scale explain {agent_id} says more"
        yield Finding("scaling", NOTE, f"{agent_id}: {record.problem}", todo)
    if record.state == "paused":
        text = f"{agent_id} stays at {record.desired}: paused by {record.paused_by}: {record.paused_reason}"
        yield Finding("scaling", NOTE, text, f"outrider scale resume {agent_id} --reason TEXT")
    if record.state == "scaling" and record.desired >= record.max_instances and record.utilization > 1:
        text = f"{agent_id} has its most instances ({record.max_instances}), and more calls than they can do"
        yield Finding("scaling", NOTE, text, f"outrider scale set {agent_id} --max N, or a higher cost cap")


def judge_traffic(overview: pb.Overview, sidecars: Sequence[pb.SidecarRecord], now_ms: int) -> Iterator[Finding]:
    """Whether calls are seen, and all of them."""
    if overview.dropped_spans:
        text = f"{number(overview.dropped_spans)} spans of the last hour were dropped on their way: figures lack them"
        yield Finding("traffic", WRONG, text, "look at the sidecars' logs and at the control plane's CPU")
    if overview.total.requests:
        yield Finding("traffic", OK, f"{number(overview.total.requests)} calls in the last hour")
        return
    served = sum(load.calls for record in sidecars for load in record.load.agents)
    oldest = min((record.connected_unix_ms for record in sidecars if record.connected), default=now_ms)
    if served and now_ms - oldest > SILENT_MS:
        text = f"sidecars have served {number(served)} calls since they started, and none is seen in the last hour"
        todo = "if agents are called now: do the sidecars' spans get here (their /metrics: export counters)?"
        yield Finding("traffic", WRONG, text, todo)
    else:
        todo = "have agents call through a sidecar (127.0.0.1:7600 by default)"
        yield Finding("traffic", NOTE, "no call in the last hour", todo)


def _some(names: Sequence[str]) -> str:
    rest = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")
