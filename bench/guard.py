"""What the guard in front of the control plane costs: CPU per unary call and per large message, memory per idle watch.

    python -m bench.guard [--calls 20000] [--watches 1000] [--rounds 3]

The guard runs in a process of its own, so its CPU and memory are its own; load and an echo server on its unix socket
are others. Watches are streams that have begun and are silent, each on a connection of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
from pathlib import Path

import uvloop

from bench import machine
from bench.echo_backend import ACK, HEADERS, MAX_WINDOW, PREFACE, SETTINGS, Counters, EchoProtocol, frame
from bench.process import BenchError, Child, Children, stop_on_signals
from bench.suite import h2load
from outrider_http2.hpack import Encoder

IDLE_S = 5.0
REQUEST = (
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/outrider.v1.Mesh/Watch"),
    (b":authority", b"mesh"),
    (b"te", b"trailers"),
    (b"content-type", b"application/grpc"),
    (b"user-agent", b"grpc-bench/1"),
)


async def load(port: int, guard: Child, calls: int, body: Path, in_flight: int) -> float:
    """CPU seconds of the guard per call of one run; each echoes `body`."""
    before = machine.cpu_s(guard.pid)
    done = await asyncio.to_thread(h2load.run, port, body, calls, in_flight, 4)
    h2load.check(done, body.stat().st_size, "guard")
    return (machine.cpu_s(guard.pid) - before) / calls


async def watches(port: int, guard: Child, counters: Counters, count: int) -> tuple[float, float]:
    """(bytes, CPU seconds per second) of the guard for each of so many silent streams."""
    before = machine.rss_bytes(guard.pid)
    open_before = counters.open
    writers = []
    for _ in range(count):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        block = Encoder().encode(REQUEST)
        writer.write(PREFACE + frame(SETTINGS, 0, 0, b"\0\4" + MAX_WINDOW.to_bytes(4, "big")) + frame(SETTINGS, ACK, 0))
        writer.write(frame(HEADERS, 4, 1, block))
        writers.append(writer)
    async with asyncio.timeout(30):
        while counters.open - open_before < count:
            await asyncio.sleep(0.01)
    began = machine.cpu_s(guard.pid)
    await asyncio.sleep(IDLE_S)
    cpu = (machine.cpu_s(guard.pid) - began) / IDLE_S / count
    each = (machine.rss_bytes(guard.pid) - before) / count
    for writer in writers:
        writer.close()
    await asyncio.gather(*[writer.wait_closed() for writer in writers], return_exceptions=True)
    return each, cpu


async def measure(options: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()
    with Children() as children:
        path = str(Path(children.directory) / "grpc.sock")
        counters = Counters()
        backend = await loop.create_unix_server(lambda: EchoProtocol(counters), path)
        guard, ports = children.start_module("guard", "bench.guard_server", "--backend", path)
        port = ports["port"]
        bodies = []
        for size in (200, 300_000):
            body = Path(children.directory) / f"{size}.body"
            body.write_bytes(h2load.grpc_frame(bytes(size)))
            bodies.append(body)
        await load(port, guard, 1_000, bodies[0], 16)
        small, large = [], []
        for _ in range(options.rounds):
            small.append(await load(port, guard, options.calls, bodies[0], 16))
            large.append(await load(port, guard, options.calls // 20, bodies[1], 4))
        each, cpu = await watches(port, guard, counters, options.watches)
        backend.close()
    print(f"unary call of 200 bytes, echoed:    {statistics.median(small) * 1e6:8.1f} us of CPU")
    print(f"unary call of 300 KB, echoed:       {statistics.median(large) * 1e6:8.1f} us of CPU")
    print(f"idle watch, of {options.watches}:              {each / 1024:8.1f} KB, {cpu * 1e6:.2f} us of CPU a second")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--watches", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    stop_on_signals()
    try:
        uvloop.run(measure(options))
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
