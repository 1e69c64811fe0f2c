"""Reads an experiment as it is wanted and checks that it can be carried out.

Always holds: what comes out of `checked` is complete and reads back with `spec_of` to the same; what is wrong is a
PolicyError with the path of the first wrong field, and says what is possible instead.

Deliberately not here: what else is in the mesh (`act`: the agent, layers, other experiments), whether endpoints are
there (`loop`: looked at when it starts).
"""

from __future__ import annotations

import math
from typing import Final

from outrider import split_codec, tree
from outrider.policy import PolicyError
from outrider.split import PARTS, UNITS, Split
from outrider.v1 import experiment_pb2 as pb
from outrider.v1 import policy_pb2
from outrider_control.loops.experiment.types import (
    BANDIT,
    FIXED,
    METHODS,
    SEQUENTIAL,
    Guardrail,
    Metric,
    Spec,
)
from outrider_control.loops.rollout import act as rollout_act
from outrider_control.loops.rollout import spec as rollout_spec

ALPHA: Final = 0.05
MIN_UNITS: Final = 100
BANDIT_FLOOR: Final = 0.05
BANDIT_BURN_IN: Final = 100
MAX_GUARDRAILS: Final = 20
_MAX_UNITS: Final = 1_000_000_000
_YEAR_S: Final = 366 * 86_400


def checked(given: pb.ExperimentSpec, path: str = "spec") -> pb.ExperimentSpec:
    """The spec, complete. PolicyError."""
    spec = pb.ExperimentSpec()
    spec.CopyFrom(given)
    _complete(spec)
    for field in ("name", "agent_id"):
        if not getattr(spec, field):
            raise PolicyError(tree.join(path, field), "is missing")
    _check_variants(spec, path)
    if not 0.0 < spec.traffic <= 1.0:
        raise PolicyError(tree.join(path, "traffic"), f"{spec.traffic:g} is not above 0 and up to 1")
    if spec.unit not in UNITS:
        raise PolicyError(tree.join(path, "unit"), f"{tree.show(spec.unit)} is none of {', '.join(UNITS)}")
    if spec.history and spec.unit == "request":
        raise PolicyError(tree.join(path, "history"), "needs units that come back: a request is there once")
    rollout_spec.check_metric(spec.metric, tree.join(path, "metric"))
    _check_guardrails(spec, path)
    _check_method(spec, path)
    split_of(spec, path)
    if spec.HasField("rollout"):
        for variant in spec.variants[1:]:
            rollout_spec.checked(rollout_act.rollout_of(spec, variant), tree.join(path, "rollout"))
    return spec


def spec_of(spec: pb.ExperimentSpec) -> Spec:
    """What of a checked spec decides."""
    return Spec(
        name=spec.name,
        variants=tuple([one.name for one in spec.variants]),
        shares=tuple([one.share for one in spec.variants]),
        metric=_metric(spec.metric),
        guardrails=tuple([Guardrail(_metric(one.metric), one.margin, one.relative_margin) for one in spec.guardrails]),
        sample_size=spec.sample_size,
        method=spec.method,
        alpha=spec.alpha,
        minimum_effect=spec.minimum_effect,
        stop_for_win=spec.stop_for_win,
        history=spec.history,
        bandit_floor=spec.bandit_floor,
        bandit_burn_in=spec.bandit_burn_in,
        min_units=spec.min_units,
        max_duration_s=spec.max_duration_s,
    )


def metrics_of(spec: Spec) -> list[Metric]:
    """All that is counted for it."""
    return [spec.metric, *[one.metric for one in spec.guardrails]]


def split_of(spec: pb.ExperimentSpec, path: str = "spec") -> Split:
    """Its split as it begins, in all of its layer. PolicyError where there cannot be one."""
    message = policy_pb2.SplitPolicy(
        name=spec.name,
        agent_id=spec.agent_id,
        variants=spec.variants,
        seed=spec.seed,
        unit=spec.unit,
        layer=spec.layer,
        layer_to=parts_of(spec.traffic),
        is_open=True,
        idle_s=spec.idle_s,
        overrides=spec.overrides,
    )
    return split_codec.decode_split(message, path)


