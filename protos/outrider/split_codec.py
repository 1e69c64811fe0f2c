"""Splits as they travel: `outrider.split` to and from the messages SplitPolicy and VariantPolicy of `v1/policy.proto`.

Always holds: what is encoded decodes to an equal split; what comes out of `decode_split` is valid by the rules of
`split_parse`, and a wrong message raises PolicyError with the path of the first wrong field. A field that is not known
is passed over.

Deliberately not here: the fields and their defaults (`split`), their rules (`split_parse`).
"""

from __future__ import annotations

from collections.abc import Iterable
from types import MappingProxyType

from outrider.split import Split, Variant
from outrider.split_parse import check_split, check_splits
from outrider.v1 import policy_pb2

_IDLE_S = Split("", "").idle_s


def encode_split(split: Split) -> policy_pb2.SplitPolicy:
    """The message of a valid split."""
    return policy_pb2.SplitPolicy(
        name=split.name,
        agent_id=split.agent_id,
        variants=[_encode_variant(variant) for variant in split.variants],
        seed=split.seed,
        unit=split.unit,
        layer=split.layer,
        layer_from=split.layer_from,
        layer_to=split.layer_to,
        is_open=split.is_open,
        observed=split.observed,
        idle_s=split.idle_s,
        overrides=dict(split.overrides),
    )


def decode_split(message: policy_pb2.SplitPolicy, path: str = "") -> Split:
    """The split of a message; an empty `unit` and an `idle_s` of 0 are the defaults."""
    split = _decode(message)
    check_split(split, path)
    return split


def decode_splits(messages: Iterable[policy_pb2.SplitPolicy], agent_id: str) -> tuple[Split, ...]:
    """All splits of one agent, in order."""
    splits = tuple([_decode(message) for message in messages])
    check_splits(splits, agent_id)
    return splits


def _decode(message: policy_pb2.SplitPolicy) -> Split:
    return Split(
        name=message.name,
        agent_id=message.agent_id,
        variants=tuple([_decode_variant(variant) for variant in message.variants]),
        seed=message.seed,
        unit=message.unit or "session",
        layer=message.layer,
        layer_from=message.layer_from,
        layer_to=message.layer_to,
        is_open=message.is_open,
        observed=message.observed,
        idle_s=message.idle_s or _IDLE_S,
        overrides=MappingProxyType(dict(message.overrides)),
    )


def _encode_variant(variant: Variant) -> policy_pb2.VariantPolicy:
    message = policy_pb2.VariantPolicy(
        name=variant.name,
        share=variant.share,
        ranges=[policy_pb2.PartRange(start=start, end=end) for start, end in variant.ranges],
        labels=dict(variant.labels),
        prompt_version=variant.prompt_version,
        model=variant.model,
        aborted=variant.aborted,
    )
    for name in ("temperature", "top_p", "max_output_tokens", "compression"):
        value = getattr(variant, name)
        if value is not None:
            setattr(message, name, value)
    return message


def _decode_variant(message: policy_pb2.VariantPolicy) -> Variant:
    return Variant(
        name=message.name,
        share=message.share,
        ranges=tuple([(one.start, one.end) for one in message.ranges]),
        labels=MappingProxyType(dict(message.labels)),
        prompt_version=message.prompt_version,
        model=message.model,
        temperature=message.temperature if message.HasField("temperature") else None,
        top_p=message.top_p if message.HasField("top_p") else None,
        max_output_tokens=message.max_output_tokens if message.HasField("max_output_tokens") else None,
        compression=message.compression if message.HasField("compression") else None,
        aborted=message.aborted,
    )
