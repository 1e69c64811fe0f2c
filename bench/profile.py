"""Where the sidecar's CPU goes per call: runs it under load with a sampler.

    python -m bench.profile [--hits | --plain | --stream] [--calls N] [--in-flight N] [--bytes N] [--varied]
    python -m bench.profile --cprofile     # call counts, exact but much slower: shares are distorted

Run it with `-m`: as a script its folder would hide the standard library's `profile`. Microseconds are the share of
samples times the CPU per call the OS counted in the same run.
"""

from __future__ import annotations

import argparse
import json
import pstats
import signal
import time
from pathlib import Path

from bench import machine
from bench.process import BenchError, Children, stop_on_signals
from bench.suite import sidecar
from bench.suite.targets import SETTLE_S, Bed, Target, raw_load, start_sink

STREAM_MESSAGES = 500


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--hits", action="store_true", help="cache hits instead of misses")
    what.add_argument("--plain", action="store_true", help="a method that is not cacheable")
    what.add_argument("--stream", action="store_true", help="streams of 500 messages of 64 B; figures per message")
    parser.add_argument("--paced", action="store_true", help="with --stream: 64 streams, a message every 5 ms each")
    parser.add_argument("--varied", action="store_true", help="traceparent and grpc-timeout unique per call")
    parser.add_argument("--calls", type=int, default=200_000)
    parser.add_argument("--in-flight", type=int, default=32)
    parser.add_argument("--bytes", type=int, default=1024, dest="size")
    parser.add_argument("--top", type=int, default=40)
    parser.add_argument("--no-otlp", action="store_true")
    parser.add_argument("--cprofile", action="store_true")
    return parser.parse_args()


def _load(options: argparse.Namespace, bed: Bed, target: Target, calls: int) -> int:
    """Put the load on; the number of units (calls or messages) it was."""
    arguments = ["--varied"] if options.varied else []
    if not options.stream:
        seed = 1 if options.hits else time.time_ns() % 2**31
        raw_load(bed, target, calls, options.in_flight, f"--size={options.size}", *arguments, seed=seed)
        return calls
    messages, gap = (100, " 5") if options.paced else (STREAM_MESSAGES, "")
    in_flight = 64 if options.paced else 4
    streams = max(in_flight, calls // messages)
    arguments += ["--message", f"!stream {messages} 64{gap}", f"--expect={messages * 69}"]
    raw_load(bed, target, streams, in_flight, *arguments, seed=1)
    return streams * messages


def _print_samples(file: Path, cpu_us: float, top: int) -> None:
    document = json.loads(file.read_text(encoding="utf-8"))
    total = max(1, document["total"])
    print(
        f"\n{cpu_us:.2f} us of CPU each, {total} samples\n\n{'own us':>8} {'own %':>6} {'with callees':>13}  function"
    )
    for one in sorted(document["functions"], key=lambda one: -one["own"])[:top]:
        own, whole = one["own"] / total, one["whole"] / total
        print(f"{own * cpu_us:8.2f} {100 * own:6.1f} {whole * cpu_us:13.2f}  {one['where']}")
    print(f"\n{'own us':>8} {'own %':>6}  line")
    for one in document["lines"][:top]:
        own = one["own"] / total
        print(f"{own * cpu_us:8.2f} {100 * own:6.1f}  {one['where']}:{one['line']}")


def _wait_for(file: Path) -> None:
    give_up_at = time.monotonic() + 10
    while not file.exists():
        if time.monotonic() > give_up_at:
            raise BenchError(f"{file.name} was not written within 10 s")
        time.sleep(0.05)


def _run(options: argparse.Namespace, children: Children) -> None:
    proxy_core, load_core = machine.cores()
    _, backend = children.start_module("backend", "bench.echo_backend", core=load_core)
    bed = Bed(children, proxy_core, load_core, backend["port"])
    otlp_port = None if options.no_otlp else start_sink(bed, "sink")
    out = children.directory / "profile.out"
    profile = ["-m", "cProfile", "-o", str(out)] if options.cprofile else ["-m", "bench.sampling", str(out)]
    running = sidecar.start(children, "sidecar", bed.backend_port, proxy_core, otlp_port, profile=profile)
    target = Target("sidecar", running.port, running.pid, path=sidecar.CACHED_METHOD)
    if options.hits:
        target.distinct = 64
    if options.plain:
        target.path = sidecar.PLAIN_METHOD
    if options.stream:
        target.path = sidecar.STREAM_METHOD
    units = _load(options, bed, target, max(2_000, options.calls // 20))  # warms up
    if not options.cprofile:
        running.child.signal_group(signal.SIGUSR2)
        _wait_for(out)
        out.unlink()
    before = machine.cpu_s(running.pid)
    units = _load(options, bed, target, options.calls)
    time.sleep(SETTLE_S)
    cpu_us = (machine.cpu_s(running.pid) - before) / units * 1e6
    if options.cprofile:
        code = children.stop(running.child)
        if not out.exists():
            raise BenchError(f"the sidecar ended with code {code} and left no profile:\n{running.child.log_tail()}")
        print(f"{cpu_us:.2f} us of CPU each under cProfile, {units} of them")
        pstats.Stats(str(out)).sort_stats("tottime").print_stats(options.top)
        return
    running.child.signal_group(signal.SIGUSR2)
    _wait_for(out)
    _print_samples(out, cpu_us, options.top)


def main() -> int:
    options = _arguments()
    stop_on_signals()
    try:
        with Children() as children:
            _run(options, children)
    except BenchError as error:
        print(f"profile: {error}")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
