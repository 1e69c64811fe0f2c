"""Arrival traces: Azure LLM inference CSV and Mooncake JSONL, plain or gzipped, read lazily.

Always holds: arrivals come in the order of the file with seconds from the first one; a line that cannot be read is an
error that names file and line. Pure but for opening the file. Sources: Azure Public Dataset (TIMESTAMP,
ContextTokens, GeneratedTokens) and Mooncake (timestamp in ms, input_length, output_length, hash_ids of 512-token
prefix blocks).
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import TextIO

from bench.process import BenchError

BLOCK_TOKENS = 512  # of one Mooncake hash id


@dataclass(frozen=True, slots=True)
class Arrival:
    """One call of a trace."""

    at_s: float
    input_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] = ()  # ids of shared prefix blocks, first one first; empty: nothing is shared


def read(path: Path, speed: float, seconds: float, calls: int) -> Iterator[Arrival]:
    """Arrivals with `at_s` divided by `speed`, until `seconds` or `calls` (0: no bound) are reached."""
    try:
        with _open(path) as lines:
            for number, arrival in enumerate(parse(lines, str(path))):
                at_s = arrival.at_s / speed
                if (calls and number >= calls) or at_s >= seconds:
                    return
                yield Arrival(at_s, arrival.input_tokens, arrival.output_tokens, arrival.blocks)
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise BenchError(f"{path}: cannot be read as a trace: {error}") from None


def _open(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return io.TextIOWrapper(gzip.GzipFile(path), encoding="utf-8")
    return path.open(encoding="utf-8")


def parse(lines: Iterable[str], name: str) -> Iterator[Arrival]:
    """Arrivals of either format, told by the first line."""
    numbered = ((number, line.strip()) for number, line in enumerate(lines, 1) if line.strip())
    first = next(numbered, None)
    if first is None:
        raise BenchError(f"{name}: the trace is empty")
    if first[1].startswith("{"):
        return _arrivals(chain((first,), numbered), name, _mooncake)
    columns = first[1].lstrip("\ufeff").split(",")
    if columns[:3] != ["TIMESTAMP", "ContextTokens", "GeneratedTokens"]:
        raise BenchError(
            f"{name}:{first[0]}: neither Azure CSV (TIMESTAMP,ContextTokens,GeneratedTokens) nor Mooncake JSONL:"
            f" {first[1][:60]!r}"
        )
    return _arrivals(numbered, name, _azure)


def _arrivals(numbered: Iterator[tuple[int, str]], name: str, of_line: Callable[[str], Arrival]) -> Iterator[Arrival]:
    start_s: float | None = None
    for number, line in numbered:
        try:
            arrival = of_line(line)
            if arrival.input_tokens < 0 or arrival.output_tokens < 0:
                raise ValueError("a negative number of tokens")
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise BenchError(f"{name}:{number}: {type(error).__name__} {error} in {line[:60]!r}") from None
        if start_s is None:
            start_s = arrival.at_s
        yield Arrival(arrival.at_s - start_s, arrival.input_tokens, arrival.output_tokens, arrival.blocks)


def _azure(line: str) -> Arrival:
    stamp, context, generated = line.split(",")[:3]
    whole, _, fraction = stamp.partition(".")  # seven digits of fraction: more than datetime reads
    moment = datetime.fromisoformat(whole + "+00:00").timestamp() + float(f"0.{fraction[:9] or 0}")
    return Arrival(moment, int(context), int(generated))


def _mooncake(line: str) -> Arrival:
    data = json.loads(line)
    blocks = tuple(int(block) for block in data["hash_ids"])
    return Arrival(float(data["timestamp"]) / 1000, int(data["input_length"]), int(data["output_length"]), blocks)
