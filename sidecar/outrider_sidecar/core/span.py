"""What one call leaves behind: an immutable record, built once when the call is over.

Always holds: a record is never changed, so metrics, exporters and the access log read the same one without copies;
it holds names and figures, never message content. Ids are lower-case hex as they travel in `traceparent`. Durations
are whole microseconds of the monotonic clock; only `start_unix_ns` is wall time, so an end never precedes its start.

Deliberately not here: OTLP (`engines.otlp`), attribute names (`core.attributes`), sums over calls (`engines.series`).
"""

from __future__ import annotations

from typing import Final, NamedTuple

# Span kinds with the numbers of opentelemetry.proto.trace.v1.Span.SpanKind.
SERVER: Final = 2  # ingress: the hop before the local agent
CLIENT: Final = 3  # egress: the hop beside the caller

SAMPLED: Final = 0x01  # bit of `Span.flags`, as in traceparent

# Bits of `Span.hop`.
THROUGH_INGRESS: Final = 0x01  # the reply came through an ingress, which counts the call
DETACHED: Final = 0x02  # nobody's call: a flight whose callers are gone, a refresh


class Attempt(NamedTuple):
    """One try of one call at one endpoint."""

    endpoint: str  # address as configured
    start_us: int  # since the span's start
    total_us: int
    status: int  # gRPC status 0..16
    reason: str = ""  # why it was made or why it failed: "retry", "hedge", "refused_stream", ...


class Generation(NamedTuple):
    """What a payload adapter read about a model's work. Absent on calls nobody could read."""

    operation: str = ""  # gen_ai.operation.name: "invoke_agent", "chat", ...
    model: str = ""  # the model asked for
    reply_model: str = ""  # the model that answered
    finish_reason: str = ""
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0


class Details(NamedTuple):
    """What only calls worth a look carry: failed ones, those tried again, and one in 16."""

    cache_key: bytes = b""  # 16 bytes, or none
    pick: tuple[str, ...] = ()  # "address score" of the endpoints compared for the last attempt


class Compression(NamedTuple):
    """What was made of a request's text. Absent on calls whose requests nobody looked at."""

    tokens_before: int = 0
    tokens_after: int = 0
    compressors: tuple[str, ...] = ()  # with their versions: "columns/1"
    us: int = 0  # on the sidecar's loop
    net: float = 0.0  # money saved, in the prices of the agent's policy; 0 also where the upstream told no usage

    @property
    def tokens_saved(self) -> int:
        return self.tokens_before - self.tokens_after


class Admission(NamedTuple):
    """How a call got in. Absent on calls that came in at once, in the normal lane, and gave up nothing."""

    queue_us: int = 0  # waited for a permit
    lane: str = "normal"  # of `policy.LANES`
    degraded: tuple[str, ...] = ()  # steps of `policy.DEGRADATIONS` it felt


class Span(NamedTuple):
    """One call at one hop. At most 30 fields: from there on CPython builds such a tuple at twice the price.

    The hot path passes the fields by position (0.4 us; by keyword the same call costs 1.4 us). Empty strings, zeros
    and empty tuples mean "not known" or "did not happen" and leave no trace in what is exported. No figure is negative.
    """

    trace_id: bytes  # 32 hex digits
    span_id: bytes  # 16 hex digits
    parent_id: bytes  # 16 hex digits; b"" for a root
    tracestate: bytes  # as received, b"" for none
    flags: int  # W3C trace flags; SAMPLED decides about foreign exporters
    kind: int  # SERVER or CLIENT
    method: str  # the path: "/pkg.Svc/Method"
    agent_id: str
    endpoint: str  # the last endpoint tried; "" when the sidecar answered by itself
    start_unix_ns: int
    total_us: int
    status: int  # gRPC status 0..16
    error: str = ""  # grpc-message, or what the sidecar says went wrong
    admission: Admission | None = None
    connect_us: int = 0  # waited for a connection
    first_byte_us: int = 0  # start of the call to the first byte of the reply
    request_bytes: int = 0  # message bytes, gRPC framing included
    reply_bytes: int = 0
    cache: str = ""  # verdict: hit, stale, miss, coalesced, bypass
    cache_tier: str = ""
    variant: str = ""
    session: str = ""
    unit: str = ""  # keyed hash of the experiment unit
    attempts: tuple[Attempt, ...] = ()
    generation: Generation | None = None
    compression: Compression | None = None
    notes: tuple[str, ...] = ()  # features that stepped aside: "cache: request over 1 MB"
    hop: int = 0  # bits: THROUGH_INGRESS, DETACHED
    tenant: str = ""
    details: Details | None = None

    @property
    def end_unix_ns(self) -> int:
        return self.start_unix_ns + self.total_us * 1_000
