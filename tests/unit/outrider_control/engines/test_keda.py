"""KEDA's side of the external scaler, over a real gRPC server: figures, what is not known, and what is pushed."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio

from outrider.policy import PolicyError
from outrider_control.api import roles
from outrider_control.engines import externalscaler_pb2 as pb
from outrider_control.engines import externalscaler_pb2_grpc as pb_grpc
from outrider_control.engines import keda
from outrider_control.engines.keda import METRIC, KedaEngine, KedaFigures, KedaScaler, KedaSettings
from outrider_control.loops.scale.types import EngineError, Instance


class Bed:
    def __init__(self) -> None:
        self.figures: dict[str, KedaFigures] = {"tax": KedaFigures(20.5, 5.6)}
        self.scaler = KedaScaler(self.figures.get)
        self.stub: Any = None

    def tell(self, *figures: Any, agent: str = "tax") -> None:
        """New figures, and the word that there are."""
        self.figures[agent] = KedaFigures(*figures)
        self.scaler.changed()


@pytest_asyncio.fixture
async def bed() -> AsyncIterator[Bed]:
    bed = Bed()
    server = grpc.aio.server()
    bed.scaler.add_to(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        bed.stub = pb_grpc.ExternalScalerStub(channel)
        yield bed
    await server.stop(None)


def of(agent: str = "tax") -> pb.ScaledObjectRef:
    return pb.ScaledObjectRef(
        name="tax-agent", namespace="agents", scalerMetadata={"agent": agent, "scalerAddress": "outrider:7700"}
    )


def asking(agent: str = "tax", metric: str = METRIC) -> pb.GetMetricsRequest:
    return pb.GetMetricsRequest(scaledObjectRef=of(agent), metricName=metric)


async def refused(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


# -- figures -----------------------------------------------------------------------------------------------------------


async def test_demand_is_raw_and_the_target_is_an_instances(bed: Bed) -> None:
    (value,) = (await bed.stub.GetMetrics(asking())).metricValues
    assert (value.metricName, value.metricValueFloat, value.metricValue) == (METRIC, 20.5, 21)
    (spec,) = (await bed.stub.GetMetricSpec(of())).metricSpecs
    assert (spec.metricName, spec.targetSizeFloat, spec.targetSize) == (METRIC, 5.6, 5)


def replicas(value: pb.MetricValue, spec: pb.MetricSpec, now: int) -> int:
    """The HPA's rule for an AverageValue, tolerance included."""
    ratio = value.metricValueFloat / (spec.targetSizeFloat * now)
    return now if abs(ratio - 1) <= 0.1 else math.ceil(value.metricValueFloat / spec.targetSizeFloat)


async def test_what_an_hpa_makes_of_it(bed: Bed) -> None:
    """Ten times the load from 20 instances: one decision, and the right one."""
    (spec,) = (await bed.stub.GetMetricSpec(of())).metricSpecs
    for demand, now, wanted in ((112.0, 20, 20), (1_120.0, 20, 200), (126.0, 20, 23), (11.2, 20, 2)):
        bed.figures["tax"] = KedaFigures(demand, 5.6)
        (value,) = (await bed.stub.GetMetrics(asking())).metricValues
        assert replicas(value, spec, now) == wanted


@pytest.mark.parametrize(
    ("figures", "active"),
    [((3.0, 5.6), True), ((0.0, 5.6), False), ((0.0, 5.6, True), True), ((0.001, None), True)],
)
async def test_active(bed: Bed, figures: tuple[Any, ...], active: bool) -> None:
    bed.tell(*figures)
    assert (await bed.stub.IsActive(of())).result is active


@pytest.mark.parametrize("demand", [None, math.nan, math.inf, -math.inf, -1.0])
async def test_no_data_is_never_zero(bed: Bed, demand: float | None) -> None:
    bed.tell(demand, 5.6, True)
    for call in (bed.stub.GetMetrics(asking()), bed.stub.IsActive(of())):
        code, said = await refused(call)
        assert code is grpc.StatusCode.UNAVAILABLE
        assert "its demand is not known for 'tax'" in said
    assert (await bed.stub.GetMetricSpec(of())).metricSpecs[0].targetSizeFloat == 5.6


@pytest.mark.parametrize("target", [None, math.nan, math.inf, -1.0, 0.0])
async def test_a_target_that_was_known_stays(bed: Bed, target: float | None) -> None:
    bed.tell(20.5, target)
    code, said = await refused(bed.stub.GetMetricSpec(of()))
    assert code is grpc.StatusCode.UNAVAILABLE
    assert "declare scaling.capacity" in said
    bed.tell(20.5, 5.6)
    await bed.stub.GetMetricSpec(of())
    bed.tell(20.5, target)
    assert (await bed.stub.GetMetricSpec(of())).metricSpecs[0].targetSizeFloat == 5.6


@pytest.mark.parametrize(("demand", "target"), [(1e300, 1e-9), (1e300, 1e300)])
async def test_figures_beyond_measure(bed: Bed, demand: float, target: float) -> None:
    bed.tell(demand, target)
    (value,) = (await bed.stub.GetMetrics(asking())).metricValues
    (spec,) = (await bed.stub.GetMetricSpec(of())).metricSpecs
    assert value.metricValueFloat == value.metricValue == 1e12
    assert spec.targetSizeFloat >= 0.001
    assert spec.targetSize >= 1


