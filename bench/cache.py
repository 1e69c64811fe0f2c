"""The cache engines: cost of each operation, hit rates beside Belady's optimum, memory beside the configured bytes.

`python bench/cache.py [--json] [--rounds N] [--only ops|traces|memory]`. Costs are CPU microseconds, the median over
rounds. Traces: a seeded Zipf, and where they are to be had (`$OUTRIDER_DATA`, else `../shared/data`) the Mooncake
traces and the tool calls of tau-bench; objects weigh the same, so that Belady's rule is the optimum. Memory: what the
process grew by while a cache was filled five times over, each case in a process of its own.
"""

from __future__ import annotations

import argparse
import gc
import gzip
import heapq
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# In place of this folder, whose `hpack` and `profile` would be taken for others.
sys.path[0:1] = [str(ROOT / "sidecar"), str(ROOT / "protos")]

from xxhash import xxh3_128_digest  # noqa: E402

from outrider.policy import Optimization  # noqa: E402
from outrider_sidecar.core.entry import Entry, head_weight  # noqa: E402
from outrider_sidecar.engines import cache_control  # noqa: E402
from outrider_sidecar.engines.cache import Cache  # noqa: E402
from outrider_sidecar.engines.cache_key import SCHEMA, AuthScopes, cache_key  # noqa: E402
from outrider_sidecar.engines.epochs import Epochs  # noqa: E402
from outrider_sidecar.engines.ghost import Ghosts  # noqa: E402
from outrider_sidecar.engines.snapshot import Decoder, Header, encode  # noqa: E402

STRATEGIES = ("lru", "lfu")
HEAD = ((b":status", b"200"), (b"content-type", b"application/grpc"), (b"grpc-encoding", b"identity"))
TRAILERS = ((b"grpc-status", b"0"),)
OBJECT_BYTES = 4_096
SHARES = (0.01, 0.05, 0.1, 0.25)  # of the distinct objects
MEMORY_CASES = (  # name, configured MB, body bytes, bytes a chunk, tagged
    ("many of 1 KB", 64, 1_024, 16_384, False),
    ("many of 1 KB, tagged", 64, 1_024, 16_384, True),
    ("few of 1 MB", 64, 1_000_000, 16_384, False),
    ("streams of 64 B chunks", 64, 4_096, 64, False),
    ("mixed, lognormal", 64, 0, 16_384, False),
    ("many of 1 KB, small cache", 8, 1_024, 16_384, False),
)


def new_cache(strategy: str, max_bytes: int) -> Cache:
    return Cache(strategy, max_bytes, min(max_bytes, 2 << 20), 0.1, 0.25, random.Random(1))


def new_entry(key: bytes, body: bytes = b"x" * 1_024) -> Entry:
    return Entry(key, HEAD, (body,), TRAILERS, head_bytes=head_weight(HEAD, TRAILERS), tier="llm")


def keys_of(count: int) -> list[bytes]:
    return [xxh3_128_digest(str(number).encode()) for number in range(count)]


# Operations


def cost_us(work: Callable[[], object], operations: int, rounds: int) -> float:
    """Median over rounds of the CPU time of one operation."""
    work()
    figures = []
    gc.collect()
    for _ in range(rounds):
        start = time.process_time()
        work()
        figures.append((time.process_time() - start) / operations * 1e6)
    return statistics.median(figures)


def native_body() -> bytes:
    from outrider.v1 import agent_pb2 as pb

    request = pb.InvokeRequest(agent_id="tax", session_id="s", user_id="u", tenant_id="t", request_id="r-1")
    for number in range(4):
        request.messages.add(role=pb.ROLE_USER).parts.add(text=f"{number} " + "lorem ipsum " * 13)
    request.context.add(block_id="b", tags=["law"]).parts.add(text="context " * 20)
    request.tools.add(name="look", side_effects=pb.SIDE_EFFECTS_READ_ONLY, input_schema_json='{"type": "object"}')
    request.generation.model = "m"
    message = request.SerializeToString()
    return b"\0" + len(message).to_bytes(4, "big") + message


def engine_costs(rounds: int) -> dict[str, float]:
    found: dict[str, float] = {}
    count = 10_000
    keys = keys_of(count)
    strangers = [xxh3_128_digest(key) for key in keys]
    for strategy in STRATEGIES:
        cache = new_cache(strategy, 1 << 30)
        for key in keys:
            cache.put(new_entry(key), 3_600.0, 0.0)
        get = cache.get
        found[f"{strategy}: hit"] = cost_us(lambda get=get: [get(key, 1.0) for key in keys], count, rounds)
        found[f"{strategy}: miss"] = cost_us(lambda get=get: [get(key, 1.0) for key in strangers], count, rounds)
        small = new_cache(strategy, 4 << 20)
        entries = [new_entry(key) for key in keys]
        found[f"{strategy}: put, one evicted"] = cost_us(
            lambda small=small, entries=entries: [small.put(entry, 3_600.0, 1.0) for entry in entries], count, rounds
        )
        ghosts = Ghosts(strategy, 8 << 20)
        order = random.Random(1).choices(range(count), [1 / (rank + 1) for rank in range(count)], k=count)
        lookups = [keys[number] for number in order]
        record = ghosts.record
        found[f"{strategy}: ghosts, one lookup"] = cost_us(
            lambda record=record, lookups=lookups: [record(key, 2_000, True) for key in lookups], count, rounds
        )
    return found


