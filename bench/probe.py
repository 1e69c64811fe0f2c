"""Point h2load at any proxy and print CPU per call, calls/s, p50/p99 and RSS beside direct and Envoy.

For work on the data path: start a backend of its own, or name one, and compare a proxy that runs already.

    python -m bench.probe                                    # direct, Envoy bare, Envoy full
    python -m bench.probe --backend                          # only run the echo backend; print its port
    python -m bench.probe --backend-port B --proxy NAME=PORT:PID [--proxy ...]   # proxies before that backend
    python -m bench.probe ... --no-envoy --bytes 1024 --in-flight 32 --calls 30000 --rounds 3

The proxy runs on the first core, load and backend on the second; a proxy named by pid is pinned to the first too
(--no-pin leaves it). Rows take turns (A B A B); the table shows medians. Figures of a busy machine are noisy: compare
ratios of one run only.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from dataclasses import dataclass, field

from bench import machine, otlp_sink
from bench.process import BenchError, Children, stop_on_signals
from bench.suite import envoy, h2load


@dataclass(slots=True)
class Row:
    name: str
    port: int
    pid: int | None  # of the proxy whose CPU is counted
    cpu_us: list[float] = field(default_factory=list)
    calls_per_s: list[float] = field(default_factory=list)
    p50_us: list[float] = field(default_factory=list)
    p99_us: list[float] = field(default_factory=list)

    def text(self, bare_us: float) -> str:
        rss = machine.rss_bytes(self.pid) / 1e6 if self.pid else 0.0
        cpu = statistics.median(self.cpu_us)
        ratio = f"{cpu / bare_us:5.2f}" if bare_us else "    -"
        spread = f"{min(self.cpu_us):.1f}-{max(self.cpu_us):.1f}"
        return (
            f"{self.name:16} {cpu:8.1f} {spread:>14} {ratio:>8} {statistics.median(self.calls_per_s):9.0f}"
            f" {statistics.median(self.p50_us):8.0f} {statistics.median(self.p99_us):8.0f} {rss:8.1f}"
        )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", action="store_true", help="only run the echo backend in the foreground")
    parser.add_argument("--backend-port", type=int, default=0)
    parser.add_argument("--proxy", action="append", default=[], metavar="NAME=PORT:PID")
    parser.add_argument("--no-envoy", action="store_true")
    parser.add_argument("--no-pin", action="store_true")
    parser.add_argument("--bytes", type=int, default=1024, dest="size")
    parser.add_argument("--in-flight", type=int, default=32)
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--message", default="", help="the message to send instead, e.g. '!stream 200 64'")
    parser.add_argument("--path", default="/bench.Echo/Unary")
    parser.add_argument("--header", action="append", default=[], metavar="NAME=VALUE")
    return parser.parse_args()


def _rows(options: argparse.Namespace, children: Children) -> list[Row]:
    proxy_core, load_core = machine.cores()
    backend_port = options.backend_port
    if not backend_port:
        _, ports = children.start_module("backend", "bench.echo_backend", core=load_core)
        backend_port = ports["port"]
    rows = [Row("direct", backend_port, None)]
    if not options.no_envoy:
        _, sink = children.start_module("sink", otlp_sink.__name__, core=load_core)
        bare, bare_port = envoy.start(children, "envoy-bare", backend_port, proxy_core)
        full, full_port = envoy.start(children, "envoy-full", backend_port, proxy_core, sink["port"])
        rows += [Row("envoy bare", bare_port, bare.pid), Row("envoy full", full_port, full.pid)]
    for text in options.proxy:
        name, _, address = text.rpartition("=")
        port, _, pid = address.partition(":")
        if pid and not options.no_pin:
            os.sched_setaffinity(int(pid), {proxy_core})
        rows.append(Row(name or "proxy", int(port), int(pid) if pid else None))
    return rows


def _measure(options: argparse.Namespace, children: Children, rows: list[Row]) -> None:
    body = children.directory / "message"
    message = options.message.encode() + b"\n" if options.message else bytes(97 + i % 26 for i in range(options.size))
    body.write_bytes(h2load.grpc_frame(message))
    metadata = dict(header.split("=", 1) for header in options.header)
    _, load_core = machine.cores()
    for turn in range(options.rounds + 1):
        for row in rows:
            calls = options.calls if turn else max(200, options.calls // 10)  # the first turn warms up
            before = machine.cpu_s(row.pid) if row.pid else 0.0
            load = h2load.run(
                row.port, body, calls, options.in_flight, options.connections, load_core, options.path, metadata
            )
            spent = machine.cpu_s(row.pid) - before if row.pid else 0.0
            if not options.message:
                h2load.check(load, len(message) + 5, row.name)
            if turn:
                row.cpu_us.append(spent / calls * 1e6)
                row.calls_per_s.append(load.calls_per_s)
                row.p50_us.append(load.quantile_us(0.5))
                row.p99_us.append(load.quantile_us(0.99))


def main() -> int:
    options = _arguments()
    stop_on_signals()
    if options.backend:
        os.execv(sys.executable, [sys.executable, "-m", "bench.echo_backend", "--port", str(options.backend_port)])
    try:
        with Children() as children:
            rows = _rows(options, children)
            _measure(options, children, rows)
            bare_us = next((statistics.median(row.cpu_us) for row in rows if row.name == "envoy bare"), 0.0)
            what = options.message or f"{options.size} B echo"
            print(f"{what}, {options.in_flight} in flight, median of {options.rounds} x {options.calls} calls")
            print(
                f"{'':16} {'CPU us':>8} {'range':>14} {'x bare':>8} {'calls/s':>9} {'p50 us':>8} {'p99 us':>8} RSS MB"
            )
            for row in rows:
                print(row.text(bare_us))
    except BenchError as error:
        print(f"bench: {error}")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
