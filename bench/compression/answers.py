"""Whether answers survive a selection: ours, and four plain ones at equal size.

Always holds: every method gets the same passages and at most the same share of their tokens, its own markers counted;
sizes are reported beside the shares that survive.
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from bench.compression.corpora import Asked, survives
from outrider_sidecar.compress import protect, selection
from outrider_sidecar.compress.block import Budget, Context
from outrider_sidecar.compress.tokens import Count

SHARES = (0.5, 0.25)
OURS = "ours"

_WORD = re.compile(r"\w+")
Passages = Sequence[tuple[str, str]]
FORMS: dict[str, Callable[[Passages], str]] = {
    "titled": lambda passages: "\n\n".join(
        [f"Document [{at}](Title: {title}) {text}" for at, (title, text) in enumerate(passages, 1)]
    ),
    "headed": lambda passages: "\n\n".join([f"{title}\n{text}" for title, text in passages]),
    "untitled": lambda passages: "\n\n".join([text for _, text in passages]),
}
MAIN_FORM = "titled"


def rows(asked: Sequence[Asked], count: Count, seed: int) -> list[dict[str, Any]]:
    """One per form of the block, share and method; plain methods with titled passages alone."""
    found = []
    for form, written in FORMS.items():
        for share in SHARES:
            methods = {OURS: _ours} | (PLAIN if form == MAIN_FORM else {})
            for name, method in methods.items():
                rng = random.Random(seed)
                survived = size = whole = 0
                for one in asked:
                    text = written(one.passages)
                    kept = method(one, text, share, count, rng)
                    tokens, all_of_it = count(kept), count(text)
                    survived += survives(kept, one.answers)
                    size, whole = size + tokens, whole + all_of_it
                found.append(
                    {
                        "form": form,
                        "share": share,
                        "method": name,
                        "survived": survived / len(asked),
                        "tokens": size / whole,
                        "questions": len(asked),
                    }
                )
    return found


def _ours(asked: Asked, text: str, share: float, count: Count, rng: random.Random) -> str:
    context = Context(Budget(10**9), question=asked.question, keep=share, count=count)
    shrunk = selection.shrink(text, context)
    return shrunk.text if shrunk is not None else text


def _head(asked: Asked, text: str, share: float, count: Count, rng: random.Random) -> str:
    """As much of the beginning as there is room for."""
    room = int(share * count(text))
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if count(text[:middle]) <= room else (low, middle - 1)
    return text[:low]


def _random(asked: Asked, text: str, share: float, count: Count, rng: random.Random) -> str:
    """Sentences drawn."""
    sentences = protect.sentences(text)
    order = list(range(len(sentences)))
    rng.shuffle(order)
    return _filled(sentences, order, share * count(text), count)


def _bm25_sentences(asked: Asked, text: str, share: float, count: Count, rng: random.Random) -> str:
    sentences = protect.sentences(text)
    return _filled(sentences, _ranked(sentences, asked.question), share * count(text), count)


def _bm25_passages(asked: Asked, text: str, share: float, count: Count, rng: random.Random) -> str:
    passages = [f"{one}\n\n" for one in text.split("\n\n")]
    return _filled(passages, _ranked(passages, asked.question), share * count(text), count)


PLAIN = {
    "head": _head,
    "random sentences": _random,
    "BM25 sentences": _bm25_sentences,
    "BM25 passages": _bm25_passages,
}


def _filled(pieces: list[str], order: Sequence[int], room: float, count: Count) -> str:
    """Pieces in their own order, taken in the order given while there is room."""
    taken = []
    for at in order:
        cost = count(pieces[at])
        if cost <= room:
            room -= cost
            taken.append(at)
    return "".join([pieces[at] for at in sorted(taken)])


def _ranked(pieces: Sequence[str], question: str) -> list[int]:
    """BM25 (k1 1.2, b 0.75), nearest first."""
    words = [_WORD.findall(piece.lower()) for piece in pieces]
    counts = [Counter(one) for one in words]
    average = sum(map(len, words)) / len(words) or 1.0
    scores = [0.0] * len(pieces)
    for word in dict.fromkeys(_WORD.findall(question.lower())):
        holding = sum([word in counted for counted in counts])
        weight = math.log(1 + (len(pieces) - holding + 0.5) / (holding + 0.5))
        for at, counted in enumerate(counts):
            if found := counted.get(word):
                scores[at] += weight * found * 2.2 / (found + 1.2 * (0.25 + 0.75 * len(words[at]) / average))
    return sorted(range(len(pieces)), key=lambda at: -scores[at])
