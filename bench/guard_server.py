"""A guard as a process of its own, in front of whatever listens on a unix socket: for `bench.guard` and for tests.

Always holds: the ports file names `port`, where callers dial, and `figures`, which answers every connection with the
guard's figures as one line of JSON.

Deliberately not here: the gRPC server, which in the control plane shares the guard's process.
Run: `python -m bench.guard_server --backend PATH --ports-file FILE`
"""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path

import uvloop

from bench.serve import announce, until_signal
from outrider_control.guard.listener import Guard, guard_reactor
from outrider_http2.tls import ServerTls


async def serve(options: argparse.Namespace) -> None:
    """Serve until a signal."""
    reactor = guard_reactor(asyncio.get_running_loop())
    guard = Guard(reactor, options.backend, options.max_connections)

    async def tell(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(json.dumps(guard.figures()).encode() + b"\n")
        await writer.drain()
        writer.close()

    tls = None
    if options.cert is not None:
        tls = ServerTls(options.cert, options.key, options.client_ca, require_client=False)
    await guard.open(("127.0.0.1", options.port), tls)
    figures = await asyncio.start_server(tell, "127.0.0.1", 0)
    announce({"port": guard.port, "figures": figures.sockets[0].getsockname()[1]}, options.ports_file)
    await until_signal()
    figures.close()
    await guard.close()
    await reactor.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", required=True, help="path of the gRPC server's unix socket")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--ports-file", default="")
    parser.add_argument("--max-connections", type=int, default=4_096)
    parser.add_argument("--cert", type=Path)
    parser.add_argument("--key", type=Path)
    parser.add_argument("--client-ca", type=Path)
    uvloop.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
