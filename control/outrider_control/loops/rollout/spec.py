"""Reads a rollout as it is wanted and checks that it can be carried out.

Always holds: what comes out of `checked` is complete and reads back with `spec_of` to the same; what is wrong is a
PolicyError with the path of the first wrong field, and says what is possible instead.

Deliberately not here: what else is in the mesh (`act`: the agent, other rollouts, layers), whether endpoints are there
(`observe`: they may come later).
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Sequence
from typing import Final
from urllib.parse import urlsplit

from outrider import split_codec, tree
from outrider.address import Address, is_host
from outrider.policy import PolicyError
from outrider.split import Split, Variant
from outrider.v1 import experiment_pb2 as pb
from outrider.v1 import policy_pb2
from outrider_control.loops.experiment.types import DIRECTIONS, DOWN, QUANTILE, UP, Metric
from outrider_control.loops.rollout.types import Analysis, Spec, Step

CANDIDATE: Final = "candidate"
STABLE: Final = "stable"
MAX_STEPS: Final = 100
MAX_ANALYSES: Final = 20
MAX_WEBHOOKS: Final = 8
MAX_URL: Final = 2_048

_YEAR_S: Final = 366 * 86_400
_MAX_COUNT: Final = 1_000_000
_MAX_UNITS: Final = 1_000_000_000
_METRIC: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.\-/]{0,127}")
_TOO_NEAR: Final = 0.85  # to a known metric, for the name of a score
_MIN_UNITS: Final = 50
_INTERVAL_S: Final = 10


def checked(given: pb.RolloutSpec, path: str = "spec") -> pb.RolloutSpec:
    """The spec, complete: with the names of its variants. PolicyError."""
    spec = pb.RolloutSpec()
    spec.CopyFrom(given)
    for field in ("name", "agent_id"):
        if not getattr(spec, field):
            raise PolicyError(tree.join(path, field), "is missing")
    spec.candidate.name = spec.candidate.name or CANDIDATE
    spec.stable.name = spec.stable.name or STABLE
    _check_variants(spec, path)
    _check_steps(spec, path)
    _check_webhooks(spec.webhooks, tree.join(path, "webhooks"))
    _whole(spec.idle_s, 0, _YEAR_S, tree.join(path, "idle_s"))
    _whole(spec.progress_deadline_s, 0, _YEAR_S, tree.join(path, "progress_deadline_s"))
    split_of(spec, path)
    return spec


def spec_of(spec: pb.RolloutSpec) -> Spec:
    """What of a checked spec decides."""
    return Spec(
        name=spec.name,
        agent_id=spec.agent_id,
        candidate=spec.candidate.name,
        stable=spec.stable.name,
        steps=tuple(
            [Step(one.weight, one.pause_s * 1_000, one.confirm, _analyses(one.analyses)) for one in spec.steps]
        ),
        analyses=_analyses(spec.analyses),
        progress_deadline_ms=spec.progress_deadline_s * 1_000,
    )


def split_of(spec: pb.RolloutSpec, path: str = "spec", seed: str = "") -> Split:
    """Its split before anything goes to the candidate. PolicyError where there cannot be one."""
    message = policy_pb2.SplitPolicy(
        name=spec.name,
        agent_id=spec.agent_id,
        variants=[spec.stable, spec.candidate],
        seed=seed,
        unit=spec.unit,
        layer=spec.layer,
        layer_to=Split("", "").layer_to,
        is_open=True,
        idle_s=spec.idle_s,
        overrides=spec.overrides,
    )
    message.variants[0].share, message.variants[1].share = 1.0, 0.0
    try:
        return split_codec.decode_split(message, path)
    except PolicyError as error:
        raise PolicyError(_renamed(error.path, path), error.reason) from None


def _renamed(at: str, path: str) -> str:
    """The path of a variant as it is in a rollout's spec."""
    for place, name in ((0, "stable"), (1, "candidate")):
        at = at.replace(f"{path}.variants[{place}]", f"{path}.{name}")
    return at


# -- variants --------------------------------------------------------------------------------------------------------


