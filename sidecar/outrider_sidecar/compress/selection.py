"""The sentences of a block that most likely answer the question, to a budget.

    #outrider:select/1 mfzwizltkq7e2lov: parts nearest to the question; [...] stands for the rest
    Deadpool 2
    Deadpool 2 is scheduled to be released in the United States on May 18, 2018. [...]

How likely a sentence holds the answer is how likely its passage does (`relevance`, as a softmax) times the sentence's
share of it (`answers`); sentences are taken by likelihood per token until the budget is spent, so near passages stay
whole and of far ones the best sentence does.

Always holds: what is kept is kept to the character and in its order, heads of passages with it; what is left out shows
as `[...]`; code, schemas and diffs stay (`protect`); what is kept, marker and all, is within the budget or the block
is left alone. The original is found under the handle. Without a question nothing is selected."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import exp
from typing import Final

from outrider_sidecar.compress import protect
from outrider_sidecar.compress.answers import Answers
from outrider_sidecar.compress.block import MARKER, Context, Shrunk, handle_of, size
from outrider_sidecar.compress.detect import prose
from outrider_sidecar.compress.passages import Passage, passages_of
from outrider_sidecar.compress.relevance import Question

NAME: Final = "select/1"
STEPS_PER_BYTE: Final = 250
_GAP: Final = "[...]"
_UNTITLED: Final = 0.6  # scores say less where no passage has a title


def shrink(text: str, context: Context) -> Shrunk | None:
    """The part of a text that answers, or None."""
    if not context.question.strip() or not 0 < context.keep < 1 or not prose(text):
        return None
    if not context.budget.take(len(text) * STEPS_PER_BYTE):
        return None
    count = context.count or size
    handle = handle_of(text, context.node)
    head = f"{MARKER}{NAME} {handle}: parts nearest to the question; {_GAP} stands for the rest\n"
    room = context.keep * count(text) - count(head)
    kept = chosen(passages_of(text), context.question, room, count)
    if kept is None:
        return None
    made = head + "".join(kept)
    return None if count(made) > context.keep * count(text) else Shrunk(NAME, made, exact=False, lossy=True)


def chosen(
    passages: Sequence[Passage], question: str, room: float, count: Callable[[str], int] = size
) -> list[str] | None:
    """What is kept of each passage, an empty text for what is not, in all at most `room`; None: nothing fits.

    Also for several blocks that share one budget, which beats a share for each: each is then a passage or several.
    """
    gap = count(f" {_GAP}\n")
    room -= gap
    units: list[tuple[float, int, int, float]] = []  # (value per cost, passage, sentence, cost)
    sentences = [[] if passage.pinned else protect.sentences(passage.body) for passage in passages]
    pinned = sum([count(passage.body) for passage in passages if passage.pinned])
    room -= pinned
    if room <= 0:
        return None
    asked = Question(question)
    answers = Answers(question, asked)
    for index, near in enumerate(_likelihoods(passages, asked)):
        for at, share in enumerate(answers.shares(sentences[index])):
            cost = count(sentences[index][at]) + gap
            units.append((-near * share / cost, index, at, cost))
    units.sort()
    taken: list[set[int]] = [set() for _ in passages]
    heads = [count(passage.head) if passage.head else 0 for passage in passages]
    _take(units, taken, heads, room, gap)
    if not any(taken):
        return None
    made = _rendered(passages, sentences, taken)
    left = room + pinned - count("".join(made))
    if left > gap:  # gaps were fewer than feared
        before = [set(mine) for mine in taken]
        _take(units, taken, heads, left, gap)
        more = _rendered(passages, sentences, taken)
        made = more if count("".join(more)) <= room + pinned else _rendered(passages, sentences, before)
    return made


def _take(
    units: list[tuple[float, int, int, float]], taken: list[set[int]], heads: list[int], room: float, gap: float
) -> None:
    """Adds sentences to those taken, the likeliest per cost first."""
    for _, index, at, alone in units:
        mine = taken[index]
        if at in mine:
            continue
        # A gap stands before each run of sentences and after the last; sentences side by side need none between them.
        sides = (at - 1 in mine) + (at + 1 in mine)
        cost = alone - sides * gap + (0 if mine else gap + heads[index])
        if cost <= room:
            room -= cost
            mine.add(at)


def _likelihoods(passages: Sequence[Passage], asked: Question) -> list[float]:
    """How likely each passage answers; they add up to 1."""
    scores = asked.scores([(passage.title, passage.body) for passage in passages])
    scale = 1.0 if any([passage.title for passage in passages]) else _UNTITLED
    highest = max(scores, default=0.0)
    weights = [exp(scale * (score - highest)) for score in scores]
    total = sum(weights)
    return [weight / total for weight in weights]


def _rendered(passages: Sequence[Passage], sentences: list[list[str]], taken: list[set[int]]) -> list[str]:
    made: list[str] = []
    skipped = False  # whether a gap would only follow a gap
    for passage, pieces, mine in zip(passages, sentences, taken, strict=True):
        if passage.pinned:
            made.append(passage.body)
            skipped = False
            continue
        if not mine:
            blank = skipped or not passage.body.strip()
            made.append("" if blank else f"{_GAP}\n")
            skipped = True
            continue
        parts = [passage.head]
        before = -1
        for at in sorted(mine):
            if at > before + 1:
                parts.append(f"{_GAP} ")
            parts.append(pieces[at])
            before = at
        text = "".join(parts)
        skipped = before < len(pieces) - 1
        if skipped:
            text = text.rstrip() + f" {_GAP}\n"
        made.append(text)
    return made