def key_costs(rounds: int) -> dict[str, float]:
    from outrider_sidecar.payloads import NATIVE_STREAM, NATIVE_UNARY, Payloads

    turns = range(10_000)
    epochs, scopes, payloads, policy = Epochs(), AuthScopes(), Payloads(7), Optimization(cache_methods=("/a.B/C",))
    epochs.bump(1.0, "tax", "t")
    metadata = {b"authorization": b"Bearer " + b"x" * 200, b"te": b"trailers"}
    native, stream, raw = payloads.of(NATIVE_UNARY), payloads.of(NATIVE_STREAM), payloads.of(b"/a.B/C")
    body = native_body()
    chunk = b"\0\0\0\0\x32\x12\x30" + b"text" * 12
    work: dict[str, Callable[[], object]] = {
        "cache_key": lambda: cache_key(SCHEMA, "tax", "t", "u", b"a" * 16, "", b"", b"e" * 16, b"d" * 16, 7),
        "auth scope": lambda: scopes.of(metadata),
        "epochs part": lambda: epochs.part("tax", "t", ("law",)),
        "x-cache-control": lambda: cache_control.parse(b"max-age=60, no-cache"),
        f"native request, {len(body)} B": lambda: native.request(NATIVE_UNARY, b"", body, policy),
        f"raw request, {len(body)} B": lambda: raw.request(b"/a.B/C", b"", body, policy),
    }
    found = {name: cost_us(lambda do=do: [do() for _ in turns], len(turns), rounds) for name, do in work.items()}
    feed = stream.reader(b"").feed
    found["stream reader, 55 B chunk"] = cost_us(lambda: [feed(chunk) for _ in turns], len(turns), rounds)
    return found


def snapshot_costs(rounds: int) -> dict[str, float]:
    count = 5_000
    entries = [("tax", new_entry(key)) for key in keys_of(count)]
    header = Header(1.0, 7, Epochs().export(), count)

    def identity(fields: Any) -> Any:
        return fields

    data = b"".join(encode(header, entries, identity))

    def read() -> None:
        decoder = Decoder(identity, identity)
        for at in range(0, len(data), 1 << 20):
            decoder.feed(data[at : at + (1 << 20)])
        decoder.finish()

    return {
        "snapshot: write 1 KB entry": cost_us(lambda: list(encode(header, entries, identity)), count, rounds),
        "snapshot: read 1 KB entry": cost_us(read, count, rounds),
    }


# Traces


def data_folder() -> Path | None:
    folder = Path(os.environ.get("OUTRIDER_DATA", ROOT.parent / "shared" / "data"))
    return folder if folder.is_dir() else None


def zipf() -> list[int]:
    weights = [1 / (rank + 1) for rank in range(20_000)]
    return random.Random(1).choices(range(20_000), weights, k=100_000)


def mooncake(path: Path) -> tuple[list[Any], list[Any]]:
    """Whole requests, and their 512-token prefix blocks."""
    requests: list[Any] = []
    blocks: list[Any] = []
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            requests.append((row["input_length"], *row["hash_ids"]))
            blocks += row["hash_ids"]
    return requests, blocks[:120_000]


