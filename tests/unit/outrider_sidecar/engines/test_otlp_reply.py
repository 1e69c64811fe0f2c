from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceResponse,
)

from outrider_sidecar.engines.otlp import field, varint
from outrider_sidecar.engines.otlp_reply import partial_success, retry_delay_s


def status(type_url: bytes, value: bytes, message: bytes = b"busy") -> bytes:
    """google.rpc.Status: code (1), message (2), details (3) of google.protobuf.Any."""
    return b"\x08\x0e" + field(2, message) + field(3, field(1, type_url) + field(2, value))


def retry_info(seconds: int, nanos: int) -> bytes:
    duration = b"".join(tag + varint(value) for tag, value in ((b"\x08", seconds), (b"\x10", nanos)) if value)
    return status(b"type.googleapis.com/google.rpc.RetryInfo", field(1, duration))


@given(st.integers(0, 2**62), st.text(max_size=50))
def test_partial_success_is_read(rejected: int, message: str):
    partial = ExportTracePartialSuccess(rejected_spans=rejected, error_message=message)
    reply = ExportTraceServiceResponse(partial_success=partial)
    assert partial_success(reply.SerializeToString()) == (rejected, message)


def test_full_success_rejects_nothing():
    assert partial_success(b"") == (0, "")
    assert partial_success(ExportTraceServiceResponse().SerializeToString()) == (0, "")


def test_a_retry_delay_is_read():
    assert retry_delay_s(retry_info(3, 500_000_000)) == 3.5
    assert retry_delay_s(retry_info(0, 1_000_000)) == 0.001
    assert retry_delay_s(retry_info(0, 0)) == 0.0


def test_other_details_before_it_do_not_matter():
    other = field(3, field(1, b"type.googleapis.com/google.rpc.DebugInfo") + field(2, b"\x0a\x01x"))
    assert retry_delay_s(other + retry_info(2, 0)) == 2.0


def test_no_retry_info_is_no_delay():
    assert retry_delay_s(b"") is None
    assert retry_delay_s(b"\x08\x0e" + field(2, b"busy")) is None
    assert retry_delay_s(status(b"type.googleapis.com/google.rpc.QuotaFailure", b"")) is None


def test_a_negative_delay_is_none():
    assert retry_delay_s(retry_info(2**64 - 1, 0)) is None
    assert retry_delay_s(retry_info(0, 2**64 - 1)) is None


def test_cut_off_messages_say_nothing_wrong():
    whole = retry_info(3, 500_000_000)
    assert {retry_delay_s(whole[:size]) for size in range(len(whole))} == {None}
    partial = ExportTracePartialSuccess(rejected_spans=7, error_message="no")
    whole = ExportTraceServiceResponse(partial_success=partial).SerializeToString()
    assert {partial_success(whole[:size]) for size in range(len(whole))} == {(0, "")}


def test_fields_of_other_kinds_are_skipped():
    inner = b"\x19" + b"\x00" * 8 + b"\x25" + b"\x00" * 4 + b"\x08\x05"
    assert partial_success(field(1, inner)) == (5, "")
    assert partial_success(field(1, b"\x0b\x08\x05")) == (0, "")  # a group: nothing after it is read


@given(st.binary(max_size=200))
def test_no_bytes_raise(message: bytes):
    partial = partial_success(message)
    assert 0 <= partial.rejected < 2**64
    delay_s = retry_delay_s(message)
    assert delay_s is None or delay_s >= 0