def parts_of(traffic: float) -> int:
    """Of a layer."""
    return max(1, round(traffic * PARTS))


def _complete(spec: pb.ExperimentSpec) -> None:
    spec.traffic = spec.traffic or 1.0
    spec.unit = spec.unit or "session"
    spec.method = spec.method or SEQUENTIAL
    spec.alpha = spec.alpha or ALPHA
    spec.min_units = spec.min_units or MIN_UNITS
    spec.bandit_floor = spec.bandit_floor or BANDIT_FLOOR
    spec.bandit_burn_in = spec.bandit_burn_in or BANDIT_BURN_IN
    if not spec.HasField("stop_for_win"):
        spec.stop_for_win = True
    if spec.variants and not any([one.share for one in spec.variants]):
        for one in spec.variants:
            one.share = 1.0 / len(spec.variants)


def _check_variants(spec: pb.ExperimentSpec, path: str) -> None:
    at = tree.join(path, "variants")
    if len(spec.variants) < 2:
        raise PolicyError(at, f"has {len(spec.variants)}; an experiment compares two at least")
    for number, one in enumerate(spec.variants):
        if one.ranges or one.aborted:
            raise PolicyError(f"{at}[{number}]", "cannot have ranges or be aborted: they are the control plane's")
        if not one.share > 0.0:
            raise PolicyError(f"{at}[{number}].share", f"is {one.share:g}: every variant needs a part of the traffic")


def _check_guardrails(spec: pb.ExperimentSpec, path: str) -> None:
    at = tree.join(path, "guardrails")
    if len(spec.guardrails) > MAX_GUARDRAILS:
        raise PolicyError(at, f"has {len(spec.guardrails)}; at most {MAX_GUARDRAILS} are looked at")
    for number, one in enumerate(spec.guardrails):
        rollout_spec.check_metric(one.metric, f"{at}[{number}].metric")
        for field in ("margin", "relative_margin"):
            value = getattr(one, field)
            if not (math.isfinite(value) and value >= 0.0):
                raise PolicyError(f"{at}[{number}].{field}", f"{value} is not a number of 0 or more")
        if one.margin and one.relative_margin:
            raise PolicyError(f"{at}[{number}]", "has both a margin and a relative_margin: say one of them")


def _check_method(spec: pb.ExperimentSpec, path: str) -> None:
    if spec.method not in METHODS:
        raise PolicyError(tree.join(path, "method"), f"{tree.show(spec.method)} is none of {', '.join(METHODS)}")
    if not 0.0 < spec.alpha <= 0.2:
        raise PolicyError(tree.join(path, "alpha"), f"{spec.alpha} is not above 0 and up to 0.2")
    if not (math.isfinite(spec.minimum_effect) and spec.minimum_effect >= 0.0):
        raise PolicyError(tree.join(path, "minimum_effect"), f"{spec.minimum_effect} is not a number of 0 or more")
    for field, low, high in (
        ("sample_size", 0, _MAX_UNITS),
        ("min_units", 2, _MAX_UNITS),
        ("bandit_burn_in", 2, _MAX_UNITS),
        ("max_duration_s", 0, _YEAR_S),
        ("idle_s", 0, _YEAR_S),
    ):
        value = getattr(spec, field)
        if not low <= value <= high:
            raise PolicyError(tree.join(path, field), f"{value} is not between {low} and {high}")
    if spec.method == FIXED and not spec.sample_size:
        raise PolicyError(tree.join(path, "sample_size"), "is missing: a fixed horizon is decided when it is whole")
    if spec.method == BANDIT:
        if spec.metric.name == "latency_quantile":
            reason = "a bandit follows a mean or a share: take slow_share in its place"
            raise PolicyError(tree.join(path, "metric"), reason)
        if not 0.0 < spec.bandit_floor * len(spec.variants) <= 1.0:
            reason = f"{spec.bandit_floor:g} for each of {len(spec.variants)} variants is more than all"
            raise PolicyError(tree.join(path, "bandit_floor"), reason)


def _metric(metric: pb.Metric) -> Metric:
    return Metric(metric.name, metric.direction, metric.threshold_ms, metric.quantile)
