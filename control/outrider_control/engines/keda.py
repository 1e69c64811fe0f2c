"""Figures for KEDA: its external scaler, and the engine of agents whose size KEDA decides.

Always holds: KEDA is told what is measured, the demand in calls and what one instance is to carry, and divides by
itself. (Told "21 instances" with a target of 1, the HPA's tolerance of 10 % would swallow a step from 20.) What is not
known is UNAVAILABLE, never zero: KEDA then keeps the size it has, or its `fallback`. A target that was known once stays
the one that is told, for an HPA without a metric would fall back to CPU.

Deliberately not here: how figures come about (`loops.scale`), who may ask (`api.roles`).
"""

# ruff: noqa: N802 - the names are those of the service

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

import grpc
import grpc.aio

from outrider import tree
from outrider_control.engines import externalscaler_pb2, externalscaler_pb2_grpc
from outrider_control.loops.scale.types import EngineError, Instance

SERVICE: Final = externalscaler_pb2.DESCRIPTOR.services_by_name["ExternalScaler"].full_name
METRIC: Final = "outrider-demand"  # calls that run and wait
AGENT: Final = "agent"  # the trigger's metadata that names the agent
MAX_STREAMS: Final = 1_000
_MAX_TARGETS = 10_000
_MIN_TARGET = 0.001  # an HPA counts in thousandths
_MAX_DEMAND = 1e12

Context = grpc.aio.ServicerContext


@dataclass(frozen=True, slots=True)
class KedaFigures:
    """Of one agent; None: not known."""

    demand: float | None  # calls that run and wait, over all instances
    target: float | None  # calls that one instance is to carry: target_utilization x capacity
    active: bool = False  # there was demand lately, whatever there is now


class KedaScaler(externalscaler_pb2_grpc.ExternalScalerServicer):
    """Serves `externalscaler.ExternalScaler`. For one event loop."""

    def __init__(self, figures: Callable[[str], KedaFigures | None]):
        """`figures` is asked for every answer; None: it knows no such agent."""
        self._figures = figures
        self._targets: dict[str, float] = {}  # the last that was known
        self._changed = asyncio.Event()
        self.streams = 0  # open now

    def add_to(self, server: grpc.aio.Server) -> None:
        """Serve these methods."""
        externalscaler_pb2_grpc.add_ExternalScalerServicer_to_server(self, server)

    def changed(self) -> None:
        """Figures may have changed: every stream looks again, and tells what is new at once."""
        event, self._changed = self._changed, asyncio.Event()
        event.set()

    async def IsActive(
        self, request: externalscaler_pb2.ScaledObjectRef, context: Context
    ) -> externalscaler_pb2.IsActiveResponse:
        agent_id, figures = await self._asked(request, context)
        active = _active(figures)
        if active is None:
            await _unavailable(context, agent_id, "its demand")
        return externalscaler_pb2.IsActiveResponse(result=active)

    async def StreamIsActive(
        self, request: externalscaler_pb2.ScaledObjectRef, context: Context
    ) -> AsyncIterator[externalscaler_pb2.IsActiveResponse]:
        async for active in self._each(request, context, lambda _, figures: _active(figures)):
            yield externalscaler_pb2.IsActiveResponse(result=active)

    async def GetMetricSpec(
        self, request: externalscaler_pb2.ScaledObjectRef, context: Context
    ) -> externalscaler_pb2.GetMetricSpecResponse:
        agent_id, figures = await self._asked(request, context)
        target = self._target(agent_id, figures)
        if target is None:
            await _unavailable(context, agent_id, "the capacity of an instance (declare scaling.capacity)")
        return _spec(target)

    async def StreamMetricSpec(
        self, request: externalscaler_pb2.ScaledObjectRef, context: Context
    ) -> AsyncIterator[externalscaler_pb2.GetMetricSpecResponse]:
        async for target in self._each(request, context, self._target):
            yield _spec(target)

    async def GetMetrics(
        self, request: externalscaler_pb2.GetMetricsRequest, context: Context
    ) -> externalscaler_pb2.GetMetricsResponse:
        agent_id, figures = await self._asked(request.scaledObjectRef, context)
        if request.metricName != METRIC:
            await context.abort(
                grpc.StatusCode.NOT_FOUND, f"there is no metric {_shown(request.metricName)}, only {METRIC!r}"
            )
        demand = _demand(figures)
        if demand is None:
            await _unavailable(context, agent_id, "its demand")
        value = externalscaler_pb2.MetricValue(
            metricName=METRIC, metricValue=math.ceil(demand), metricValueFloat=demand
        )
        return externalscaler_pb2.GetMetricsResponse(metricValues=[value])

    async def _each(
        self,
        request: externalscaler_pb2.ScaledObjectRef,
        context: Context,
        read: Callable[[str, KedaFigures], Any],
    ) -> AsyncIterator[Any]:
        """What `read` makes of the figures: now, and then whenever that differs. What is not known is not told."""
        if self.streams >= MAX_STREAMS:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{MAX_STREAMS} streams are open already")
        self.streams += 1
        try:
            told = None
            while True:
                event = self._changed  # before the figures: a change after them is not missed
                value = read(*await self._asked(request, context))
                if value is not None and value != told:
                    told = value
                    yield value
                await event.wait()
        finally:
            self.streams -= 1

    async def _asked(self, request: externalscaler_pb2.ScaledObjectRef, context: Context) -> tuple[str, KedaFigures]:
        """The agent asked about, and its figures."""
        agent_id = request.scalerMetadata.get(AGENT, "")
        if not agent_id:
            scaled = _shown(f"{request.namespace}/{request.name}")
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"the trigger of scaled object {scaled} names no agent: add `{AGENT}: NAME` to its metadata",
            )
        figures = self._figures(agent_id)
        if figures is None:
            await context.abort(
                grpc.StatusCode.NOT_FOUND,
                f"there is no agent {_shown(agent_id)} that is scaled by KEDA: see `outrider agents list`, and its "
                "scaling.engine",
            )
        return agent_id, figures

    def _target(self, agent_id: str, figures: KedaFigures) -> float | None:
        target = figures.target
        if target is None or not math.isfinite(target) or target <= 0:
            return self._targets.get(agent_id)
        if len(self._targets) >= _MAX_TARGETS and agent_id not in self._targets:
            del self._targets[next(iter(self._targets))]
        self._targets[agent_id] = max(target, _MIN_TARGET)
        return self._targets[agent_id]


