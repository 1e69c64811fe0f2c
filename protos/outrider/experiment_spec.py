"""Experiments and rollouts as they are wanted, from plain data: files, command lines, arguments.

Always holds: names are those of the protobuf fields, and every metric, guardrail, variant, step and analysis may be
written in its short form (`experiment_text`); variants without a share divide what the others leave; what is not said
is not set, so that the control plane's defaults hold.

Deliberately not here: whether it can be done (the control plane says so when it is created).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from outrider import experiment_text as text
from outrider import tree
from outrider.message_tree import Reader, message_of
from outrider.policy import PolicyError
from outrider.v1 import experiment_pb2 as pb
from outrider.v1 import feedback_pb2, policy_pb2

ExperimentFields = pb.ExperimentSpec | Mapping[str, Any]
RolloutFields = pb.RolloutSpec | Mapping[str, Any]
MetricFields = pb.Metric | Mapping[str, Any] | str
GuardrailFields = pb.Guardrail | Mapping[str, Any] | str
VariantFields = policy_pb2.VariantPolicy | Mapping[str, Any] | str
FeedbackFields = feedback_pb2.Feedback | Mapping[str, Any]
# By name, what each one sets (None: nothing); or one after the other.
Variants = Mapping[str, Mapping[str, Any] | None] | Sequence[VariantFields]
Shares = Mapping[str, float] | Sequence[float]

_READERS: Final[Mapping[str, Reader]] = {
    pb.Metric.DESCRIPTOR.full_name: text.metric_of,
    pb.Guardrail.DESCRIPTOR.full_name: text.guardrail_of,
    pb.RolloutStep.DESCRIPTOR.full_name: text.step_of,
    pb.Analysis.DESCRIPTOR.full_name: text.analysis_of,
    policy_pb2.VariantPolicy.DESCRIPTOR.full_name: text.variant_of,
}
_HIDDEN: Final = frozenset({"VariantPolicy.ranges", "VariantPolicy.aborted"})  # of splits, which nobody writes


def experiment_of(data: ExperimentFields, path: str = "") -> pb.ExperimentSpec:
    """An experiment from its message or a mapping; PolicyError for the first field that cannot be one."""
    spec = message_of(pb.ExperimentSpec, data, path, _READERS, _HIDDEN)
    if spec is data:
        return spec
    variants = text.with_shares(spec.variants, tree.join(path, "variants"))
    del spec.variants[:]
    spec.variants.extend(variants)
    return spec


def rollout_of(data: RolloutFields, path: str = "") -> pb.RolloutSpec:
    """A rollout from its message or a mapping; PolicyError for the first field that cannot be one."""
    return message_of(pb.RolloutSpec, data, path, _READERS, _HIDDEN)


def feedback_of(data: FeedbackFields, path: str = "") -> feedback_pb2.Feedback:
    """A piece of feedback from its message or a mapping; PolicyError for the first field that cannot be one."""
    return message_of(feedback_pb2.Feedback, data, path, {})


def ab_test_of(
    agent_id: str,
    name: str,
    variants: Variants,
    success_metric: MetricFields,
    split: Shares,
    guardrails: Sequence[GuardrailFields],
    rollout: RolloutFields | None,
    fields: Mapping[str, Any],
) -> pb.ExperimentSpec:
    """An experiment from what people say of an A/B test; `fields` are further ones of the spec, by their names."""
    made = _variants(variants)
    _share(made, split)
    data: dict[str, Any] = {
        **fields,
        "name": name,
        "agent_id": agent_id,
        "variants": made,
        "metric": success_metric,
        "guardrails": list(guardrails),
    }
    if rollout is not None:
        data["rollout"] = rollout_of(rollout, "rollout")
    return experiment_of(data)


def _variants(variants: Variants) -> list[policy_pb2.VariantPolicy]:
    if isinstance(variants, Mapping):
        named = [{**(settings or {}), "name": name} for name, settings in variants.items()]
        return [_variant(one, f"variants.{one['name']}") for one in named]
    return [_variant(one, f"variants[{at}]") for at, one in enumerate(variants)]


def _variant(data: VariantFields, path: str) -> policy_pb2.VariantPolicy:
    made = policy_pb2.VariantPolicy()
    made.CopyFrom(message_of(policy_pb2.VariantPolicy, data, path, _READERS, _HIDDEN))  # the caller's stays as it is
    return made


def _share(variants: Sequence[policy_pb2.VariantPolicy], split: Shares) -> None:
    """Give the variants the shares that are named for them."""
    if not split:
        return
    if isinstance(split, Mapping):
        names = [variant.name for variant in variants]
        shares: Mapping[str, Any] = tree.section(split, "split", names)
        for variant in variants:
            if variant.name in shares:
                variant.share = tree.scalar(float, shares[variant.name], f"split.{variant.name}")
        return
    if len(split) != len(variants):
        raise PolicyError("split", f"has {len(split)} shares for {len(variants)} variants")
    for at, (variant, share) in enumerate(zip(variants, split, strict=True)):
        variant.share = tree.scalar(float, share, f"split[{at}]")
