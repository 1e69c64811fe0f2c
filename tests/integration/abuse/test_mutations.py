"""A real grpcio session, recorded and damaged: bits, bytes, lost, doubled and moved pieces, frames out of order."""

from __future__ import annotations

import asyncio
import contextlib
import random

import grpc

from tests.conformance.http2.wire import PREFACE
from tests.integration.abuse.attacked import PATH, Attacked, attacked

MUTANTS = 600
SEED = 7
METADATA = (("x-agent-id", "echo"), ("x-plain", "yes"), ("x-trace-bin", b"\0\1\2\xff"))


async def record(scene: Attacked) -> bytes:
    """What a grpcio client sends in a session of calls of all kinds, one of them cancelled, one too late."""
    sent: list[bytes] = []

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = scene.mesh.target.split(":")
        up_reader, up_writer = await asyncio.open_connection(host, int(port))

        async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter, keep: bool) -> None:
            while chunk := await source.read(65_536):
                if keep:
                    sent.append(chunk)
                sink.write(chunk)
            sink.close()

        await asyncio.gather(copy(reader, up_writer, True), copy(up_reader, writer, False))

    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    target = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    options = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0))
    async with grpc.aio.insecure_channel(target, options=options) as channel:
        unary = channel.unary_unary(PATH)
        for n in range(5):
            assert await unary(b"hello" * (1 + 500 * n), metadata=METADATA, timeout=10) == b"hello" * (1 + 500 * n)
        stream = channel.unary_stream(PATH)
        assert len([m async for m in stream(b"!stream 20 3000\n", metadata=METADATA)]) == 20
        with contextlib.suppress(grpc.aio.AioRpcError):
            await unary(b"!fail 5\n")
        call = stream(b"!hang\n")
        await asyncio.sleep(0.02)  # let it be sent: a call cancelled before that leaves no trace
        call.cancel()
        with contextlib.suppress(grpc.aio.AioRpcError):
            await unary(b"!hang\n", timeout=0.05)
    server.close()
    return b"".join(sent)


def frames_of(session: bytes) -> list[bytes]:
    """The session's frames, without the preface."""
    at, found = len(PREFACE), []
    while at < len(session):
        end = at + 9 + int.from_bytes(session[at : at + 3], "big")
        found.append(session[at:end])
        at = end
    return found


def damaged(session: bytes, rng: random.Random) -> bytes:
    """The session with one to four faults."""
    parts = frames_of(session)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(parts))
        match rng.randrange(8):
            case 0:
                del parts[at:]
            case 1:
                parts.insert(at, parts[at])
            case 2:
                parts.insert(rng.randrange(len(parts)), parts.pop(at))
            case 3:  # one bit
                part = bytearray(parts[at])
                part[rng.randrange(len(part))] ^= 1 << rng.randrange(8)
                parts[at] = bytes(part)
            case 4:  # a byte of the frame's head: type, flags or stream
                part = bytearray(parts[at])
                part[rng.randrange(3, 9)] = rng.randrange(256)
                parts[at] = bytes(part)
            case 5:
                parts[at] = parts[at][: rng.randrange(len(parts[at]))]
            case 6:
                parts[at] += rng.randbytes(rng.randint(1, 30))
            case 7:  # a run of bytes
                part, start = bytearray(parts[at]), rng.randrange(len(parts[at]))
                part[start : start + 4] = rng.randbytes(4)
                parts[at] = bytes(part)
        if not parts:
            break
    return PREFACE + b"".join(parts)


async def test_mutants_of_a_session() -> None:
    """The sidecar survives each, in any pieces; whoever is cut off leaves nothing behind."""
    rng = random.Random(SEED)
    async with attacked() as scene:
        session = await record(scene)
        assert session.startswith(PREFACE)
        cut_off = 0
        for n in range(MUTANTS):
            async with scene.attacker(b"") as peer:
                mutant = damaged(session, rng)
                step = rng.choice((len(mutant), 4_096, 300, 37))
                for at in range(0, len(mutant), step):
                    peer.send(mutant[at : at + step])
                    await asyncio.sleep(0)
                peer.writer.write_eof()
                with contextlib.suppress(ConnectionResetError):
                    while await peer.reader.read(65_536):
                        pass
                cut_off += not peer.writer.is_closing()
            if n % 20 == 0:
                await scene.witness.call()
        assert cut_off
        while len(scene.servers()) > 1:
            await scene.witness.call()
        await scene.quiet()
        assert scene.counters.open == 0
        assert not scene.servers()[0].streams
