"""A rollout as an operator sees it: the real control plane, and sidecars' ends of Watch."""

from __future__ import annotations

import contextlib
import itertools
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence

import pytest
import pytest_asyncio

from outrider.v1 import experiment_pb2 as pb
from outrider.v1 import mesh_pb2, operator_pb2_grpc, policy_pb2
from outrider_sidecar.core.span import CLIENT, Span
from outrider_sidecar.engines.otlp import Encoder
from tests.controls import Control
from tests.integration.control.exports import send
from tests.rollouts import errors, wanted
from tests.sidecars import Mesh, channel_to
from tests.watchers import Watcher, until

ROLLOUTS = ("by-hand", "measured", "survivor")  # each of an agent of its own, which has its name
SIDECARS = 51
SPLITS = mesh_pb2.RESOURCE_KIND_SPLITS


@pytest.fixture(scope="module")
def control(mesh: Mesh) -> Control:
    made = Control(mesh)
    endpoints = [{"address": f"127.0.0.1:{9000 + at}", "labels": {"version": f"v{at}"}} for at in (1, 2)]
    made.apply(*[{"agent_id": name, "endpoints": endpoints} for name in ROLLOUTS])
    return made


@pytest.fixture
def operator(control: Control) -> Iterator[operator_pb2_grpc.OperatorStub]:
    with channel_to(control.target) as channel:
        yield operator_pb2_grpc.OperatorStub(channel)


@pytest_asyncio.fixture
async def sidecars(control: Control) -> AsyncIterator[list[Watcher]]:
    async with contextlib.AsyncExitStack() as stack:
        found = [await stack.enter_async_context(Watcher(control.target, f"sidecar-{at}")) for at in range(SIDECARS)]
        yield found
    found.clear()  # their calls hold the connection


def split_of(watcher: Watcher, name: str) -> policy_pb2.SplitPolicy | None:
    resource = watcher.held.get((SPLITS, name))
    found = [one for one in resource.splits.splits if one.name == name] if resource is not None else []
    return found[0] if found else None


def weight(watcher: Watcher, name: str) -> float | None:
    split = split_of(watcher, name)
    return split.variants[1].share if split is not None else None


def aborted(watcher: Watcher, name: str) -> bool:
    split = split_of(watcher, name)
    return split is not None and split.variants[1].aborted and not split.variants[1].share


def creation(name: str, *steps: str, analyses: Sequence[pb.Analysis] = ()) -> pb.CreateRolloutRequest:
    spec = wanted(*steps, name=name, analyses=analyses)
    spec.agent_id = name
    return pb.CreateRolloutRequest(spec=spec, reason="v2 is ready")


def calls(name: str, units: int, status: int, sequence: int) -> bytes:
    """What a sidecar exports of the candidate's calls, one of each of so many units."""
    rng, now_ns = random.Random(sequence), time.time_ns()
    encoder = Encoder({"service.name": "outrider-sidecar", "service.instance.id": f"exporter-of-{name}"})
    spans = [
        encoder.span(
            Span(
                b"%032x" % rng.getrandbits(128), b"%016x" % rng.getrandbits(64), b"", b"", 1, CLIENT, "/a.A/Call",
                name, "127.0.0.1:9002", now_ns - 5_000_000, 5_000, status, variant=f"{name}=candidate",
                unit=f"{name}={rng.getrandbits(128):032x}",
            )
        )
        for _ in range(units)
    ]  # fmt: skip
    return encoder.request(spans, sequence)


async def reaches(
    operator: operator_pb2_grpc.OperatorStub, name: str, phase: str, feed: Callable[[], object] = lambda: None
) -> pb.RolloutRecord:
    """The rollout in that phase; `feed` is called between two looks."""
    record = pb.RolloutRecord()

    def there() -> bool:
        feed()
        record.CopyFrom(operator.GetRollout(pb.GetRolloutRequest(name=name)))
        return record.phase == phase

    await until(there, f"{name} is {phase}")
    return record


async def test_an_abort_reaches_every_sidecar(
    operator: operator_pb2_grpc.OperatorStub, sidecars: list[Watcher]
) -> None:
    operator.CreateRollout(creation("by-hand", "0.5:1000"))
    await until(lambda: all([weight(one, "by-hand") == 0.5 for one in sidecars]), "the weight is everywhere")
    record = pb.RolloutRecord()

    def confirmed() -> bool:
        record.CopyFrom(operator.GetRollout(pb.GetRolloutRequest(name="by-hand")))
        return (record.sidecars, record.confirmed) == (SIDECARS, SIDECARS)

    await until(confirmed, "all have confirmed it")
    operator.AbortRollout(pb.ChangeRolloutRequest(name="by-hand", reason="complaints"))
    await until(lambda: all([aborted(one, "by-hand") for one in sidecars]), "the abort is everywhere")
    await until(confirmed, "all have confirmed the abort")
    assert (record.phase, record.weight, record.reason) == ("failed", 0.0, "complaints")


async def test_harm_is_aborted_everywhere_and_a_good_version_goes_on(
    control: Control, operator: operator_pb2_grpc.OperatorStub, sidecars: list[Watcher]
) -> None:
    operator.CreateRollout(creation("measured", "0.2", "0.6", "1", analyses=[errors(0.1, interval_s=1)]))
    await until(lambda: all([weight(one, "measured") == 0.2 for one in sidecars]), "the first weight is everywhere")
    with channel_to(control.target) as channel:
        send(channel, calls("measured", 60, 0, 1))
        await until(lambda: all([weight(one, "measured") == 0.6 for one in sidecars]), "it goes on")
        send(channel, calls("measured", 60, 13, 2))
    await until(lambda: all([aborted(one, "measured") for one in sidecars]), "the abort is everywhere")
    record = await reaches(operator, "measured", "failed")
    assert record.candidate_units == 120
    assert "error_rate failed" in record.reason
    shown = control.json("rollout", "status", "measured")
    assert shown["phase"] == "failed"


async def test_a_killed_control_plane_goes_on_where_it_stood(
    control: Control, operator: operator_pb2_grpc.OperatorStub
) -> None:
    operator.CreateRollout(creation("survivor", "0.2", "0.6:confirm", "1", analyses=[errors(0.1, interval_s=1)]))
    await reaches(operator, "survivor", "progressing")
    with channel_to(control.target) as channel:
        send(channel, calls("survivor", 60, 0, 1))

    def at_the_second() -> bool:
        return operator.GetRollout(pb.GetRolloutRequest(name="survivor")).step == 1

    await until(at_the_second, "it is at its second step")
    control.kill()
    control.start()
    with channel_to(control.target) as channel:
        again = operator_pb2_grpc.OperatorStub(channel)
        record = again.GetRollout(pb.GetRolloutRequest(name="survivor"))
        assert (record.phase, record.step, record.weight) == ("progressing", 1, 0.6)
        async with Watcher(control.target, "later") as watcher:
            await until(lambda: weight(watcher, "survivor") == 0.6, "a sidecar has the weight")
            send(channel, calls("survivor", 60, 0, 2))
            await reaches(again, "survivor", "waiting_promotion")
            again.PromoteRollout(pb.ChangeRolloutRequest(name="survivor", reason="good"))
            await until(lambda: weight(watcher, "survivor") == 1.0, "everything is on the candidate")
            numbers = itertools.count(3)
            await reaches(
                again, "survivor", "succeeded", lambda: send(channel, calls("survivor", 10, 0, next(numbers)))
            )
