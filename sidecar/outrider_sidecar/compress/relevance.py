"""How much passages have to do with a question, without a model: seven measures of shared words, weighed.

The measures, of words cut to their stems and without stop words: BM25 (Robertson and Zaragoza 2009; k1 1.2, b 0.75,
the passages at hand are the collection), the share of the question's words that occur, weighed by rarity and not, the
share that is in the title, the share of the title that is in the question, words that follow each other in both, and
words that begin alike where none is the same. The weights are of a conditional logit fitted to one half of nq-open's
questions; bench/compression reports the other half. Numbers, dates and names are not preferred where a question asks
for them: measured, that adds nothing to these.

Always holds: pure; work grows with the length of the passages alone. Stems and stop words are English; in other
languages whole words still count."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from math import log
from typing import Final

_WORD: Final = re.compile(r"\w+")
_K1: Final = 1.2
_B: Final = 0.75
_NEAR: Final = 3  # words apart, at most, that follow each other
_BM25, _RARE, _SHARE, _TITLE, _TITLE_SHARE, _FOLLOWING, _ALIKE = 4.85, 2.49, 0.65, 3.7, 2.27, 5.5, 8.5
_MAX_QUESTION: Final = 64  # words of it that are looked for
_STOP: Final = frozenset(
    [
        "a",
        "an",
        "the",
        "of",
        "in",
        "on",
        "at",
        "to",
        "for",
        "from",
        "by",
        "with",
        "and",
        "or",
        "is",
        "are",
        "was",
        "were",
        "be",
        "been",
        "being",
        "do",
        "does",
        "did",
        "has",
        "have",
        "had",
        "it",
        "its",
        "this",
        "that",
        "these",
        "those",
        "who",
        "whom",
        "whose",
        "what",
        "when",
        "where",
        "which",
        "why",
        "how",
        "i",
        "you",
        "he",
        "she",
        "they",
        "we",
        "his",
        "her",
        "their",
        "my",
        "your",
        "as",
        "into",
        "than",
        "then",
        "there",
        "can",
        "could",
        "will",
        "would",
        "should",
        "may",
        "might",
        "about",
        "over",
        "under",
        "between",
        "during",
        "after",
        "before",
        "not",
        "no",
        "so",
        "if",
        "but",
        "also",
        "s",
        "t",
    ]
)


@lru_cache(maxsize=32_768)
def stem(word: str) -> str:
    """A word without the commonest English endings."""
    if len(word) > 40:
        return word
    if len(word) > 5 and word.endswith("ies"):
        return word[:-3] + "i"
    if len(word) > 5 and word.endswith("ing"):
        word = word[:-3]
    elif len(word) > 4 and word.endswith(("ed", "es")):
        word = word[:-2]
    elif len(word) > 3 and word.endswith("s") and not word.endswith("ss"):
        word = word[:-1]
    if len(word) > 3 and word[-1] == word[-2] and word[-1] not in "aeiou":
        word = word[:-1]
    if len(word) > 3 and word.endswith("e"):
        word = word[:-1]
    return word[:-1] + "i" if len(word) > 3 and word.endswith("y") else word


def terms_of(text: str) -> list[str]:
    """The stems of a text, stop words left out."""
    return [stem(word) for word in _WORD.findall(text.lower()) if word not in _STOP]


class Question:
    """What is asked, and how well passages answer."""

    __slots__ = ("_following", "terms")

    def __init__(self, text: str) -> None:
        found = terms_of(text) or [stem(word) for word in _WORD.findall(text.lower())]
        del found[_MAX_QUESTION:]
        self.terms = list(dict.fromkeys(found))
        self._following = list(pairwise(found))

    def scores(self, passages: Sequence[tuple[str, str]]) -> list[float]:
        """One number per passage (title, text), the larger the nearer; comparable within one list."""
        titles = [terms_of(title) for title, _ in passages]
        bodies = [title + terms_of(text) for title, (_, text) in zip(titles, passages, strict=True)]
        counts = [Counter(body) for body in bodies]
        weights = self._weights(counts)
        total = sum(weights.values())
        if not total:
            return [0.0] * len(passages)
        average = sum(map(len, bodies)) / len(bodies) or 1.0
        return [
            _BM25 * self._bm25(counted, weights, len(body) / average) / total
            + self._shares(counted, weights, total)
            + self._titled(title, weights, total)
            + _FOLLOWING * self._follows(body)
            + _ALIKE * self._alike(counted, weights) / total
            for title, body, counted in zip(titles, bodies, counts, strict=True)
        ]

    def _weights(self, counts: list[Counter[str]]) -> dict[str, float]:
        """Of each word, how rare it is among the passages."""
        size = len(counts)
        weights: dict[str, float] = {}
        for term in self.terms:
            holding = sum([term in counted for counted in counts])
            weights[term] = log(1 + (size - holding + 0.5) / (holding + 0.5))
        return weights

    def _bm25(self, counted: Counter[str], weights: dict[str, float], length: float) -> float:
        damping = _K1 * (1 - _B + _B * length)
        score = 0.0
        for term, weight in weights.items():
            if count := counted.get(term):
                score += weight * count * (_K1 + 1) / (count + damping)
        return score

    def _shares(self, counted: Counter[str], weights: dict[str, float], total: float) -> float:
        held = [term for term in weights if term in counted]
        return _RARE * sum([weights[term] for term in held]) / total + _SHARE * len(held) / len(weights)

    def _titled(self, title: list[str], weights: dict[str, float], total: float) -> float:
        if not title:
            return 0.0
        asked = [term for term in title if term in weights]
        return _TITLE * sum([weights[term] for term in set(asked)]) / total + _TITLE_SHARE * len(asked) / len(title)

    def _follows(self, body: list[str]) -> float:
        if not self._following:
            return 0.0
        places: dict[str, list[int]] = {}
        wanted = set(self.terms)
        for index, term in enumerate(body):
            if term in wanted:
                places.setdefault(term, []).append(index)
        found = 0
        for first, second in self._following:
            seconds = set(places.get(second, ()))
            if seconds and any([at + step in seconds for at in places.get(first, ()) for step in range(1, _NEAR + 1)]):
                found += 1
        return found / len(self._following)

    def _alike(self, counted: Counter[str], weights: dict[str, float]) -> float:
        missing = [term for term in weights if len(term) >= 4 and term not in counted]
        if not missing:
            return 0.0
        long = {term[:5] for term in counted if len(term) >= 5}
        short = {term for term in counted if len(term) == 4}
        score = 0.0
        for term in missing:
            if len(term) >= 5:
                near = term[:5] in long or term[:4] in short
            else:
                near = any([other.startswith(term) for other in long])
            if near:
                score += weights[term]
        return score