def _check_variants(spec: pb.RolloutSpec, path: str) -> None:
    candidate, stable = spec.candidate, spec.stable
    for name, variant in (("candidate", candidate), ("stable", stable)):
        at = tree.join(path, name)
        if variant.share:
            raise PolicyError(tree.join(at, "share"), "cannot be given: the steps say how much the candidate gets")
        if variant.ranges or variant.aborted:
            raise PolicyError(at, "cannot have ranges or be aborted: they are the control plane's")
    at = tree.join(path, "candidate")
    if candidate.name == stable.name:
        raise PolicyError(tree.join(at, "name"), f"{tree.show(candidate.name)} is the name of the stable version too")
    if _settings(candidate) == _settings(stable):
        raise PolicyError(at, "sets nothing that the stable version does not: name labels, a model, a prompt_version")
    if not _apart(candidate, stable):
        lacking, other = ("stable", candidate) if candidate.labels else ("candidate", stable)
        reason = (
            f"its calls would go to the other's endpoints as well: say what tells them apart, {min(other.labels)}=..."
        )
        raise PolicyError(tree.join(tree.join(path, lacking), "labels"), reason)


def _apart(candidate: policy_pb2.VariantPolicy, stable: policy_pb2.VariantPolicy) -> bool:
    """Whether no endpoint can be both's; variants that ask for the same endpoints differ by something else."""
    one, two = dict(candidate.labels), dict(stable.labels)
    return one == two or any([name in two and two[name] != value for name, value in one.items()])


def _settings(variant: policy_pb2.VariantPolicy) -> bytes:
    bare = policy_pb2.VariantPolicy()
    bare.CopyFrom(variant)
    bare.name = ""
    return bare.SerializeToString(deterministic=True)


# -- steps and analyses ----------------------------------------------------------------------------------------------


def _check_steps(spec: pb.RolloutSpec, path: str) -> None:
    at = tree.join(path, "steps")
    if not spec.steps:
        raise PolicyError(at, "is empty: say how it goes out, such as 5%:5m, 25%:10m, 100%")
    if len(spec.steps) > MAX_STEPS:
        raise PolicyError(at, f"has {len(spec.steps)} steps; at most {MAX_STEPS} are taken")
    _check_analyses(spec.analyses, tree.join(path, "analyses"))
    before = 0.0
    for number, step in enumerate(spec.steps):
        one = f"{at}[{number}]"
        if not 0.0 <= step.weight <= 1.0:
            raise PolicyError(f"{one}.weight", f"{step.weight:g} is not between 0 and 1")
        if step.weight < before:
            reason = f"{step.weight:g} is less than {before:g} of the step before: a rollout only goes forward"
            raise PolicyError(f"{one}.weight", reason)
        before = step.weight
        _whole(step.pause_s, 0, _YEAR_S, f"{one}.pause_s")
        if step.analyses and not step.weight:
            raise PolicyError(f"{one}.analyses", "cannot be measured: the candidate gets nothing in this step")
        _check_analyses(step.analyses, f"{one}.analyses")


def _check_analyses(analyses: Sequence[pb.Analysis], path: str) -> None:
    if len(analyses) > MAX_ANALYSES:
        raise PolicyError(path, f"has {len(analyses)} analyses; at most {MAX_ANALYSES} are taken")
    for number, one in enumerate(analyses):
        _check_analysis(one, f"{path}[{number}]")


def _check_analysis(analysis: pb.Analysis, path: str) -> None:
    check_metric(analysis.metric, tree.join(path, "metric"))
    bounds = [name for name in ("max", "min", "margin") if analysis.HasField(name)]
    if not bounds:
        raise PolicyError(path, "asks for nothing: set max, min or margin")
    for name in bounds:
        value = getattr(analysis, name)
        if not math.isfinite(value):
            raise PolicyError(tree.join(path, name), f"{value} is not a number")
    if analysis.HasField("max") and analysis.HasField("min") and analysis.min > analysis.max:
        raise PolicyError(tree.join(path, "min"), f"{analysis.min:g} is more than max, which is {analysis.max:g}")
    if analysis.margin < 0.0:
        raise PolicyError(tree.join(path, "margin"), f"{analysis.margin:g} is less than 0")
    _whole(analysis.min_units, 0, _MAX_UNITS, tree.join(path, "min_units"))
    _whole(analysis.interval_s, 0, _YEAR_S, tree.join(path, "interval_s"))
    for name in ("count", "failure_limit", "inconclusive_limit"):
        _whole(getattr(analysis, name), 0, _MAX_COUNT, tree.join(path, name))


