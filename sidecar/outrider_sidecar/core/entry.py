"""One stored reply: what the cache keeps, what a hit replays, what a snapshot writes.

Always holds: nothing a reader sees (head, chunks, gaps, trailers) changes after the entry is stored, so a reader may
go on replaying an entry that has been evicted. Times are unix seconds, because expiry has to survive a restart.
`weight_bytes` is an estimate, from above, of the memory the entry keeps alive, its share of the cache's tables
included: the sum of weights is what a byte budget is compared with.

Deliberately not here: when an entry is fresh (engines `cache`), how it is written to disk (engines `snapshot`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

Fields = tuple[tuple[bytes, bytes], ...]

# CPython 3.11, 64 bit, glibc: bench/cache.py --memory prints the resident bytes these constants stand for.
ENTRY_OVERHEAD_BYTES: Final = 800  # the object, its key, times and tokens, and a slot in each table of the store
CHUNK_OVERHEAD_BYTES: Final = 96  # a bytes object's header, its allocator's rounding, a tuple slot and a gap
TAG_OVERHEAD_BYTES: Final = 448  # a tag carried by this entry alone: name, set and table slot
HEAD_OVERHEAD_BYTES: Final = 512  # one header block as an object of its own
_FIELD_OVERHEAD_BYTES: Final = 192  # a pair of bytes objects, their tuple and a table slot

MAX_TAGS: Final = 16
MAX_TAG_CHARS: Final = 256


def head_weight(*blocks: Iterable[tuple[bytes, bytes]]) -> int:
    """Bytes that header blocks keep alive when nothing else shares them."""
    total = 0
    for block in blocks:
        total += HEAD_OVERHEAD_BYTES
        for name, value in block:
            total += len(name) + len(value) + _FIELD_OVERHEAD_BYTES
    return total


class Entry:
    """A complete reply under its key.

    `head` and `trailers` are the caller's objects and never looked into; `head_bytes` is what this entry alone keeps
    alive of them: 0 where they are interned, else `head_weight`.
    `chunks` are DATA payloads as received, `gaps_ms[i]` the pause before chunk i (empty: nothing to pace).
    `tokens` are (input, output) of the reply that was paid for. The four times and `uses` are the cache's to write.
    """

    __slots__ = (
        "chunks",
        "fresh_until",
        "gaps_ms",
        "head",
        "key",
        "stale_until",
        "stored_at",
        "tags",
        "tier",
        "tokens",
        "trailers",
        "used_at",
        "uses",
        "weight_bytes",
    )

    def __init__(
        self,
        key: bytes,
        head: Any,
        chunks: tuple[bytes, ...],
        trailers: Any,
        *,
        head_bytes: int,
        gaps_ms: tuple[int, ...] = (),
        tier: str = "raw",
        tags: tuple[str, ...] = (),
        tokens: tuple[int, int] = (0, 0),
    ):
        if tags and (len(tags) > MAX_TAGS or max(map(len, tags)) > MAX_TAG_CHARS):
            raise ValueError(f"an entry carries at most {MAX_TAGS} tags of at most {MAX_TAG_CHARS} characters")
        self.key = key
        self.head = head
        self.chunks = chunks
        self.gaps_ms = gaps_ms
        self.trailers = trailers
        self.tier = tier
        self.tags = tags
        self.tokens = tokens
        weight_bytes = ENTRY_OVERHEAD_BYTES + head_bytes + CHUNK_OVERHEAD_BYTES * len(chunks)
        for chunk in chunks:
            weight_bytes += len(chunk)
        self.weight_bytes = weight_bytes
        for tag in tags:
            self.weight_bytes += TAG_OVERHEAD_BYTES + len(tag)
        self.stored_at = 0.0
        self.fresh_until = 0.0
        self.stale_until = 0.0
        self.used_at = 0.0
        self.uses = 0

    def __repr__(self) -> str:
        return f"Entry({self.key.hex()}, {self.tier}, {self.weight_bytes} bytes, fresh until {self.fresh_until:.0f})"
