"""An experiment for people: what may be concluded, units and values by variant, effects with their course, guardrails.

Always holds: the picture shows what the record says and nothing else: JSON holds the same. What is hidden until the end
is said to be, never shown as unknown.

Deliberately not here: asking for it (`experiment`).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from outrider.experiment_text import metric_text, variant_text
from outrider.v1 import experiment_pb2 as pb
from outrider_control.commands.figures import optional
from outrider_control.commands.metric_values import band, effect_text, interval_text, value_text
from outrider_control.commands.output import NONE, ago, number, percent, shown, span_of_time, state, table

_STOPPED, _DRAFT = "stopped", "draft"
_RISING = "up"


def is_over(record: pb.ExperimentRecord) -> bool:
    """Whether it changes no more."""
    return record.state == _STOPPED


def picture(record: pb.ExperimentRecord, width: int) -> RenderableType:
    """All of it."""
    parts: list[RenderableType] = [_headline(record)]
    if record.conclusion:
        parts.append(Text(f"  {shown(record.conclusion)}", style="bold"))
    parts += [Text(f"  {line}", style=style) for line, style in _remarks(record)]
    parts.append(_variants(record, width))
    for comparison in record.comparisons:
        parts += _comparison(record, comparison, width)
    if record.guardrails:
        columns = ("GUARDRAIL", "VARIANT", "STATE", ">WORSE BY", ">AT LEAST", ">ALLOWED")
        parts.append(table(columns, (_guardrail_row(record, one) for one in record.guardrails)))
    parts.append(_srm(record))
    return Group(*parts)


def _headline(record: pb.ExperimentRecord) -> Text:
    spec = record.spec
    verdict = [", verdict ", state(record.verdict)] if record.verdict else []
    winner = f" for {shown(record.winner)}" if record.winner else ""
    units = f"{number(record.units)} units"
    wanted = f"{units} of {number(spec.sample_size)}" if spec.sample_size else units
    told = (
        f"{winner}; {shown(metric_text(spec.metric))} of {shown(spec.agent_id)} by {spec.unit or 'session'}, {wanted}"
    )
    return Text.assemble((shown(spec.name), "bold"), ": ", state(record.state), _since(record), *verdict, told)


def _since(record: pb.ExperimentRecord) -> str:
    if not record.started_unix_ms:
        return ""
    until_ms = record.stopped_unix_ms or time.time() * 1_000
    return f" {'after' if record.stopped_unix_ms else 'for'} {span_of_time(max(0, until_ms - record.started_unix_ms))}"


def _remarks(record: pb.ExperimentRecord) -> Iterator[tuple[str, str]]:
    """What there is to say besides, and how."""
    if record.problem:
        yield shown(record.problem), "red"
    if record.reason and record.reason != record.conclusion:
        yield shown(record.reason), ""
    if record.hidden:
        wanted = number(record.spec.sample_size)
        yield f"fixed horizon: values and effects are hidden until {wanted} units are there", "yellow"
    if record.state == _DRAFT:
        yield f"not started: outrider experiment start {shown(record.spec.name)} --reason TEXT", "yellow"
    if record.rollout:
        yield f"its rollout: outrider rollout status {shown(record.rollout)}", ""
    if record.state != _DRAFT:
        yield f"{percent(record.traffic)} of the traffic, {number(record.looks)} looks, {_method(record)}", "dim"


def _method(record: pb.ExperimentRecord) -> str:
    match record.spec.method or "sequential":
        case "sequential":
            return "intervals hold at every look"
        case "fixed":
            return "one look at the end"
        case "bandit":
            return "shares move to what does better"
    return shown(record.spec.method)


def _variants(record: pb.ExperimentRecord, width: int) -> RenderableType:
    spec = record.spec
    sets = {variant.name: variant_text(variant) for variant in spec.variants}
    is_bandit = any(variant.HasField("best") for variant in record.variants)
    columns = ["VARIANT", "SETS", ">SHARE", ">UNITS", ">CALLS", f">{_metric_title(spec.metric, width)}"]
    columns += [">RATING", ">FEEDBACK"] + ([">BEST"] if is_bandit else [])

    def row(one: pb.VariantResult) -> list[Any]:
        cells: list[Any] = [one.name, sets.get(one.name) or NONE, percent(one.share), number(one.units)]
        cells += [number(one.calls), value_text(spec.metric, optional(one, "value"))]
        cells += [_rating(optional(one, "satisfaction")), number(one.feedback)]
        return cells + ([percent(optional(one, "best"))] if is_bandit else [])

    return table(columns, map(row, record.variants or _planned(record)))


def _planned(record: pb.ExperimentRecord) -> Iterable[pb.VariantResult]:
    """The variants of one that has no results."""
    return (pb.VariantResult(name=variant.name, share=variant.share) for variant in record.spec.variants)


def _metric_title(metric: pb.Metric, width: int) -> str:
    title = metric_text(metric).upper()
    return title if len(title) <= 14 or width >= 104 else "VALUE"


def _rating(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}"


def _comparison(record: pb.ExperimentRecord, one: pb.Comparison, width: int) -> list[RenderableType]:
    """One variant against the first: the numbers, then how they came to be."""
    spec = record.spec
    first = spec.variants[0].name if spec.variants else "the first"
    effect, relative = optional(one, "effect"), optional(one, "relative")
    told = f"{effect_text(spec.metric, effect)}" + (f" ({relative * 100:+.1f}%)" if relative is not None else "")
    low, high = optional(one, "low"), optional(one, "high")
    if low is not None or high is not None:
        told += f", {_coverage(spec)} interval {interval_text(spec.metric, low, high)}"
    p_value = optional(one, "p_value")
    if p_value is not None:
        told += f", p {_p(p_value)}"
    line = Text.assemble((shown(one.variant), "bold"), f" against {shown(first)}: {told}: ", _verdict(one))
    looks = [look for look in record.course if look.variant == one.variant]
    return [line, *band(spec.metric, looks, width)]


def _verdict(one: pb.Comparison) -> Text:
    words = {"no_difference": "no difference", "": NONE}
    return Text(words.get(one.verdict, shown(one.verdict)), style=state(one.verdict).style)


def _coverage(spec: pb.ExperimentSpec) -> str:
    """Of the interval, less what is divided among several variants."""
    return f"{100 * (1 - (spec.alpha or 0.05)):g}%"


def _guardrail_row(record: pb.ExperimentRecord, one: pb.GuardrailResult) -> list[Any]:
    # Which metric it is of: the results name it as the spec does.
    metrics = {metric_text(guardrail.metric): guardrail.metric for guardrail in record.spec.guardrails}
    names = {guardrail.metric.name: guardrail.metric for guardrail in record.spec.guardrails}
    metric = metrics.get(one.metric) or names.get(one.metric) or pb.Metric(name=one.metric)
    harm, low = optional(one, "harm"), optional(one, "low")
    allowed = effect_text(metric, one.margin)
    return [one.metric, one.variant, state(one.state), effect_text(metric, harm), effect_text(metric, low), allowed]


def _srm(record: pb.ExperimentRecord) -> Text:
    if not record.HasField("srm") or not record.units:
        return Text("no units yet", style="dim")
    p_value = optional(record.srm, "p_value")
    evidence = f"p {_p(p_value)}, evidence {record.srm.bayes_factor:.3g}" if p_value is not None else "no evidence yet"
    if record.srm.mismatch:
        told = f"SRM: units do not come as they were to be divided ({evidence}): no verdict until that is explained"
        return Text(told, style="red")
    return Text(f"SRM: units come as they were to be divided ({evidence})", style="dim")


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else f"{value:.1e}"


def listing(records: Iterable[pb.ExperimentRecord]) -> RenderableType:
    """One line each, with the leading comparison."""
    columns = ("|NAME", "AGENT", "STATE", "VERDICT", "METRIC", ">UNITS", "EFFECT", "STARTED")
    return table(columns, map(_list_row, records))


def _list_row(record: pb.ExperimentRecord) -> list[Any]:
    spec = record.spec
    verdict = f"{record.verdict} {record.winner}".strip()
    return [
        spec.name,
        spec.agent_id,
        state(record.state),
        Text(shown(verdict) or NONE, style=state(record.verdict).style),
        metric_text(spec.metric),
        number(record.units),
        _leading(record),
        ago(record.started_unix_ms),
    ]


def _leading(record: pb.ExperimentRecord) -> str:
    """The effect of the variant that won, else of the first comparison that is known."""
    known = [one for one in record.comparisons if one.HasField("effect")]
    if not known:
        return "hidden" if record.hidden else NONE
    one = next((one for one in known if one.variant == record.winner), known[0])
    metric = record.spec.metric
    low, high = optional(one, "low"), optional(one, "high")
    return f"{effect_text(metric, one.effect)} ({interval_text(metric, low, high)})"
