"""Runs agents as Kubernetes workloads: the scale subresource says how many, the pods' deletion cost says who leaves.

Always holds: a number is written only over the one that was read (resourceVersion), never over what somebody else wrote
since; `grow` never takes away and `shrink` never adds; where `chooses` is true no pod ends that serves and was not
named. The answer to a write is checked: what did not happen is an EngineError.

How many pods a ReplicaSet ends is ours to say, which ones is its own: pods that are not ready go first, then those with
the lowest deletion cost. So pods that have failed go along unnamed, and `shrink` sends back a plan that names a ready
pod while another is about to be. During a rollout a Deployment spreads what it takes away over its ReplicaSets: then
`shrink` waits.

Deliberately not here: HTTP (`kubernetes_api`), reading objects (`kubernetes_objects`), draining (the loop takes the
leaving endpoints out first; preStop and terminationGracePeriodSeconds of the pod do the rest), creating workloads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from outrider_control.engines import kubernetes_objects as objects
from outrider_control.engines.kubernetes_api import Api, ApiError, Right
from outrider_control.engines.kubernetes_objects import MAX_REPLICAS, Pod, Scale
from outrider_control.engines.kubernetes_settings import KubernetesSettings, Workload, settings
from outrider_control.engines.replica_writers import ReplicaWriters
from outrider_control.loops.scale.types import FAILED, EngineError, Instance

__all__ = ["KubernetesEngine", "KubernetesSettings", "Replicas", "settings"]

LEAVES_FIRST: Final = -1_000  # the deletion cost of a pod that is to go; whatever costs as little is taken to be ours
_PAGE: Final = 250  # pods of one answer
_MAX_PODS: Final = 10_000
_TRIES: Final = 5  # a write over a workload whose status alone keeps changing


@dataclass(frozen=True, slots=True)
class Replicas:
    """How many there are to be, and what is known of others who say so."""

    asked: int  # spec.replicas
    present: int | None  # that the controller counts; None: not said
    others: str = ""  # what another writer did last, in words; empty: nobody did
    held: str = ""  # why nothing is written from here for now; empty: it is


class KubernetesEngine:
    """See `Engine` of `loops.scale.types`."""

    kind = "kubernetes"
    pulls = False

    def __init__(self, name: str, settings: KubernetesSettings, clock_ms: Callable[[], int]):
        self.name = name
        self.chooses = settings.chooses
        self._workloads = settings.deployments
        self._clock_ms = clock_ms
        self._api = Api(name, settings, clock_ms)
        self._writers = {agent_id: ReplicaWriters(settings.yield_s) for agent_id in settings.deployments}

    def has(self, agent_id: str) -> bool:
        return agent_id in self._workloads

    async def start(self) -> None:
        """Nothing is asked yet: the API server may come up after us. What runs is found by `instances`."""

    async def instances(self, agent_id: str) -> Sequence[Instance]:
        workload = self._workload(agent_id)
        scale = await self._scale(agent_id, workload)
        return [pod.instance for pod in await self._pods(workload, scale.selector)]

    async def replicas(self, agent_id: str) -> Replicas:
        """What is asked for now, by whomever."""
        scale = await self._scale(agent_id, self._workload(agent_id))
        writers = self._writers[agent_id]
        return Replicas(scale.replicas, scale.present, writers.note, writers.refusal(self._clock_ms()))

    def contention(self, agent_id: str) -> str:
        """What another writer did last, in words, as of the last look; empty: nobody did."""
        writers = self._writers.get(agent_id)
        return writers.note if writers is not None else ""

    async def grow(self, agent_id: str, desired: int) -> None:
        workload = self._workload(agent_id)
        wanted = self._number(agent_id, desired)
        scale = await self._scale(agent_id, workload)
        if scale.replicas < wanted:
            await self._write(agent_id, workload, scale, wanted)

    async def shrink(self, agent_id: str, desired: int, leaving: Sequence[Instance]) -> None:
        workload = self._workload(agent_id)
        wanted = self._number(agent_id, desired)
        scale = await self._scale(agent_id, workload)
        if scale.replicas <= wanted:
            return
        self._may_write(agent_id, workload)
        if self.chooses:
            await self._choose(workload, scale, wanted, {one.name for one in leaving})
        await self._write(agent_id, workload, scale, wanted)

    async def close(self) -> None:
        await self._api.close()

    # -- who leaves ------------------------------------------------------------------------------------------------

    async def _choose(self, workload: Workload, scale: Scale, wanted: int, named: set[str]) -> None:
        """Make the pods that are named the ones Kubernetes ends; EngineError where others would end."""
        pods = [pod for pod in await self._pods(workload, scale.selector) if not pod.leaving]
        going = len(pods) - wanted
        if going <= 0:
            return
        if len({pod.template for pod in pods}) > 1:
            raise EngineError(f"{self._of(workload)}: a rollout is under way; it is made smaller once that is done")
        chosen = [pod for pod in pods if pod.instance.name in named]
        others = [pod for pod in pods if pod.instance.name not in named]
        failed = [pod for pod in others if pod.instance.state == FAILED]  # serve nobody, so nothing is to be drained
        if len(chosen) + len(failed) < going:
            raise EngineError(
                f"{self._of(workload)}: {going} of {len(pods)} pods would end, but only {len(chosen)} of those are "
                f"drained{f' and {len(failed)} have failed' if failed else ''}: others have come or gone meanwhile"
            )
        starting = [pod.instance.name for pod in others if not pod.ready and pod not in failed]
        if starting and going > len(failed) + sum(not pod.ready for pod in chosen):
            raise EngineError(
                f"{self._of(workload)}: {', '.join(starting[:5])} {'is' if len(starting) == 1 else 'are'} not ready, "
                "and Kubernetes ends such pods first, not those that are drained: name them first, or wait"
            )
        for pod in others:
            if pod.cost <= LEAVES_FIRST and pod not in failed:
                await self._price(workload, pod, None)
        for pod in (*chosen, *failed):
            if pod.cost != LEAVES_FIRST:
                await self._price(workload, pod, str(LEAVES_FIRST))

    async def _price(self, workload: Workload, pod: Pod, cost: str | None) -> None:
        name = pod.instance.name
        right = Right("patch", "pods", workload.namespace, name)
        change = {"metadata": {"annotations": {objects.DELETION_COST: cost}}}
        try:
            await self._api.patch(f"/api/v1/namespaces/{workload.namespace}/pods/{name}", right, change)
        except ApiError as error:
            if error.status != 404:
                raise
            if cost is not None:
                raise EngineError(f"{self._of(workload)}: pod {name} is gone meanwhile") from None

    # -- how many --------------------------------------------------------------------------------------------------

    async def _scale(self, agent_id: str, workload: Workload) -> Scale:
        answer = await self._api.get(_scale_path(workload), _scale_right("get", workload))
        scale = objects.scale(answer, self._of(workload))
        self._writers[agent_id].saw(scale.replicas, self._clock_ms())
        return scale

    async def _write(self, agent_id: str, workload: Workload, read: Scale, wanted: int) -> None:
        """Set spec.replicas where it still is what was read; the status around it may have changed."""
        self._may_write(agent_id, workload)
        writers, scale = self._writers[agent_id], read
        for _ in range(_TRIES):
            writers.trying(wanted)
            change = {"metadata": {"resourceVersion": scale.version}, "spec": {"replicas": wanted}}
            try:
                answer = await self._api.patch(_scale_path(workload), _scale_right("patch", workload), change)
            except ApiError as error:
                if error.status != 409:
                    raise
                scale = await self._scale(agent_id, workload)
                if scale.replicas == wanted:
                    return
                if scale.replicas != read.replicas:
                    raise EngineError(
                        f"{self._of(workload)}: spec.replicas changed meanwhile, from {read.replicas} to "
                        f"{scale.replicas}, by another hand"
                    ) from None
                continue
            got = objects.scale(answer, self._of(workload)).replicas
            if got != wanted:
                raise EngineError(
                    f"{self._of(workload)}: {wanted} replicas were asked for and the API server took it, but "
                    f"spec.replicas is {got}: does an admission webhook or a quota change it?"
                )
            writers.wrote(wanted, self._clock_ms())
            return
        raise EngineError(f"{self._of(workload)}: changed meanwhile, {_TRIES} times in a row")

    def _may_write(self, agent_id: str, workload: Workload) -> None:
        refusal = self._writers[agent_id].refusal(self._clock_ms())
        if refusal:
            raise EngineError(f"{self._of(workload)}: {refusal}")

    # -- reading ---------------------------------------------------------------------------------------------------

    async def _pods(self, workload: Workload, selector: str) -> list[Pod]:
        right = Right("list", "pods", workload.namespace)
        query = {"labelSelector": selector, "limit": str(_PAGE)}
        pods: list[Pod] = []
        while True:
            answer = await self._api.get(f"/api/v1/namespaces/{workload.namespace}/pods", right, query)
            items = answer.get("items")
            if items is None and "items" in answer:
                items = []  # Go writes an empty list as null
            if not isinstance(items, list):
                raise EngineError(f"{self._of(workload)}: the API server's list of pods holds no items")
            pods += [objects.pod(item, workload.port, self._of(workload)) for item in items]
            after = objects.section(answer, "metadata").get("continue")
            if not isinstance(after, str) or not after:
                return pods
            if len(pods) >= _MAX_PODS or not items:
                raise EngineError(f"{self._of(workload)}: has more than {_MAX_PODS} pods, or a list without end")
            query = {**query, "continue": after}

    def _workload(self, agent_id: str) -> Workload:
        workload = self._workloads.get(agent_id)
        if workload is None:
            raise EngineError(f"engine {self.name}: knows no workload for {agent_id!r}: add it to `deployments`")
        return workload

    def _number(self, agent_id: str, desired: Any) -> int:
        if type(desired) is not int or not 0 <= desired <= MAX_REPLICAS:
            raise EngineError(f"engine {self.name}: {desired!r} is no number of instances for {agent_id!r}")
        return desired

    def _of(self, workload: Workload) -> str:
        return f"engine {self.name}: {workload}"


def _scale_path(workload: Workload) -> str:
    return f"/apis/apps/v1/namespaces/{workload.namespace}/{workload.resource}/{workload.name}/scale"


def _scale_right(verb: str, workload: Workload) -> Right:
    return Right(verb, f"{workload.resource}/scale", workload.namespace, workload.name)


def rights(settings: KubernetesSettings) -> Mapping[str, frozenset[Right]]:
    """All that the engine's requests need, by namespace: what a Role has to name, and no more."""
    needed: dict[str, set[Right]] = {}
    for workload in settings.deployments.values():
        mine = needed.setdefault(workload.namespace, set())
        mine |= {_scale_right("get", workload), _scale_right("patch", workload)}
        mine.add(Right("list", "pods", workload.namespace))
        if settings.chooses:
            mine.add(Right("patch", "pods", workload.namespace))
    return {namespace: frozenset(mine) for namespace, mine in needed.items()}
