"""A block of a conversation, what a compressor makes of it, and what it may spend.

A compressor is a pure, versioned function of one block: `compress(block, context) -> Result | None`, None meaning that
the block stays as it is. Always holds for every one of them:
- A result is smaller than the block in bytes, marker included, and begins with nothing that was in the block by chance:
  a block that looks like a result (`marked`) is left alone, so compressing twice is compressing once.
- A reversible result is restored from its own text to the same characters. A text counts as ours only if compressing
  what it restores to gives the very same text again (see `catalog.restore`), so text that merely imitates a marker is
  what it is: it needs no escape, which could not be had without making some block larger.
- Work is announced before it is done (`Budget.take`), in steps that depend on the block alone, never on a clock.

Deliberately not here: tokens (`tokens`), what a conversation keeps of its results (the ledger), detection (`detect`).
"""

from __future__ import annotations

from base64 import b32encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final

TOOL: Final = "tool"
CONTEXT: Final = "context"
USER: Final = "user"
SYSTEM: Final = "system"
ASSISTANT: Final = "assistant"
COMPRESSIBLE: Final = (TOOL, CONTEXT)  # what others said is theirs; the last user turn above all

MARKER: Final = "#outrider:"  # of results that are lossy or point elsewhere
PLAIN_MARKERS: Final = ("#columns/", "#rows/", "#lines/", "#text/")  # of reversible ones: short, for they are many

_SAFE: Final = "surrogatepass"


@dataclass(frozen=True, slots=True)
class Block:
    """One part of a message, or one piece of material to answer from."""

    text: str
    role: str = TOOL  # TOOL, CONTEXT, USER, SYSTEM, ASSISTANT
    source: str = ""  # the tool's name, the title or path of the material
    media_type: str = ""  # where the sender says it
    _digest: list[bytes] = field(default_factory=list, init=False, repr=False, compare=False)

    def digest(self) -> bytes:
        """What the block is known by: 16 bytes over its text."""
        if not self._digest:
            self._digest.append(digest_of(self.text))
        return self._digest[0]


@dataclass(slots=True)
class Budget:
    """Steps of work that are left; about 400 are done in a microsecond."""

    steps: int = 2_000_000
    exhausted: bool = False

    def take(self, steps: int) -> bool:
        """Whether so much work may still be done; if not, none of it was taken and nothing large may be begun."""
        if steps > self.steps:
            self.exhausted = True
            return False
        self.steps -= steps
        return True


@dataclass(slots=True)
class Context:
    """What a compressor may know beside its block."""

    budget: Budget = field(default_factory=Budget)
    seen: Mapping[bytes, str] = field(default_factory=dict)  # digests of earlier blocks -> what to call them
    question: str = ""  # the last user turn, for what selects by it
    keep: float = 0.5  # share of the size that a selection keeps
    count: Callable[[str], int] | None = None  # tokens of a text; None: bytes are what is shared out
    node: str = ""  # who keeps originals; part of handles


@dataclass(frozen=True, slots=True)
class Result:
    """What stands for the block from now on."""

    text: str
    kind: str  # what the block was found to be: of `detect`
    compressor: str  # with its version: "columns/1"
    saved_bytes: int  # more than 0
    reversible: bool  # `catalog.restore` gives the block's text again
    handle: str = ""  # under which the original has to be kept; empty: it need not be


@dataclass(frozen=True, slots=True)
class Shrunk:
    """What a compressor made of a text."""

    compressor: str
    text: str
    exact: bool = True  # can be restored from its own text; else the meaning is the same by the format's own rules
    lossy: bool = False  # neither: the original has to be kept


Shrink = Callable[[str, Context], Shrunk | None]
Restore = Callable[[str], str | None]


def result_of(block: Block, kind: str, shrunk: Shrunk | None, context: Context) -> Result | None:
    """The result for a block, or None where nothing was saved."""
    if shrunk is None:
        return None
    saved = size(block.text) - size(shrunk.text)
    if saved <= 0:
        return None
    handle = handle_of(block.text, context.node) if shrunk.lossy else ""
    return Result(shrunk.text, kind, shrunk.compressor, saved, shrunk.exact and not shrunk.lossy, handle)


def size(text: str) -> int:
    """Bytes of a text in UTF-8; a lone surrogate counts three."""
    return len(text) if text.isascii() else len(text.encode("utf-8", _SAFE))


def digest_of(text: str) -> bytes:
    """16 bytes that stand for a text: of SHA-256, for which processors have instructions of their own."""
    return sha256(text.encode("utf-8", _SAFE), usedforsecurity=False).digest()[:16]


def label_of(digest: bytes) -> str:
    """How a digest is written where a model reads it: eight letters."""
    return b32encode(digest[:5]).decode().lower()


def handle_of(text: str, node: str) -> str:
    """Under what an original is kept: 16 letters of its digest, and the node that keeps it."""
    letters = b32encode(digest_of(text)[:10]).decode().lower()
    return f"{letters}@{node}" if node else letters


def marked(text: str) -> bool:
    """Whether a text begins as results do. Such text is never compressed."""
    return text.startswith("#") and text.startswith((MARKER, *PLAIN_MARKERS))
