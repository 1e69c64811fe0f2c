"""OTLP requests as any exporter makes them, sent to a control plane's real port.

Always holds: span ids come from the seed, so that the same request can be made again.

Deliberately not here: what becomes of the spans.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

TRACES = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
METRICS = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export"
SERVER, CLIENT = Span.SPAN_KIND_SERVER, Span.SPAN_KIND_CLIENT
MS = 1_000_000  # nanoseconds


def attribute(key: str, value: str | int) -> KeyValue:
    if isinstance(value, int):
        return KeyValue(key=key, value=AnyValue(int_value=value))
    return KeyValue(key=key, value=AnyValue(string_value=value))


def span(rng: random.Random, agent_id: str, start_ns: int | None = None, duration_ms: float = 5, **more: Any) -> Span:
    """A SERVER span that ended well; `attributes` come beside the agent's, any other field of Span replaces."""
    start_ns = time.time_ns() - 1_000 * MS if start_ns is None else start_ns
    attributes = {"gen_ai.agent.id": agent_id, "rpc.response.status_code": "OK", **more.pop("attributes", {})}
    fields = {
        "trace_id": rng.randbytes(16),
        "span_id": rng.randbytes(8),
        "kind": SERVER,
        "start_time_unix_nano": start_ns,
        "end_time_unix_nano": start_ns + round(duration_ms * MS),
        **more,
    }
    return Span(attributes=[attribute(key, value) for key, value in attributes.items()], **fields)


def request(spans: Sequence[Span], instance: str = "", sequence: int = -1) -> ExportTraceServiceRequest:
    """One export; with an instance and a sequence it is a numbered batch, as sidecars send it."""
    made = ExportTraceServiceRequest()
    group = made.resource_spans.add()
    group.resource.attributes.append(attribute("service.name", "exporter"))
    scope = group.scope_spans.add()
    if instance:
        group.resource.attributes.append(attribute("service.instance.id", instance))
        scope.scope.attributes.append(attribute("outrider.batch.sequence", sequence))
    scope.spans.extend(spans)
    return made


def send(
    channel: grpc.Channel, data: bytes | ExportTraceServiceRequest, method: str = TRACES, **call: Any
) -> ExportTraceServiceResponse:
    """The answer; grpc.RpcError where there is none."""
    body = data if isinstance(data, bytes) else data.SerializeToString()
    return ExportTraceServiceResponse.FromString(channel.unary_unary(method)(body, **{"timeout": 20, **call}))
