"""The short forms in which people write metrics, guardrails, variants, steps and analyses.

    metric     error_rate  latency_quantile:0.95  slow_share:2000  attribute:NAME  NAME (a score of feedback)
    guardrail  METRIC:+MARGIN  METRIC:+PERCENT%  (by how much it may get worse)
    variant    NAME[:KEY=VALUE,...][@SHARE], or KEY=VALUE,... without a name  (prompt_version, model, temperature,
               top_p, max_output_tokens, compression; every other key is a label of endpoints)
    step       PERCENT%[:PAUSE][:confirm]
    analysis   METRIC<=MAX  METRIC>=MIN  METRIC+MARGIN (against the stable version)

Always holds: what a form does not say is not set; a wrong one is a PolicyError that says how it is written.

Deliberately not here: whole experiments and rollouts (`experiment_spec`), whether a metric or a variant makes sense
(the control plane).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Final

from outrider.policy import PolicyError
from outrider.v1 import experiment_pb2 as pb
from outrider.v1 import policy_pb2

METRIC_HELP: Final = (
    "error_rate, latency_mean, latency_quantile:0.95, slow_share:2000 (ms), first_chunk_mean, cost, tokens, rating, "
    "complaint_rate, attribute:NAME, or the name of a score in feedback"
)

_METRIC: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.\-/]{0,127}")
_GUARDRAIL: Final = re.compile(r"(?P<metric>.+):\+(?P<margin>[0-9.eE\-]+)(?P<percent>%?)")
_SHARE: Final = re.compile(r"(?P<number>[0-9]*\.?[0-9]+)(?P<percent>%?)")
_SHARED: Final = re.compile(r"(?P<form>.*)@(?P<share>[0-9.]+%?)")  # a label's value may hold the sign as well
_STEP: Final = re.compile(r"(?P<weight>[0-9.]+%?)(:(?P<pause>[0-9]+(s|m|h|d)?))?(?P<confirm>:confirm)?")
_BOUND: Final = re.compile(r"(?P<metric>[^<>=+]+?)(?P<how><=|>=|\+)(?P<value>-?[0-9.]+([eE]-?[0-9]+)?)(?P<ms>ms)?")
_PAUSE_S: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "": 1}


def metric_of(text: str, path: str) -> pb.Metric:
    """A metric from its short form."""
    name, colon, value = text.strip().partition(":")
    if name == "attribute":
        if not value or len(value) > 128 or not value.isprintable():
            raise PolicyError(path, f"{text!r} names no attribute: write attribute:NAME")
        return pb.Metric(name=f"attribute:{value}")
    if name == "score":
        name, colon, value = value, "", ""
    if not _METRIC.fullmatch(name):
        raise PolicyError(path, f"{text!r} is no metric: {METRIC_HELP}")
    if name == "latency_quantile":
        quantile = _number(value, text, path, "latency_quantile:0.95")
        return pb.Metric(name=name, quantile=quantile / 100 if quantile > 1 else quantile)
    if name == "slow_share":
        return pb.Metric(name=name, threshold_ms=_number(value.removesuffix("ms"), text, path, "slow_share:2000"))
    if colon:
        raise PolicyError(path, f"{text!r}: only latency_quantile, slow_share, attribute and score take something more")
    return pb.Metric(name=name)


def metric_text(metric: pb.Metric) -> str:
    """The short form of a metric; its direction is not in it."""
    if metric.name == "latency_quantile":
        return f"latency_quantile:{metric.quantile:g}"
    if metric.name == "slow_share":
        return f"slow_share:{metric.threshold_ms:g}"
    return metric.name


def guardrail_of(text: str, path: str) -> pb.Guardrail:
    """A guardrail from its short form."""
    match = _GUARDRAIL.fullmatch(text.strip())
    if match is None:
        raise PolicyError(
            path, f"{text!r} is no guardrail: write METRIC:+MARGIN or METRIC:+PERCENT%, as error_rate:+0.01"
        )
    margin = _number(match["margin"], text, path, "error_rate:+0.01")
    metric = metric_of(match["metric"], path)
    if match["percent"]:
        return pb.Guardrail(metric=metric, relative_margin=margin / 100)
    return pb.Guardrail(metric=metric, margin=margin)


def variant_of(text: str, path: str) -> policy_pb2.VariantPolicy:
    """A variant from its short form; a share that is not written is 0."""
    form, share = text.strip(), ""
    match = _SHARED.fullmatch(form)
    if match is not None:
        form, share = match["form"], match["share"]
    name, _, settings = form.partition(":")
    if "=" in name:  # of a rollout: its variants have names of their own
        name, settings = "", form
    if not name and (not settings or form.startswith(":")):
        raise PolicyError(path, f"{text!r} is no variant: write NAME, NAME:version=v2 or NAME:version=v2,model=M@0.5")
    made = policy_pb2.VariantPolicy(name=name)
    if share:
        made.share = share_of(share, path)
    for setting in filter(None, settings.split(",")):
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise PolicyError(path, f"{setting!r} in {text!r} is not KEY=VALUE")
        _set(made, key.strip(), value.strip(), path)
    return made


def _set(made: policy_pb2.VariantPolicy, key: str, value: str, path: str) -> None:
    match key:
        case "prompt_version" | "model":
            setattr(made, key, value)
        case "temperature" | "top_p":
            setattr(made, key, _number(value, f"{key}={value}", path, f"{key}=0.2"))
        case "max_output_tokens":
            if not value.isdecimal() or len(value) > 9:
                raise PolicyError(path, f"max_output_tokens={value} is not a whole number")
            made.max_output_tokens = int(value)
        case "compression":
            if value not in ("on", "off", "true", "false"):
                raise PolicyError(path, f"compression={value} is neither on nor off")
            made.compression = value in ("on", "true")
        case _:
            made.labels[key] = value


def variant_text(variant: policy_pb2.VariantPolicy) -> str:
    """What a variant sets, in short; "" where it is as without the split."""
    settings = [f"{name}={variant.labels[name]}" for name in sorted(variant.labels)]
    settings += [f"{name}={value}" for name in ("prompt_version", "model") if (value := getattr(variant, name))]
    for name in ("temperature", "top_p", "max_output_tokens"):
        if variant.HasField(name):
            settings.append(f"{name}={getattr(variant, name):g}")
    if variant.HasField("compression"):
        settings.append(f"compression={'on' if variant.compression else 'off'}")
    return ",".join(settings)


def share_of(text: str, path: str) -> float:
    """A share: `0.25` or `25%`."""
    match = _SHARE.fullmatch(text.strip())
    value = float(match["number"]) / (100 if match["percent"] else 1) if match is not None else math.nan
    if not 0 <= value <= 1:
        raise PolicyError(path, f"{text!r} is no share: write 0.25 or 25%, at most 1")
    return value


def with_shares(variants: Sequence[policy_pb2.VariantPolicy], path: str) -> list[policy_pb2.VariantPolicy]:
    """The variants, those without a share with equal parts of what the others leave."""
    silent = [variant for variant in variants if not variant.share]
    left = 1.0 - math.fsum([variant.share for variant in variants])
    if silent and left <= 1e-9:
        raise PolicyError(path, f"the shares leave nothing for {silent[0].name!r}; give each one its share")
    made: list[policy_pb2.VariantPolicy] = []
    for variant in variants:
        one = policy_pb2.VariantPolicy()
        one.CopyFrom(variant)
        one.share = one.share or left / len(silent)
        made.append(one)
    return made


def step_of(text: str, path: str) -> pb.RolloutStep:
    """A step from its short form."""
    match = _STEP.fullmatch(text.strip())
    if match is None:
        raise PolicyError(path, f"{text!r} is no step: write 5%, 25%:5m or 50%:10m:confirm")
    pause = match["pause"] or ""
    unit = pause.lstrip("0123456789")
    pause_s = int(pause.removesuffix(unit)) * _PAUSE_S[unit] if pause else 0
    return pb.RolloutStep(weight=share_of(match["weight"], path), pause_s=pause_s, confirm=bool(match["confirm"]))


def step_text(step: pb.RolloutStep) -> str:
    """The short form of a step; analyses of its own are not in it."""
    pause_s, unit = step.pause_s, "s"
    for size, name in ((3_600, "h"), (60, "m")):
        if pause_s and pause_s % size == 0:
            pause_s, unit = pause_s // size, name
            break
    return f"{step.weight * 100:g}%" + (f":{pause_s}{unit}" if pause_s else "") + (":confirm" if step.confirm else "")


def analysis_of(text: str, path: str) -> pb.Analysis:
    """An analysis from its short form."""
    match = _BOUND.fullmatch(text.strip())
    if match is None:
        raise PolicyError(
            path, f"{text!r} is no analysis: write error_rate<=0.02, rating>=4 or latency_quantile:0.95+50ms"
        )
    value = _number(match["value"], text, path, "error_rate<=0.02")
    metric = metric_of(match["metric"], path)
    match match["how"]:
        case "<=":
            return pb.Analysis(metric=metric, max=value)
        case ">=":
            return pb.Analysis(metric=metric, min=value)
    return pb.Analysis(metric=metric, margin=value)


def analysis_text(analysis: pb.Analysis) -> str:
    """What an analysis asks for."""
    metric = metric_text(analysis.metric)
    asked = [f"{metric}<={analysis.max:g}"] if analysis.HasField("max") else []
    asked += [f"{metric}>={analysis.min:g}"] if analysis.HasField("min") else []
    asked += [f"{metric}+{analysis.margin:g}"] if analysis.HasField("margin") else []
    return " and ".join(asked) or metric


def _number(text: str, whole: str, path: str, example: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise PolicyError(path, f"{whole!r} has no number where one belongs: write it as {example}")
    return value
