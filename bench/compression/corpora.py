"""What is compressed: real conversations and passages where they are to be had, and generated logs, records and pages.

Always holds: the same seed gives the same texts; what the shared data does not hold is generated, never copied.
"""

from __future__ import annotations

import gzip
import json
import math
import os
import random
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from bench.process import ROOT

CONVERSATIONS = "tau-bench-airline-gpt-4o.json.gz"
QUESTIONS = "nq-open-oracle.jsonl.gz"
PASSAGES = 20  # to a question: the gold one, and the nearest that do not hold the answer

_WORD = re.compile(r"\w+")


def folder() -> Path | None:
    """Where the real data is; None: it is not here."""
    found = Path(os.environ.get("OUTRIDER_DATA", ROOT.parent / "shared" / "data"))
    return found if (found / CONVERSATIONS).is_file() and (found / QUESTIONS).is_file() else None


@lru_cache(maxsize=1)
def conversations(data: Path) -> list[list[dict[str, Any]]]:
    """The tau-bench conversations, as messages in OpenAI's form."""
    with gzip.open(data / CONVERSATIONS, "rt", encoding="utf-8") as file:
        return [[_plain(message) for message in one["traj"]] for one in json.load(file)]


def _plain(message: Mapping[str, Any]) -> dict[str, Any]:
    calls = message.get("tool_calls")
    return {**message, "tool_calls": None if isinstance(calls, str) else calls}


class Asked(NamedTuple):
    """One question, its possible answers, and passages (title, text), of which one holds the answer."""

    question: str
    answers: Sequence[str]
    passages: Sequence[tuple[str, str]]


def normal(text: str) -> str:
    """Words alone, as answers are compared."""
    return " ".join(_WORD.findall(text.lower()))


def survives(kept: str, answers: Sequence[str]) -> bool:
    """Whether an answer is in what was kept."""
    words = f" {normal(kept)} "
    return any(f" {normal(answer)} " in words for answer in answers if normal(answer))


