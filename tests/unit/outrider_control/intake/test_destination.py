"""The standard's variables."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest

from outrider_control.intake.destination import Destination, destination

E = "OTEL_EXPORTER_OTLP_"


def read(
    environ: dict[str, str], signal: str = "traces", own: tuple[str, ...] = ()
) -> tuple[Destination | None, list[str]]:
    notes: list[str] = []
    return destination(environ, signal, own, notes), notes


def test_nothing_is_configured():
    assert read({}) == (None, [])
    assert read({f"{E}ENDPOINT": " "}) == (None, [])


def test_everything_is_read():
    found, notes = read(
        {
            f"{E}ENDPOINT": "http://collector:4317/",
            f"{E}HEADERS": "Authorization=Bearer%20x,api-key = y",
            f"{E}TIMEOUT": "2500",
            f"{E}COMPRESSION": "gzip",
        }
    )
    headers = (("authorization", "Bearer x"), ("api-key", "y"))
    assert found == Destination("collector:4317", None, headers, 2_500, grpc.Compression.Gzip)
    assert notes == []


def test_a_signal_s_own_variable_goes_first():
    environ = {f"{E}ENDPOINT": "http://all:1", f"{E}METRICS_ENDPOINT": "http://metrics:2", f"{E}TRACES_TIMEOUT": "7"}
    traces, metrics = read(environ)[0], read(environ, "metrics")[0]
    assert traces is not None
    assert metrics is not None
    assert (traces.target, traces.timeout_ms) == ("all:1", 7)
    assert (metrics.target, metrics.timeout_ms) == ("metrics:2", 10_000)


@pytest.mark.parametrize(
    ("environ", "secure", "target"),
    [
        ({f"{E}ENDPOINT": "https://c"}, True, "c:4317"),
        ({f"{E}ENDPOINT": "http://c"}, False, "c:4317"),
        ({f"{E}ENDPOINT": "c:1"}, True, "c:1"),
        ({f"{E}ENDPOINT": "c:1", f"{E}INSECURE": "true"}, False, "c:1"),
        ({f"{E}ENDPOINT": "http://[::1]:9"}, False, "[::1]:9"),
    ],
)
def test_tls(environ: dict[str, str], secure: bool, target: str):
    found, _ = read(environ)
    assert found is not None
    assert (found.credentials is not None, found.target) == (secure, target)


def test_certificates_are_files(tmp_path: Path):
    authority = tmp_path / "ca.pem"
    authority.write_text("x")
    environ = {f"{E}ENDPOINT": "https://c", f"{E}CERTIFICATE": str(authority)}
    assert read(environ)[0] is not None
    environ[f"{E}CERTIFICATE"] = str(tmp_path / "none.pem")
    found, (note,) = read(environ)
    assert found is None
    assert "none.pem" in note


@pytest.mark.parametrize(
    "environ",
    [
        {f"{E}ENDPOINT": "http://c", "OTEL_SDK_DISABLED": "true"},
        {f"{E}ENDPOINT": "http://c", "OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_switched_off(environ: dict[str, str]):
    assert read(environ) == (None, [])


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        ({f"{E}ENDPOINT": "ftp://c"}, "ENDPOINT"),
        ({f"{E}ENDPOINT": "http://"}, "ENDPOINT"),
        ({f"{E}ENDPOINT": "http://c:port"}, "ENDPOINT"),
        ({f"{E}ENDPOINT": "http://c", f"{E}PROTOCOL": "http/protobuf"}, "PROTOCOL"),
    ],
)
def test_what_cannot_be_used_is_said(environ: dict[str, str], named: str):
    found, (note,) = read(environ)
    assert found is None
    assert note.startswith(f"{E}{named}: ")


def test_wrong_values_fall_back_and_secrets_are_not_shown():
    found, notes = read(
        {
            f"{E}ENDPOINT": "http://c",
            f"{E}HEADERS": "ok=1,secret word,x-bin=2,new%0Aline=3,v=a%0Ab",
            f"{E}TIMEOUT": "soon",
            f"{E}COMPRESSION": "zstd",
        }
    )
    assert found == Destination("c:4317", None, (("ok", "1"),), 10_000, grpc.Compression.NoCompression)
    assert len(notes) == 6
    assert not any("secret" in note for note in notes)


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:7700", "http://localhost:7700", "http://control:7700"])
def test_never_to_itself(endpoint: str):
    own = ("127.0.0.1:7700", "control:7700")
    found, (note,) = read({f"{E}ENDPOINT": endpoint}, own=own)
    assert found is None
    assert "itself" in note
    assert read({f"{E}ENDPOINT": "http://127.0.0.1:4317"}, own=own)[0] is not None
