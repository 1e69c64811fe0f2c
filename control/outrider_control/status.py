"""How the control plane itself stands: for operators (GetStatus), for /readyz and for /metrics.

Always holds: everything is read where it is kept, when it is asked for; a warning says what is wrong and what to do.

Deliberately not here: figures of agents (`intake.reader`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from outrider import __version__
from outrider.v1 import operator_pb2
from outrider_control.http import Family

if TYPE_CHECKING:
    from outrider_control.app import Control
    from outrider_control.loops.scale.loop import ScaleLoop

_LISTED = 5  # warnings of one kind


class Standing:
    """Reads a running `Control`."""

    def __init__(self, control: Control, clock_ms: Callable[[], int]):
        self._control = control
        self._clock_ms = clock_ms
        self._started_ms = clock_ms()

    def problem(self) -> str:
        """Why the process does not serve; empty: it does."""
        if self._control.stopping:
            return "stopping"
        return self._control.chores.failing.get("poll") or self._control.chores.failing.get("peers") or ""

    def warnings(self) -> list[str]:
        """What is wrong, in words."""
        control = self._control
        found = [f"{name}: {why}" for name, why in control.chores.failing.items()]
        if control.chores.fold.warning:
            found.append(f"figures cannot be folded: {control.chores.fold.warning}")
        if control.forward is not None:
            found += control.forward.warnings
        found += unreadable(control.publisher.unreadable)
        found += control.scale.warnings()
        found += control.experiments.warnings()
        found += control.feedback.warnings()
        found += control.rollouts.warnings()
        counts = control.intake.counts
        if counts.get("overflowed"):
            found.append(
                f"{counts['overflowed']} calls are counted under (other): more distinct series than series.max_agents "
                "and series.max_per_agent allow"
            )
        return found

    def status(self) -> operator_pb2.Status:
        """The answer to GetStatus."""
        control = self._control
        forward = control.forward
        return operator_pb2.Status(
            instance_id=control.control_id,
            version=__version__,
            started_unix_ms=self._started_ms,
            now_unix_ms=self._clock_ms(),
            store=control.db.dialect,
            schema=control.db.schema,
            leader=control.leadership.leader,
            peers=[peer.address for peer in control.chores.peers if peer.control_id != control.control_id],
            intake=control.intake.counts,
            series=control.ledger.series,
            overflowed=control.intake.counts.get("overflowed", 0),
            warnings=self.warnings(),
            forward=forward.to if forward is not None else "",
            forwarded=forward.counts if forward is not None else {},
        )

    def families(self) -> Iterator[Family]:
        """Everything as metrics."""
        control = self._control
        yield Family("outrider_control_build_info", "gauge", "Always 1.", ("version",), {(__version__,): 1})
        yield Family("outrider_control_leader", "gauge", "1: leads.", (), {(): float(control.leadership.leader)})
        yield Family(
            "outrider_control_sidecars", "gauge", "Watch streams open here.", (), {(): control.fleet.connected}
        )
        yield Family("outrider_control_series", "gauge", "Distinct series held.", (), {(): control.ledger.series})
        yield from _scale(control.scale)
        yield _counters("outrider_control_intake", "What was taken in, by outcome.", control.intake.counts)
        yield _counters("outrider_control_watch", "What happened on watch streams.", control.publisher.counts)
        yield _counters("outrider_control_pruned", "Rows removed for their age.", control.chores.pruned)
        if control.forward is not None:
            yield _counters("outrider_control_forwarded", "Requests sent on, by outcome.", control.forward.counts)
        guard = {(name,): float(value) for name, value in control.guard.figures().items()}
        yield Family("outrider_control_guard", "gauge", "The listener before the gRPC server.", ("figure",), guard)


def _scale(loop: ScaleLoop) -> Iterator[Family]:
    """The scale of agents; what is not known of one is left out."""
    records = [one for one in loop.records() if one.engine]
    gauges = {
        "desired": ("Instances wanted.", {(one.agent_id,): float(one.desired) for one in records}),
        "ready": ("Instances that serve.", {(one.agent_id,): float(one.ready) for one in records}),
        "draining": ("Instances given no more calls.", {(one.agent_id,): float(one.draining) for one in records}),
        "demand": (
            "Calls in flight and waiting.",
            {(one.agent_id,): one.demand for one in records if one.HasField("demand")},
        ),
        "failing": (
            "1: an engine or its instances fail.",
            {(one.agent_id,): float(bool(one.problem)) for one in records},
        ),
    }
    for name, (text, samples) in gauges.items():
        yield Family(f"outrider_control_scale_{name}", "gauge", text, ("agent_id",), samples)
    decisions = {key: float(count) for key, count in loop.actions.items()}
    yield Family(
        "outrider_control_scale_decisions", "counter", "Decisions by action.", ("agent_id", "action"), decisions
    )


def unreadable(agents: Mapping[str, str]) -> Iterator[str]:
    """Warnings about agents whose newest policy this program cannot enforce, and what to do."""
    for agent_id in sorted(agents)[:_LISTED]:
        yield f"agent {agent_id}: {agents[agent_id]}: bring this program up to date, or apply the agent anew"
    if len(agents) > _LISTED:
        yield f"the newest policies of {len(agents) - _LISTED} more agents cannot be enforced either: see the log"


def _counters(name: str, text: str, counts: dict[str, int]) -> Family:
    return Family(name, "counter", text, ("outcome",), {(outcome,): float(count) for outcome, count in counts.items()})