def tool_calls(path: Path) -> list[Any]:
    """Calls of tools that only read, in the order of the conversations."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        conversations = json.load(file)
    return [
        (call["function"]["name"], call["function"]["arguments"])
        for conversation in conversations
        for message in conversation["traj"]
        for call in message.get("tool_calls") or ()
        if call["function"]["name"].startswith(("get_", "search_", "list_", "calculate"))
    ]


def traces() -> Iterator[tuple[str, list[Any]]]:
    yield "zipf 1.0", zipf()
    folder = data_folder()
    if folder is None:
        print("no recorded traces: set OUTRIDER_DATA to the folder that holds them", file=sys.stderr)
        return
    for name in ("conversation", "synthetic"):
        path = folder / f"mooncake-{name}.jsonl.gz"
        if path.exists():
            requests, blocks = mooncake(path)
            yield f"mooncake {name}, requests", requests
            yield f"mooncake {name}, blocks", blocks
    path = folder / "tau-bench-airline-gpt-4o.json.gz"
    if path.exists():
        yield "tau-bench read-only tool calls", tool_calls(path)


def belady(trace: Sequence[int], capacity: int) -> float:
    """Hit rate of evicting what is needed last (MIN, Belady 1966), for objects of one size."""
    never = len(trace)
    following = [never] * len(trace)
    last: dict[int, int] = {}
    for at in range(len(trace) - 1, -1, -1):
        following[at] = last.get(trace[at], never)
        last[trace[at]] = at
    held: dict[int, int] = {}
    furthest: list[tuple[int, int]] = []
    hits = 0
    for at, number in enumerate(trace):
        if number in held:
            hits += 1
        elif len(held) >= capacity:
            while True:
                negated, victim = heapq.heappop(furthest)
                if held.get(victim) == -negated:
                    del held[victim]
                    break
        held[number] = following[at]
        heapq.heappush(furthest, (-following[at], number))
    return hits / len(trace)


def replay(trace: Sequence[int], keys: Sequence[bytes], strategy: str, capacity: int) -> tuple[float, float]:
    """Hit rates of the cache and of its ghost of the same size."""
    max_bytes = capacity * OBJECT_BYTES
    cache = Cache(strategy, max_bytes, OBJECT_BYTES, 0.0, 0.0, random.Random(1))
    ghosts = Ghosts(strategy, max_bytes)
    hits = 0
    for number in trace:
        key = keys[number]
        entry, _ = cache.get(key, 0.0)
        ghosts.record(key, OBJECT_BYTES, entry is not None)
        if entry is not None:
            hits += 1
        else:
            entry = Entry(key, None, (), None, head_bytes=0)
            entry.weight_bytes = OBJECT_BYTES
            cache.put(entry, 1e9, 0.0)
    return hits / len(trace), float(ghosts.report()["same"] or 0.0)


def trace_rows() -> list[dict[str, Any]]:
    rows = []
    for name, lookups in traces():
        numbers: dict[Any, int] = {}
        trace = [numbers.setdefault(lookup, len(numbers)) for lookup in lookups]
        keys = keys_of(len(numbers))
        for share in SHARES:
            capacity = max(1, int(len(numbers) * share))
            row: dict[str, Any] = {"trace": name, "lookups": len(trace), "objects": capacity, "share": share}
            for strategy in STRATEGIES:
                row[strategy], row[f"ghost {strategy}"] = replay(trace, keys, strategy, capacity)
            row["belady"] = belady(trace, capacity)
            row["ever seen"] = 1 - len(numbers) / len(trace)
            rows.append(row)
    return rows


# Memory


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def fill(strategy: str, case: int) -> float:
    """Growth of this process over the configured bytes, after filling a cache five times over with hits mixed in."""
    _, configured_mb, body_bytes, chunk_bytes, tagged = MEMORY_CASES[case]
    rng = random.Random(1)
    cache = new_cache(strategy, configured_mb << 20)
    before = resident_bytes()
    filled, number = 0, 0
    while filled < 5 * cache.max_bytes:
        size = body_bytes or min(int(rng.lognormvariate(7.5, 1.5)) + 1, 1_000_000)
        chunks = tuple([os.urandom(min(chunk_bytes, size - at)) for at in range(0, size, chunk_bytes)])
        gaps = tuple([rng.randrange(1_000) for _ in chunks])
        tags = (f"tag{number}",) if tagged else ()
        entry = Entry(rng.randbytes(16), HEAD, chunks, TRAILERS, head_bytes=0, gaps_ms=gaps, tier="llm", tags=tags)
        cache.put(entry, 3_600.0, number * 0.01)
        for key in cache._cursor[:1]:
            cache.get(key, number * 0.01)
        filled += entry.weight_bytes
        number += 1
    return (resident_bytes() - before) / cache.max_bytes


def memory_rows() -> list[dict[str, Any]]:
    rows = []
    for case, (name, configured_mb, *_) in enumerate(MEMORY_CASES):
        row: dict[str, Any] = {"case": name, "configured MB": configured_mb}
        for strategy in STRATEGIES:
            done = subprocess.run(
                [sys.executable, __file__, "--fill", strategy, str(case)], capture_output=True, text=True, check=True
            )
            row[strategy] = float(done.stdout)
        rows.append(row)
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    if not rows:
        return
    widths = {name: max(len(name), *(len(shown(row[name])) for row in rows)) for name in rows[0]}
    print("  ".join(name.ljust(widths[name]) for name in rows[0]))
    for row in rows:
        print("  ".join(shown(row[name]).ljust(widths[name]) for name in row))
    print()


def shown(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", choices=("ops", "traces", "memory"))
    parser.add_argument("--fill", nargs=2, metavar=("STRATEGY", "CASE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.fill:
        print(fill(options.fill[0], int(options.fill[1])))
        return
    results: dict[str, list[dict[str, Any]]] = {}
    if options.only in (None, "ops"):
        costs = {**engine_costs(options.rounds), **key_costs(options.rounds), **snapshot_costs(options.rounds)}
        results["ops"] = [{"operation": name, "CPU us": figure} for name, figure in costs.items()]
    if options.only in (None, "traces"):
        results["traces"] = trace_rows()
    if options.only in (None, "memory"):
        results["memory"] = memory_rows()
    if options.json:
        print(json.dumps(results, indent=1))
        return
    for rows in results.values():
        show(rows)


if __name__ == "__main__":
    main()
