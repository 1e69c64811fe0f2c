"""The decisions made for one call, read off its span: in words for people, in figures for programs.

Always holds: pure; the same span gives the same steps, in the order in which the call took them. Nothing is guessed:
what the span does not say is left out, or said to be unknown. A span with fields of the wrong type, or none at all,
gives fewer steps and never an error.

Deliberately not here: spans in the store (`state.kept_spans`), their bytes (`intake.span_view`), protobuf (`convert`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from outrider_control.intake import names
from outrider_control.intake.span_view import EventView, SpanView

CACHE_KEY: Final = "outrider.cache.key"
PICK: Final = "outrider.pick"
NOTES: Final = "outrider.notes"
UNIT: Final = "outrider.unit"
LANE: Final = "outrider.lane"
DEGRADED: Final = "outrider.degraded"
CONNECT_US: Final = "outrider.connect_us"
ATTEMPT: Final = "outrider.attempt"
ATTEMPT_US: Final = "outrider.attempt_us"
ATTEMPT_REASON: Final = "outrider.attempt.reason"
CONVERSATION_ID: Final = "gen_ai.conversation.id"

_NANO: Final = 1_000_000_000
_ANSWERED: Final = ("hit", "stale", "coalesced")  # verdicts that spared the agent the call
_VERDICTS: Final[Mapping[str, str]] = {
    "hit": "answered from the cache; the agent was not asked",
    "stale": "answered from the cache with a reply past its time to live; a new one is fetched in the background",
    "coalesced": "joined the same question, which was on its way already; the agent was asked once for both",
    "miss": "not in the cache; the agent is asked, and its reply kept if it may be",
    "bypass": "the cache stepped aside",
}
_SERVED_LATE: Final = (
    "answered from the cache with a reply past its time; none is fetched while the agent is overloaded"
)
_GIVEN_UP: Final[Mapping[str, str]] = {
    "serve_stale": "a reply past its time was served",
    "trim_context": "context of little relevance was left out",
    "cap_output": "the length of the answer was bounded",
    "hedge_off": "no attempt was made beside a silent one",
    "shed_low": "lane low was refused",
    "shed_normal": "lane normal was refused",
    "shed_high": "lane high was refused",
}


class Step(NamedTuple):
    """One decision."""

    what: str
    text: str
    facts: Mapping[str, Any]
    at_ms: float | None = None  # since the start of the call; None: not known


class Explanation(NamedTuple):
    """How one call came to its end."""

    call_id: str
    agent_id: str
    method: str
    hop: str  # egress, ingress, foreign
    status: str
    duration_ms: float
    steps: tuple[Step, ...]


# A span's cost in nano-dollars; None: no price is known, or there is nothing to price.
Price = Callable[[SpanView], int | None]


def explain_trace(spans: Sequence[SpanView], price: Price | None = None) -> list[Explanation]:
    """One explanation per call of a trace, in the order of their starts; a span is one call at one hop.

    Of foreign spans only requests (client and server) are calls."""
    ordered = sorted(spans, key=lambda span: (span.start_ns, span.span_id))
    return [explain_call(span, price) for span in ordered if span.ours or span.kind in ("server", "client")]


def explain_call(span: SpanView, price: Price | None = None) -> Explanation:
    """How the call of one span came to its end."""
    steps = [_identify(span)]
    steps += _variant(span)
    if span.ours:
        steps += _cache(span)
        steps += _admit(span)
        steps += _pick(span)
        steps += _attempts(span)
    steps += _tokens(span, price)
    steps.append(_counting(span))
    steps += _notes(span)
    steps.append(_end(span))
    return Explanation(
        call_id=span.span_id,
        agent_id=agent_of(span),
        method=method_of(span),
        hop=hop_of(span),
        status=span.status,
        duration_ms=span.duration_ms,
        steps=tuple(steps),
    )


def agent_of(span: SpanView) -> str:
    """The agent a span is about."""
    return _text(span, names.AGENT_ID) or span.service


def method_of(span: SpanView) -> str:
    """ "/pkg.Svc/Method", or the span's name where it is no RPC's."""
    method, service = _text(span, names.RPC_METHOD), _text(span, names.RPC_SERVICE)
    if method and service and "/" not in method:
        return f"/{service}/{method}"
    return f"/{method.removeprefix('/')}" if method else span.name


def hop_of(span: SpanView) -> str:
    """ "egress", "ingress" or "foreign"."""
    if not span.ours:
        return "foreign"
    return "ingress" if span.kind == "server" else "egress"


def _identify(span: SpanView) -> Step:
    facts = _known(
        agent_id=agent_of(span),
        method=method_of(span),
        tenant=_text(span, names.TENANT),
        session=_text(span, CONVERSATION_ID),
        service=span.service,
    )
    text = f"{method_of(span) or 'a call'} for agent {agent_of(span) or '(unnamed)'}"
    if "tenant" in facts:
        text += f", tenant {facts['tenant']}"
    return Step("identify", text, facts, 0.0)


def _variant(span: SpanView) -> Iterator[Step]:
    variant = _text(span, names.VARIANT)
    if variant:
        yield Step("variant", f"served by variant {variant}", _known(variant=variant, unit=_text(span, UNIT)))


def _cache(span: SpanView) -> Iterator[Step]:
    verdict, tier = _text(span, names.CACHE), _text(span, names.CACHE_TIER)
    if not verdict:
        return
    key = _text(span, CACHE_KEY)
    reasons = [note.removeprefix("cache: ") for note in _texts(span, NOTES) if note.startswith("cache: ")]
    text = _VERDICTS.get(verdict, f"verdict {verdict}")
    if verdict == "stale" and "serve_stale" in _texts(span, DEGRADED):
        text = _SERVED_LATE
    if verdict == "bypass" and reasons:
        text += f": {', '.join(reasons)}"
    if tier:
        text += f" (tier {tier})"
    yield Step("cache", text, _known(verdict=verdict, tier=tier, key=key, reasons=reasons))


def _admit(span: SpanView) -> Iterator[Step]:
    """How it got in: its lane, its wait, and what it gave up; or why it did not."""
    waited_us = _number(span.attributes, names.QUEUE_US) or 0
    lane, degraded = _text(span, LANE), list(_texts(span, DEGRADED))
    refused = span.status == "RESOURCE_EXHAUSTED" and not _tries(span)
    if not waited_us and not lane and not degraded and not refused:
        return
    facts = _known(queue_ms=waited_us / 1_000 if waited_us else None, lane=lane, degraded=degraded)
    of_lane = f" in lane {lane}" if lane else ""
    parts = []
    if waited_us:
        parts.append(f"waited {_ms(waited_us)} for a permit{of_lane}")
    elif lane and not refused and _text(span, names.CACHE) not in _ANSWERED:
        parts.append(f"got a permit at once{of_lane}")
    if refused:
        parts.append(f"refused for load{of_lane if not waited_us else ''}: {span.message or 'no reason given'}")
        facts |= _known(reason=span.message)
    if degraded:
        parts.append("given up under pressure: " + ", ".join(_GIVEN_UP.get(step, step) for step in degraded))
    yield Step("admit", "; ".join(parts) or f"lane {lane}", facts)


def _pick(span: SpanView) -> Iterator[Step]:
    tries = _tries(span)
    picked = _event_text(tries[0], names.ENDPOINT) if tries else _text(span, names.ENDPOINT)
    candidates = [candidate for text in _texts(span, PICK) if (candidate := _candidate(text))]
    if not picked and not candidates:
        return
    facts = _known(picked=picked, candidates=[{"endpoint": name, "score": score} for name, score in candidates])
    if not candidates:
        yield Step("pick", f"picked {picked}; the scores of this call were not recorded", facts)
        return
    shown = ", ".join(f"{name} ({score:g})" for name, score in candidates)
    text = f"compared {shown}"
    if picked:
        text += f"; picked {picked}"
        if len(candidates) > 1 and candidates[0][1] != candidates[-1][1]:
            lowest = min(candidates, key=lambda candidate: candidate[1])
            text += ", the lower score" if lowest[0] == picked else ""
    yield Step("pick", text, facts)


def _attempts(span: SpanView) -> Iterator[Step]:
    """One step per attempt, before it the reason why there was one more."""
    tries = _tries(span)
    endpoint = _text(span, names.ENDPOINT)
    if not tries and endpoint and _text(span, names.CACHE) not in _ANSWERED:
        # Sidecars describe attempts only where one failed or there were several.
        yield Step("attempt", f"one attempt, at {endpoint}", {"number": 1, "endpoint": endpoint})
    ended_ns, before = 0, ""
    for number, event in enumerate(tries, 1):
        endpoint, status = _event_text(event, names.ENDPOINT), _event_text(event, names.RPC_STATUS_CODE)
        reason = _event_text(event, ATTEMPT_REASON)
        took_us = _number(event.attributes, ATTEMPT_US)
        at_ms = max(0.0, (event.at_ns - span.start_ns) / 1e6)
        if number > 1 and event.at_ns < ended_ns:
            yield Step("hedge", f"tried beside the attempt before, silent{_so_far(at_ms)}", {}, at_ms)
        elif number > 1:
            yield Step("retry", f"tried again: {before}", {}, at_ms)
        facts = _known(number=number, endpoint=endpoint, status=status, reason=reason)
        text = f"attempt {number} at {endpoint or '(unknown)'}: {status or 'no status'}"
        if took_us is not None:
            facts["duration_ms"] = took_us / 1_000
            text += f" after {_ms(took_us)}"
        if reason:
            text += f" ({reason})"
        ended_ns = max(ended_ns, event.at_ns + int((took_us or 0) * 1_000))
        before = f"attempt {number} ended with {status or 'no status'}"
        yield Step("attempt", text, facts, at_ms)


def _tokens(span: SpanView, price: Price | None) -> Iterator[Step]:
    usage = {
        "input_tokens": _number(span.attributes, names.INPUT_TOKENS),
        "output_tokens": _number(span.attributes, names.OUTPUT_TOKENS),
        "cache_read_tokens": _number(span.attributes, names.CACHE_READ_TOKENS),
        "cache_write_tokens": _number(span.attributes, names.CACHE_WRITE_TOKENS, names.CACHE_CREATION_TOKENS),
    }
    facts: dict[str, Any] = {name: int(count) for name, count in usage.items() if count}
    saved = _number(span.attributes, names.TOKENS_SAVED)
    if not facts and not saved:
        return
    model = _text(span, names.RESPONSE_MODEL) or _text(span, names.REQUEST_MODEL)
    shown = [f"{facts.get('input_tokens', 0):,} in", f"{facts.get('output_tokens', 0):,} out"]
    if "cache_read_tokens" in facts:
        shown.append(f"{facts['cache_read_tokens']:,} of the input from the provider's cache")
    text = ", ".join(shown)
    if _text(span, names.CACHE) in _ANSWERED:
        text += " in the reply, none sent and none paid: it came from our cache"
    else:
        cost = price(span) if price is not None else None
        if cost is not None:
            facts["cost_usd"] = cost / _NANO
            text += f", {_usd(cost)}"
        elif price is not None:
            text += f", no price known for {model or 'a model that is not named'}"
    if saved:
        facts["saved_tokens"] = int(saved)
        text += f"; compression took {int(saved):,} away"
    yield Step("tokens", text + (f" ({model})" if model else ""), facts | _known(model=model))


def _counting(span: SpanView) -> Step:
    """Which hop counts the call: see `intake`'s counting rules."""
    hop = hop_of(span)
    if hop == "foreign":
        if span.kind == "server":
            return Step("counting", "counts as a call only while no sidecar reports this agent's calls", {"hop": hop})
        return Step("counting", "does not count as a call: the agent's side does", {"counts": False, "hop": hop})
    if hop == "ingress":
        return Step("counting", "counts here, at the agent's ingress", {"counts": True, "hop": hop})
    if span.attributes.get(names.DETACHED) is True:
        text = "does not count as a call: the sidecar asked by itself; its tokens count"
        return Step("counting", text, {"counts": False, "hop": hop, "detached": True})
    if _text(span, names.HOP) == "ingress":
        text = "does not count here: it went through an ingress, which counts it"
        return Step("counting", text, {"counts": False, "hop": hop})
    return Step("counting", "counts here: no ingress answered it", {"counts": True, "hop": hop})


