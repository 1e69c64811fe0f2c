"""Reads splits from plain data and checks that they can be enforced.

Always holds: a split that comes out of here is valid by itself, and the splits of one agent agree with each other; a
wrong one raises PolicyError with the path of the first wrong field. `check_split` and `check_splits` check splits from
any source (YAML, a push, a snapshot, the control plane's store) by the same rules.

Deliberately not here: the fields and their defaults (`split`), protobuf (`split_codec`), whether the agent exists and
has endpoints for a variant's labels (who holds its policy: `policy_parse`, control plane).
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from outrider import tree
from outrider.policy import PolicyError
from outrider.split import PARTS, UNITS, Range, Split, Variant

MAX_VARIANTS: Final = 100  # of a split
MAX_SPLITS: Final = 100  # of an agent
MAX_OVERRIDES: Final = 10_000
SHARES_TOLERANCE: Final = 1e-6  # of their sum

_YEAR_S: Final = 31_536_000
_MAX_LABELS: Final = 64
# Names stand in metadata as `split=variant,split=variant`.
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}")
_NAME_TEXT: Final = (
    "a name: letters, digits and any of ._:/@+- (no '=' and no ','), at most 128, a letter or digit first"
)
_AGENT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_LABEL: Final = _AGENT
_METADATA_VALUE: Final = re.compile(r"[\x21-\x7e]([\x20-\x7e]{0,126}[\x21-\x7e])?")
_MAX_TEXT: Final = 256

Rule = Callable[[Any], str | None]  # the reason why a value is wrong, or None


def split_from_mapping(data: Any, path: str = "") -> Split:
    """One split from a mapping as in the configuration file."""
    fields = tree.section(data, path, tree.field_types(Split))
    for name in ("name", "agent_id"):
        if name not in fields:
            raise PolicyError(tree.join(path, name), "is missing")
    split = tree.Tree({}).build(Split, fields, path)
    check_split(split, path)
    return split


def splits_from_items(data: Any, path: str, agents: Iterable[str]) -> Mapping[str, tuple[Split, ...]]:
    """Splits by agent from a list of mappings, each of which names one of `agents`."""
    known = list(agents)
    places: dict[str, int] = {}
    by_agent: dict[str, list[Split]] = {}
    for at, item in enumerate(tree.items(data, path)):
        inner = f"{path}[{at}]"
        split = split_from_mapping(item, inner)
        if split.agent_id not in known:
            reason = f"{tree.show(split.agent_id)} is no agent; {tree.nearest(split.agent_id, known)}"
            raise PolicyError(f"{inner}.agent_id", reason)
        if split.name in places:
            reason = f"{tree.show(split.name)} is already {path}[{places[split.name]}]"
            raise PolicyError(f"{inner}.name", reason)
        places[split.name] = at
        by_agent.setdefault(split.agent_id, []).append(split)
        _check_layers(by_agent[split.agent_id], inner)
    for agent_id, splits in by_agent.items():
        _check_count(agent_id, splits, path)
    return MappingProxyType({agent_id: tuple(splits) for agent_id, splits in by_agent.items()})


def check_splits(splits: Sequence[Split], agent_id: str, path: str = "splits") -> None:
    """PolicyError for the first thing in the splits of one agent, each by itself and together, that is wrong."""
    seen: dict[str, int] = {}
    for at, split in enumerate(splits):
        inner = f"{path}[{at}]"
        check_split(split, inner)
        if split.agent_id != agent_id:
            raise PolicyError(f"{inner}.agent_id", f"{tree.show(split.agent_id)} is kept under {tree.show(agent_id)}")
        if split.name in seen:
            raise PolicyError(f"{inner}.name", f"{tree.show(split.name)} is already {path}[{seen[split.name]}]")
        seen[split.name] = at
        _check_layers(splits[: at + 1], inner)
    _check_count(agent_id, splits, path)


def check_split(split: Split, path: str = "") -> None:
    """PolicyError for the first thing in one split, however it was made, that cannot be enforced."""
    _check_fields(split, _SPLIT_RULES, path)
    if split.layer_from > split.layer_to:
        reason = f"{split.layer_from} is more than layer_to, which is {split.layer_to}"
        raise PolicyError(tree.join(path, "layer_from"), reason)
    variants = split.variants
    inner = tree.join(path, "variants")
    if len(variants) > MAX_VARIANTS:
        raise PolicyError(inner, f"has {len(variants)} variants; at most {MAX_VARIANTS} are read")
    if not variants and not split.observed:
        raise PolicyError(inner, "is empty: a split has at least one variant, unless it is `observed`")
    names: dict[str, int] = {}
    for at, variant in enumerate(variants):
        one = f"{inner}[{at}]"
        _check_fields(variant, _VARIANT_RULES, one)
        if variant.name in names:
            raise PolicyError(f"{one}.name", f"{tree.show(variant.name)} is already variants[{names[variant.name]}]")
        names[variant.name] = at
        _check_ranges(variant.ranges, f"{one}.ranges")
    if variants:
        _check_shares(variants, inner)
        _check_whole(variants, inner)
        if variants[0].aborted:
            reason = "true is not possible for the first variant: it is what units of aborted ones go to"
            raise PolicyError(f"{inner}[0].aborted", reason)
    for unit, name in split.overrides.items():
        if not unit:
            raise PolicyError(tree.join(path, "overrides"), "holds an empty unit")
        if name not in names:
            reason = f"{tree.show(name)} is no variant; {tree.nearest(name, list(names))}"
            raise PolicyError(tree.join(tree.join(path, "overrides"), unit), reason)


def _check_fields(node: Any, rules: Mapping[str, Rule], path: str) -> None:
    hints = tree.field_types(type(node))
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        inner = tree.join(path, field.name)
        hint = hints[field.name]
        if hint in (bool, int, float, str):
            tree.scalar(hint, value, inner)
        elif isinstance(value, float) and not math.isfinite(value):
            raise PolicyError(inner, f"{tree.show(value)} is not a number")
        rule = rules.get(field.name)
        reason = rule(value) if rule is not None and value is not None else None
        if reason is not None:
            raise PolicyError(inner, f"{tree.show(value)} {reason}")


def _check_shares(variants: Sequence[Variant], path: str) -> None:
    total = math.fsum([variant.share for variant in variants])
    if abs(total - 1.0) > SHARES_TOLERANCE:
        raise PolicyError(path, f"the shares together are {total:.9g}; they must be 1")


def _check_ranges(ranges: Sequence[Range], path: str) -> None:
    for at, one in enumerate(ranges):
        if len(one) != 2 or not 0 <= one[0] < one[1] <= PARTS:
            reason = f"{tree.show(list(one))} is no half-open range [start, end) within 0 and {PARTS}"
            raise PolicyError(f"{path}[{at}]", reason)


def _check_whole(variants: Sequence[Variant], path: str) -> None:
    """Where ranges are given they are disjoint and together everything."""
    found = sorted(
        [(start, end, f"{path}[{at}].ranges") for at, one in enumerate(variants) for start, end in one.ranges]
    )
    if not found:
        return
    covered = 0
    for start, end, inner in found:
        if start < covered:
            raise PolicyError(inner, f"[{start}, {end}) overlaps a range that ends at {covered}")
        if start > covered:
            raise PolicyError(path, f"no variant has the parts from {covered} to {start}")
        covered = end
    if covered < PARTS:
        raise PolicyError(path, f"no variant has the parts from {covered} to {PARTS}")


def _check_layers(splits: Sequence[Split], path: str) -> None:
    """The last of these splits of one agent shares no unit with those of its layer before it."""
    last = splits[-1]
    if not last.layer:
        return
    for other in splits[:-1]:
        if other.layer != last.layer:
            continue
        if other.unit != last.unit:
            reason = f"{tree.show(last.unit)} is not {other.unit!r}, the unit of {other.name!r} in the same layer"
            raise PolicyError(tree.join(path, "unit"), reason)
        if max(other.layer_from, last.layer_from) < min(other.layer_to, last.layer_to):
            reason = (
                f"[{last.layer_from}, {last.layer_to}) of layer {last.layer!r} overlaps "
                f"[{other.layer_from}, {other.layer_to}) of {other.name!r}"
            )
            raise PolicyError(tree.join(path, "layer_from"), reason)


def _check_count(agent_id: str, splits: Sequence[Split], path: str) -> None:
    if len(splits) > MAX_SPLITS:
        raise PolicyError(path, f"agent {agent_id!r} has {len(splits)} splits; at most {MAX_SPLITS} are read")


def _within(low: float, high: float) -> Rule:
    return lambda value: None if low <= value <= high else f"is not between {low} and {high}"


def _is_name(value: str) -> str | None:
    return None if _NAME.fullmatch(value) else f"is not {_NAME_TEXT}"


def _is_name_or_empty(value: str) -> str | None:
    return _is_name(value) if value else None


def _is_agent(value: str) -> str | None:
    return None if _AGENT.fullmatch(value) else "is not the name of an agent"


def _is_short(value: str) -> str | None:
    return None if len(value) <= _MAX_TEXT else f"has more than {_MAX_TEXT} characters"


def _fits_metadata(value: str) -> str | None:
    if not value or _METADATA_VALUE.fullmatch(value):
        return None
    return "does not fit into metadata: printable ASCII, at most 128, no space at either end"


def _are_labels(value: Mapping[str, str]) -> str | None:
    if len(value) > _MAX_LABELS:
        return f"has more than {_MAX_LABELS} labels"
    for name in value:
        if not _LABEL.fullmatch(name):
            return f"holds {tree.show(name)}, which is not the name of a label"
    return None


def _are_overrides(value: Mapping[str, str]) -> str | None:
    return None if len(value) <= MAX_OVERRIDES else f"has more than {MAX_OVERRIDES} entries"


def _is_unit(value: str) -> str | None:
    return None if value in UNITS else f"is not one of {', '.join(UNITS)}"


_VARIANT_RULES: Final[Mapping[str, Rule]] = {
    "name": _is_name,
    "share": _within(0, 1),
    "labels": _are_labels,
    "prompt_version": _fits_metadata,
    "model": _is_short,
    "temperature": _within(0, 100),
    "top_p": _within(0, 1),
    "max_output_tokens": _within(1, 10_000_000),
}
_SPLIT_RULES: Final[Mapping[str, Rule]] = {
    "name": _is_name,
    "agent_id": _is_agent,
    "seed": _is_short,
    "unit": _is_unit,
    "layer": _is_name_or_empty,
    "layer_from": _within(0, PARTS),
    "layer_to": _within(0, PARTS),
    "idle_s": _within(1, _YEAR_S),
    "overrides": _are_overrides,
}