def _demand(figures: KedaFigures) -> float | None:
    """None where it is not known or cannot be."""
    demand = figures.demand
    if demand is None or not math.isfinite(demand) or demand < 0:
        return None
    return min(float(demand), _MAX_DEMAND)


def _active(figures: KedaFigures) -> bool | None:
    demand = _demand(figures)
    return None if demand is None else demand > 0 or figures.active


def _spec(target: float) -> externalscaler_pb2.GetMetricSpecResponse:
    spec = externalscaler_pb2.MetricSpec(
        metricName=METRIC, targetSize=max(1, math.floor(min(target, _MAX_DEMAND))), targetSizeFloat=target
    )
    return externalscaler_pb2.GetMetricSpecResponse(metricSpecs=[spec])


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:80]}...")


async def _unavailable(context: Context, agent_id: str, what: str) -> NoReturn:
    await context.abort(
        grpc.StatusCode.UNAVAILABLE, f"{what} is not known for {_shown(agent_id)}: no fresh report of its sidecars"
    )


@dataclass(frozen=True, slots=True)
class KedaSettings:
    """One section of `scaling.engines` of kind `keda`."""

    agents: tuple[str, ...] = ()  # empty: every agent whose policy names the engine


def settings(data: Any, path: str, folder: Path) -> KedaSettings:
    """The settings of one engine; PolicyError with the path of the first wrong field."""
    fields = dict(tree.section(data, path, ("kind", "agents")))
    fields.pop("kind", None)
    return tree.Tree({}).build(KedaSettings, fields, path)


class KedaEngine:
    """See `Engine` of `loops.scale.types`: it tells what there is, and decides nothing."""

    kind = "keda"
    chooses = False
    pulls = True

    def __init__(
        self,
        name: str,
        settings: KedaSettings,
        clock_ms: Callable[[], int],
        endpoints: Callable[[str], Sequence[Instance]],
    ):
        """`endpoints`: the instances that are registered for an agent. The clock is every engine's; none is needed."""
        self.name = name
        self._agents = frozenset(settings.agents)
        self._endpoints = endpoints

    def has(self, agent_id: str) -> bool:
        return not self._agents or agent_id in self._agents

    async def start(self) -> None:
        """KEDA comes by itself."""

    async def instances(self, agent_id: str) -> Sequence[Instance]:
        return self._endpoints(agent_id)

    async def grow(self, agent_id: str, desired: int) -> None:
        self._refuse(agent_id)

    async def shrink(self, agent_id: str, desired: int, leaving: Sequence[Instance]) -> None:
        self._refuse(agent_id)

    async def close(self) -> None:
        """There is nothing to let go."""

    def _refuse(self, agent_id: str) -> NoReturn:
        raise EngineError(
            f"engine {self.name}: KEDA decides how many instances of {agent_id!r} there are: change its ScaledObject"
        )
