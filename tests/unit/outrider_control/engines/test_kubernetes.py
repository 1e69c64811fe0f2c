"""The Kubernetes engine against kmock: growing, choosing who leaves, and everything that must not be written."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from kmock import action

from outrider_control.engines.kubernetes import LEAVES_FIRST, KubernetesEngine, rights, settings
from outrider_control.loops.scale.types import EngineError, Instance
from tests.kubernetes_cluster import COST, NAMESPACE, FakeCluster, FakeWorkload, answers

SCALE = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/tax-agent/scale"


class Bed:
    """A cluster with one Deployment of five pods, and the engine that runs it."""

    def __init__(self, url: str, cluster: FakeCluster):
        self.url = url
        self.cluster = cluster
        self.workload = cluster.add("tax-agent", 5)
        self.now_ms = 1_000_000
        self.engines: list[KubernetesEngine] = []
        self.engine = self.make()

    def make(self, **fields: Any) -> KubernetesEngine:
        data = {"kind": "kubernetes", "namespace": NAMESPACE, "server": self.url, "deployments": {"tax": "tax-agent"}}
        made = KubernetesEngine(
            "prod", settings({**data, **fields}, "scaling.engines.prod", Path()), lambda: self.now_ms
        )
        self.engines.append(made)
        return made

    async def named(self, *numbers: int) -> list[Instance]:
        names = {f"tax-agent-{number}" for number in numbers}
        return [one for one in await self.engine.instances("tax") if one.name in names]

    def left(self) -> list[int]:
        return sorted(int(name.rpartition("-")[2]) for name in self.cluster.pods)

    def costs(self) -> dict[str, str]:
        pods = self.cluster.pods.items()
        return {name: pod["metadata"].get("annotations", {}).get(COST) for name, pod in pods}


@pytest_asyncio.fixture
async def bed() -> AsyncIterator[Bed]:
    cluster = FakeCluster()
    async with cluster.open() as url:
        bed = Bed(url, cluster)
        yield bed
        for engine in bed.engines:
            await engine.close()


async def refused(doing: Any) -> str:
    with pytest.raises(EngineError) as caught:
        await doing
    return str(caught.value)


async def test_what_it_is(bed: Bed) -> None:
    engine = bed.engine
    await engine.start()
    assert (engine.name, engine.kind, engine.chooses, engine.pulls) == ("prod", "kubernetes", True, False)
    assert engine.has("tax")
    assert not engine.has("legal")
    assert bed.cluster.requests == []  # the API server may come up after us


async def test_instances_are_pods(bed: Bed) -> None:
    first, *rest = await bed.engine.instances("tax")
    assert first == Instance("tax-agent-0", "10.1.0.1:7601", "ready", 1_795_341_600_000)
    assert [one.address for one in rest] == [f"10.1.0.{number}:7601" for number in (2, 3, 4, 5)]


async def test_instances_come_in_pages(bed: Bed) -> None:
    bed.cluster.page = 2
    assert [one.name for one in await bed.engine.instances("tax")] == [f"tax-agent-{number}" for number in range(5)]
    assert len([one for one in bed.cluster.requests if one.resource and one.resource.plural == "pods"]) == 3


async def test_a_workload_without_pods(bed: Bed) -> None:
    bed.cluster.set_by_others("tax-agent", 0)
    assert list(await bed.engine.instances("tax")) == []
    await bed.engine.grow("tax", 1)
    assert bed.left() == [5]


async def test_grow(bed: Bed) -> None:
    await bed.engine.grow("tax", 50)
    assert len(bed.cluster.pods) == 50
    assert bed.cluster.writes == [(SCALE, {"metadata": {"resourceVersion": "1"}, "spec": {"replicas": 50}})]


async def test_grow_never_takes_away(bed: Bed) -> None:
    await bed.engine.grow("tax", 3)
    await bed.engine.grow("tax", 5)
    assert bed.cluster.writes == []


async def test_shrink_never_adds(bed: Bed) -> None:
    await bed.engine.shrink("tax", 8, [])
    await bed.engine.shrink("tax", 5, await bed.named(0))
    assert bed.cluster.writes == []


async def test_shrink_ends_those_that_are_named(bed: Bed) -> None:
    await bed.engine.shrink("tax", 3, await bed.named(0, 2))  # left to itself it would be the newest, 4 and 3
    assert bed.left() == [1, 3, 4]
    assert [path.rpartition("/")[2] for path, _ in bed.cluster.writes] == ["tax-agent-0", "tax-agent-2", "scale"]


async def test_marks_of_an_earlier_plan_are_taken_back(bed: Bed) -> None:
    bed.cluster.pods["tax-agent-1"]["metadata"]["annotations"] = {COST: str(LEAVES_FIRST), "other": "stays"}
    bed.cluster.pods["tax-agent-2"]["metadata"]["annotations"] = {COST: "-5000"}
    bed.cluster.pods["tax-agent-3"]["metadata"]["annotations"] = {COST: "-7"}  # somebody's own
    await bed.engine.shrink("tax", 4, await bed.named(0))
    assert bed.left() == [1, 2, 3, 4]
    assert bed.costs() == {"tax-agent-1": None, "tax-agent-2": None, "tax-agent-3": "-7", "tax-agent-4": None}
    assert bed.cluster.pods["tax-agent-1"]["metadata"]["annotations"] == {"other": "stays"}


async def test_nobody_ends_who_was_not_drained(bed: Bed) -> None:
    leaving = await bed.named(0)
    assert "2 of 5 pods would end, but only 1" in await refused(bed.engine.shrink("tax", 3, leaving))
    gone = [Instance("tax-agent-77")]
    assert "1 of 5 pods would end, but only 0" in await refused(bed.engine.shrink("tax", 4, gone))
    assert bed.cluster.writes == []


async def test_pods_that_are_not_ready_go_first(bed: Bed) -> None:
    bed.cluster.pods["tax-agent-3"]["status"]["conditions"][0]["status"] = "False"
    said = await refused(bed.engine.shrink("tax", 4, await bed.named(0)))
    assert "tax-agent-3 is not ready" in said
    assert bed.cluster.writes == []
    await bed.engine.shrink("tax", 4, await bed.named(3))
    assert bed.left() == [0, 1, 2, 4]
    bed.cluster.pods["tax-agent-1"]["status"]["conditions"][0]["status"] = "False"
    await bed.engine.shrink("tax", 2, await bed.named(0, 1))
    assert bed.left() == [2, 4]


async def test_pods_that_have_failed_go_along(bed: Bed) -> None:
    """They count as replicas, and nobody drains them."""
    waiting = [{"name": "agent", "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]
    for number in (1, 2):
        bed.cluster.pods[f"tax-agent-{number}"]["status"] |= {"conditions": [], "containerStatuses": waiting}
    leaving = await bed.named(0)
    said = await refused(bed.engine.shrink("tax", 1, leaving))
    assert "4 of 5 pods would end, but only 1 of those are drained and 2 have failed" in said
    assert bed.cluster.writes == []
    await bed.engine.shrink("tax", 2, leaving)
    assert bed.left() == [3, 4]


async def test_pods_that_have_failed_go_first(bed: Bed) -> None:
    waiting = [{"name": "agent", "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]
    bed.cluster.pods["tax-agent-1"]["status"] |= {"conditions": [], "containerStatuses": waiting}
    await bed.engine.shrink("tax", 4, await bed.named(0))  # drained, and not needed: it may serve again
    assert bed.left() == [0, 2, 3, 4]
    assert bed.costs()["tax-agent-0"] == str(LEAVES_FIRST)
    await bed.engine.shrink("tax", 3, await bed.named(2))
    assert bed.left() == [0, 3, 4]
    assert set(bed.costs().values()) == {None}


async def test_pods_that_end_already_do_not_count(bed: Bed) -> None:
    bed.cluster.pods["tax-agent-4"]["metadata"]["deletionTimestamp"] = "2026-11-22T10:00:00Z"
    bed.cluster.pods["tax-agent-3"]["status"] = {"phase": "Failed", "reason": "Evicted"}
    await bed.engine.shrink("tax", 3, [])  # three are left
    assert bed.cluster.writes == [(SCALE, {"metadata": {"resourceVersion": "1"}, "spec": {"replicas": 3}})]


async def test_a_rollout_is_waited_for(bed: Bed) -> None:
    bed.cluster.pods["tax-agent-4"]["metadata"]["labels"]["pod-template-hash"] = "6e8"
    assert "rollout" in await refused(bed.engine.shrink("tax", 4, await bed.named(0)))
    assert bed.cluster.writes == []
    await bed.engine.grow("tax", 6)  # more is always right
    assert bed.workload.replicas == 6


async def test_a_pod_that_goes_while_it_is_marked(bed: Bed) -> None:
    leaving = await bed.named(0)
    plan = bed.engine.shrink("tax", 4, leaving)
    serve = bed.cluster._patch_pod

    def gone(request: Any, name: str) -> Any:
        bed.cluster.pods.pop(name)
        return serve(request, name)

    bed.cluster._patch_pod = gone
    assert "tax-agent-0 is gone meanwhile" in await refused(plan)
    assert bed.workload.replicas == 5


async def test_a_stateful_set_ends_its_newest(bed: Bed) -> None:
    bed.cluster.add("law", 3, "statefulsets")
    engine = bed.make(deployments={"law": {"kind": "StatefulSet", "name": "law", "port": 9000}})
    assert not engine.chooses
    assert (await engine.instances("law"))[0].address == "10.1.0.1:9000"
    await engine.shrink("law", 1, [])
    assert [name for name in bed.cluster.pods if name.startswith("law")] == ["law-0"]
    assert len(bed.cluster.writes) == 1  # no pod is marked: nobody would look


async def test_without_deletion_cost_no_pod_is_touched(bed: Bed) -> None:
    engine = bed.make(pod_deletion_cost=False)
    assert not engine.chooses
    await engine.shrink("tax", 4, [])
    assert [path for path, _ in bed.cluster.writes] == [SCALE]


# -- others ------------------------------------------------------------------------------------------------------------


async def test_a_status_that_changes_is_no_conflict(bed: Bed) -> None:
    def status_changes() -> None:
        bed.workload.version += 1

    bed.cluster.before_patch = [status_changes] * 4
    await bed.engine.grow("tax", 6)
    assert bed.workload.replicas == 6
    bed.cluster.before_patch = [status_changes] * 5
    assert "changed meanwhile, 5 times" in await refused(bed.engine.grow("tax", 7))
    assert bed.workload.replicas == 6


async def test_replicas_that_change_meanwhile_are_left_alone(bed: Bed) -> None:
    bed.cluster.before_patch = [lambda: bed.cluster.set_by_others("tax-agent", 7)]
    said = await refused(bed.engine.grow("tax", 20))
    assert "changed meanwhile, from 5 to 7" in said
    assert bed.workload.replicas == 7


async def test_others_who_set_the_same(bed: Bed) -> None:
    bed.cluster.before_patch = [lambda: bed.cluster.set_by_others("tax-agent", 20)]
    await bed.engine.grow("tax", 20)
    assert bed.workload.version == 2


async def test_two_scalers_do_not_fight(bed: Bed) -> None:
    engine = bed.engine
    assert (await engine.replicas("tax")).others == ""
    for _ in range(2):
        await engine.grow("tax", 9)
        bed.now_ms += 15_000
        bed.cluster.set_by_others("tax-agent", 5)  # an HPA takes it back
        seen = await engine.replicas("tax")
        assert (seen.asked, seen.present) == (5, 5)
        assert "from 9 to 5 by another hand" in seen.others
    assert "from 9 to 5" in engine.contention("tax")
    assert engine.contention("nobody") == ""
    assert "two scalers are at work" in seen.held
    writes = len(bed.cluster.writes)
    for _ in range(100):
        bed.now_ms += 2_000
        assert "two scalers" in await refused(engine.grow("tax", 9))
        assert "two scalers" in await refused(engine.shrink("tax", 4, await bed.named(0)))
    assert len(bed.cluster.writes) == writes
    bed.now_ms += 101_000
    await engine.grow("tax", 9)
    assert bed.workload.replicas == 9


async def test_one_hand_on_the_scale_is_no_fight(bed: Bed) -> None:
    await bed.engine.grow("tax", 9)
    bed.cluster.set_by_others("tax-agent", 12)
    seen = await bed.engine.replicas("tax")
    assert seen.others
    assert seen.held == ""
    await bed.engine.grow("tax", 15)
    assert bed.workload.replicas == 15


# -- bad input ---------------------------------------------------------------------------------------------------------


async def test_a_server_that_lies_about_what_it_did(bed: Bed) -> None:
    bed.cluster.lies = True
    for _ in range(2):
        await bed.engine.grow("tax", 9)
        assert "another hand" in (await bed.engine.replicas("tax")).others
    assert "two scalers are at work" in await refused(bed.engine.grow("tax", 9))


async def test_a_webhook_that_sets_another_number(bed: Bed) -> None:
    bed.workload.scale = lambda scale: {**scale, "spec": {"replicas": 5}}
    said = await refused(bed.engine.grow("tax", 9))
    assert "9 replicas were asked for and the API server took it, but spec.replicas is 5" in said


@pytest.mark.parametrize(
    ("scale", "said"),
    [
        ({"spec": {"replicas": -1}}, "spec.replicas is -1"),
        ({"spec": {"replicas": "5"}}, "spec.replicas is '5'"),
        ({"spec": {"replicas": True}}, "spec.replicas is True"),
        ({"spec": {"replicas": 1e9}}, "spec.replicas is 1000000000.0"),
        ({"spec": {"replicas": 10**12}}, "spec.replicas is 1000000000000"),
        ({"spec": None}, "spec.replicas is None"),
        ({"status": {"replicas": 5}}, "names no selector"),
        ({"status": {"selector": ""}}, "names no selector"),
        ({"metadata": {}}, "no resourceVersion"),
        ({"kind": "Deployment", "spec": [], "metadata": [], "status": []}, "spec.replicas is []"),
    ],
)
async def test_a_scale_that_cannot_be(bed: Bed, scale: dict[str, Any], said: str) -> None:
    bed.workload.scale = lambda real: {**real, **scale}
    for doing in (
        bed.engine.instances("tax"),
        bed.engine.replicas("tax"),
        bed.engine.grow("tax", 9),
        bed.engine.shrink("tax", 1, []),
    ):
        assert said in await refused(doing)
    assert bed.cluster.writes == []


@pytest.mark.parametrize("answer", [b'{"spec": {"replicas": NaN}}', b"<html>", b"[]", b"", b'"\xff"', b"[" * 100_000])
async def test_an_answer_that_is_no_object(bed: Bed, answer: bytes) -> None:
    answers(bed.cluster.server["get"] ** 1, answer)
    assert "the answer is" in await refused(bed.engine.grow("tax", 9))


@pytest.mark.parametrize(
    "answer",
    [{"items": "none"}, {}, {"items": [None]}, {"items": [{"metadata": {"name": 7}}]}, {"items": [{"status": {}}]}],
)
async def test_a_list_that_is_none(bed: Bed, answer: dict[str, Any]) -> None:
    answers(bed.cluster.server[action.LIST] ** 1, answer)
    said = await refused(bed.engine.instances("tax"))
    assert "holds no items" in said or "a pod without a name" in said
    assert "engine prod" in await refused(bed.engine.shrink("tax", 1, []))
    assert bed.cluster.writes == []


async def test_a_list_without_end(bed: Bed) -> None:
    page = {"metadata": {"continue": "again"}, "items": []}
    answers(bed.cluster.server[action.LIST] ** 1, page)
    assert "a list without end" in await refused(bed.engine.instances("tax"))


@pytest.mark.parametrize("desired", [float("nan"), -1, 2.5, True, None, 10**9])
async def test_a_number_that_is_none(bed: Bed, desired: Any) -> None:
    assert "is no number of instances" in await refused(bed.engine.grow("tax", desired))
    assert "is no number of instances" in await refused(bed.engine.shrink("tax", desired, []))
    assert bed.cluster.requests == []


async def test_an_agent_it_does_not_know(bed: Bed) -> None:
    for doing in (bed.engine.instances("x"), bed.engine.grow("x", 1), bed.engine.shrink("x", 1, [])):
        assert "knows no workload for 'x'" in await refused(doing)


async def test_a_deployment_that_is_not_there(bed: Bed) -> None:
    del bed.cluster.workloads["tax-agent"]
    said = await refused(bed.engine.grow("tax", 9))
    assert "get deployments/scale tax-agent in namespace agents" in said
    assert "finds none: create it" in said


def test_rights_are_told(tmp_path: Path) -> None:
    given = {
        "namespace": "a",
        "server": "https://k:6443",
        "deployments": {"x": "d", "y": {"name": "s", "namespace": "b"}},
    }
    told = rights(settings(given, "", tmp_path))
    assert {namespace: sorted(map(str, mine)) for namespace, mine in told.items()} == {
        namespace: [
            f"get deployments/scale {name} in namespace {namespace}",
            f"list pods in namespace {namespace}",
            f"patch deployments/scale {name} in namespace {namespace}",
            f"patch pods in namespace {namespace}",
        ]
        for namespace, name in (("a", "d"), ("b", "s"))
    }


def test_the_fake_orders_as_a_replica_set(bed_free: FakeCluster) -> None:
    """What the tests above rest on: not ready, then cost, then newest."""
    workload: FakeWorkload = bed_free.add("w", 4)
    bed_free.pods["w-1"]["status"]["conditions"] = []
    bed_free.pods["w-0"]["metadata"]["annotations"] = {COST: "-1"}
    order = []
    for size in (3, 2, 1):
        before = set(bed_free.pods)
        workload.replicas = size
        bed_free.reconcile(workload)
        order += before - set(bed_free.pods)
    assert order == ["w-1", "w-0", "w-3"]


@pytest.fixture
def bed_free() -> FakeCluster:
    return FakeCluster()
