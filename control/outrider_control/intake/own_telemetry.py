"""The control plane's own telemetry: the OpenTelemetry SDK, where OTEL_* says whereto, else nothing at all.

Always holds: without an endpoint in the environment the SDK is not even imported (it takes 38 MB); nothing goes to the
control plane itself; figures are read from plain counters when the SDK asks for them, so no call pays for them.

Deliberately not here: forwarding what agents and sidecars sent (`forward`), `/metrics` of the HTTP port (`app`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from outrider_control.intake.destination import Destination, destination

if TYPE_CHECKING:
    from opentelemetry.metrics import Observation
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider

SERVICE: Final = "outrider-control"
Counts = Callable[[], Mapping[str, int]]


class OwnTelemetry:
    """Spans and figures of this process. `span` and `counters` cost next to nothing where nothing is exported."""

    def __init__(self, traces: Destination | None, metrics: Destination | None, instance_id: str, version: str):
        self._tracers: TracerProvider | None = None
        self._meters: MeterProvider | None = None
        self._tracer: Any = None
        if traces is None and metrics is None:
            return
        from opentelemetry.sdk.resources import Resource

        # OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME are the SDK's to read; they go before what stands here.
        resource = Resource({"service.version": version}).merge(Resource.create())
        if str(resource.attributes["service.name"]).startswith("unknown_service"):
            resource = resource.merge(Resource({"service.name": SERVICE}))
        resource = resource.merge(Resource({"service.instance.id": instance_id}))
        if traces is not None:
            self._trace(resource, traces)
        if metrics is not None:
            self._measure(resource, metrics)

    @classmethod
    def from_environment(
        cls, environ: Mapping[str, str], own: Collection[str], instance_id: str, version: str
    ) -> OwnTelemetry:
        """`own`: the control plane's own addresses. Values that cannot be used were noted by `Forward` already."""
        notes: list[str] = []
        traces, metrics = (destination(environ, signal, own, notes) for signal in ("traces", "metrics"))
        return cls(traces, metrics, instance_id, version)

    def _trace(self, resource: Resource, to: Destination) -> None:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        self._tracers = tracers = TracerProvider(resource=resource, shutdown_on_exit=False)
        tracers.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(**_options(to))))
        self._tracer = tracers.get_tracer(SERVICE)

    def _measure(self, resource: Resource, to: Destination) -> None:
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

        reader = PeriodicExportingMetricReader(OTLPMetricExporter(**_options(to)))
        self._meters = MeterProvider(metric_readers=[reader], resource=resource, shutdown_on_exit=False)

    @property
    def exports(self) -> bool:
        return self._tracers is not None or self._meters is not None

    def counters(self, name: str, unit: str, text: str, counts: Counts) -> None:
        """A counter whose values, by `outcome`, are read from `counts` at each export."""
        if self._meters is None:
            return
        from opentelemetry.metrics import Observation

        def observe(_: Any) -> Iterator[Observation]:
            for outcome, count in counts().items():
                yield Observation(count, {"outcome": outcome})

        self._meters.get_meter(SERVICE).create_observable_counter(name, [observe], unit, text)

    @contextmanager
    def span(self, name: str, **attributes: str | int) -> Iterator[None]:
        """A span of the control plane's own work: an operator's call, a fold, a backup."""
        if self._tracer is None:
            yield
            return
        with self._tracer.start_as_current_span(name, attributes=attributes):
            yield

    def close(self) -> None:
        """Flushes. Blocks for as long as the exporters take: to be called in a thread."""
        for provider in (self._tracers, self._meters):
            if provider is not None:
                provider.shutdown()


def _options(to: Destination) -> dict[str, Any]:
    return {
        "endpoint": to.target,
        "insecure": to.credentials is None,
        "credentials": to.credentials,
        "headers": to.headers,
        "timeout": to.timeout_ms / 1e3,
        "compression": to.compression,
    }
