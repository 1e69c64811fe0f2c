"""The proxy one would write with grpc.aio alone: generic handlers, bytes in, bytes out, on uvloop.

It is the yardstick for "a proxy in Python". Always holds: metadata, deadline, cancellation, status and trailers pass
through; a method whose path ends in `Stream` is relayed message by message, any other as unary. Deliberately not
here: balancing, spans, caching.

Run: `python -m bench.grpc_proxy --target HOST:PORT [--ports-file FILE]`
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator

import grpc
import uvloop

from bench.serve import announce, until_signal

_HOP = frozenset({"user-agent", "grpc-accept-encoding", "accept-encoding"})
_OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1), ("grpc.so_reuseport", 0)]


class Proxy(grpc.GenericRpcHandler):
    def __init__(self, target: str) -> None:
        self.channel = grpc.aio.insecure_channel(target, options=_OPTIONS)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        method = str(handler_call_details.method)
        if method.endswith("Stream"):
            stream = self.channel.unary_stream(method)

            async def relay(request: bytes, context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
                call = stream(request, metadata=_forwarded(context), timeout=context.time_remaining())
                try:
                    async for message in call:
                        yield message
                finally:
                    call.cancel()
                context.set_trailing_metadata(tuple(await call.trailing_metadata()))

            return grpc.unary_stream_rpc_method_handler(relay)
        unary = self.channel.unary_unary(method)

        async def forward(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
            call = unary(request, metadata=_forwarded(context), timeout=context.time_remaining())
            try:
                reply = await call
            except grpc.aio.AioRpcError as error:
                await context.abort(error.code(), error.details() or "", tuple(error.trailing_metadata()))
            context.set_trailing_metadata(tuple(await call.trailing_metadata()))
            return reply

        return grpc.unary_unary_rpc_method_handler(forward)


def _forwarded(context: grpc.aio.ServicerContext) -> tuple[tuple[str, str | bytes], ...]:
    return tuple((name, value) for name, value in context.invocation_metadata() or () if name not in _HOP)


async def serve(target: str, port: int, ports_file: str) -> None:
    server = grpc.aio.server(options=_OPTIONS)
    server.add_generic_rpc_handlers((Proxy(target),))
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    announce({"port": bound}, ports_file)
    await until_signal()
    await server.stop(0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--ports-file", default="")
    options = parser.parse_args()
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    asyncio.run(serve(options.target, options.port, options.ports_file))


if __name__ == "__main__":
    main()