def questions(data: Path, seed: int, every: int) -> list[Asked]:
    """nq-open: each question with its gold passage among the 19 nearest of the file (BM25) that do not hold the answer.

    Every second question, from the second one on, and of these one in `every`: the weights of `relevance` were fitted
    to the others.
    """
    with gzip.open(data / QUESTIONS, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    golds = [(row["ctxs"][0]["title"], row["ctxs"][0]["text"]) for row in rows]
    words = [_WORD.findall(f"{title} {text}".lower()) for title, text in golds]
    texts = [f" {' '.join(one)} " for one in words]
    index = _Index(words)
    rng = random.Random(seed)
    made = []
    for at in range(1, len(rows), 2 * every):
        answers = [f" {normal(answer)} " for answer in rows[at]["answers"] if normal(answer)]
        seen = {golds[at][1]}
        near: list[tuple[str, str]] = []
        for other in index.nearest(rows[at]["question"]):
            if golds[other][1] in seen or any(answer in texts[other] for answer in answers):
                continue
            seen.add(golds[other][1])
            near.append(golds[other])
            if len(near) == PASSAGES - 1:
                break
        near.insert(rng.randrange(PASSAGES), golds[at])
        made.append(Asked(rows[at]["question"], rows[at]["answers"], near))
    return made


class _Index:
    """BM25 over all passages (k1 1.2, b 0.75)."""

    def __init__(self, documents: Sequence[Sequence[str]]):
        self._sizes = [len(words) for words in documents]
        self._average = sum(self._sizes) / len(self._sizes)
        self._found: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for at, words in enumerate(documents):
            for word, count in Counter(words).items():
                self._found[word].append((at, count))

    def nearest(self, question: str) -> list[int]:
        scores: defaultdict[int, float] = defaultdict(float)
        for word in sorted(set(_WORD.findall(question.lower()))):
            held = self._found.get(word, [])
            weight = math.log(1 + (len(self._sizes) - len(held) + 0.5) / (len(held) + 0.5))
            for at, count in held:
                scores[at] += weight * count * 2.2 / (count + 1.2 * (0.25 + 0.75 * self._sizes[at] / self._average))
        return sorted(scores, key=lambda at: (-scores[at], at))


# -- generated -------------------------------------------------------------------------------------------------------


def records(seed: int, count: int = 200) -> list[str]:
    """Arrays of uniform records, as APIs answer with them."""
    rng = random.Random(seed)
    flights = [
        {
            "flight_number": f"HAT{rng.randrange(1_000):03}",
            "origin": rng.choice(["JFK", "SEA", "SFO", "ORD"]),
            "destination": rng.choice(["LAX", "MIA", "BOS", "DEN"]),
            "status": rng.choice(["available", "delayed", "cancelled"]),
            "available_seats": {"basic_economy": rng.randrange(20), "economy": rng.randrange(20)},
            "price": round(rng.uniform(50, 900), 2),
        }
        for _ in range(count)
    ]
    invoices = [
        {
            "invoice_id": 10_000 + at,
            "customer_name": rng.choice(["Noor Haddad", "Ivan Petrov", "Mei Chen", "Ana Silva"]),
            "issued_at": f"2026-{rng.randrange(1, 13):02}-{rng.randrange(1, 29):02}T09:{rng.randrange(60):02}:00Z",
            "amount_due": round(rng.uniform(10, 9_000), 2),
            "currency": "EUR",
            "is_paid": rng.random() < 0.7,
        }
        for at in range(count)
    ]
    people = [
        {"id": at, "department": rng.choice(["tax", "audit"]), "level": rng.randrange(1, 6), "is_active": True}
        for at in range(count)
    ]
    return [json.dumps(flights), json.dumps({"invoices": invoices}, indent=2), json.dumps(people)]


def service_logs(seed: int, lines: int = 400) -> list[str]:
    """Logs of services: with clocks and ids; with repeats; with stack traces."""
    rng = random.Random(seed)
    forms = (
        "INFO worker-{0} handled request id={1} in {2} ms",
        "WARN worker-{0} retries request id={1} after {2} ms: upstream 10.0.3.{0} is slow",
        "INFO cache hit key=agent:{1} age={2}s",
        "DEBUG pool size={0} idle={2}",
    )
    mixed = [
        f"2026-11-23T05:{at // 60 % 60:02}:{at % 60:02}.{rng.randrange(1_000):03}Z "
        + rng.choice(forms).format(rng.randrange(9), rng.randrange(10**6), rng.randrange(900))
        for at in range(lines)
    ]
    beats = [
        f"Nov 23 05:{at // 60:02}:{at % 60:02} node7 probe[812]: health check of agent tax passed"
        for at in range(lines)
    ]
    trace: list[str] = []
    for at in range(lines // 20):
        trace.append(f"2026-11-23 05:{at % 60:02}:11 ERROR request {rng.randrange(10**6)} failed")
        trace.append("Traceback (most recent call last):")
        for place in ("serve", "handle", "invoke", "fetch"):
            trace.append(f'  File "/srv/agent/{place}.py", line {40 + len(place)}, in {place}')
            trace.append(f"    return await self.{place}(request, timeout=timeout)")
        trace.append("TimeoutError: the upstream did not answer within 2.0 s")
    return ["\n".join(mixed), "\n".join(beats), "\n".join(trace)]


def pages(seed: int, count: int = 3) -> list[str]:
    """HTML pages with navigation, a table and prose."""
    rng = random.Random(seed)
    words = _WORD.findall(
        "the assessment of revenue follows from claims that a taxpayer files before the end of a year"
    )
    made = []
    for at in range(count):
        rows = "".join(
            f'<tr class="row r{row}"><td>{2020 + row}</td><td>{rng.randrange(10_000)}</td></tr>' for row in range(12)
        )
        prose = "".join(
            f'<p class="body text-{line}">{" ".join(rng.choice(words) for _ in range(40)).capitalize()}.</p>'
            for line in range(12)
        )
        menu = "".join(f'<li><a href="/section/{item}" class="nav-link">Section {item}</a></li>' for item in range(15))
        made.append(
            f"<!DOCTYPE html><html><head><title>Page {at}</title><style>.row{{color:#333}}</style>"
            f"<script>var tracked = {at};</script></head><body><nav><ul>{menu}</ul></nav><main><h1>Page {at}</h1>"
            f"{prose}<table><tr><th>Year</th><th>Claims</th></tr>{rows}</table></main></body></html>"
        )
    return made


def sources() -> list[str]:
    """Code: this project's own."""
    files = sorted((ROOT / "protos" / "outrider").glob("*.py"))[:20]
    return [file.read_text(encoding="utf-8") for file in files]
