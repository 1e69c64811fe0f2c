"""Experiments for operators: plan one, create it, begin and end it, see what may be concluded.

Always holds: a change says why and is in the journal with its author; what cannot be done says what can; what a fixed
horizon hides is in no reply.

Deliberately not here: the decisions and their effects (`loops.experiment`), who may call this (`roles`).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Awaitable, Callable, Iterator
from typing import Protocol

from outrider.v1 import experiment_pb2 as pb
from outrider_control.api import requests
from outrider_control.api.auth import current_caller
from outrider_control.api.errors import Invalid, NotFound, Unready
from outrider_control.core.stats import power
from outrider_control.intake.reader import Reader
from outrider_control.loops.experiment.act import Overtaken, Refused, UnknownExperiment

MAX_SPEC_BYTES = 256 * 1024
STATES = ("draft", "running", "paused", "stopped")

DAY_MS = 86_400_000

CallsPerDay = Callable[[str], Awaitable[float | None]]


class Experiments(Protocol):
    """What the experiment loop knows and can be told. See `loops.experiment.loop.ExperimentLoop`."""

    async def create(self, wanted: pb.ExperimentSpec, author: str, reason: str, start: bool) -> pb.ExperimentRecord: ...
    async def begin(self, name: str, author: str, reason: str) -> pb.ExperimentRecord: ...
    async def pause(self, name: str, author: str, reason: str) -> pb.ExperimentRecord: ...
    async def resume(self, name: str, author: str, reason: str) -> pb.ExperimentRecord: ...
    async def stop(self, name: str, author: str, reason: str, winner: str, abort: bool) -> pb.ExperimentRecord: ...
    async def set_traffic(self, name: str, traffic: float, author: str, reason: str) -> pb.ExperimentRecord: ...
    async def get(self, name: str) -> pb.ExperimentRecord: ...
    async def newest(self, agent_id: str = "", state: str = "") -> list[pb.ExperimentRecord]: ...


class ExperimentsApi:
    """Every RPC of experiments. `per_day`: calls of an agent in the last day, where they are known."""

    def __init__(self, experiments: Experiments, per_day: CallsPerDay):
        self._experiments = experiments
        self._per_day = per_day

    async def create(self, request: pb.CreateExperimentRequest) -> pb.ExperimentRecord:
        """A draft, or one that runs at once."""
        why = requests.reason(request)
        requests.name(request.spec.name, "spec.name", required=True)
        requests.name(request.spec.agent_id, "spec.agent_id", required=True)
        if request.spec.ByteSize() > MAX_SPEC_BYTES:
            raise Invalid("spec", f"has {request.spec.ByteSize():,} bytes; at most {MAX_SPEC_BYTES:,} are taken")
        with _said(request.spec.name):
            return await self._experiments.create(request.spec, current_caller().name, why, request.start)

    async def start(self, request: pb.ChangeExperimentRequest) -> pb.ExperimentRecord:
        """A draft runs."""
        name, why = requests.name(request.name, "name", required=True), requests.reason(request)
        with _said(name):
            return await self._experiments.begin(name, current_caller().name, why)

    async def pause(self, request: pb.ChangeExperimentRequest) -> pb.ExperimentRecord:
        """No new units."""
        name, why = requests.name(request.name, "name", required=True), requests.reason(request)
        with _said(name):
            return await self._experiments.pause(name, current_caller().name, why)

    async def resume(self, request: pb.ChangeExperimentRequest) -> pb.ExperimentRecord:
        """It goes on."""
        name, why = requests.name(request.name, "name", required=True), requests.reason(request)
        with _said(name):
            return await self._experiments.resume(name, current_caller().name, why)

    async def stop(self, request: pb.StopExperimentRequest) -> pb.ExperimentRecord:
        """Its end."""
        name, why = requests.name(request.name, "name", required=True), requests.reason(request)
        winner = requests.name(request.winner, "winner")
        with _said(name):
            return await self._experiments.stop(name, current_caller().name, why, winner, request.abort)

    async def set_traffic(self, request: pb.SetExperimentTrafficRequest) -> pb.ExperimentRecord:
        """More units take part."""
        name, why = requests.name(request.name, "name", required=True), requests.reason(request)
        with _said(name):
            if not request.traffic:
                return await self._experiments.get(name)
            if not 0.0 < request.traffic <= 1.0:
                raise Invalid("traffic", f"{request.traffic:g} is not above 0 and up to 1")
            return await self._experiments.set_traffic(name, request.traffic, current_caller().name, why)

    async def get(self, request: pb.GetExperimentRequest) -> pb.ExperimentRecord:
        """One, with its course."""
        name = requests.name(request.name, "name", required=True)
        with _said(name):
            return await self._experiments.get(name)

    async def list_all(self, request: pb.ListExperimentsRequest) -> pb.ListExperimentsReply:
        """All, newest first; once they are too large together, the rest without what they measured."""
        agent_id = requests.name(request.agent_id, "agent_id")
        if request.state and request.state not in STATES:
            raise Invalid("state", f"{request.state[:50]!r} is none of {', '.join(STATES)}")
        records = await self._experiments.newest(agent_id, request.state)
        for record in records:
            record.spec.overrides.clear()  # testers are in the single one
        return pb.ListExperimentsReply(experiments=requests.slim(records, ("comparisons", "guardrails", "spec")))

    async def plan(self, request: pb.PlanExperimentRequest) -> pb.PlanExperimentReply:
        """How many units it would need, and how long that takes."""
        try:
            found = power.plan(
                request.minimum_effect,
                _deviation(request),
                request.alpha or 0.05,
                request.power or 0.8,
                tuple(request.shares) or (0.5, 0.5),
                request.method != "fixed",
            )
        except ValueError as error:
            raise Invalid("plan", str(error)) from error
        reply = pb.PlanExperimentReply(sample_size=found.units, power=found.power, median_units=found.median_units)
        per_day = request.units_per_day or (await self._per_day(request.agent_id) if request.agent_id else None)
        if per_day and math.isfinite(per_day) and per_day > 0.0:
            reply.days = found.units / per_day
        return reply


def calls_per_day(reader: Reader, clock_ms: Callable[[], int]) -> CallsPerDay:
    """Of an agent in the last day; None: it had none. Units are no more than calls."""

    async def calls(agent_id: str) -> float | None:
        found = await reader.metrics(agent_id, DAY_MS, clock_ms())
        return float(found.total.requests) or None

    return calls


def _deviation(request: pb.PlanExperimentRequest) -> float:
    """Of one unit's value."""
    if request.method not in ("", "sequential", "fixed"):
        raise Invalid("method", f"{request.method[:50]!r} is neither sequential nor fixed")
    if request.kind == "mean":
        if not request.standard_deviation:
            raise Invalid("standard_deviation", "is missing: a mean cannot be planned without it")
        return request.standard_deviation
    if request.kind not in ("", "share"):
        raise Invalid("kind", f"{request.kind[:50]!r} is neither share nor mean")
    if not 0.0 < request.baseline < 1.0:
        raise Invalid("baseline", f"{request.baseline:g} is no share between 0 and 1")
    other = min(1.0, max(0.0, request.baseline + request.minimum_effect))
    spread = (request.baseline * (1.0 - request.baseline) + other * (1.0 - other)) / 2.0
    return math.sqrt(spread)


@contextlib.contextmanager
def _said(name: str) -> Iterator[None]:
    """Has what the loop refuses say of which experiment, and how to see what there is."""
    try:
        yield
    except UnknownExperiment as error:
        raise NotFound(f"experiment {name!r} is not there: `outrider experiment list` says which are") from error
    except Refused as error:
        raise Unready(f"experiment {name!r}: {error}") from error
    except Overtaken as error:
        raise Unready(f"experiment {name!r} was changed meanwhile: look at it, and try again") from error
