"""What lossless compression saves block by block, and that it restores.

Always holds: every block stands alone, with no earlier one to point to; tokens are counted as `count` says.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bench.compression import corpora
from outrider_sidecar.compress import catalog
from outrider_sidecar.compress.block import TOOL, Block, Budget, Context
from outrider_sidecar.compress.tokens import Count

_UNBOUNDED = 10**9


def rows(data: Path | None, seed: int, count: Count) -> dict[str, dict[str, Any]]:
    """Kind of blocks -> {blocks, changed, tokens_before, tokens_after, saved, bytes_saved, broken}. `broken`: blocks
    that are not restored to the character, or, where white space of the writer's own was lost, not in meaning."""
    kinds: dict[str, Sequence[str]] = {
        "uniform records": corpora.records(seed),
        "service logs": corpora.service_logs(seed),
        "code": corpora.sources(),
        "HTML pages (lossless)": corpora.pages(seed),
    }
    found = {name: _row(texts, count) for name, texts in kinds.items()}
    found["HTML pages (lossy, with a handle)"] = _lossy(corpora.pages(seed), count)
    if data is not None:
        told = [one for messages in corpora.conversations(data) for one in tool_outputs(messages)]
        found["tool outputs, tau-bench"] = _row(told, count)
    return found


def tool_outputs(messages: Iterable[dict[str, Any]]) -> list[str]:
    """What tools have answered."""
    return [one["content"] for one in messages if one["role"] == TOOL and isinstance(one.get("content"), str)]


def _row(texts: Sequence[str], count: Count) -> dict[str, Any]:
    before = after = size = smaller = changed = broken = 0
    for text in texts:
        result = catalog.lossless(Block(text), Context(Budget(_UNBOUNDED)))
        made = result.text if result is not None else text
        before += count(text)
        after += count(made)
        size += len(text.encode())
        smaller += len(made.encode())
        if result is not None:
            changed += 1
            broken += not _is_restored(text, made, result.reversible)
    return _told(len(texts), changed, before, after, 1 - smaller / size, broken)


def _lossy(texts: Sequence[str], count: Count) -> dict[str, Any]:
    before = after = size = smaller = changed = 0
    for text in texts:
        result = catalog.lossy(Block(text), Context(Budget(_UNBOUNDED), question="how many claims?", count=count))
        made = result.text if result is not None else text
        before, after, changed = before + count(text), after + count(made), changed + (result is not None)
        size, smaller = size + len(text.encode()), smaller + len(made.encode())
    return _told(len(texts), changed, before, after, 1 - smaller / size, 0)


def _told(blocks: int, changed: int, before: int, after: int, bytes_saved: float, broken: int) -> dict[str, Any]:
    return {
        "blocks": blocks,
        "changed": changed,
        "tokens_before": before,
        "tokens_after": after,
        "saved": 1 - after / before,
        "bytes_saved": bytes_saved,
        "broken": broken,
    }


def _is_restored(text: str, made: str, is_exact: bool) -> bool:
    back = catalog.restore(made)
    if is_exact:
        return back == text
    pairs: dict[str, Any] = {"object_pairs_hook": list, "parse_float": str, "parse_int": str}
    try:
        return bool(json.loads(back, **pairs) == json.loads(text, **pairs))
    except ValueError:
        return False
