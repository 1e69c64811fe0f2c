"""Huffman decoding against the `hpack` library's code table and a bit-by-bit reading of RFC 7541, section 5.2."""

from __future__ import annotations

import pytest
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hypothesis import given
from hypothesis import strategies as st

from outrider_http2 import huffman
from outrider_http2.huffman import HuffmanError, decode

SYMBOLS = {
    (bits, code): symbol for symbol, (code, bits) in enumerate(zip(REQUEST_CODES, REQUEST_CODES_LENGTH, strict=True))
}
encode = HuffmanEncoder(list(REQUEST_CODES), list(REQUEST_CODES_LENGTH)).encode


def decode_by_bits(coded: bytes) -> bytes | None:
    """The text, or None where the RFC calls the string an error."""
    text = bytearray()
    bits = code = 0
    for byte in coded:
        for shift in range(7, -1, -1):
            code = code << 1 | byte >> shift & 1
            bits += 1
            symbol = SYMBOLS.get((bits, code))
            if symbol == 256:
                return None
            if symbol is not None:
                text.append(symbol)
                bits = code = 0
    return bytes(text) if bits <= 7 and code == (1 << bits) - 1 else None


def forget_rows() -> None:
    """As after import: no row is built."""
    for row in huffman._ROWS:
        row.clear()


def test_code_lengths_are_those_of_the_rfc():
    assert list(huffman.CODE_BITS) == list(REQUEST_CODES_LENGTH)


@pytest.mark.parametrize(
    ("coded", "text"),
    [
        ("f1e3c2e5f23a6ba0ab90f4ff", b"www.example.com"),
        ("a8eb10649cbf", b"no-cache"),
        ("25a849e95ba97d7f", b"custom-key"),
        ("25a849e95bb8e8b4bf", b"custom-value"),
        ("d07abe941054d444a8200595040b8166e082a62d1bff", b"Mon, 21 Oct 2013 20:13:21 GMT"),
        ("9d29ad171863c78f0b97c8e9ae82ae43d3", b"https://www.example.com"),
    ],
)
def test_vectors_of_the_rfc(coded: str, text: bytes):
    assert decode(bytes.fromhex(coded)) == text


def test_empty_string_is_valid():
    assert decode(b"") == b""


def test_empty_string_is_valid_before_any_row_is_built():
    forget_rows()
    assert decode(b"") == b""


@pytest.mark.parametrize("symbol", range(256))
def test_each_symbol_alone_and_after_every_alignment(symbol: int):
    text = bytes((symbol,))
    assert decode(encode(text)) == text
    for lead in range(1, 9):  # '0' has five bits, so these leads reach every bit of a byte
        assert decode(encode(b"0" * lead + text)) == b"0" * lead + text


@pytest.mark.parametrize(
    ("coded", "why"),
    [
        ("ffffffff", "EOS"),
        ("fffffffc", "EOS and two zeros"),
        ("1fffffffff", "a symbol, then EOS"),
        ("ffffffffffffffff1f", "text after EOS"),
        ("ff", "eight bits of padding"),
        ("1fff", "a symbol, then eleven bits of padding"),
        ("18", "padding of zeros"),
        ("1e", "padding that ends in a zero"),
        ("fe", "a code cut short that is not all ones"),
    ],
)
def test_errors(coded: str, why: str):
    assert decode_by_bits(bytes.fromhex(coded)) is None, why
    with pytest.raises(HuffmanError):
        decode(bytes.fromhex(coded))


@pytest.mark.parametrize("bits", range(1, 8))
def test_padding_of_up_to_seven_ones(bits: int):
    text = next(text for text in (b"0" * a + b"3" * b for a in range(8) for b in range(8)) if pad_bits(text) == bits)
    assert decode(encode(text)) == text


def pad_bits(text: bytes) -> int:
    return -sum(REQUEST_CODES_LENGTH[byte] for byte in text) % 8


@given(st.binary(max_size=200))
def test_decodes_what_the_library_encodes(text: bytes):
    assert decode(encode(text)) == text


@given(st.binary(max_size=60), st.booleans())
def test_any_bytes_are_read_as_the_rfc_says(coded: bytes, fresh: bool):
    if fresh:  # also when rows must be built in the middle of the string
        forget_rows()
    expected = decode_by_bits(coded)
    if expected is None:
        with pytest.raises(HuffmanError):
            decode(coded)
    else:
        assert decode(coded) == expected


@given(st.text("0123456789abcdef-/:., ABCXYZ%", min_size=1, max_size=100), st.integers(0, 7), st.binary(max_size=3))
def test_nearly_valid_strings_are_read_as_the_rfc_says(text: str, bit: int, tail: bytes):
    coded = bytearray(encode(text.encode()) + tail)
    coded[len(coded) // 2] ^= 1 << bit
    expected = decode_by_bits(bytes(coded))
    if expected is None:
        with pytest.raises(HuffmanError):
            decode(bytes(coded))
    else:
        assert decode(bytes(coded)) == expected


def test_a_row_is_built_only_when_it_is_reached():
    forget_rows()
    decode(encode(b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"))
    assert 0 < sum(map(bool, huffman._ROWS)) < 64
