"""OTLP traces by hand: `ExportTraceServiceRequest` bytes from call records, and the replies to it.

Always holds: what is written parses with the official schema; a field that is empty or zero is left out; texts are
valid UTF-8 and cut at `TEXT_MAX_CHARS`. What repeats from call to call (method, agent, endpoint, status, ...) is
encoded once and kept; a span then costs a handful of joins. Attempts are span events named `outrider.attempt`: they
belong to the call, carry a time, and need no ids of their own, which links would.

Deliberately not here: batching (`engines.export_queue`), sending (`edge.export`), attribute names
(`core.attributes`). Field numbers: opentelemetry-proto 1.x, trace/v1, common/v1, resource/v1.
"""

from __future__ import annotations

import struct
from binascii import hexlify, unhexlify
from collections.abc import Mapping, Sequence
from typing import Any, Final

from outrider_sidecar.core import attributes as names
from outrider_sidecar.core import errors
from outrider_sidecar.core.span import (
    DETACHED,
    SERVER,
    THROUGH_INGRESS,
    Admission,
    Attempt,
    Compression,
    Generation,
    Span,
)

TEXT_MAX_CHARS: Final = 1_024
_STATICS_MAX: Final = 1_024  # distinct static parts kept; all are dropped when callers invent more
_STATIC_MAX_BYTES: Final = 2_048  # a longer one (a path may have 64 KB) is made anew each time

Value = str | int | bool | float | Sequence[str]

# Span fields 1 trace_id, 2 span_id, 7 start, 8 end, 16 flags; and the same with 4 parent_span_id.
_ROOT: Final = struct.Struct("<2s16s2s8scQcQ2sI")
_CHILD: Final = struct.Struct("<2s16s2s8s2s8scQcQ2sI")
_ROOT_FLAGS: Final = 0x100  # SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE
_CHILD_FLAGS: Final = 0x300  # the same, and the parent is remote: it always came over the wire
_EVENT_TIME: Final = struct.Struct("<cQ")  # Event field 1


def varint(value: int) -> bytes:
    """Base-128 of 0..2**64-1."""
    if value < 0x80:
        return _ONE_BYTE[value]
    if value < 0x4000:
        return _FIRST_OF_TWO[value & 0x7F] + _ONE_BYTE[value >> 7]
    if value < 0x20_0000:
        return _FIRST_OF_TWO[value & 0x7F] + _FIRST_OF_TWO[value >> 7 & 0x7F] + _ONE_BYTE[value >> 14]
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


_ONE_BYTE: Final = tuple(bytes((value,)) for value in range(0x80))
_FIRST_OF_TWO: Final = tuple(bytes((value | 0x80,)) for value in range(0x80))


def field(number: int, payload: bytes) -> bytes:
    """A length-delimited field."""
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def _text(value: str) -> bytes:
    return value[:TEXT_MAX_CHARS].encode("utf-8", "replace")


def _any_value(value: Value) -> bytes:
    if isinstance(value, str):
        return field(1, _text(value))
    if isinstance(value, bool):
        return b"\x10" + varint(value)
    if isinstance(value, int):
        return b"\x18" + varint(value & 0xFFFF_FFFF_FFFF_FFFF)
    if isinstance(value, float):
        return b"\x21" + struct.pack("<d", value)
    return field(5, b"".join(field(1, _any_value(item)) for item in value))


def key_value(key: str, value: Value) -> bytes:
    """The body of a `KeyValue`."""
    return field(1, key.encode()) + field(2, _any_value(value))


class _IntAttribute:
    """A whole-number attribute whose bytes before the number are prepared for each length the number can have."""

    __slots__ = ("_prefixes",)

    def __init__(self, number: int, key: str):
        key_field = field(1, key.encode())
        prefixes = []
        for size in range(11):  # a varint has up to 10 bytes
            any_value = b"\x12" + varint(size + 1) + b"\x18"
            prefixes.append(
                varint(number << 3 | 2) + varint(len(key_field) + len(any_value) + size) + key_field + any_value
            )
        self._prefixes = tuple(prefixes)

    def encode(self, value: int) -> bytes:
        digits = varint(value)
        return self._prefixes[len(digits)] + digits


