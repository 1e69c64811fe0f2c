"""A server against what a request must look like (RFC 9113, 8; what gRPC adds): a malformed one is a stream error."""

from __future__ import annotations

from collections.abc import Callable

from outrider_http2.limits import Limits
from tests.conformance.http2.cases import Case, fine, refused, reset, run, table
from tests.conformance.http2.peer import connected, serving
from tests.conformance.http2.wire import COMPRESSION, NO_ERROR, PROTOCOL, Fields, Wire, basic, data, head, ping

Send = Callable[[Wire], bytes]


def fields(*pairs: tuple[str | bytes, str | bytes]) -> Send:
    """A request of exactly these fields."""
    return lambda w: head(1, w.block(pairs))


def without(name: str, *more: tuple[str | bytes, str | bytes]) -> Send:
    return fields(*[field for field in basic() if field[0] != name], *more)


def extra(*pairs: tuple[str | bytes, str | bytes]) -> Send:
    """A well-formed request and these fields."""
    return fields(*basic(), *pairs)


def bad(section: str, what: str, send: Send) -> Case:
    return reset(section, what, send, PROTOCOL)


def long(length: str, *parts: bytes, ends: bool = True) -> Send:
    """A request that declares `length` and sends `parts`."""

    def send(w: Wire) -> bytes:
        frames = [data(1, part, ends and n == len(parts) - 1) for n, part in enumerate(parts)]
        opened = head(1, w.request(("content-length", length)), not parts)
        return opened + b"".join(frames) + (b"" if ends else w.tail(1))

    return send


def entering(w: Wire) -> bytes:
    """A field added to the table and named from there."""
    block = w.request() + b"\x40\x01a\x01b\xbe"
    w.encoder.header_table.add(b"a", b"b")
    return head(1, block)


