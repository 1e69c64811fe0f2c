"""The one table of statuses, and messages that survive their header."""

from __future__ import annotations

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.policy import STATUSES
from outrider_http2 import frames
from outrider_http2.head import Head
from outrider_sidecar.core import errors


def test_numbers_and_names_are_grpcs() -> None:
    assert {code.name: code.value[0] for code in grpc.StatusCode} == errors.NUMBERS
    assert STATUSES == errors.NAMES


@pytest.mark.parametrize(
    ("status", "expected"),
    [(b"0", 0), (b"16", 16), (b"17", 2), (b"-1", 2), (b"", 2), (b"00", 2), (b"x", 2), (None, 2)],
)
def test_a_status_that_is_none_is_unknown(status: bytes | None, expected: int) -> None:
    fields = ((b"grpc-status", status),) if status is not None else ()
    assert errors.status_of(Head(fields)) == expected


@pytest.mark.parametrize(
    ("http", "expected"),
    [
        (400, errors.INTERNAL),
        (401, errors.UNAUTHENTICATED),
        (403, errors.PERMISSION_DENIED),
        (404, errors.UNIMPLEMENTED),
        (429, errors.UNAVAILABLE),
        (502, errors.UNAVAILABLE),
        (503, errors.UNAVAILABLE),
        (504, errors.UNAVAILABLE),
        (200, errors.UNKNOWN),
        (500, errors.UNKNOWN),
        (418, errors.UNKNOWN),
    ],
)
def test_http_statuses_map_as_grpc_says(http: int, expected: int) -> None:
    assert errors.from_http(http) == expected


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (frames.NO_ERROR, errors.INTERNAL),
        (frames.PROTOCOL_ERROR, errors.INTERNAL),
        (frames.REFUSED_STREAM, errors.UNAVAILABLE),
        (frames.CANCEL, errors.CANCELLED),
        (frames.ENHANCE_YOUR_CALM, errors.RESOURCE_EXHAUSTED),
        (frames.INADEQUATE_SECURITY, errors.PERMISSION_DENIED),
        (0xBEEF, errors.INTERNAL),
    ],
)
def test_resets_map_as_grpc_says(code: int, expected: int) -> None:
    assert errors.from_reset(code) == expected


@given(st.text(max_size=300))
def test_a_message_survives_its_header(text: str) -> None:
    encoded = errors.encode_message(text)
    assert all([0x20 <= byte <= 0x7E for byte in encoded])
    shown = text.encode("utf-8", "replace").decode().strip(" ")
    assert errors.decode_message(encoded) == shown


@given(st.binary(max_size=400))
def test_any_received_message_can_be_shown(raw: bytes) -> None:
    assert len(errors.decode_message(raw)) <= 1_024


def test_a_message_is_bounded() -> None:
    assert len(errors.encode_message("%" * 100_000)) == 3 * 1_024
    assert len(errors.decode_message(b"%41" * 100_000)) == 1_024
