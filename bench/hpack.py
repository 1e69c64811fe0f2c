"""HPACK of ours beside the `hpack` library, in one process: `python bench/hpack.py [--json] [--rounds N]`.

Rounds alternate A B A B. A figure is the median over rounds of CPU microseconds per block, a ratio the median of those
of neighbouring rounds. Every round starts from a fresh decoder or encoder and does the same blocks.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

# In place of this folder, which holds a `hpack` of its own: this very file.
sys.path[0] = str(Path(__file__).resolve().parents[1] / "sidecar")

import hpack  # noqa: E402

from outrider_http2.fields import request_parts  # noqa: E402
from outrider_http2.hpack import Decoder, Encoder, literal  # noqa: E402

Field = tuple[bytes, bytes]
BLOCKS = 2_000
UNIQUE = 2  # the last fields of a call are its own: grpc-timeout and traceparent


def calls(count: int, seed: int = 20) -> list[list[Field]]:
    """Request fields as grpc-go sends them; the last two differ from call to call."""
    rng = random.Random(seed)
    return [
        [
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", b"/helloworld.Greeter/SayHello"),
            (b":authority", b"127.0.0.1:7600"),
            (b"content-type", b"application/grpc"),
            (b"user-agent", b"grpc-go/1.60.0"),
            (b"te", b"trailers"),
            (b"grpc-timeout", b"%du" % rng.randrange(4_900_000, 5_000_000)),
            (b"traceparent", b"00-%032x-%016x-01" % (rng.getrandbits(128), rng.getrandbits(64))),
        ]
        for _ in range(count)
    ]


def go_blocks(lists: list[list[Field]]) -> list[bytes]:
    """Everything Huffman-coded and indexed, the unique traceparent included, so that the table turns over."""
    encoder = hpack.Encoder()
    return [encoder.encode(fields, huffman=True) for fields in lists]


def core_blocks(lists: list[list[Field]]) -> list[bytes]:
    """As gRPC's C core does: what repeats is indexed, the rest are plain literals without indexing."""
    encoder = hpack.Encoder()
    return [
        encoder.encode(fields[:-UNIQUE], huffman=False) + b"".join(literal(*field) for field in fields[-UNIQUE:])
        for fields in lists
    ]


def decode_ours(blocks: Sequence[bytes]) -> None:
    decode = Decoder().decode
    for block in blocks:
        decode(block)


def decode_theirs(blocks: Sequence[bytes]) -> None:
    decode = hpack.Decoder().decode
    for block in blocks:
        decode(block, raw=True)


def encode_ours(lists: Sequence[Sequence[Field]]) -> None:
    encode = Encoder().encode
    for fields in lists:
        encode(fields)


def encode_theirs(lists: Sequence[Sequence[Field]]) -> None:
    encode = hpack.Encoder().encode
    for fields in lists:
        encode(fields, huffman=False)


def validate(lists: Sequence[Sequence[Field]]) -> None:
    for fields in lists:
        request_parts(fields)


def cpu_us(run: Callable[[Sequence], None], work: Sequence) -> float:
    """CPU microseconds per item of `work`."""
    start = time.process_time()
    run(work)
    return (time.process_time() - start) / len(work) * 1e6


def compare(ours: Callable, theirs: Callable, work: Sequence, rounds: int) -> dict[str, float]:
    """Medians of alternating rounds. The first pair, which fills caches, is not counted."""
    pairs = [(cpu_us(ours, work), cpu_us(theirs, work)) for _ in range(rounds + 1)][1:]
    return {
        "ours_us": round(statistics.median(a for a, _ in pairs), 2),
        "hpack_us": round(statistics.median(b for _, b in pairs), 2),
        "ratio": round(statistics.median(a / b for a, b in pairs), 4),
    }


def measure(rounds: int) -> dict[str, dict[str, float]]:
    """All figures by name."""
    lists = calls(BLOCKS)
    unique, core = go_blocks(lists), core_blocks(lists)
    first, *repeated = go_blocks(lists[:1] * BLOCKS)
    for blocks in (unique, core):  # a fast answer that is wrong is no figure
        decoder = Decoder()
        assert [list(decoder.decode(block)) for block in blocks] == lists
    as_tuples = [tuple(fields) for fields in lists]
    return {
        "decode, Go-style, unique traceparent": compare(decode_ours, decode_theirs, unique, rounds),
        "decode, C-core-style, unique traceparent": compare(decode_ours, decode_theirs, core, rounds),
        "decode, repeated block": compare(decode_ours, decode_theirs, [first, *repeated], rounds),
        "encode, warm, unique traceparent": compare(encode_ours, encode_theirs, lists, rounds),
        "validate a request": {
            "ours_us": round(statistics.median(cpu_us(validate, as_tuples) for _ in range(rounds)), 2)
        },
    }


def main() -> None:
    """Prints the figures as a table, or as JSON."""
    parser = argparse.ArgumentParser(description="HPACK of ours beside the hpack library")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--rounds", type=int, default=15, help="pairs of rounds")
    arguments = parser.parse_args()
    figures = measure(arguments.rounds)
    if arguments.json:
        print(json.dumps(figures, indent=2))
        return
    print(f"{'CPU per block':44}{'ours us':>9}{'hpack us':>10}{'ratio':>8}")
    for name, row in figures.items():
        theirs, ratio = row.get("hpack_us", ""), row.get("ratio", "")
        print(f"{name:44}{row['ours_us']:>9}{theirs:>10}{ratio:>8}")


if __name__ == "__main__":
    main()