SEQUENCE = [
    fine("8.1", "END_STREAM on HEADERS", lambda w: w.open(1, end=True), 1),
    fine("8.1", "END_STREAM on the last DATA", lambda w: w.open() + data(1, b"abc", True), 1),
    fine("8.1", "END_STREAM on empty DATA", lambda w: w.open() + data(1, b"abc") + data(1, b"", True), 1),
    fine("8.1", "trailers", lambda w: w.open() + data(1, b"abc") + w.tail(1), 1),
    fine("8.1", "trailers without DATA", lambda w: w.open() + w.tail(1), 1),
    bad("8.1", "HEADERS again without END_STREAM", lambda w: w.open() + w.tail(1, end=False)),
    bad("8.1", "a pseudo-header in trailers", lambda w: w.open() + w.tail(1, (":method", "POST"))),
    bad("8.1", "an upper-case name in trailers", lambda w: w.open() + w.tail(1, ("X-Upper", "1"))),
    bad("8.1.1", "content-length without a body", long("1")),
    bad("8.1.1", "content-length larger than the body", long("4", b"abc")),
    bad("8.1.1", "content-length smaller than the body", long("2", b"abc")),
    bad("8.1.1", "content-length smaller than two parts", long("5", b"abc", b"def")),
    bad("8.1.1", "content-length larger than the body before trailers", long("7", b"abc", b"def", ends=False)),
    bad("8.1.1", "content-length that is no number", long("-3", b"abc")),
    bad("8.1.1", "content-length of two minds", extra(("content-length", "1"), ("content-length", "2"))),
    fine("8.1.1", "content-length of the body", long("6", b"abc", b"def"), 1),
    fine("8.1.1", "content-length of the body before trailers", long("6", b"abc", b"def", ends=False), 1),
    fine("8.1.1", "content-length of nothing", long("0"), 1),
]
NAMES = [
    bad("8.2", "an upper-case name", extra(("X-Upper", "1"))),
    bad("8.2.1", "a space in a name", extra(("x odd", "1"))),
    bad("8.2.1", "a control character in a name", extra(("x\x01", "1"))),
    bad("8.2.1", "a colon in a name", extra(("x:y", "1"))),
    bad("8.2.1", "DEL in a name", extra(("x\x7f", "1"))),
    bad("8.2.1", "a byte above ASCII in a name", extra((b"x\xe9", "1"))),
    bad("8.2.1", "an empty name", extra(("", "1"))),
    bad("8.2.1", "NUL in a value", extra(("x-odd", "a\0b"))),
    bad("8.2.1", "CR in a value", extra(("x-odd", "a\rb"))),
    bad("8.2.1", "LF in a value", extra(("x-odd", "a\nb"))),
    bad("8.2.1", "a space before a value", extra(("x-odd", " a"))),
    bad("8.2.1", "a tab behind a value", extra(("x-odd", "a\t"))),
    fine("8.2.1", "any other byte in a value", extra((b"x-odd", b"\xe2\x82\xac \x7f~"), (b"x-empty", b"")), 1),
    bad("8.2.2", "connection", extra(("connection", "keep-alive"))),
    bad("8.2.2", "keep-alive", extra(("keep-alive", "1"))),
    bad("8.2.2", "proxy-connection", extra(("proxy-connection", "close"))),
    bad("8.2.2", "transfer-encoding", extra(("transfer-encoding", "chunked"))),
    bad("8.2.2", "upgrade", extra(("upgrade", "h2c"))),
    bad("8.2.2", "te other than trailers", extra(("te", "trailers, deflate"))),
    fine("8.2.2", "te trailers", extra(("te", "trailers")), 1),
]
PSEUDO = [
    bad("8.3", "an unknown pseudo-header", fields((":unknown", "1"), *basic())),
    bad("8.3", "a response's pseudo-header", fields(*basic(), (":status", "200"))),
    bad("8.3", "a pseudo-header behind a regular one", fields(("x-early", "1"), *basic())),
    bad("8.3", "the last pseudo-header behind a regular one", without(":path", ("x-early", "1"), (":path", "/"))),
    bad("8.3.1", "no :method", without(":method")),
    bad("8.3.1", "no :scheme", without(":scheme")),
    bad("8.3.1", "no :path", without(":path")),
    bad("8.3.1", "an empty :path", without(":path", (":path", ""))),
    bad("8.3.1", "a :path without a slash", without(":path", (":path", "echo"))),
    bad("8.3.1", "a :path that is not ASCII", without(":path", (":path", b"/\xff\xfe"))),
    bad("8.3.1", "a :path in UTF-8", without(":path", (":path", "/\u20ac".encode()))),
    bad("8.3.1", "a space in :path", without(":path", (":path", "/a b"))),
    bad("8.3.1", "two :method", fields((":method", "POST"), *basic())),
    bad("8.3.1", "two :scheme", fields((":scheme", "http"), *basic())),
    bad("8.3.1", "two :path", fields((":path", "/"), *basic())),
    bad("8.3.1", "two :authority", fields((":authority", "other"), *basic())),
    bad("8.3.1", "a :method that is no token", without(":method", (":method", "PO ST"))),
    bad("8.3.1", "an empty :method", without(":method", (":method", ""))),
    bad("8.3.1", "neither :authority nor host", without(":authority")),
    bad("8.3.1", "host that differs from :authority", extra(("host", "other"))),
    fine("8.3.1", "host instead of :authority", without(":authority", ("host", "localhost")), 1),
    fine("8.3.1", "pseudo-headers in any order", fields(*reversed(basic())), 1),
    fine(
        "8.3.1",
        "OPTIONS of everything",
        fields((":method", "OPTIONS"), (":scheme", "http"), (":path", "*"), basic()[3]),
        1,
    ),
    bad("8.5", "CONNECT", fields((":method", "CONNECT"), (":authority", "localhost:1"))),
    bad("8.3", "no fields at all", lambda w: head(1, b"")),
]
HPACK = [
    refused("2.3.3", "an index beyond the tables", lambda w: head(1, w.request() + b"\xff\x81\x01"), COMPRESSION),
    refused(
        "2.3.3", "a name's index beyond the tables", lambda w: head(1, w.request() + b"\x7f\x40\x01x"), COMPRESSION
    ),
    refused("4.2", "a size update behind a field", lambda w: head(1, w.request() + b"\x20"), COMPRESSION),
    refused("5.1", "an integer without end", lambda w: head(1, w.request() + b"\xff" * 20), COMPRESSION),
    refused("5.1", "an integer cut off", lambda w: head(1, w.request() + b"\xff"), COMPRESSION),
    refused("5.2", "a string cut off", lambda w: head(1, w.request() + b"\x00\x01a\x05abc"), COMPRESSION),
    refused(
        "5.2",
        "a Huffman string padded too far",
        lambda w: head(1, w.request() + b"\x00\x01a\x83\x1c\xff\xff"),
        COMPRESSION,
    ),
    refused(
        "5.2", "a Huffman string padded with zeros", lambda w: head(1, w.request() + b"\x00\x01a\x81\x18"), COMPRESSION
    ),
    refused(
        "5.2", "EOS in a Huffman string", lambda w: head(1, w.request() + b"\x00\x01a\x84\xff\xff\xff\xff"), COMPRESSION
    ),
    refused("6.1", "index 0", lambda w: head(1, w.request() + b"\x80"), COMPRESSION),
    refused("6.3", "a table larger than allowed", lambda w: head(1, b"\x3f\xe2\x1f" + w.request()), COMPRESSION),
    fine("6.3", "tables smaller and larger again", lambda w: head(1, b"\x20\x3f\xe1\x1f" + w.request()), 1),
    fine("6.2.1", "a field that enters the table", entering, 1),
    fine("6.2.2", "a field without indexing", lambda w: head(1, w.request() + b"\x00\x01a\x01b"), 1),
    fine("6.2.3", "a field never indexed", lambda w: head(1, w.request() + b"\x10\x01a\x01b"), 1),
]


