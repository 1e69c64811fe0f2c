"""Stored types to the messages of operator.proto.

Always holds: pure; what is not known is left unset, never 0. Texts that are no valid Unicode and numbers that JSON
cannot hold are shown as text, so that every message can be sent and printed as JSON.

Deliberately not here: where the stored things come from, requests.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from google.protobuf import struct_pb2

from outrider import codec
from outrider.v1 import operator_pb2
from outrider_control.api.explain import Explanation, agent_of, method_of
from outrider_control.core.decision import Decision
from outrider_control.core.figures import Figures
from outrider_control.core.metric_figures import MetricFigures, MetricKey
from outrider_control.intake.span_view import SpanView
from outrider_control.state.agents import AgentRecord, Applied, FieldChange, Version
from outrider_control.state.tokens import TokenRow

_EXACT: Final = 2**53  # the largest whole number a JSON number holds for everybody
_DEPTH_MAX: Final = 16


def record(stored: AgentRecord) -> operator_pb2.AgentRecord:
    """An agent with its policy, every field set."""
    return operator_pb2.AgentRecord(policy=codec.encode_agent(stored.agent), version=version(stored.version))


def version(stored: Version) -> operator_pb2.AgentVersion:
    """One version, without its policy."""
    return operator_pb2.AgentVersion(
        agent_id=stored.agent_id,
        version=stored.version,
        author=text(stored.author),
        at_unix_ms=stored.at_ms,
        reason=text(stored.reason),
        changes=changes(stored.changes),
        deleted=stored.deleted,
    )


def changes(stored: Iterable[FieldChange]) -> list[operator_pb2.FieldChange]:
    """Differing fields."""
    return [operator_pb2.FieldChange(path=one.path, before=one.before, after=one.after) for one in stored]


def applied(stored: Sequence[Applied]) -> list[operator_pb2.Applied]:
    """What an apply or a delete did."""
    return [
        operator_pb2.Applied(
            agent_id=one.agent_id, outcome=one.outcome, version=one.version, changes=changes(one.changes)
        )
        for one in stored
    ]


def decision(stored: Decision) -> operator_pb2.Decision:
    """One entry of the journal."""
    return operator_pb2.Decision(
        id=stored.id,
        at_unix_ms=stored.at_ms,
        kind=stored.kind,
        agent_id=stored.agent_id,
        author=text(stored.author),
        reason=text(stored.reason),
        inputs=struct(stored.inputs),
        outcome=struct(stored.outcome),
    )


def token(stored: TokenRow) -> operator_pb2.TokenRecord:
    """A token without its secret."""
    return operator_pb2.TokenRecord(
        id=stored.id,
        name=text(stored.name),
        role=stored.role,
        created_unix_ms=stored.created_ms,
        expires_unix_ms=stored.expires_ms,
        author=text(stored.author),
    )


def figures(of: Figures, span_ms: int) -> operator_pb2.Figures:
    """Figures over a time span of that length."""
    p50, p95, p99 = of.total_us(0.5, 0.95, 0.99)
    first50, first95 = of.first_chunk_us(0.5, 0.95)
    (queue95,) = of.queue_us(0.95)
    return operator_pb2.Figures(
        requests=of.requests,
        rate=of.requests * 1_000 / span_ms if span_ms > 0 else 0.0,
        errors=of.errors,
        cancelled=of.cancelled,
        success_rate=of.success_rate,
        error_rate=of.error_rate,
        p50_ms=_ms(p50),
        p95_ms=_ms(p95),
        p99_ms=_ms(p99),
        mean_ms=_ms(of.mean_us),
        first_chunk_p50_ms=_ms(first50),
        first_chunk_p95_ms=_ms(first95),
        queue_p95_ms=_ms(queue95),
        hit_rate=of.hit_rate,
        hit_rates=of.hit_rates,
        cache=of.verdicts,
        input_tokens=of.input_tokens,
        output_tokens=of.output_tokens,
        cache_read_tokens=of.cache_read_tokens,
        cache_write_tokens=of.cache_write_tokens,
        cached_tokens=of.cached_tokens,
        saved_tokens=of.saved_tokens,
        cost_usd=of.cost_usd,
        unpriced=of.unpriced,
        statuses=of.statuses or {},
    )


def metric(key: MetricKey, of: MetricFigures) -> operator_pb2.NamedMetric:
    """A metric that an agent sent by itself."""
    return operator_pb2.NamedMetric(
        name=text(key.name), unit=text(key.unit), kind=key.kind, value=of.value, count=of.count, p95=of.p95
    )


def span(of: SpanView, kept: str) -> operator_pb2.SpanRecord:
    """One kept span, whole."""
    return operator_pb2.SpanRecord(
        span_id=of.span_id,
        parent_id=of.parent_id,
        name=text(of.name),
        kind=of.kind,
        agent_id=text(agent_of(of)),
        service=text(of.service),
        start_unix_ns=_int64(of.start_ns),
        end_unix_ns=_int64(of.end_ns),
        status=text(of.status),
        message=text(of.message),
        attributes=struct(of.attributes),
        events=[
            operator_pb2.SpanEvent(
                name=text(event.name), at_unix_ns=_int64(event.at_ns), attributes=struct(event.attributes)
            )
            for event in of.events
        ],
        kept=kept,
    )


def summary(first: SpanView, kept: str, spans: int, cache: str) -> operator_pb2.TraceSummary:
    """A trace by its first span."""
    return operator_pb2.TraceSummary(
        trace_id=first.trace_id,
        agent_id=text(agent_of(first)),
        method=text(method_of(first)),
        status=text(first.status),
        at_unix_ms=first.start_ns // 1_000_000,
        duration_ms=first.duration_ms,
        spans=spans,
        kept=kept,
        cache=text(cache),
    )


def explanation(of: Explanation) -> operator_pb2.CallExplanation:
    """How one call came to its end."""
    return operator_pb2.CallExplanation(
        call_id=of.call_id,
        agent_id=text(of.agent_id),
        method=text(of.method),
        hop=of.hop,
        status=text(of.status),
        duration_ms=of.duration_ms,
        steps=[
            operator_pb2.Step(what=step.what, text=text(step.text), facts=struct(step.facts), at_ms=step.at_ms)
            for step in of.steps
        ],
    )


def struct(data: Mapping[str, Any]) -> struct_pb2.Struct:
    """Plain data as a Struct. Whole numbers beyond 2**53 and NaN become text, as JSON has neither."""
    made = struct_pb2.Struct()
    for key, value in data.items():
        _fill(made.fields[text(str(key))], value, 0)
    return made


def _fill(into: struct_pb2.Value, value: Any, depth: int) -> None:
    match value:
        case None:
            into.null_value = struct_pb2.NULL_VALUE
        case bool():
            into.bool_value = value
        case int():
            if abs(value) <= _EXACT:
                into.number_value = value
            else:
                into.string_value = str(value)
        case float():
            if math.isfinite(value):
                into.number_value = value
            else:
                into.string_value = str(value)
        case str():
            into.string_value = text(value)
        case Mapping() if depth < _DEPTH_MAX:
            into.struct_value.SetInParent()
            for key, inner in value.items():
                _fill(into.struct_value.fields[text(str(key))], inner, depth + 1)
        case list() | tuple() if depth < _DEPTH_MAX:
            into.list_value.SetInParent()
            for inner in value:
                _fill(into.list_value.values.add(), inner, depth + 1)
        case _:
            into.string_value = text(json.dumps(value, default=str))


def text(value: str) -> str:
    """A text that protobuf takes."""
    return value if value.isascii() else value.encode("utf-8", "replace").decode("utf-8")


def _int64(value: int) -> int:
    return min(value, 2**63 - 1)


def _ms(us: float | None) -> float | None:
    return us / 1_000 if us is not None else None
