"""A server that breaks rules by the `h2` library: replies that no grpcio server would give, chosen by the method name.

Always holds: `/odd.Http/X` does what the method `X` of `Odd` says, with the digits at its end as argument; the reply's
trailers tell how many connections and calls there have been (`x-connections`, `x-calls` of that path and `x-key`).

Deliberately not here: well-behaved replies (`tests.grpc_peer`). Run: `python -m tests.h2_peer --ports-file FILE`
"""

from __future__ import annotations

import argparse
import asyncio
import re
from collections import Counter
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.settings
import uvloop

from bench.serve import announce, until_signal

GRPC = [(":status", "200"), ("content-type", "application/grpc")]
MESSAGE = b"\0\0\0\0\x03odd"
REFUSED_STREAM = 7
_METHOD = re.compile(r"/odd\.Http/([A-Za-z]+?)(\d*)")


class Counts:
    """What all connections have seen."""

    def __init__(self) -> None:
        self.connections = 0
        self.calls: Counter[tuple[str, str]] = Counter()


class Odd(asyncio.Protocol):
    """One connection. A method is called as a stream's request ends (`Early*`: as it begins)."""

    def __init__(self, counts: Counts, max_streams: int) -> None:
        self.counts = counts
        self.max_streams = max_streams
        self.asked: dict[int, tuple[str, int, dict[str, str]]] = {}
        self.after_ping: list[int] = []

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.counts.connections += 1
        config = h2.config.H2Configuration(
            client_side=False, validate_outbound_headers=False, normalize_outbound_headers=False
        )
        self.h2 = h2.connection.H2Connection(config)
        values = {h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: self.max_streams}
        self.h2.local_settings = h2.settings.Settings(client=False, initial_values=values)
        self.h2.initiate_connection()
        self.flush()

    def flush(self) -> None:
        self.transport.write(self.h2.data_to_send())

    def data_received(self, data: bytes) -> None:
        for event in self.h2.receive_data(data):
            if isinstance(event, h2.events.RequestReceived):
                self.on_request(event)
            elif isinstance(event, h2.events.DataReceived):
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.StreamEnded) and event.stream_id in self.asked:
                self.answer(event.stream_id)
            elif isinstance(event, h2.events.StreamReset):
                self.asked.pop(event.stream_id, None)
            elif isinstance(event, h2.events.PingAckReceived):
                for stream_id in self.after_ping:
                    self.ok(stream_id)
                self.after_ping.clear()
        self.flush()

    def on_request(self, event: Any) -> None:
        fields = {name.decode(): value.decode("latin-1") for name, value in event.headers}
        found = _METHOD.fullmatch(fields[":path"])
        name, digits = found.groups() if found else ("Http", "404")
        self.asked[event.stream_id] = (name, int(digits or 0), fields)
        self.counts.calls[fields[":path"], fields.get("x-key", "")] += 1
        if name.startswith("Early"):
            self.answer(event.stream_id)

    def answer(self, stream_id: int) -> None:
        name, number, _ = self.asked[stream_id]
        getattr(self, name)(stream_id, number)

    def calls(self, stream_id: int) -> int:
        fields = self.asked[stream_id][2]
        return self.counts.calls[fields[":path"], fields.get("x-key", "")]

    # -- pieces ----------------------------------------------------------------------------------------------------

    def head(self, stream_id: int) -> None:
        self.h2.send_headers(stream_id, GRPC)

    def data(self, stream_id: int, end: bool = False) -> None:
        self.h2.send_data(stream_id, MESSAGE, end_stream=end)

    def tail(self, stream_id: int, status: str = "0", *more: tuple[str, str]) -> None:
        counts = (("x-connections", str(self.counts.connections)), ("x-calls", str(self.calls(stream_id))))
        self.h2.send_headers(stream_id, [("grpc-status", status), *counts, *more], end_stream=True)

    def ok(self, stream_id: int) -> None:
        self.head(stream_id)
        self.data(stream_id)
        self.tail(stream_id)

    # -- methods: (stream id, the number in the name) ---------------------------------------------------------------

    def Ok(self, stream_id: int, _: int) -> None:  # noqa: N802
        self.ok(stream_id)

    def Http(self, stream_id: int, status: int) -> None:  # noqa: N802
        """An HTTP error page, as from a proxy that has lost its server."""
        self.h2.send_headers(stream_id, [(":status", str(status)), ("content-type", "text/html")])
        self.h2.send_data(stream_id, b"<h1>no</h1>", end_stream=True)

    def HttpBare(self, stream_id: int, status: int) -> None:  # noqa: N802
        self.h2.send_headers(stream_id, [(":status", str(status))], end_stream=True)

    def NotGrpc(self, stream_id: int, _: int) -> None:  # noqa: N802
        self.h2.send_headers(stream_id, [(":status", "200"), ("content-type", "text/html")])
        self.h2.send_data(stream_id, b"<h1>welcome</h1>", end_stream=True)

    def NoTrailers(self, stream_id: int, _: int) -> None:  # noqa: N802
        self.head(stream_id)
        self.data(stream_id, True)

    def NoStatus(self, stream_id: int, _: int) -> None:  # noqa: N802
        self.head(stream_id)
        self.data(stream_id)
        self.h2.send_headers(stream_id, [("x-other", "1")], end_stream=True)

    def Status(self, stream_id: int, status: int) -> None:  # noqa: N802
        self.head(stream_id)
        self.data(stream_id)
        self.tail(stream_id, str(status))

    def BadStatus(self, stream_id: int, _: int) -> None:  # noqa: N802
        self.head(stream_id)
        self.tail(stream_id, "fine")

    def Encoded(self, stream_id: int, _: int) -> None:  # noqa: N802
        """A message with escapes good and bad: it passes byte by byte."""
        self.tail_only(stream_id, ("grpc-status", "2"), ("grpc-message", "%E2%82%AC 100%25 %zz 50%"))

    def tail_only(self, stream_id: int, *fields: tuple[str, str]) -> None:
        self.h2.send_headers(stream_id, [*GRPC, *fields], end_stream=True)

    def Reset(self, stream_id: int, code: int) -> None:  # noqa: N802
        self.h2.reset_stream(stream_id, code)

    def ResetAfterHead(self, stream_id: int, code: int) -> None:  # noqa: N802
        self.head(stream_id)
        self.h2.reset_stream(stream_id, code)

    def ResetAfterData(self, stream_id: int, code: int) -> None:  # noqa: N802
        self.head(stream_id)
        self.data(stream_id)
        self.h2.reset_stream(stream_id, code)

    def Refuse(self, stream_id: int, times: int) -> None:  # noqa: N802
        """REFUSED_STREAM so many times, then a reply."""
        if self.calls(stream_id) <= times:
            self.h2.reset_stream(stream_id, REFUSED_STREAM)
        else:
            self.ok(stream_id)

    def Goaway(self, stream_id: int, times: int) -> None:  # noqa: N802
        """So many times a GOAWAY that leaves this stream out, then a reply."""
        if self.calls(stream_id) <= times:
            self.h2.close_connection(0, last_stream_id=stream_id - 2 if stream_id > 1 else 0)
            self.flush()
            self.transport.close()
        else:
            self.ok(stream_id)

    def GoawayAndServe(self, stream_id: int, _: int) -> None:  # noqa: N802
        """GOAWAY that includes this stream, and then its reply: it must still arrive."""
        frame = b"\0\0\x08\x07\0\0\0\0\0" + stream_id.to_bytes(4, "big") + bytes(4)
        self.flush()
        self.transport.write(frame)
        self.ok(stream_id)

    def DropConnection(self, stream_id: int, _: int) -> None:  # noqa: N802
        self.transport.abort()

    def Ping(self, stream_id: int, _: int) -> None:  # noqa: N802
        """The reply comes after our PING is answered."""
        self.after_ping.append(stream_id)
        self.h2.ping(b"01234567")

    def Hints(self, stream_id: int, _: int) -> None:  # noqa: N802
        self.h2.send_headers(stream_id, [(":status", "103"), ("link", "</x>")])
        self.ok(stream_id)

    def Crumbs(self, stream_id: int, _: int) -> None:  # noqa: N802
        """A message a byte at a time, padded."""
        self.head(stream_id)
        for at in range(len(MESSAGE)):
            self.h2.send_data(stream_id, MESSAGE[at : at + 1], pad_length=at)
        self.tail(stream_id)

    def UpperCase(self, stream_id: int, _: int) -> None:  # noqa: N802
        self.h2.send_headers(stream_id, [*GRPC, ("X-Upper", "1")])

    def ConnectionField(self, stream_id: int, _: int) -> None:  # noqa: N802
        self.h2.send_headers(stream_id, [*GRPC, ("connection", "close")])

    def EarlyReply(self, stream_id: int, _: int) -> None:  # noqa: N802
        """A whole reply before the request has ended, then RST_STREAM(NO_ERROR)."""
        self.ok(stream_id)
        self.h2.reset_stream(stream_id, 0)

    def Hang(self, stream_id: int, _: int) -> None:  # noqa: N802
        """No answer."""


async def serve(options: argparse.Namespace) -> None:
    """Serve until a signal."""
    counts = Counts()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Odd(counts, options.max_streams), "127.0.0.1", options.port)
    announce({"port": server.sockets[0].getsockname()[1]}, options.ports_file)
    await until_signal()
    server.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--ports-file", default="")
    parser.add_argument("--max-streams", type=int, default=1_000)
    uvloop.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