@table([*SEQUENCE, *NAMES, *PSEUDO])
async def test_message(case: Case) -> None:
    await run(case)


@table(HPACK)
async def test_hpack(case: Case) -> None:
    """Sections of RFC 7541."""
    await run(case)


async def test_tables_evict_and_blocks_repeat() -> None:
    """RFC 7541, 4.4: a table of few entries turns over; what remains must be named by the right index."""
    async with serving() as (server, port), connected(port) as peer:
        for n in range(60):
            more: Fields = [(f"x-{n % 7}", f"{n % 11}" * 90)]
            peer.send(head(2 * n + 1, peer.wire.request(*more)))
        seen = await peer.until(lambda seen: 119 in seen.ended)
        assert all(seen.status(2 * n + 1) == "200" for n in range(60))
        assert server.conns[0].failed is None


async def test_a_list_too_large_is_answered() -> None:
    """10.5.1: the caller is told in its own language, the table stays in step, and the connection goes on."""
    async with serving(Limits(header_list_bytes=2_000)) as (_, port), connected(port) as peer:
        peer.send(head(1, peer.wire.request(("x-large", "v" * 3_000)), False))
        peer.send(head(3, peer.wire.request(("x-large", "v" * 3_000))))
        peer.send(head(5, peer.wire.request(("x-small", "v"))))
        seen = await peer.until(lambda seen: 5 in seen.ended)
        assert seen.blocks[1][0]["grpc-status"] == seen.blocks[3][0]["grpc-status"] == "8"
        assert seen.resets == {1: NO_ERROR}
        assert seen.status(5) == "200"
        assert "grpc-status" not in seen.blocks[5][0]


async def test_the_peer_chooses_our_table() -> None:
    """RFC 7541, 4.2: HEADER_TABLE_SIZE of the peer bounds what we index; our next block says so."""
    async with serving() as (_, port), connected(port) as peer:
        peer.send(*[peer.wire.open(2 * n + 1, end=True) for n in range(4)])
        await peer.until(lambda seen: 7 in seen.ended)
        peer.decoder.max_allowed_table_size = 0
        peer.send(b"\0\0\x06\4\0\0\0\0\0\0\1\0\0\0\0", ping(b"resized!"))
        await peer.until(lambda seen: b"resized!" in seen.pongs)
        peer.send(*[peer.wire.open(2 * n + 1, end=True) for n in range(4, 8)])
        seen = await peer.until(lambda seen: 15 in seen.ended)
        assert peer.decoder.header_table_size == 0
        assert [seen.blocks[stream_id][1] for stream_id in (1, 15)] == [{"grpc-status": "0"}] * 2