class _TextAttribute:
    """A text attribute whose bytes before the text are kept for each length that was seen."""

    __slots__ = ("_key_field", "_number", "_prefixes")

    def __init__(self, number: int, key: str):
        self._number = varint(number << 3 | 2)
        self._key_field = field(1, key.encode())
        self._prefixes: dict[int, bytes] = {}  # at most as many as a text may have bytes

    def encode(self, value: str) -> bytes:
        text = _text(value)
        size = len(text)
        prefix = self._prefixes.get(size)
        if prefix is None:
            body = self._key_field + field(2, field(1, text))
            prefix = self._number + varint(len(body)) + body[: len(body) - size]
            self._prefixes[size] = prefix
        return prefix + text


_SPAN_ATTRIBUTE: Final = 9
_EVENT_ATTRIBUTE: Final = 3
_QUEUE: Final = _IntAttribute(_SPAN_ATTRIBUTE, names.QUEUE_US).encode
_CONNECT: Final = _IntAttribute(_SPAN_ATTRIBUTE, names.CONNECT_US).encode
_FIRST_BYTE: Final = _IntAttribute(_SPAN_ATTRIBUTE, names.FIRST_BYTE_US).encode
_REQUEST_BYTES: Final = _IntAttribute(_SPAN_ATTRIBUTE, names.REQUEST_BYTES).encode
_REPLY_BYTES: Final = _IntAttribute(_SPAN_ATTRIBUTE, names.REPLY_BYTES).encode
_TOKENS_SAVED: Final = _IntAttribute(_SPAN_ATTRIBUTE, names.TOKENS_SAVED).encode
_TOKENS_BEFORE: Final = _IntAttribute(_SPAN_ATTRIBUTE, names.TOKENS_BEFORE).encode
_COMPRESSION_US: Final = _IntAttribute(_SPAN_ATTRIBUTE, names.COMPRESSION_US).encode
_INPUT_TOKENS: Final = _IntAttribute(_SPAN_ATTRIBUTE, names.INPUT_TOKENS).encode
_OUTPUT_TOKENS: Final = _IntAttribute(_SPAN_ATTRIBUTE, names.OUTPUT_TOKENS).encode
_CACHE_READ_TOKENS: Final = _IntAttribute(_SPAN_ATTRIBUTE, names.CACHE_READ_TOKENS).encode
_CACHE_WRITE_TOKENS: Final = _IntAttribute(_SPAN_ATTRIBUTE, names.CACHE_WRITE_TOKENS).encode
_CONVERSATION: Final = _TextAttribute(_SPAN_ATTRIBUTE, names.CONVERSATION_ID).encode
_UNIT: Final = _TextAttribute(_SPAN_ATTRIBUTE, names.UNIT).encode
_TENANT: Final = _TextAttribute(_SPAN_ATTRIBUTE, names.TENANT).encode
_CACHE_KEY: Final = field(_SPAN_ATTRIBUTE, key_value(names.CACHE_KEY, "0" * 32))[:-32]  # before 16 bytes in hex
_STATUS_MESSAGE: Final = _TextAttribute(_SPAN_ATTRIBUTE, names.STATUS_MESSAGE).encode
_ATTEMPT_US: Final = _IntAttribute(_EVENT_ATTRIBUTE, names.ATTEMPT_US).encode


def split_address(address: str) -> tuple[str, int]:
    """`server.address` and `server.port` of a configured endpoint; port 0 for a unix socket or where none is named."""
    address = address.removeprefix("dns:")
    if address.startswith("unix:"):
        return address.removeprefix("unix:"), 0
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or (":" in host and not host.startswith("[")):
        return address.strip("[]"), 0
    return host.strip("[]"), int(port)


