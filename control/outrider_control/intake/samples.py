"""Spans to samples: what one span adds to the figures, by the mesh's rules.

Always holds: pure but for its memos and counters; a span gives at most one sample; a duration that is not known is
never counted as one of 0: a span without proper ids and times is refused with a reason. An end that lies in the future
is moved to now, so that a wrong clock cannot open windows that nobody looks at.

Deliberately not here: the rule of hops (`hop`), bytes (`otlp`), prices (`prices`), what is kept (`tail`).
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from outrider_control.core.sample import Sample, SeriesKey
from outrider_control.intake.hop import SERVER, Hops, counting
from outrider_control.intake.names import OUTRIDER_SCOPE
from outrider_control.intake.otlp import Origin, SpanFields
from outrider_control.intake.prices import Prices

FUTURE_MS: Final = 5_000  # an end later than this is a wrong clock, not a fast network
DURATION_MAX_NS: Final = 7 * 86_400 * 10**9
_TOKENS_MAX: Final = 2**40
_MEMO_MAX: Final = 16_384
_NO_TRACE: Final = bytes(16)
_NO_SPAN: Final = bytes(8)

STATUSES: Final = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
    "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
    "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
)  # fmt: skip
FAILURES: Final = frozenset(
    ("UNKNOWN", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS")
)
FROM_CACHE: Final = frozenset(("hit", "stale", "coalesced"))
_VERDICTS: Final = FROM_CACHE | {"miss", "bypass"}


class Facts(NamedTuple):
    """What all spans alike in text have in common."""

    key: SeriesKey
    call: bool
    tokens: bool
    from_cache: bool
    status: str
    failed: bool
    cancelled: bool
    cache: str
    tier: str
    model: str
    provider: str


def refusal(fields: SpanFields) -> str:
    """Why a span cannot be counted; "" where it can."""
    trace_id, span_id, _, start_ns, end_ns, _, _ = fields
    if len(trace_id) != 16 or trace_id == _NO_TRACE:
        return "a trace id that is not 16 bytes, or zero"
    if len(span_id) != 8 or span_id == _NO_SPAN:
        return "a span id that is not 8 bytes, or zero"
    if not start_ns or not end_ns:
        return "no start or no end"
    if end_ns < start_ns:
        return "an end before the start"
    if end_ns - start_ns > DURATION_MAX_NS:
        return "a duration of more than 7 days"
    return ""


class Sampler:
    """Makes samples. `skewed` counts ends that were moved to now."""

    __slots__ = ("_facts", "_hops", "_prices", "skewed")

    def __init__(self, hops: Hops, prices: Prices):
        self._hops = hops
        self._prices = prices
        self._facts: dict[tuple[Any, ...], Facts] = {}
        self.skewed = 0

    def sample(self, origin: Origin, fields: SpanFields, offset_ms: int, now_ms: int) -> Sample:
        """`offset_ms`: the exporter's clock minus ours. The span is one without a `refusal`."""
        _, _, kind, start_ns, end_ns, error, values = fields
        (
            agent_id, method, status, endpoint, variant, tenant, cache, tier, hop, detached, queue_us, first_us, saved,
            input_tokens, output_tokens, cache_read, cache_write, model, reply_model, provider, service, code, first_s,
            _,
        ) = values  # fmt: skip
        ours = origin.scope == OUTRIDER_SCOPE
        if not agent_id or type(agent_id) is not str:
            agent_id = origin.agent_id or ("" if ours else origin.service)
        if ours:
            covered = True
            self._hops.saw(agent_id, now_ms)
        else:
            covered = self._hops.covered(agent_id, now_ms)
        identity = (
            ours, covered, kind, error, agent_id, method, status, endpoint, variant, tenant, cache, tier, hop, detached,
            model, reply_model, provider, service, code,
        )  # fmt: skip
        facts = self._facts.get(identity)
        if facts is None:
            facts = self._make_facts(identity)
        key, call, tokens, from_cache, status, failed, cancelled, cache, tier, model, provider = facts
        end_ms = end_ns // 1_000_000 - offset_ms
        if end_ms > now_ms + FUTURE_MS:
            end_ms = now_ms
            self.skewed += 1
        if first_us is None:
            first_us = first_chunk_us(first_s) if first_s is not None else 0
        cached = cost = 0
        priced = unpriced = False
        if input_tokens is None and output_tokens is None:
            input_tokens = output_tokens = cache_read = cache_write = 0
        else:
            input_tokens, output_tokens = reported(input_tokens), reported(output_tokens)
            cache_read = reported(cache_read) if cache_read is not None else 0
            cache_write = reported(cache_write) if cache_write is not None else 0
            if from_cache:
                cached = input_tokens + output_tokens
                input_tokens = output_tokens = cache_read = cache_write = 0
            elif not tokens:
                input_tokens = output_tokens = cache_read = cache_write = 0
            elif input_tokens or output_tokens:
                found = self._prices.cost_nano_usd(
                    model, provider, input_tokens, output_tokens, cache_read, cache_write, now_ms // 1_000
                )
                if found is None:
                    unpriced = True
                else:
                    cost, priced = found, True
        return Sample(
            key, end_ms, call, status, failed, cancelled, (end_ns - start_ns) // 1_000,
            reported(first_us) if call and first_us else 0, reported(queue_us) if queue_us is not None else 0,
            cache, tier, input_tokens, output_tokens, cache_read, cache_write, cached,
            reported(saved) if saved is not None else 0, cost, priced, unpriced,
        )  # fmt: skip

    def _make_facts(self, identity: tuple[Any, ...]) -> Facts:
        (
            ours, covered, kind, error, agent_id, method, status, endpoint, variant, tenant, cache, tier, hop, detached,
            model, reply_model, provider, service, code,
        ) = identity  # fmt: skip
        counts = counting(ours, kind, hop == "ingress", bool(detached), covered)
        name = _status(status, code)
        if not name and error:
            name = "ERROR"
        failed = name in FAILURES or name == "ERROR"
        verdict = cache if counts.cache and cache in _VERDICTS else ""
        facts = Facts(
            key=SeriesKey(_text(agent_id), _method(method, service), _text(variant), _text(endpoint), _text(tenant)),
            call=counts.call,
            tokens=counts.tokens,
            from_cache=verdict in FROM_CACHE,
            status=name,
            failed=failed,
            cancelled=name == "CANCELLED",
            cache=verdict,
            tier=_text(tier) if verdict else "",
            model=_text(reply_model) or _text(model),
            provider=_text(provider),
        )
        if len(self._facts) >= _MEMO_MAX:
            self._facts.clear()
        self._facts[identity] = facts
        return facts


