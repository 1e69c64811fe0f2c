"""Samples for tests about figures: seeded, of every kind, with the sums that any figures of them must show."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any

from outrider_control.core.figures import Figures
from outrider_control.core.sample import Sample, SeriesKey
from outrider_control.intake.ledger import Prepared

NOW_MS = 1_790_000_000_000  # some time in 2026, at a whole second
_STATUSES = ("OK", "OK", "OK", "OK", "UNAVAILABLE", "CANCELLED", "NOT_FOUND")
_VERDICTS = (("hit", "llm"), ("miss", "llm"), ("miss", "tool"), ("stale", "tool"), ("bypass", ""), ("", ""))


def sample(agent_id: str = "tax", end_ms: int = NOW_MS, **fields: Any) -> Sample:
    """One call that went well, but for what is said."""
    names = ("method", "variant", "endpoint", "tenant")
    key = SeriesKey(agent_id, **{name: fields.pop(name) for name in names if name in fields})
    plain = Sample(key, end_ms, True, "OK", False, False, 20_000, 0, 0, "", "", 0, 0, 0, 0, 0, 0, 0, False, False)
    return plain._replace(**fields)


def some(rng: random.Random, count: int, agents: int = 3, series: int = 4, age_ms: int = 0) -> list[Sample]:
    """Samples of some agents and series, up to `age_ms` old."""
    found = []
    for _ in range(count):
        status = rng.choice(_STATUSES)
        cache, tier = rng.choice(_VERDICTS)
        tokens = rng.random() < 0.5
        found.append(
            sample(
                f"agent-{rng.randrange(agents)}",
                NOW_MS - rng.randint(0, age_ms),
                method=f"/pkg.Svc/Method{rng.randrange(series)}",
                call=rng.random() < 0.9,
                status=status,
                failed=status == "UNAVAILABLE",
                cancelled=status == "CANCELLED",
                total_us=int(rng.lognormvariate(10, 1.5)),
                first_chunk_us=int(rng.lognormvariate(9, 1)) if rng.random() < 0.3 else 0,
                queue_us=rng.randint(1, 50_000) if rng.random() < 0.2 else 0,
                cache=cache,
                tier=tier,
                input_tokens=rng.randint(1, 4_000) if tokens else 0,
                output_tokens=rng.randint(1, 900) if tokens else 0,
                cost_nano_usd=rng.randint(1, 10**7) if tokens else 0,
                priced=tokens,
                saved_tokens=rng.randint(0, 2) * 50,
            )
        )
    return found


def batch(samples: Sequence[Sample], source: str = "", sequence: int = -1, **parts: Any) -> Prepared:
    """A batch of samples alone, but for what is said."""
    return Prepared(source, sequence, samples, parts.get("kept", ()), parts.get("metrics", ()))


def together(samples: Iterable[Sample]) -> Figures:
    """Figures of samples, added one by one."""
    figures = Figures()
    for one in samples:
        figures.add(one)
    return figures


def same(one: Figures, other: Figures) -> bool:
    """Whether two figures say the same: also which names they know, but not the order of these."""
    parts = ("total", "first_chunk", "queue")
    for name in Figures.__slots__:
        mine, others = getattr(one, name), getattr(other, name)
        if name in parts:
            mine = mine.encode() if mine else None
            others = others.encode() if others else None
        if (mine or None) != (others or None):
            return False
    return True