class Encoder:
    """Encodes the spans of one process.

    `span()` gives one framed entry of `ScopeSpans.spans`; `request()` puts entries under the resource and the scope.
    """

    __slots__ = ("_admissions", "_attempts", "_generations", "_resource", "_schema", "_scope", "_statics")

    def __init__(self, resource: Mapping[str, Value], scope: str = names.SCOPE_NAME, scope_version: str = ""):
        body = b"".join(field(1, key_value(key, value)) for key, value in resource.items())
        self._resource = field(1, body)
        self._scope = field(1, _text(scope)) + (field(2, _text(scope_version)) if scope_version else b"")
        self._schema = field(3, names.SCHEMA_URL.encode())
        self._statics: dict[tuple[object, ...], bytes] = {}
        self._admissions: dict[tuple[str, tuple[str, ...]], bytes] = {}
        self._attempts: dict[tuple[str, int, str], bytes] = {}
        self._generations: dict[tuple[str, str, str, str], bytes] = {}

    def request(self, spans: Sequence[bytes], sequence: int | None = None) -> bytes:
        """An `ExportTraceServiceRequest`. `sequence` numbers the batch for a receiver that counts exactly once."""
        scope = self._scope
        if sequence is not None:
            scope += field(3, key_value(names.BATCH_SEQUENCE, sequence))
        # Lengths first, then one join: a batch has some 300 KB, and each copy of it costs more than all the rest.
        scope = field(1, scope)
        inner_bytes = len(scope) + sum(map(len, spans)) + len(self._schema)
        inner_head = b"\x12" + varint(inner_bytes)
        outer_bytes = len(self._resource) + len(inner_head) + inner_bytes + len(self._schema)
        head = b"\x0a" + varint(outer_bytes) + self._resource + inner_head + scope
        return b"".join((head, *spans, self._schema, self._schema))

    def span(self, span: Span) -> bytes:
        (
            trace_id, span_id, parent_id, tracestate, flags, kind, method, agent_id, endpoint, start_unix_ns, total_us,
            status, error, admission, connect_us, first_byte_us, request_bytes, reply_bytes, cache, cache_tier, variant,
            session, unit, attempts, generation, compression, notes, hop, tenant, details,
        ) = span  # fmt: skip
        end_unix_ns = start_unix_ns + total_us * 1_000
        if parent_id:
            fixed = _CHILD.pack(
                b"\x0a\x10", unhexlify(trace_id), b"\x12\x08", unhexlify(span_id), b"\x22\x08", unhexlify(parent_id),
                b"\x39", start_unix_ns, b"\x41", end_unix_ns, b"\x85\x01", flags | _CHILD_FLAGS,
            )  # fmt: skip
        else:
            fixed = _ROOT.pack(
                b"\x0a\x10", unhexlify(trace_id), b"\x12\x08", unhexlify(span_id),
                b"\x39", start_unix_ns, b"\x41", end_unix_ns, b"\x85\x01", flags | _ROOT_FLAGS,
            )  # fmt: skip
        key = (kind, method, agent_id, endpoint, status, cache, cache_tier, variant, hop)
        static = self._statics.get(key) or self._static(key, span)
        parts = [fixed, static]
        if first_byte_us:
            parts.append(_FIRST_BYTE(first_byte_us))
        if request_bytes:
            parts.append(_REQUEST_BYTES(request_bytes))
        if reply_bytes:
            parts.append(_REPLY_BYTES(reply_bytes))
        if admission is not None:
            self._admission(parts, admission)
        if connect_us:
            parts.append(_CONNECT(connect_us))
        if status:
            parts.append(_status(kind, status, error))
        if session:
            parts.append(_CONVERSATION(session))
        if generation is not None:
            self._generation(parts, generation)
        if tenant:
            parts.append(_TENANT(tenant))
        if details or tracestate or unit or attempts or compression is not None or notes:
            if details is not None:
                if details.cache_key:
                    parts.append(_CACHE_KEY + hexlify(details.cache_key))
                if details.pick:
                    parts.append(field(_SPAN_ATTRIBUTE, key_value(names.PICK, details.pick)))
            if tracestate and tracestate.isascii():  # else no valid UTF-8 text, and a collector refuses the whole batch
                parts.append(field(3, tracestate))
            if unit:
                parts.append(_UNIT(unit))
            if compression is not None:
                self._compression(parts, compression)
            if notes:
                parts.append(field(_SPAN_ATTRIBUTE, key_value(names.NOTES, notes)))
            parts += [self._attempt(start_unix_ns, attempt) for attempt in attempts]
        body = b"".join(parts)
        return b"\x12" + varint(len(body)) + body

    def _static(self, key: tuple[object, ...], span: Span) -> bytes:
        """Name, kind and every attribute that depends on nothing but `key`."""
        method = span.method.removeprefix("/")
        code = errors.NAMES[span.status]
        host, port = split_address(span.endpoint) if span.endpoint else ("", 0)
        texts = (
            (names.RPC_SYSTEM_NAME, "grpc"),
            (names.RPC_METHOD, method),
            (names.RPC_STATUS_CODE, code),
            (names.ERROR_TYPE, code if _is_error(span.kind, span.status) else ""),
            (names.SERVER_ADDRESS, host),
            (names.AGENT_ID, span.agent_id),
            (names.ENDPOINT, span.endpoint),
            (names.CACHE, span.cache),
            (names.CACHE_TIER, span.cache_tier),
            (names.VARIANT, span.variant),
            (names.HOP, "ingress" if span.hop & THROUGH_INGRESS else ""),
        )
        parts = [field(5, _text(method)), b"\x30" + varint(span.kind)]
        parts += [field(_SPAN_ATTRIBUTE, key_value(name, text)) for name, text in texts if text]
        if port:
            parts.append(field(_SPAN_ATTRIBUTE, key_value(names.SERVER_PORT, port)))
        if span.hop & DETACHED:
            parts.append(field(_SPAN_ATTRIBUTE, key_value(names.DETACHED, True)))
        return _keep(self._statics, key, b"".join(parts))

    def _attempt(self, start_unix_ns: int, attempt: Attempt) -> bytes:
        endpoint, start_us, total_us, status, reason = attempt
        key = (endpoint, status, reason)
        static = self._attempts.get(key)
        if static is None:
            parts = [
                field(2, names.ATTEMPT.encode()),
                field(_EVENT_ATTRIBUTE, key_value(names.ENDPOINT, endpoint)),
                field(_EVENT_ATTRIBUTE, key_value(names.RPC_STATUS_CODE, errors.NAMES[status])),
            ]
            if reason:
                parts.append(field(_EVENT_ATTRIBUTE, key_value(names.ATTEMPT_REASON, reason)))
            static = _keep(self._attempts, key, b"".join(parts))
        body = _EVENT_TIME.pack(b"\x09", start_unix_ns + start_us * 1_000) + static + _ATTEMPT_US(total_us)
        return b"\x5a" + varint(len(body)) + body

    def _compression(self, parts: list[bytes], compression: Compression) -> None:
        before, after, compressors, us, net = compression
        if before > after:
            parts.append(_TOKENS_SAVED(before - after))
        parts.append(_TOKENS_BEFORE(before))
        if us:
            parts.append(_COMPRESSION_US(us))
        if compressors:
            parts.append(field(_SPAN_ATTRIBUTE, key_value(names.COMPRESSORS, compressors)))
        if net:
            parts.append(field(_SPAN_ATTRIBUTE, key_value(names.COMPRESSION_NET, net)))

    def _admission(self, parts: list[bytes], admission: Admission) -> None:
        queue_us, lane, degraded = admission
        key = (lane, degraded)
        static = self._admissions.get(key)
        if static is None:
            static = field(_SPAN_ATTRIBUTE, key_value(names.LANE, lane))
            if degraded:
                static += field(_SPAN_ATTRIBUTE, key_value(names.DEGRADED, degraded))
            static = _keep(self._admissions, key, static)
        parts.append(static)
        if queue_us:
            parts.append(_QUEUE(queue_us))

    def _generation(self, parts: list[bytes], generation: Generation) -> None:
        operation, model, reply_model, reason, input_tokens, output_tokens, cache_read, cache_write = generation
        key = (operation, model, reply_model, reason)
        static = self._generations.get(key)
        if static is None:
            texts = (
                (names.OPERATION_NAME, operation),
                (names.REQUEST_MODEL, model),
                (names.RESPONSE_MODEL, reply_model),
            )
            entries = [key_value(name, text) for name, text in texts if text]
            if reason:
                entries.append(key_value(names.FINISH_REASONS, (reason,)))
            static = _keep(self._generations, key, b"".join(field(_SPAN_ATTRIBUTE, entry) for entry in entries))
        parts.append(static)
        if input_tokens:
            parts.append(_INPUT_TOKENS(input_tokens))
        if output_tokens:
            parts.append(_OUTPUT_TOKENS(output_tokens))
        if cache_read:
            parts.append(_CACHE_READ_TOKENS(cache_read))
        if cache_write:
            parts.append(_CACHE_WRITE_TOKENS(cache_write))


def _keep(statics: dict[Any, bytes], key: Any, encoded: bytes) -> bytes:
    if len(encoded) > _STATIC_MAX_BYTES:
        return encoded
    if len(statics) >= _STATICS_MAX:
        statics.clear()
    statics[key] = encoded
    return encoded


def _is_error(kind: int, status: int) -> bool:
    return status in names.SERVER_ERRORS if kind == SERVER else status != 0


def _status(kind: int, status: int, error: str) -> bytes:
    """Span field 15 with STATUS_CODE_ERROR, or the message as an attribute where the status is no error of this hop."""
    if not _is_error(kind, status):
        return _STATUS_MESSAGE(error) if error else b""
    if not error:
        return b"\x7a\x02\x18\x02"
    return field(15, field(2, _text(error)) + b"\x18\x02")
