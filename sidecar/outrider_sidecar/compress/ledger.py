"""What was decided for the blocks of conversations, for good: the reason why a prefix once sent stays byte for byte.

Always holds: a decision is kept under the block's chain, a hash of it and of everything before it, so that a
conversation that grows finds what was decided for its prefix, and one that forks shares it. What is kept is bounded in
number and bytes, the longest unused goes first. What is forgotten is decided again from the same block, the same
prefix and the same version, which gives the same bytes but where something from outside had decided otherwise (the
controller, an epoch); it is forgotten only after `IDLE_S`, when no provider holds the prefix any more, or where the
bound is reached.

What compressors make of a block is remembered besides by the block alone (`Memo`), whatever conversation it is in.

Deliberately not here: deciding (`conversation`), originals of lossy blocks (`originals`).
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, NamedTuple

from outrider.digest import blake2b
from outrider_sidecar.compress.block import Result

IDLE_S: Final = 7_200.0  # providers keep a prefix for an hour at most
CHAIN_BYTES: Final = 16

SENT: Final = "sent"  # as it is
COMPRESSED: Final = "compressed"
CLEARED: Final = "cleared"  # at an epoch, or for the budget
DROPPED: Final = "dropped"  # for the budget


class Decision(NamedTuple):
    """What stands for one block."""

    action: str = SENT
    result: Result | None = None
    tokens_before: int = 0  # 0: not counted
    tokens_after: int = 0
    why: str = ""  # for people


_COST: Final = 400  # bytes of an entry, about


def chain_of(before: bytes, role: str, digest: bytes) -> bytes:
    """The chain of a block of that digest behind `before` (empty: it is the first, or the scope it is in)."""
    return blake2b(before + digest, digest_size=CHAIN_BYTES, person=role.encode()[:16]).digest()


class Ledger:
    """Decisions of one agent's conversations. `now` is monotonic seconds."""

    __slots__ = ("_bytes", "_max_bytes", "_max_entries", "_rows", "forgotten")

    def __init__(self, max_entries: int = 100_000, max_bytes: int = 16 * 1024 * 1024):
        self._rows: OrderedDict[bytes, tuple[Decision, float]] = OrderedDict()
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._bytes = 0
        self.forgotten = 0  # for want of room

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def size_bytes(self) -> int:
        return self._bytes

    def get(self, chain: bytes, now: float) -> Decision | None:
        """What was decided."""
        found = self._rows.get(chain)
        if found is None:
            return None
        self._rows[chain] = (found[0], now)
        self._rows.move_to_end(chain)
        return found[0]

    def put(self, chain: bytes, decision: Decision, now: float) -> None:
        """Decide, in place of what was decided before: that is for epochs alone."""
        old = self._rows.pop(chain, None)
        if old is not None:
            self._bytes -= _weight(old[0])
        self._rows[chain] = (decision, now)
        self._bytes += _weight(decision)
        while self._rows and (len(self._rows) > self._max_entries or self._bytes > self._max_bytes):
            _, (gone, _) = self._rows.popitem(last=False)
            self._bytes -= _weight(gone)
            self.forgotten += 1

    def expire(self, now: float, at_most: int = 1_000) -> int:
        """Forget what nobody has asked for in `IDLE_S`; how many."""
        count = 0
        while self._rows and count < at_most:
            chain, (decision, used) = next(iter(self._rows.items()))
            if now - used < IDLE_S:
                break
            del self._rows[chain]
            self._bytes -= _weight(decision)
            count += 1
        return count


def _weight(decision: Decision) -> int:
    return _COST + (2 * len(decision.result.text) if decision.result is not None else 0)


class Made(NamedTuple):
    """What compressors made of one block, and what it comes to in tokens. None: it stays as it is."""

    result: Result | None
    tokens_before: int
    tokens_after: int


class Memo:
    """What compressors made of blocks, by the block's digest and how it was asked; that nothing was made as well."""

    __slots__ = ("_bytes", "_max_bytes", "_rows", "hits", "misses")

    def __init__(self, max_bytes: int = 16 * 1024 * 1024):
        self._rows: OrderedDict[bytes, Made] = OrderedDict()
        self._max_bytes = max_bytes
        self._bytes = 0
        self.hits = 0
        self.misses = 0

    def __contains__(self, key: bytes) -> bool:
        return key in self._rows

    @property
    def size_bytes(self) -> int:
        return self._bytes

    def get(self, key: bytes) -> Made | None:
        """What is remembered, or None."""
        found = self._rows.get(key)
        if found is None:
            self.misses += 1
            return None
        self._rows.move_to_end(key)
        self.hits += 1
        return found

    def put(self, key: bytes, made: Made) -> None:
        if key in self._rows:
            return
        self._rows[key] = made
        self._bytes += _made_bytes(made)
        while self._bytes > self._max_bytes and self._rows:
            _, gone = self._rows.popitem(last=False)
            self._bytes -= _made_bytes(gone)


def _made_bytes(made: Made) -> int:
    return _COST + (2 * len(made.result.text) if made.result is not None else 0)