def _text(value: Any) -> str:
    return value if type(value) is str else "" if value is None else str(value)


def reported(value: Any) -> int:
    """A count as it was reported; 0 for what is none."""
    if type(value) is int:
        return value if 0 <= value <= _TOKENS_MAX else 0
    if type(value) is float and 0 <= value <= _TOKENS_MAX:
        return int(value)
    return 0


def first_chunk_us(seconds: Any) -> int:
    """From seconds as they were reported; 0 for what is none."""
    return int(seconds * 1e6) if type(seconds) in (int, float) and 0 <= seconds < 1e6 else 0


def _method(method: Any, service: Any) -> str:
    """ "/pkg.Svc/Method" from the RPC conventions of now (one name) and of before (service and method apart)."""
    name = _text(method)
    if not name:
        return ""
    if service and "/" not in name:
        name = f"{_text(service)}/{name}"
    return name if name.startswith("/") else "/" + name


def _status(status: Any, code: Any) -> str:
    """A gRPC status name; "" where the span has none."""
    if type(status) is str and status:
        if status.isdecimal() and len(status) <= 2 and int(status) < len(STATUSES):
            return STATUSES[int(status)]
        return status.upper()[:32]
    number = status if type(status) is int else code
    return STATUSES[number] if type(number) is int and 0 <= number < len(STATUSES) else ""


def contributes(sample: Sample) -> bool:
    """Whether a sample says anything to the figures."""
    return bool(
        sample.call or sample.cache or sample.input_tokens or sample.output_tokens or sample.cached_tokens
        or sample.saved_tokens or sample.queue_us or sample.unpriced
    )  # fmt: skip


__all__ = [
    "FAILURES",
    "FROM_CACHE",
    "SERVER",
    "STATUSES",
    "Facts",
    "Sampler",
    "contributes",
    "first_chunk_us",
    "refusal",
    "reported",
]
