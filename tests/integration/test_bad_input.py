"""Wrong configurations and wrong peers: exit 2 with file, field and reason; the peer's fault is the peer's alone."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest
import yaml
from hpack import Decoder, Encoder

from tests.sidecars import Calls, Mesh, Peer, Sidecar, channel_to, eventually, new_key, standalone

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
REQUEST = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/test.Agent/Unary"),
    (":authority", "x"),
    ("content-type", "application/grpc"),
    ("te", "trailers"),
]
PROTOCOL_ERROR, FLOW_CONTROL_ERROR, FRAME_SIZE_ERROR, COMPRESSION_ERROR = 1, 3, 6, 9
RST_STREAM, SETTINGS, GOAWAY = 3, 4, 7


@pytest.fixture(scope="module")
def sidecar(mesh: Mesh, peer: Peer) -> Sidecar:
    return mesh.sidecar(standalone(peer))


# -- configuration ---------------------------------------------------------------------------------------------------


def outcome(mesh: Mesh, text: str, **environment: str) -> tuple[int, str, str]:
    """(exit code, what was said, file) of a start with this configuration."""
    file = mesh.children.directory / f"{new_key()}.yaml"
    file.write_text(text, encoding="utf-8")
    child = mesh.program("bad", file, environment or None)
    code = child.process.wait(15)
    return code, child.log.read_text(encoding="utf-8"), str(file)


def good() -> dict[str, Any]:
    return {
        "listen": "127.0.0.1:0",
        "admin": "127.0.0.1:0",
        "default_agent": "a",
        "agents": [{"agent_id": "a", "endpoints": ["127.0.0.1:9"]}],
    }


@pytest.mark.parametrize(
    ("change", "field", "reason"),
    [
        ({"listen": "127.0.0.1:99999"}, "listen", "99999"),
        ({"listen": "0.0.0.0:7600"}, "listen", "TLS"),
        ({"lisen": "127.0.0.1:1"}, "lisen", "listen"),
        ({"default_agent": "b"}, "default_agent", "'b'"),
        ({"agents": [{"endpoints": []}]}, "agents[0].agent_id", "missing"),
        ({"agents": [{"agent_id": "a", "endpoints": ["x"]}]}, "agents[0].endpoints[0]", "'x'"),
        ({"agents": [{"agent_id": "a"}, {"agent_id": "a"}]}, "agents[1].agent_id", "already"),
        ({"agents": [{"agent_id": "a", "optimization": {"cache_ttl": "soon"}}]}, "cache_ttl", "soon"),
        ({"agents": [{"agent_id": "a", "hedge": {"enabled": True}}]}, "hedge.enabled", "idempotent_methods"),
        ({"agents": "a"}, "agents", "'a'"),
        ({"tls": {"cert": "nowhere.pem"}}, "tls.key", "missing"),
        ({"tls": {"cert": "nowhere.pem", "key": "nowhere.key"}}, "tls.cert", "not a file"),
        ({"limits": {"held_bytes": 1}}, "limits.held_bytes", "between"),
    ],
)
def test_a_wrong_field_is_named(mesh: Mesh, change: dict[str, Any], field: str, reason: str) -> None:
    code, said, file = outcome(mesh, yaml.safe_dump({**good(), **change}))
    assert code == 2
    assert len(said.splitlines()) == 1, said
    for part in (file, field, reason):
        assert part in said


@pytest.mark.parametrize("text", ["agents: [", "- a\n- b\n", "a: &x [*x]\n", "listen: 1\nlisten: 2\n", "\x00"])
def test_what_is_no_mapping_of_yaml_is_refused(mesh: Mesh, text: str) -> None:
    code, said, file = outcome(mesh, text)
    assert code == 2
    assert file in said
    assert "Traceback" not in said


def test_a_file_that_is_not_there(mesh: Mesh) -> None:
    child = mesh.program("gone", Path("/nowhere/sidecar.yaml"))
    assert child.process.wait(15) == 2
    assert "/nowhere/sidecar.yaml" in child.log_tail()


def test_a_wrong_variable_is_named(mesh: Mesh) -> None:
    code, said, _ = outcome(mesh, yaml.safe_dump(good()), CACHE_TTL="soon")
    assert code == 2
    assert "CACHE_TTL" in said


@pytest.mark.parametrize("field", ["listen", "admin"])
def test_an_occupied_port_says_so(mesh: Mesh, field: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        code, said, _ = outcome(mesh, yaml.safe_dump({**good(), field: address}))
    assert code not in (0, 2)
    assert address in said
    assert field in said
    assert "Traceback" not in said


def test_files_of_tls_that_hold_something_else(mesh: Mesh) -> None:
    for name in ("cert.pem", "key.pem"):
        (mesh.children.directory / name).write_text("hello", encoding="ascii")
    tls = {"cert": "cert.pem", "key": "key.pem"}
    code, said, _ = outcome(mesh, yaml.safe_dump({**good(), "tls": tls}))
    assert code != 0
    assert "cert.pem" in said
    assert "Traceback" not in said


# -- peers -----------------------------------------------------------------------------------------------------------


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream_id.to_bytes(4, "big") + payload


def head(fields: list[tuple[str, str]], stream_id: int = 1, flags: int = 0x4) -> bytes:
    return frame(1, flags, stream_id, Encoder().encode(fields))


def replaced(name: str, value: str | None) -> list[tuple[str, str]]:
    """The request with one field changed (None: left out)."""
    changed = [(k, value if k == name else v) for k, v in REQUEST]
    return [(k, v) for k, v in changed if v is not None]


def decoded(block: bytes) -> dict[str, str]:
    """The fields of a header block."""
    return {str(name): str(value) for name, value in Decoder().decode(block)}


class Raw:
    """A client that sends bytes and reads frames."""

    def __init__(self, sidecar: Sidecar):
        self.socket = socket.create_connection(("127.0.0.1", sidecar.ports["egress"]), timeout=15)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.socket.close()

    def frames(self, data: bytes) -> Iterator[tuple[int, int, bytes]]:
        """Send the bytes behind a proper beginning; (kind, stream, payload) of what comes until the end."""
        self.socket.sendall(PREFACE + frame(SETTINGS, 0, 0) + data)
        yield from self.read()

    def read(self) -> Iterator[tuple[int, int, bytes]]:
        buffer = b""
        while True:
            while len(buffer) >= 9 and len(buffer) >= 9 + int.from_bytes(buffer[:3], "big"):
                size = int.from_bytes(buffer[:3], "big")
                yield buffer[3], int.from_bytes(buffer[5:9], "big"), buffer[9 : 9 + size]
                buffer = buffer[9 + size :]
            try:
                received = self.socket.recv(65_536)
            except ConnectionResetError:
                return
            if not received:
                return
            buffer += received


def serves(sidecar: Sidecar) -> None:
    with channel_to(sidecar.target) as channel:
        assert Calls(channel).unary(b"x").result() == b"x"
    sidecar.settled()


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame(0, 0, 0, b"x"), PROTOCOL_ERROR),
        (frame(0, 0, 1, b"x"), PROTOCOL_ERROR),
        (frame(1, 4, 2, b"\x82"), PROTOCOL_ERROR),
        (frame(1, 4, 1, b"\xff\xff\xff\xff\xff\xff"), COMPRESSION_ERROR),
        (frame(SETTINGS, 0, 0, b"\0\0"), FRAME_SIZE_ERROR),
        (frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 2**31)), FLOW_CONTROL_ERROR),
        (frame(8, 0, 0, bytes(4)), PROTOCOL_ERROR),
        (frame(6, 0, 0, b"short"), FRAME_SIZE_ERROR),
        (frame(9, 4, 1, b""), PROTOCOL_ERROR),
        (frame(5, 4, 1, bytes(4)), PROTOCOL_ERROR),
        (b"\xff\xff\xff\0\0\0\0\0\0", FRAME_SIZE_ERROR),
    ],
    ids=[
        "data-0",
        "data-idle",
        "even-id",
        "hpack",
        "settings-size",
        "window",
        "increment-0",
        "ping",
        "continuation",
        "push",
        "too-long",
    ],
)
def test_connection_errors_get_the_goaway_the_rfc_names(sidecar: Sidecar, data: bytes, code: int) -> None:
    with Raw(sidecar) as raw:
        goaways = [payload for kind, _, payload in raw.frames(data) if kind == GOAWAY]
    assert [int.from_bytes(payload[4:8], "big") for payload in goaways] == [code]
    serves(sidecar)


@pytest.mark.parametrize(
    "fields",
    [
        replaced(":path", "/test.Agent/Unär"),
        replaced(":path", "/test.Agent/\x01"),
        replaced(":path", None),
        replaced(":method", None),
        [*REQUEST, ("Upper", "1")],
        [*REQUEST, ("connection", "close")],
        [*REQUEST, (":late", "1")],
        [*REQUEST, (":path", "/again")],
        [*REQUEST, ("x", "line\nbreak")],
        replaced("te", "gzip"),
    ],
    ids=[
        "path-utf8",
        "path-control",
        "no-path",
        "no-method",
        "upper-case",
        "connection",
        "late-pseudo",
        "two-paths",
        "line-break",
        "te",
    ],
)
def test_malformed_requests_are_reset_and_never_forwarded(
    sidecar: Sidecar, peer: Peer, fields: list[tuple[str, str]]
) -> None:
    peer.control("forget")
    with Raw(sidecar) as raw:
        kinds = raw.frames(head(fields) + frame(0, 1, 1, bytes(5)))
        reset = next(payload for kind, stream, payload in kinds if kind == RST_STREAM and stream == 1)
    assert int.from_bytes(reset, "big") == PROTOCOL_ERROR
    assert peer.records() == []
    serves(sidecar)


@pytest.mark.parametrize(
    "fields", [replaced(":method", "GET"), replaced("content-type", "text/html"), replaced("content-type", None)]
)
def test_what_is_not_grpc_is_told_so(sidecar: Sidecar, fields: list[tuple[str, str]]) -> None:
    with Raw(sidecar) as raw:
        kinds = raw.frames(head(fields, flags=0x5))
        block = next(payload for kind, stream, payload in kinds if kind == 1 and stream == 1)
    assert decoded(block)[":status"] == "415"
    serves(sidecar)


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00", bytes(100)])
def test_what_is_not_http2_is_cut_off(sidecar: Sidecar, data: bytes) -> None:
    with Raw(sidecar) as raw:
        raw.socket.sendall(data)
        assert GOAWAY in [kind for kind, _, _ in raw.read()]
    serves(sidecar)


@pytest.mark.parametrize("timeout", ["", "1", "S", "-1S", "1x", "123456789S", "1.5S"])
def test_a_malformed_timeout_is_an_error_of_the_call(sidecar: Sidecar, timeout: str) -> None:
    fields = [*REQUEST, ("grpc-timeout", timeout)]
    with Raw(sidecar) as raw:
        kinds = raw.frames(head(fields) + frame(0, 1, 1, bytes(5)))
        block = next(payload for kind, stream, payload in kinds if kind == 1 and stream == 1)
    assert decoded(block).get("grpc-status") == "13"
    serves(sidecar)


def test_a_flood_delays_nobody_and_ends(sidecar: Sidecar) -> None:
    """Half a million PINGs in one go: the flooder gets its GOAWAY, another caller its replies."""
    with Raw(sidecar) as raw, channel_to(sidecar.target) as channel:
        calls = Calls(channel)
        calls.unary(b"x").result()
        raw.socket.sendall(PREFACE + frame(SETTINGS, 0, 0))
        try:
            for _ in range(50):
                raw.socket.sendall(frame(6, 0, 0, bytes(8)) * 10_000)
        except OSError:
            pass  # cut off in the middle: that is right as well
        assert calls.unary(b"x").result() == b"x"
    eventually(lambda: sidecar.metric("outrider_connections") == 0, "the flooder's connection is closed")
    serves(sidecar)


def test_metadata_past_the_limit_is_refused(sidecar: Sidecar) -> None:
    with channel_to(sidecar.target) as channel:
        calls = Calls(channel)
        refused = calls.unary(metadata=[(f"x-{number}", "v" * 7_000) for number in range(12)])
        assert refused.code().name == "RESOURCE_EXHAUSTED"
        assert calls.unary(b"x").result() == b"x"
    sidecar.settled()
