"""A real grpcio server and client with one call in flight, for the latency a proxy adds.

`server` echoes by the synchronous grpcio server. `client` goes round the targets in short blocks, so that all of them
see the same moments of the machine, and prints one line of JSON: per target a list of [p50, p90] in microseconds, one
per round. Always holds: every reply is compared with what was sent.

    python -m bench.grpc_pair server [--ports-file FILE]
    python -m bench.grpc_pair client --target NAME=PORT [--target ...] [--rounds N] [--calls N] [--bytes N]
"""

from __future__ import annotations

import argparse
import gc
import json
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter

import grpc

from bench.serve import announce

METHOD = "/bench.Echo/Unary"
_BLOCK_CALLS = 25


class Echo(grpc.GenericRpcHandler):
    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        return grpc.unary_unary_rpc_method_handler(lambda request, context: request)


def serve(ports_file: str) -> None:
    server = grpc.server(ThreadPoolExecutor(max_workers=4), options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((Echo(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    announce({"port": port}, ports_file)
    while not stopped.wait(0.5):
        pass
    server.stop(0.5).wait()


def measure(targets: dict[str, int], rounds: int, calls: int, size: int) -> dict[str, list[list[float]]]:
    """Per target and round: p50 and p90 of `calls` calls, taken in blocks in turn with the other targets."""
    channels = {name: grpc.insecure_channel(f"127.0.0.1:{port}") for name, port in targets.items()}
    methods = {name: channel.unary_unary(METHOD) for name, channel in channels.items()}
    filler = bytes(97 + i % 26 for i in range(size - 8))
    sent = 0
    result: dict[str, list[list[float]]] = {name: [] for name in targets}
    for turn in range(rounds + 1):
        taken: dict[str, list[float]] = {name: [] for name in targets}
        gc.collect()
        gc.disable()
        for _ in range(max(1, calls // _BLOCK_CALLS)):
            for name, method in methods.items():
                for _ in range(_BLOCK_CALLS):
                    sent += 1
                    message = b"%08x" % sent + filler
                    start = perf_counter()
                    reply = method(message, timeout=20)
                    taken[name].append((perf_counter() - start) * 1e6)
                    if reply != message:
                        raise SystemExit(f"{name} answered with something else than it was sent")
        gc.enable()
        for name, values in taken.items():
            values.sort()
            if turn:  # the first one warms up
                result[name].append([values[len(values) // 2], values[len(values) * 9 // 10]])
    for channel in channels.values():
        channel.close()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("role", choices=("server", "client"))
    parser.add_argument("--ports-file", default="")
    parser.add_argument("--target", action="append", default=[], metavar="NAME=PORT")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--calls", type=int, default=400)
    parser.add_argument("--bytes", type=int, default=1024, dest="size")
    options = parser.parse_args()
    if options.role == "server":
        serve(options.ports_file)
        return
    targets = {name: int(port) for name, _, port in (text.rpartition("=") for text in options.target)}
    print(json.dumps(measure(targets, options.rounds, options.calls, options.size)))


if __name__ == "__main__":
    main()
