"""What one span says about one call, in the mesh's own terms: the only thing figures are made of.

Always holds: a sample is plain data, made once at intake and never changed; durations are whole microseconds and not
negative; 0 or "" means "not known" or "did not happen".

Deliberately not here: OTLP (`intake`), sums over samples (`core.figures`).
"""

from __future__ import annotations

from typing import NamedTuple

OTHER = "(other)"  # what names past a bound are counted under


class SeriesKey(NamedTuple):
    """What figures are kept apart by."""

    agent_id: str
    method: str = ""  # "/pkg.Svc/Method"
    variant: str = ""
    endpoint: str = ""
    tenant: str = ""


class Sample(NamedTuple):
    """One span's contribution to the figures."""

    key: SeriesKey
    end_ms: int  # unix milliseconds, corrected for the exporter's clock: decides the window
    call: bool  # whether this hop counts the call: requests, errors, latency
    status: str  # gRPC status name; "" where the span has none
    failed: bool  # by the mesh's rule of outcomes
    cancelled: bool  # by its caller
    total_us: int
    first_chunk_us: int  # 0: not known
    queue_us: int  # 0: did not wait
    cache: str  # hit, stale, miss, coalesced, bypass, ""
    tier: str  # of the cache
    input_tokens: int  # sent to a model, and paid for
    output_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    cached_tokens: int  # of replies from our cache: not sent, not paid
    saved_tokens: int  # taken away by compression
    cost_nano_usd: int  # of the tokens; 0 where unpriced
    priced: bool  # whether there were tokens and their price is known
    unpriced: bool  # whether there were tokens and their price is not known