def _notes(span: SpanView) -> Iterator[Step]:
    for note in _texts(span, NOTES):
        yield Step("note", note, {})


def _end(span: SpanView) -> Step:
    first_us = _number(span.attributes, names.FIRST_BYTE_US)
    connect_us = _number(span.attributes, CONNECT_US)
    facts: dict[str, Any] = _known(status=span.status, message=span.message, duration_ms=span.duration_ms)
    text = f"{span.status} after {span.duration_ms:,.1f} ms"
    if first_us:
        facts["first_chunk_ms"] = first_us / 1_000
        text += f", the first chunk after {_ms(first_us)}"
    if connect_us:
        facts["connect_ms"] = connect_us / 1_000
    if span.message:
        text += f": {span.message}"
    return Step("end", text, facts, span.duration_ms)


def _tries(span: SpanView) -> list[EventView]:
    """In the order they began; a sidecar writes them in the order they ended."""
    return sorted((event for event in span.events if event.name == ATTEMPT), key=lambda event: event.at_ns)


def _candidate(text: str) -> tuple[str, float] | None:
    """ "address score" as the sidecar writes it; None if it is something else."""
    endpoint, _, score = text.rpartition(" ")
    try:
        value = float(score)
    except ValueError:
        return None
    return (endpoint, value) if endpoint and math.isfinite(value) else None


def _known(**facts: Any) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if value not in ("", None, [])}


def _text(span: SpanView, name: str) -> str:
    value = span.attributes.get(name)
    return value if isinstance(value, str) else ""


def _texts(span: SpanView, name: str) -> Iterable[str]:
    value = span.attributes.get(name)
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def _event_text(event: EventView, name: str) -> str:
    value = event.attributes.get(name)
    return value if isinstance(value, str) else ""


def _number(attributes: Mapping[str, Any], *names_of_it: str) -> float | None:
    for name in names_of_it:
        value = attributes.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0:
            return value
    return None


def _so_far(at_ms: float) -> str:
    return f" at {at_ms:,.1f} ms" if at_ms else ""


def _ms(us: float) -> str:
    return f"{us / 1_000:,.1f} ms"


def _usd(nano: int) -> str:
    return f"${nano / _NANO:.6f}".rstrip("0").rstrip(".") if nano else "$0"
