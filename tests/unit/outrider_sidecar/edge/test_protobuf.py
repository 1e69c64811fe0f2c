"""The wire format by hand, against protobuf's own."""

from __future__ import annotations

from google.protobuf.descriptor_pb2 import FieldDescriptorProto
from hypothesis import given
from hypothesis import strategies as st

from outrider_sidecar.edge.protobuf import bytes_field, fields, last_bytes, last_varint, varint_field


@given(st.text(max_size=400), st.integers(0, 2**31 - 1))
def test_it_reads_and_writes_what_protobuf_does(name: str, number: int):
    encoded = bytes_field(1, name.encode()) + varint_field(3, number)
    assert encoded == FieldDescriptorProto(name=name, number=number).SerializeToString()
    assert (last_bytes(encoded, 1), last_varint(encoded, 3)) == (name.encode(), number)
    assert list(fields(encoded)) == [(1, name.encode()), (3, number)]


def test_fields_that_are_not_asked_for_are_passed_over():
    noise = b"\x09" + b"8" * 8 + b"\x15" + b"4444" + bytes_field(7, b"other") + varint_field(8, 1)
    message = noise + bytes_field(2, b"old") + noise + bytes_field(2, b"new") + varint_field(3, 300) + noise
    assert last_bytes(message, 2) == b"new"
    assert last_varint(message, 3) == 300
    assert (last_bytes(message, 3), last_varint(message, 2)) == (b"", 0)  # of another kind
    assert (last_bytes(message, 9), last_varint(message, 9)) == (b"", 0)


@given(st.integers(0, 30))
def test_what_is_cut_off_says_nothing_of_the_field_that_is_cut(cut: int):
    whole = varint_field(1, 5) + bytes_field(2, b"0123456789") + varint_field(3, 2**40)
    found = list(fields(whole[:cut]))
    assert found == list(fields(whole))[: len(found)]
    assert len(found) == (cut >= 2) + (cut >= 14) + (cut >= len(whole))


@given(st.binary(max_size=60))
def test_nothing_makes_it_fail(message: bytes):
    assert len(list(fields(message))) <= len(message)
    last_bytes(message, 1)
    last_varint(message, 1)
