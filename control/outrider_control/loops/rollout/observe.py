"""What is seen of a rollout at one look: units and sums of its variants, endpoints, sidecars.

Always holds: what is not known is None, never 0; what other control planes' sidecars have taken is as old as their
last word.

Deliberately not here: how units are counted (`loops.tally`), what follows (`advance`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from outrider.v1 import experiment_pb2 as pb
from outrider.v1 import mesh_pb2, operator_pb2, policy_pb2
from outrider_control.loops.experiment.types import Metric, VariantSeen
from outrider_control.loops.rollout.types import Seen, Spec
from outrider_control.publish.fleet import Fleet
from outrider_control.publish.resources import ResourceId
from outrider_control.state.rollouts import RolloutRow

SPLITS = mesh_pb2.RESOURCE_KIND_SPLITS


class Tally(Protocol):
    """What has come of the units of splits. See `loops.tally.Tallies`."""

    def keep(self, owner: str, splits: Iterable[str]) -> None: ...
    def want(self, split: str, metrics: Iterable[Metric]) -> None: ...
    async def refresh(self, splits: Iterable[str] | None = None) -> None: ...

    def seen(self, split: str, metrics: Sequence[Metric]) -> Mapping[str, VariantSeen]:
        """Variants by name, with the sums of these metrics; empty: nothing is known."""
        ...


def metrics_of(spec: Spec) -> list[Metric]:
    """All that any step measures."""
    analyses = [*spec.analyses, *[one for step in spec.steps for one in step.analyses]]
    return list({(one.metric.key, one.metric.quantile): one.metric for one in analyses}.values())


def seen(row: RolloutRow, wanted: pb.RolloutSpec, spec: Spec, tally: Tally | None, fleet: Fleet) -> Seen:
    """One rollout. `tally` None: units are not looked at, for it is not up to date here."""
    variants = tally.seen(row.split, metrics_of(spec)) if tally is not None else {}
    connected, confirmed = taken(row, fleet)
    return Seen(
        candidate=variants.get(spec.candidate),
        stable=variants.get(spec.stable),
        counted=tally is not None,
        missing=missing([wanted.candidate, wanted.stable], fleet.endpoints(row.agent_id)),
        unconfirmed=max(0, connected - confirmed),
    )


def taken(row: RolloutRow, fleet: Fleet) -> tuple[int, int]:
    """(sidecars that are connected to any control plane, those that have taken the weight)."""
    connected, confirmed, _ = fleet.confirmed(SPLITS, row.agent_id, row.split_version)
    if fleet.catalog.version(ResourceId(SPLITS, row.agent_id)) < row.split_version:
        confirmed = 0
    for record in fleet.sidecars():
        if record.connected and record.control_id != fleet.control_id:
            connected += 1
            confirmed += not record.behind
    return connected, confirmed


def missing(variants: Iterable[policy_pb2.VariantPolicy], endpoints: Sequence[operator_pb2.EndpointRecord]) -> str:
    """Which variants ask for endpoints that are not there; empty: none."""
    lacking = [one for one in variants if one.labels and not any([_carries(each, one) for each in endpoints])]
    return "; ".join([f"no endpoint of {one.name} is there: none carries {_labels(one)}" for one in lacking])


def _carries(record: operator_pb2.EndpointRecord, variant: policy_pb2.VariantPolicy) -> bool:
    labels = record.endpoint.labels
    return all([labels.get(name) == value for name, value in variant.labels.items()])


def _labels(variant: policy_pb2.VariantPolicy) -> str:
    return ",".join([f"{name}={value}" for name, value in sorted(variant.labels.items())])
