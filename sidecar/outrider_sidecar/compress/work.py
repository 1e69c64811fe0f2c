"""Blocks to be compressed elsewhere, as bytes: what a worker process is asked and what it answers.

Always holds: what comes out is what `conversation.made_of` gives, whoever does it; order is kept.

Deliberately not here: processes and pipes (`edge.compress_worker`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgpack

from outrider.policy import Compression
from outrider_sidecar.compress import tokens
from outrider_sidecar.compress.block import Block, Budget, Context, Result
from outrider_sidecar.compress.conversation import made_of
from outrider_sidecar.compress.ledger import Made

_TIMES: Final = 20  # the steps that a request has on the sidecar's loop: here they hold up nobody
LENGTH_BYTES: Final = 4  # before every question and answer


class Job(NamedTuple):
    """One block. `vocabulary`: tokens are counted with it; empty: they are estimated."""

    block: Block
    question: str
    mode: str
    policy: Compression
    node: str
    vocabulary: str


def framed(payload: bytes) -> bytes:
    """A question or an answer as it travels."""
    return len(payload).to_bytes(LENGTH_BYTES, "big") + payload


def packed(jobs: Sequence[Job]) -> bytes:
    """The question."""
    rows = [
        (
            *(block.text, block.role, block.source, block.media_type, question, mode, node, vocabulary),
            *(policy.lossy_ratio, policy.lossy_min_tokens, policy.handle_max_bytes, policy.max_steps),
        )
        for block, question, mode, policy, node, vocabulary in jobs
    ]
    return _bytes(rows)


def done(question: bytes) -> bytes:
    """The answer."""
    return _bytes([_row(_made(*one)) for one in msgpack.unpackb(question)])


def read(answer: bytes) -> list[Made]:
    """What was made, block by block."""
    return [
        Made(Result(*result) if result is not None else None, before, after)
        for result, before, after in msgpack.unpackb(answer)
    ]


def _made(
    text: str,
    role: str,
    source: str,
    media_type: str,
    question: str,
    mode: str,
    node: str,
    vocabulary: str,
    lossy_ratio: float,
    lossy_min_tokens: int,
    handle_max_bytes: int,
    max_steps: int,
) -> Made:
    policy = Compression(
        lossy_ratio=lossy_ratio,
        lossy_min_tokens=lossy_min_tokens,
        handle_max_bytes=handle_max_bytes,
        max_steps=max_steps,
    )
    count = tokens.exact(vocabulary) if vocabulary else tokens.estimate
    context = Context(Budget(_TIMES * max_steps), {}, question, lossy_ratio, count, node)
    return made_of(Block(text, role, source, media_type), context, mode, policy, count)


def _bytes(rows: list[Any]) -> bytes:
    payload: bytes = msgpack.packb(rows)  # pyright: ignore[reportAssignmentType]
    return payload


def _row(made: Made) -> tuple[tuple[str, str, str, int, bool, str] | None, int, int]:
    result, before, after = made
    if result is None:
        return None, before, after
    row = (result.text, result.kind, result.compressor, result.saved_bytes, result.reversible, result.handle)
    return row, before, after
