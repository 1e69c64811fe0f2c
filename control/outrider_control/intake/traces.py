"""One export request of traces, from bytes to what the ledger commits.

`Batch.read` reads every span; `Traces.take` makes samples and asks the tail rules. Both are generators that give way
after every slice, so that a large request does not hold up the loop.

Always holds: a request is read whole before any of it counts; malformed bytes are `Malformed` and change nothing; a
span that cannot be counted is counted as refused, with the first reasons as texts; work and memory of one request are
bounded by the constants here.

Deliberately not here: gRPC (`services`), the store (`ledger`), the clock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Final

from outrider_control.core.call_record import CallRecord
from outrider_control.core.sample import Sample
from outrider_control.core.unit_sums import UnitCall
from outrider_control.intake.call_gate import CallGate
from outrider_control.intake.hop import Hops
from outrider_control.intake.names import OUTRIDER_SCOPE
from outrider_control.intake.otlp import AGENT_ID, UNIT, Group, Origin, SpanFields, SpanReader
from outrider_control.intake.prices import Prices
from outrider_control.intake.samples import Sampler, contributes, refusal
from outrider_control.intake.tail import Tail, TailSpan
from outrider_control.intake.unit_calls import UnitCalls
from outrider_control.intake.wire import Malformed, fields
from outrider_control.state.kept_spans import KeptSpan

SLICE_SPANS: Final = 256
SLICE_BYTES: Final = 1_048_576
SPANS_MAX: Final = 65_536  # of one request
SPAN_MAX_BYTES: Final = 4_194_304
FIELDS_MAX: Final = 8_192  # of one span
_FIELDS_UNCHECKED_BYTES: Final = 32_768
CLOCK_OFFSET_MS: Final = 1_000  # less than this may be the network's, and is left alone
SOURCE_MAX_CHARS: Final = 256


class Batch:
    """One request: what was read of it."""

    def __init__(self, groups: list[Group]):
        self.groups = groups
        self.spans = sum(len(group.spans) for group in groups)
        if self.spans > SPANS_MAX:
            raise Malformed(f"{self.spans:,} spans in one request; send at most {SPANS_MAX:,} at once")
        self.source, self.sequence = _numbering(groups)
        self.read_spans: list[tuple[Origin, bytes, SpanFields]] = []
        self.keys: set[bytes] = set()  # of spans; of a batch that is not numbered
        self.refused: Counter[str] = Counter()  # by reason
        self.lacking: Counter[str] = Counter()  # the same by agent
        self.duplicates = 0
        self.samples: list[Sample] = []
        self.kept: list[KeptSpan] = []
        self.units: list[UnitCall] = []
        self.calls: list[CallRecord] = []

    def read(self, reader: SpanReader) -> Iterator[None]:
        """Reads every span. Malformed: one is no span."""
        unnumbered = self.sequence < 0
        spans = size_bytes = 0
        for group in self.groups:
            origin = group.origin
            for data in group.spans:
                if len(data) > _FIELDS_UNCHECKED_BYTES and not _sound_size(data):
                    self._refuse(origin, None, "a span that is too large")
                    continue
                read = reader.span(data)
                reason = refusal(read)
                if reason:
                    self._refuse(origin, read, reason)
                else:
                    if unnumbered:
                        key = read.trace_id + read.span_id
                        if key in self.keys:
                            self.duplicates += 1
                            continue
                        self.keys.add(key)
                    self.read_spans.append((origin, data, read))
                spans += 1
                size_bytes += len(data)
                if spans >= SLICE_SPANS or size_bytes >= SLICE_BYTES:
                    spans = size_bytes = 0
                    yield

    def _refuse(self, origin: Origin, read: SpanFields | None, reason: str) -> None:
        self.refused[reason] += 1
        agent_id = read.values[AGENT_ID] if read is not None else None
        if not agent_id or type(agent_id) is not str:
            agent_id = origin.agent_id
        if not agent_id and origin.scope != OUTRIDER_SCOPE:
            agent_id = origin.service
        self.lacking[agent_id] += 1


class Traces:
    """What turns batches into samples and kept spans, and remembers what that takes."""

    def __init__(self, clock_offset_ms: Callable[[str], int], prices: Prices, tail: Tail):
        self.reader = SpanReader()
        self.hops = Hops()
        self.sampler = Sampler(self.hops, prices)
        self.tail = tail
        self.unit_calls = UnitCalls(prices)
        self.gate = CallGate()
        self._clock_offset_ms = clock_offset_ms

    def batch(self, request: bytes) -> Batch:
        """The request's outline. Malformed: it is no ExportTraceServiceRequest."""
        return Batch(self.reader.groups(request))

    def take(self, batch: Batch, known: Callable[[bytes], bool] | None, now_ms: int) -> Iterator[None]:
        """Fills `batch.samples` and `batch.kept`. Spans that are `known` are duplicates."""
        sample_of, observe = self.sampler.sample, self.tail.observe
        samples, kept, calls = batch.samples, batch.kept, batch.calls
        self.gate.begin(now_ms)
        remember = self.gate.take
        origin: Origin | None = None
        offset_ms, ours = 0, False
        spans = 0
        for one, data, read in batch.read_spans:
            if one is not origin:
                origin = one
                offset_ms = self._offset_ms(one)
                ours = one.scope == OUTRIDER_SCOPE
            if known is not None and known(read.trace_id + read.span_id):
                batch.duplicates += 1
                continue
            sample = sample_of(one, read, offset_ms, now_ms)
            if contributes(sample):
                samples.append(sample)
            remember(ours, read, sample, calls)
            if ours and read.values[UNIT] is not None:
                batch.units += self.unit_calls.of(data, read, sample, now_ms)
            key = sample.key
            total_us = sample.total_us
            failed = sample.failed or (read.failed and not sample.cancelled)
            observe(
                TailSpan(
                    read.trace_id, read.span_id, key.agent_id, sample.end_ms - total_us // 1_000, total_us, failed,
                    sample.call, ours, key.variant, one, data,
                ),
                now_ms,
                kept,
            )  # fmt: skip
            spans += 1
            if spans >= SLICE_SPANS:
                spans = 0
                yield

    def _offset_ms(self, origin: Origin) -> int:
        if origin.scope != OUTRIDER_SCOPE or not origin.instance:
            return 0
        offset_ms = self._clock_offset_ms(origin.instance)
        return offset_ms if abs(offset_ms) >= CLOCK_OFFSET_MS else 0


def _numbering(groups: list[Group]) -> tuple[str, int]:
    """(source, sequence) where the whole request is one numbered batch, else ("", -1)."""
    numbers = {(group.origin.instance, group.origin.sequence) for group in groups}
    if len(numbers) != 1:
        return "", -1
    source, sequence = numbers.pop()
    if not source or len(source) >= SOURCE_MAX_CHARS or not 0 <= sequence < 2**63:
        return "", -1
    return source, sequence


def _sound_size(data: bytes) -> bool:
    """Whether a large span has so few fields that reading it is quick. Malformed: it is no span."""
    if len(data) > SPAN_MAX_BYTES:
        return False
    return all(count < FIELDS_MAX for count, _ in enumerate(fields(data)))