def check_metric(metric: pb.Metric, path: str) -> None:
    """PolicyError for a metric that nothing can measure."""
    name = metric.name
    if not name:
        raise PolicyError(tree.join(path, "name"), f"is missing: one of {', '.join(DIRECTIONS)}, or a score's name")
    if name.startswith("attribute:"):
        if not 0 < len(name.removeprefix("attribute:")) <= 128 or not name.isprintable():
            raise PolicyError(tree.join(path, "name"), f"{tree.show(name)} names no attribute: attribute:NAME")
    elif not _METRIC.fullmatch(name):
        raise PolicyError(tree.join(path, "name"), f"{tree.show(name)} is no metric")
    elif name not in DIRECTIONS and (near := difflib.get_close_matches(name, list(DIRECTIONS), 1, _TOO_NEAR)):
        raise PolicyError(tree.join(path, "name"), f"{tree.show(name)} is no metric: is {near[0]!r} meant?")
    if metric.direction not in ("", UP, DOWN):
        raise PolicyError(tree.join(path, "direction"), f"{tree.show(metric.direction)} is neither up nor down")
    if name == QUANTILE and not 0.5 <= metric.quantile <= 0.999:
        raise PolicyError(tree.join(path, "quantile"), f"{metric.quantile:g} is not between 0.5 and 0.999")
    if name == "slow_share" and not 0.0 < metric.threshold_ms <= 86_400_000.0:
        raise PolicyError(tree.join(path, "threshold_ms"), f"{metric.threshold_ms:g} is not between 0 and a day")


def _analyses(analyses: Iterable[pb.Analysis]) -> tuple[Analysis, ...]:
    return tuple([_analysis(one) for one in analyses])


def _analysis(one: pb.Analysis) -> Analysis:
    metric = one.metric
    return Analysis(
        metric=Metric(metric.name, metric.direction, metric.threshold_ms, metric.quantile),
        max=one.max if one.HasField("max") else None,
        min=one.min if one.HasField("min") else None,
        margin=one.margin if one.HasField("margin") else None,
        min_units=one.min_units or _MIN_UNITS,
        interval_ms=(one.interval_s or _INTERVAL_S) * 1_000,
        count=one.count or 1,
        failure_limit=one.failure_limit,
        inconclusive_limit=one.inconclusive_limit,
    )


# -- webhooks --------------------------------------------------------------------------------------------------------


def _check_webhooks(urls: Sequence[str], path: str) -> None:
    if len(urls) > MAX_WEBHOOKS:
        raise PolicyError(path, f"has {len(urls)} URLs; at most {MAX_WEBHOOKS} are told")
    for number, url in enumerate(urls):
        at = f"{path}[{number}]"
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port
        except ValueError:
            raise PolicyError(at, "is no URL: https://HOST/PATH") from None
        is_host_name = is_host(host) or ":" in host
        if parts.scheme not in ("https", "http") or not is_host_name or not url.isprintable() or " " in url:
            raise PolicyError(at, "is not https://HOST/PATH")
        if len(url) > MAX_URL:
            raise PolicyError(at, f"has {len(url):,} characters; at most {MAX_URL:,} are taken")
        if parts.username is not None or parts.password is not None or parts.fragment:
            raise PolicyError(at, "holds a name, a password or a fragment: what is sent is signed instead")
        if parts.scheme == "http" and not Address(host, port or 80).is_loopback:
            raise PolicyError(at, f"{tree.show(url.partition('?')[0])} is not encrypted: use https")
    if len(set(urls)) < len(urls):
        raise PolicyError(path, "names a URL twice")


def _whole(value: int, low: int, high: int, path: str) -> None:
    if not low <= value <= high:
        raise PolicyError(path, f"{value} is not between {low} and {high}")


def shares(split: Split, candidate: str, weight: float) -> tuple[float, ...]:
    """Of the split's variants, in order: everything that the candidate does not get is the first one's."""
    return tuple(
        [1.0 - weight if at == 0 else weight if one.name == candidate else 0.0 for at, one in enumerate(split.variants)]
    )


def aborted(variant: Variant, candidate: str, is_aborted: bool) -> bool:
    """Whether a variant's units go back to the stable version at once."""
    return is_aborted if variant.name == candidate else variant.aborted
