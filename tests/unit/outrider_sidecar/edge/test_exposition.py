import subprocess
import sys

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from outrider_sidecar.core.metric import Family, HistogramFamily
from outrider_sidecar.core.span import CLIENT, Span
from outrider_sidecar.edge import exposition
from outrider_sidecar.engines.series import Series

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def page(families: list[exposition.AnyFamily], accept: str = "") -> tuple[str, str]:
    content_type, slices = exposition.expose(families, accept)
    return content_type, b"".join(slices).decode()


def samples(text: str, parse=parse_text) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    found = {}
    for family in parse(text):
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in found, "a sample occurs twice"
            found[key] = sample.value
    return found


ODD = 'a"b\\c\nd é'
FAMILIES: list[exposition.AnyFamily] = [
    Family("calls", "counter", "Calls.", ("agent",), [((ODD,), 3), (("tax",), 2**40)]),
    Family("waiting", "gauge", "Waiting.", (), [((), 0.5)]),
    Family("nothing", "gauge", "Without samples.", ("agent",), []),
    HistogramFamily("latency_seconds", "Latency.", ("agent",), ("0.1", "1.0", "+Inf"), [(("tax",), [1, 2, 4], 7.5)]),
]
EXPECTED = {
    ("calls_total", (("agent", ODD),)): 3,
    ("calls_total", (("agent", "tax"),)): 2**40,
    ("waiting", ()): 0.5,
    ("latency_seconds_bucket", (("agent", "tax"), ("le", "0.1"))): 1,
    ("latency_seconds_bucket", (("agent", "tax"), ("le", "1.0"))): 2,
    ("latency_seconds_bucket", (("agent", "tax"), ("le", "+Inf"))): 4,
    ("latency_seconds_count", (("agent", "tax"),)): 4,
    ("latency_seconds_sum", (("agent", "tax"),)): 7.5,
}


@pytest.mark.parametrize(("accept", "parse"), [("", parse_text), (OPENMETRICS, parse_openmetrics)])
def test_families_read_back(accept: str, parse):
    content_type, text = page(FAMILIES, accept)
    found = samples(text, parse)
    assert {key: value for key, value in found.items() if not key[0].startswith("process_")} == EXPECTED
    assert any(key[0] == "process_resident_memory_bytes" for key in found)
    assert content_type.startswith("application/openmetrics-text" if accept else "text/plain; version=0.0.4")
    assert text.count("# EOF\n") == bool(accept)


def test_a_big_family_comes_in_slices_with_one_header():
    many = [((str(number),), float(number)) for number in range(300)]
    rows = [((str(number),), [number] * 3, 1.0) for number in range(100)]
    _, slices = exposition.expose(
        [
            Family("big", "gauge", "Big.", ("n",), many),
            HistogramFamily("wide", "Wide.", ("n",), ("0.1", "1.0", "+Inf"), rows),
        ]
    )
    parts = list(slices)
    assert all(part.count(b"\n") <= exposition.SLICE_LINES + 2 for part in parts[1:])
    text = b"".join(parts).decode()
    assert text.count("# TYPE big gauge") == text.count("# TYPE wide histogram") == 1
    found = samples(text)
    assert all(found["big", (("n", str(number)),)] == number for number in range(300))
    assert all(found["wide_count", (("n", str(number)),)] == number for number in range(100))


def test_everything_a_series_counts_can_be_scraped():
    counted = Series()
    for number in range(40):
        counted.record(
            Span(
                b"1" * 32,
                b"2" * 16,
                b"",
                b"",
                1,
                CLIENT,
                f"/a.B/{number}",
                "tax",
                "h:1",
                1,
                number * 1_000,
                number % 17,
            )
        )
    found = samples(page([*counted.families()])[1])
    assert sum(value for (name, _), value in found.items() if name == "outrider_calls_total") == 40
    infinite = (("agent", "tax"), ("endpoint", "h:1"), ("le", "+Inf"))
    assert found["outrider_endpoint_duration_seconds_bucket", infinite] == 40


def test_the_library_is_imported_by_the_first_scrape_only():
    program = (
        "import sys; from outrider_sidecar.edge import admin, export, exposition, access_log\n"
        "banned = {'prometheus_client', 'grpc', 'pydantic', 'opentelemetry', 'google.protobuf'}\n"
        "assert not banned & set(sys.modules), banned & set(sys.modules)\n"
        "assert not exposition.loaded()\n"
        "exposition.load()\n"
        "assert exposition.loaded()\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env={"PYTHONPATH": ":".join(filter(None, sys.path))})
