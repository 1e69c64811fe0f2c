"""An OTLP/gRPC collector that only counts: spans by a scan of the request's wire bytes, nothing is kept.

Always holds: every Export is answered OK with an empty response. `/bench.Sink/Stats` answers JSON: requests, spans,
bytes. One process, grpc.aio with generic handlers. Deliberately not here: metrics and logs, any storage.

Run: `python -m bench.otlp_sink [--port N] [--ports-file FILE]`
"""

from __future__ import annotations

import argparse
import asyncio
import json

import grpc
import uvloop

from bench.serve import announce, until_signal

EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
STATS = "/bench.Sink/Stats"
_RESOURCE_SPANS, _SCOPE_SPANS, _SPANS = 1, 2, 2


def _varint(data: bytes, offset: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        octet = data[offset]
        offset += 1
        value |= (octet & 0x7F) << shift
        if octet < 0x80:
            return value, offset
        shift += 7


def _members(data: bytes, wanted: int) -> list[tuple[int, int]]:
    """(start, end) of every length-delimited field `wanted` in one protobuf message."""
    found: list[tuple[int, int]] = []
    offset, size = 0, len(data)
    while offset < size:
        tag, offset = _varint(data, offset)
        kind = tag & 7
        if kind == 2:
            length, offset = _varint(data, offset)
            if tag >> 3 == wanted:
                found.append((offset, offset + length))
            offset += length
        elif kind == 0:
            _, offset = _varint(data, offset)
        elif kind == 1:
            offset += 8
        elif kind == 5:
            offset += 4
        else:
            raise ValueError(f"wire type {kind} in an OTLP request")
    return found


def count_spans(request: bytes) -> int:
    """Spans in an ExportTraceServiceRequest."""
    total = 0
    for start, end in _members(request, _RESOURCE_SPANS):
        resource = request[start:end]
        for first, last in _members(resource, _SCOPE_SPANS):
            total += len(_members(resource[first:last], _SPANS))
    return total


class Sink(grpc.GenericRpcHandler):
    def __init__(self) -> None:
        self.requests = self.spans = self.bytes = 0
        self._export = grpc.unary_unary_rpc_method_handler(self.export)
        self._stats = grpc.unary_unary_rpc_method_handler(self.stats)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        return {EXPORT: self._export, STATS: self._stats}.get(handler_call_details.method)

    async def export(self, request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        self.requests += 1
        self.spans += count_spans(request)
        self.bytes += len(request)
        return b""

    async def stats(self, request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        return json.dumps({"requests": self.requests, "spans": self.spans, "bytes": self.bytes}).encode()


async def serve(port: int, ports_file: str) -> None:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 64 * 1024 * 1024)])
    server.add_generic_rpc_handlers((Sink(),))
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    announce({"port": bound}, ports_file)
    await until_signal()
    await server.stop(0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--ports-file", default="")
    options = parser.parse_args()
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    asyncio.run(serve(options.port, options.ports_file))


if __name__ == "__main__":
    main()
