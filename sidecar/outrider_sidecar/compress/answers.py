"""How likely each sentence of a passage holds the answer, if the passage does.

Measures: the question's words in the sentence and in its neighbours, whether it is the first, its length, and what the
question asks for: years and months for "when", numbers for "how many", names that the question has not for "who" and
"where". The weights are of a conditional logit fitted to the gold passages of one half of nq-open's questions;
bench/compression reports the other half.

Always holds: pure; shares of one passage add up to 1. What is asked for is told by English words; without them the
other measures decide.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import exp, log
from typing import Final

from outrider_sidecar.compress.relevance import Question, terms_of

_DATE: Final = re.compile(
    r"\b(?:1[0-9]|20)\d\d\b|\b(?:January|February|March|April|May|June|July|August|September|October|November|December)\b"
)
_NUMBER: Final = re.compile(
    r"\d+|\b(?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|dozen|hundred|thousand|million|billion|first|"
    r"second|third)\b",
    re.IGNORECASE,
)
_NAME: Final = re.compile(r"(?<![.!?] )(?<!^)\b[A-Z][\w'\u2019-]+")
_ASKS: Final = (
    ("when", re.compile(r"\bwhen\b|\b(?:what|which) (?:year|date|day|month)")),
    (
        "number",
        re.compile(
            r"\bhow (?:many|much|long|old|far|tall|big|often|high|large|deep|fast)|what (?:number|percent|age)"
            r"|population"
        ),
    ),
    ("who", re.compile(r"\bwho|whose|whom\b")),
    ("where", re.compile(r"\bwhere\b")),
)
_OWN, _NEIGHBOURS, _FIRST, _LENGTH, _NEW = 1.8, 0.8, 0.95, 0.26, 0.006
_NAMES: Final = {"who": 1.25, "where": 0.93, "when": 0.27, "number": 0.0, "": 0.32}


def asked_for(question: str) -> str:
    """What kind of thing a question asks for: "when", "number", "who", "where", or nothing in particular."""
    lowered = question.lower()
    for name, pattern in _ASKS:
        if pattern.search(lowered):
            return name
    return ""


class Answers:
    """A question, asked of the sentences of passages."""

    __slots__ = ("_asks", "_terms", "_words")

    def __init__(self, text: str, question: Question) -> None:
        self._asks = asked_for(text)
        self._terms = frozenset(question.terms)
        self._words = frozenset(re.findall(r"\w+", text.lower()))

    def shares(self, sentences: Sequence[str]) -> list[float]:
        """The probability of each sentence; they add up to 1."""
        if len(sentences) < 2:
            return [1.0] * len(sentences)
        terms = [set(terms_of(sentence)) for sentence in sentences]
        size = len(self._terms) or 1
        held = [len(self._terms & found) / size for found in terms]
        weights: list[float] = []
        for index, sentence in enumerate(sentences):
            neighbours = (held[index - 1] if index else 0.0) + (held[index + 1] if index + 1 < len(held) else 0.0)
            score = _OWN * held[index] + _NEIGHBOURS * neighbours + _LENGTH * log(1 + len(terms[index]))
            score += _NEW * len(terms[index] - self._terms) + (0.0 if index else _FIRST) + self._evidence(sentence)
            weights.append(exp(min(score, 50.0)))
        total = sum(weights)
        return [weight / total for weight in weights]

    def _evidence(self, sentence: str) -> float:
        names = [name for name in _NAME.findall(sentence) if name.lower() not in self._words]
        score = _NAMES[self._asks] * log(1 + min(6, len(names)))
        if self._asks == "when":
            dates = min(3, len(_DATE.findall(sentence)))
            score += 0.74 * dates + (1.39 if dates else 0.0)
        elif self._asks == "number":
            numbers = min(4, len(_NUMBER.findall(sentence)))
            score += 0.87 * numbers + (0.37 if numbers else 0.0)
        return score