async def test_who_is_asked_about(bed: Bed) -> None:
    nobody = pb.ScaledObjectRef(name="tax-agent", namespace="agents")
    for call in (bed.stub.IsActive(nobody), bed.stub.GetMetricSpec(nobody), bed.stub.StreamIsActive(nobody).read()):
        code, said = await refused(call)
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert (
            said == "the trigger of scaled object 'agents/tax-agent' names no agent: add `agent: NAME` to its metadata"
        )
    for call in (
        bed.stub.IsActive(of("x")),
        bed.stub.GetMetrics(asking("x")),
        bed.stub.StreamMetricSpec(of("x")).read(),
    ):
        code, said = await refused(call)
        assert code is grpc.StatusCode.NOT_FOUND
        assert "there is no agent 'x'" in said
    code, said = await refused(bed.stub.GetMetrics(asking(metric="cpu")))
    assert (code, said) == (grpc.StatusCode.NOT_FOUND, "there is no metric 'cpu', only 'outrider-demand'")
    _, said = await refused(bed.stub.IsActive(of("x" * 100_000)))
    assert len(said) < 300


# -- what is pushed ----------------------------------------------------------------------------------------------------


async def test_from_zero_to_one_is_pushed_at_once(bed: Bed) -> None:
    bed.tell(0.0, 5.6)
    stream = bed.stub.StreamIsActive(of())
    assert (await stream.read()).result is False
    bed.tell(1.0, 5.6)
    assert (await stream.read()).result is True
    bed.tell(2.0, 5.6)  # nothing new in that
    bed.tell(0.0, 5.6, True)
    bed.tell(None, None)  # nor in that
    bed.tell(0.0, 5.6)
    assert (await stream.read()).result is False
    stream.cancel()
    await until(lambda: bed.scaler.streams == 0)


async def test_what_is_not_known_is_waited_for(bed: Bed) -> None:
    bed.tell(None, None)
    stream = bed.stub.StreamIsActive(of())
    first = asyncio.ensure_future(stream.read())
    await until(lambda: bed.scaler.streams == 1)
    bed.tell(math.nan, 5.6)
    assert not first.done()
    bed.tell(4.0, 5.6)
    assert (await first).result is True
    stream.cancel()
    await until(lambda: bed.scaler.streams == 0)


async def test_every_stream_is_told(bed: Bed) -> None:
    bed.figures["law"] = KedaFigures(0.0, 2.0)
    bed.tell(0.0, 5.6)
    streams = [bed.stub.StreamIsActive(of(agent)) for agent in ("tax", "tax", "law")]
    assert [(await stream.read()).result for stream in streams] == [False] * 3
    bed.tell(1.0, 5.6)
    assert [(await stream.read()).result for stream in streams[:2]] == [True, True]
    bed.tell(1.0, 2.0, agent="law")
    assert (await streams[2].read()).result is True
    for stream in streams:
        stream.cancel()
    await until(lambda: bed.scaler.streams == 0)


async def test_a_target_is_pushed(bed: Bed) -> None:
    stream = bed.stub.StreamMetricSpec(of())
    assert (await stream.read()).metricSpecs[0].targetSizeFloat == 5.6
    bed.tell(99.0, 5.6)
    bed.tell(99.0, None)
    bed.tell(99.0, 11.2)
    assert (await stream.read()).metricSpecs[0].targetSizeFloat == 11.2
    assert (await bed.stub.GetMetricSpec(of())).metricSpecs[0].targetSizeFloat == 11.2
    stream.cancel()
    await until(lambda: bed.scaler.streams == 0)


async def test_an_agent_that_goes_ends_its_streams(bed: Bed) -> None:
    stream = bed.stub.StreamIsActive(of())
    assert (await stream.read()).result is True
    del bed.figures["tax"]
    bed.scaler.changed()
    code, _ = await refused(stream.read())
    assert code is grpc.StatusCode.NOT_FOUND
    assert bed.scaler.streams == 0


async def test_streams_are_bounded(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keda, "MAX_STREAMS", 1)
    first = bed.stub.StreamIsActive(of())
    await first.read()
    code, _ = await refused(bed.stub.StreamIsActive(of()).read())
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    first.cancel()
    await until(lambda: bed.scaler.streams == 0)
    again = bed.stub.StreamIsActive(of())
    assert (await again.read()).result is True
    again.cancel()
    await until(lambda: bed.scaler.streams == 0)


def test_every_method_has_a_rule() -> None:
    methods = pb.DESCRIPTOR.services_by_name["ExternalScaler"].methods
    rules = {name: rule for name, rule in roles.RULES.items() if keda.SERVICE in name}
    assert rules == {f"/{keda.SERVICE}/{method.name}": roles.READ for method in methods}


# -- the engine --------------------------------------------------------------------------------------------------------


async def test_the_engine_tells_and_does_nothing() -> None:
    there = [Instance("tax-1", "10.1.0.1:7601", "ready")]
    engine = KedaEngine("keda", KedaSettings(), lambda: 0, {"tax": there}.__getitem__)
    await engine.start()
    assert (engine.name, engine.kind, engine.chooses, engine.pulls) == ("keda", "keda", False, True)
    assert engine.has("tax")
    assert await engine.instances("tax") == there
    for doing in (engine.grow("tax", 2), engine.shrink("tax", 0, there)):
        with pytest.raises(EngineError, match="KEDA decides how many instances of 'tax' there are"):
            await doing
    await engine.close()


def test_the_engines_section() -> None:
    assert keda.settings({"kind": "keda"}, "e", Path()) == KedaSettings()
    found = keda.settings({"kind": "keda", "agents": ["tax"]}, "e", Path())
    engine = KedaEngine("keda", found, lambda: 0, lambda _: [])
    assert engine.has("tax")
    assert not engine.has("law")
    with pytest.raises(PolicyError, match="did you mean 'agents'") as caught:
        keda.settings({"kind": "keda", "agent": "tax"}, "e", Path())
    assert caught.value.path == "e.agent"
