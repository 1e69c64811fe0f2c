"""The control plane's own telemetry by the SDK."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import grpc
import grpc.aio
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from outrider_control.intake.forward import PATHS
from outrider_control.intake.own_telemetry import OwnTelemetry


async def test_spans_and_counters_reach_the_collector():
    received: dict[str, list[bytes]] = {path: [] for path in PATHS.values()}

    def taker(path: str):
        async def take(request: bytes, _: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
            received[path].append(request)
            return b""

        return take

    server = grpc.aio.server()
    for path in PATHS.values():
        _, service, method = path.split("/")
        handler = grpc.unary_unary_rpc_method_handler(taker(path))
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}"}
    own = OwnTelemetry.from_environment(environ, ("127.0.0.1:7700",), "instance-1", "1.2.3")
    assert own.exports
    own.counters("outrider.intake.spans", "{span}", "Spans by outcome.", lambda: {"accepted": 5, "late": 2})
    with own.span("fold", deltas=3):
        pass
    await asyncio.to_thread(own.close)
    await server.stop(0)
    (traces,) = received[PATHS["traces"]]
    resource = ExportTraceServiceRequest.FromString(traces).resource_spans[0]
    named = {pair.key: pair.value.string_value for pair in resource.resource.attributes}
    assert (named["service.name"], named["service.version"]) == ("outrider-control", "1.2.3")
    assert named["service.instance.id"] == "instance-1"
    assert resource.scope_spans[0].spans[0].name == "fold"
    metrics = ExportMetricsServiceRequest.FromString(received[PATHS["metrics"]][-1])
    (metric,) = metrics.resource_metrics[0].scope_metrics[0].metrics
    assert {point.attributes[0].value.string_value: point.as_int for point in metric.sum.data_points} == {
        "accepted": 5,
        "late": 2,
    }


def test_without_an_endpoint_nothing_is_exported():
    own = OwnTelemetry.from_environment({}, (), "i", "1")
    own.counters("x", "1", "", dict)
    with own.span("fold"):
        pass
    assert not own.exports
    own.close()


def test_it_does_not_report_to_itself():
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:7700"}
    assert not OwnTelemetry.from_environment(environ, ("127.0.0.1:7700",), "i", "1").exports


def test_the_sdk_is_not_imported_for_nothing():
    program = (
        "import sys, outrider_control.intake.services\n"
        "from outrider_control.intake.own_telemetry import OwnTelemetry\n"
        "OwnTelemetry.from_environment({}, (), 'i', '1')\n"
        "assert not [name for name in sys.modules if name.startswith(('opentelemetry.sdk', 'genai_prices'))]"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env={"PYTHONPATH": ":".join(sys.path)})
