"""A rollout for people: the steps as a line one goes along, where it stands and why, what this step measures.

Always holds: the picture shows what the record says and nothing else: JSON holds the same.

Deliberately not here: asking for it (`rollout`).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from outrider.experiment_text import analysis_text, step_text, variant_text
from outrider.v1 import experiment_pb2 as pb
from outrider_control.commands.figures import optional
from outrider_control.commands.metric_values import value_text
from outrider_control.commands.output import NONE, ago, number, percent, shown, span_of_time, state, table

_ENDED = ("succeeded", "failed")
_DONE, _HERE, _AHEAD, _FAILED = "✔", "●", "○", "✖"


def is_over(record: pb.RolloutRecord) -> bool:
    """Whether it changes no more."""
    return record.phase in _ENDED


def picture(record: pb.RolloutRecord) -> RenderableType:
    """All of it."""
    parts: list[RenderableType] = [_headline(record), _stepper(record)]
    parts += [Text(f"  {line}", style=style) for line, style in _remarks(record)]
    if record.analyses:
        columns = ("ANALYSIS", "STATE", ">CANDIDATE", ">STABLE", ">GOOD", ">BAD", ">UNSURE", "WHY")
        parts.append(table(columns, (_analysis_row(record, one) for one in record.analyses)))
    elif asked := ", ".join(analysis_text(one) for one in record.spec.analyses):
        parts.append(Text(f"  every step: {shown(asked)}", style="dim"))
    return Group(*parts)


def _headline(record: pb.RolloutRecord) -> Text:
    spec = record.spec
    sets = variant_text(spec.candidate)
    name = spec.candidate.name or "candidate"
    what = f"{shown(name)} ({shown(sets)})" if sets else shown(name)
    told = f"; {percent(record.weight)} of {shown(spec.agent_id)} on {what}"
    return Text.assemble((shown(spec.name), "bold"), ": ", _phase(record.phase), told)


def _phase(phase: str) -> Text:
    return Text(shown(phase.replace("_", " ")), style=state(phase).style)


def _stepper(record: pb.RolloutRecord) -> Text:
    """`✔ 5%:60s ── ● 25%:5m ── ○ 100%`."""
    line = Text("  ")
    for at, step in enumerate(record.spec.steps):
        mark, style = _AHEAD, "dim"
        if at < record.step or record.phase == "succeeded":
            mark, style = _DONE, "green"
        elif at == record.step:
            mark, style = (_FAILED, "red") if record.phase == "failed" else (_HERE, "bold")
        line.append(" ── " if at else "", style="dim")
        line.append(f"{mark} {step_text(step)}", style=style)
    return line


def _remarks(record: pb.RolloutRecord) -> Iterator[tuple[str, str]]:
    """What there is to say besides, and how."""
    if record.problem:
        yield shown(record.problem), "red"
    if record.reason:
        yield shown(record.reason), ""
    if record.experiment:
        yield f"begun by the verdict of experiment {shown(record.experiment)}", ""
    if record.phase in ("waiting", "waiting_promotion"):
        yield f"waits for: outrider rollout promote {shown(record.spec.name)} --reason TEXT", "yellow"
    units = (
        f"{number(record.candidate_units)} units of the candidate, {number(record.stable_units)} of the stable version"
    )
    taken = f"{record.confirmed} of {record.sidecars} sidecars have this weight"
    when = _when(record)
    yield "; ".join(part for part in (taken, units, when) if part), "dim"


def _when(record: pb.RolloutRecord) -> str:
    if record.ended_unix_ms:
        return f"ended {ago(record.ended_unix_ms)}, after {_length(record.created_unix_ms, record.ended_unix_ms)}"
    if record.step_started_unix_ms:
        return f"in this step for {_length(record.step_started_unix_ms, time.time() * 1_000)}"
    return ""


def _length(from_ms: float, to_ms: float) -> str:
    return span_of_time(max(0, to_ms - from_ms))


def _analysis_row(record: pb.RolloutRecord, one: pb.AnalysisResult) -> list[Any]:
    step = record.spec.steps[record.step] if record.step < len(record.spec.steps) else pb.RolloutStep()
    asked = [analysis for analysis in (*step.analyses, *record.spec.analyses) if analysis.metric.name == one.metric]
    metric = asked[0].metric if asked else pb.Metric(name=one.metric.partition(":")[0])
    return [
        analysis_text(asked[0]) if len(asked) == 1 else one.metric,
        state(one.state),
        value_text(metric, optional(one, "value")),
        value_text(metric, optional(one, "stable_value")),
        one.successful,
        one.failed + one.errors,
        one.inconclusive,
        one.reason or NONE,
    ]


def listing(records: Iterable[pb.RolloutRecord]) -> RenderableType:
    """One line each."""
    return table(("|NAME", "AGENT", "PHASE", ">STEP", ">WEIGHT", "CREATED", "WHY"), map(_list_row, records))


def _list_row(record: pb.RolloutRecord) -> list[Any]:
    steps = len(record.spec.steps)
    return [
        record.spec.name,
        record.spec.agent_id,
        _phase(record.phase),
        f"{min(record.step + 1, steps)}/{steps}",
        percent(record.weight),
        ago(record.created_unix_ms),
        record.problem or record.reason or NONE,
    ]
