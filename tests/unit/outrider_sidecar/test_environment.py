"""OTEL_* variables: honoured as the specification says; a wrong one is passed over with a note that names it."""

from __future__ import annotations

import pytest

from outrider.address import Address
from outrider_sidecar.environment import Telemetry, telemetry


def test_nothing_set() -> None:
    assert telemetry({}) == (Telemetry(), ())
    assert Telemetry().resource == {"service.name": "outrider-sidecar"}


@pytest.mark.parametrize(
    ("endpoint", "address", "tls"),
    [
        ("http://collector:4317", Address("collector", 4317), False),
        ("http://collector:4317/", Address("collector", 4317), False),
        ("https://collector", Address("collector", 4317), True),
        ("http://[::1]", Address("::1", 4317), False),
        ("http://[::1]:9", Address("::1", 9), False),
        ("collector:9", Address("collector", 9), False),
        ("unix:///run/otel.sock", Address(path="/run/otel.sock"), False),
    ],
)
def test_endpoint(endpoint: str, address: Address, tls: bool) -> None:
    read, notes = telemetry({"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint})
    assert (read.otlp, read.otlp_tls, notes) == (address, tls, ())


def test_endpoint_of_traces_goes_first() -> None:
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:1", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://b:2"}
    assert telemetry(environ)[0].otlp == Address("b", 2)


@pytest.mark.parametrize("off", [{"OTEL_SDK_DISABLED": "True"}, {"OTEL_TRACES_EXPORTER": "none"}])
def test_switched_off(off: dict[str, str]) -> None:
    assert telemetry({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:1", **off})[0].otlp is None


def test_only_true_disables() -> None:
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:1", "OTEL_SDK_DISABLED": "1"}
    assert telemetry(environ)[0].otlp == Address("a", 1)


def test_resource() -> None:
    environ = {"OTEL_RESOURCE_ATTRIBUTES": "service.name=x, team=tax%20eu ,empty=", "OTEL_SERVICE_NAME": "sidecar-7"}
    resource = telemetry(environ)[0].resource
    assert resource == {"service.name": "sidecar-7", "team": "tax eu", "empty": ""}
    del environ["OTEL_SERVICE_NAME"]
    assert telemetry(environ)[0].resource["service.name"] == "x"


def test_headers_and_batching() -> None:
    read, notes = telemetry(
        {
            "OTEL_EXPORTER_OTLP_HEADERS": "Api-Key=a=b,x=y",
            "OTEL_BSP_SCHEDULE_DELAY": "250",
            "OTEL_BSP_MAX_QUEUE_SIZE": "100",
            "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "10",
            "OTEL_BSP_EXPORT_TIMEOUT": "3000",
            "OTEL_EXPORTER_OTLP_TIMEOUT": "2000",
        }
    )
    assert read.headers == (("api-key", "a=b"), ("x", "y"))
    assert (read.schedule_delay_ms, read.max_queue_size, read.max_export_batch_size) == (250, 100, 10)
    assert read.export_timeout_ms == 2_000
    assert notes == ()


def test_sampler() -> None:
    read, notes = telemetry({"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.25"})
    assert (read.sampler, read.sampler_ratio, notes) == ("parentbased_traceidratio", 0.25, ())


@pytest.mark.parametrize(
    ("environ", "note", "expected"),
    [
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:x"}, "OTEL_EXPORTER_OTLP_ENDPOINT: 'http://a:x' does", Telemetry()),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "ftp://a:1"}, "neither http nor https", Telemetry()),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:1", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"},
            "OTEL_EXPORTER_OTLP_PROTOCOL: 'http/protobuf' is not grpc",
            Telemetry(),
        ),
        ({"OTEL_BSP_SCHEDULE_DELAY": "-5"}, "OTEL_BSP_SCHEDULE_DELAY: '-5' is not a whole number", Telemetry()),
        ({"OTEL_BSP_MAX_QUEUE_SIZE": "9" * 40}, "OTEL_BSP_MAX_QUEUE_SIZE", Telemetry()),
        (
            {"OTEL_BSP_MAX_QUEUE_SIZE": "10"},
            "OTEL_BSP_MAX_EXPORT_BATCH_SIZE: 512 is more than the queue's 10",
            Telemetry(max_queue_size=10, max_export_batch_size=10),
        ),
        ({"OTEL_RESOURCE_ATTRIBUTES": "a=b,c"}, "OTEL_RESOURCE_ATTRIBUTES: is not a list", Telemetry()),
        ({"OTEL_EXPORTER_OTLP_HEADERS": "a=%0ab"}, "OTEL_EXPORTER_OTLP_HEADERS: is not a list", Telemetry()),
        ({"OTEL_TRACES_SAMPLER": "sometimes"}, "OTEL_TRACES_SAMPLER: 'sometimes' is not one of", Telemetry()),
        (
            {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "nan"},
            "OTEL_TRACES_SAMPLER_ARG: 'nan' is not a ratio",
            Telemetry(sampler="traceidratio"),
        ),
    ],
)
def test_wrong_value_is_noted_and_passed_over(environ: dict[str, str], note: str, expected: Telemetry) -> None:
    read, notes = telemetry(environ)
    assert read == expected
    assert len(notes) == 1
    assert note in notes[0]
