"""Validation of fields by RFC 9113, section 8."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider_http2.fields import FieldError, content_length, request_parts, response_parts, trailer_parts

METHOD, SCHEME, PATH = (b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/pkg.Service/Method")
AUTHORITY = (b":authority", b"agent.example:7600")
HEAD = (METHOD, SCHEME, PATH, AUTHORITY)
REGULAR = (
    (b"content-type", b"application/grpc"),
    (b"te", b"trailers"),
    (b"user-agent", b"grpc-python/1.60.0 grpc-c/37.0.0 (linux; chttp2)"),
    (b"x-custom", b""),
    (b"x-custom", b"\x80\xff in the middle\tof it"),
)


def test_request():
    assert request_parts(HEAD + REGULAR) == (b"POST", b"http", b"agent.example:7600", b"/pkg.Service/Method", REGULAR)


def test_request_without_regular_fields():
    assert request_parts(HEAD)[4] == ()


def test_request_given_as_a_list():
    assert request_parts(list(HEAD + REGULAR)) == request_parts(HEAD + REGULAR)


@given(st.permutations(HEAD))
def test_pseudo_headers_come_in_any_order(head: list[tuple[bytes, bytes]]):
    assert request_parts((*head, *REGULAR)) == request_parts(HEAD + REGULAR)


def test_authority_comes_from_host_where_it_is_absent():
    fields = (METHOD, SCHEME, PATH, (b"host", b"other:1"))
    assert request_parts(fields) == (b"POST", b"http", b"other:1", b"/pkg.Service/Method", ((b"host", b"other:1"),))


def test_host_may_repeat_the_authority():
    assert request_parts((*HEAD, (b"host", AUTHORITY[1])))[2] == AUTHORITY[1]


def test_options_may_ask_for_all():
    assert request_parts(((b":method", b"OPTIONS"), SCHEME, AUTHORITY, (b":path", b"*")))[3] == b"*"


@pytest.mark.parametrize("scheme", [b"http", b"https", b"grpc+unix"])
def test_schemes(scheme: bytes):
    assert request_parts((METHOD, (b":scheme", scheme), PATH, AUTHORITY))[1] == scheme


@pytest.mark.parametrize("method", [b"GET", b"POST", b"M-SEARCH", b"x!#$%&'*+.^_`|~"])
def test_methods(method: bytes):
    assert request_parts(((b":method", method), SCHEME, PATH, AUTHORITY))[0] == method


BAD_REQUESTS = {
    "no fields": (),
    "no method": (SCHEME, PATH, AUTHORITY),
    "no scheme": (METHOD, PATH, AUTHORITY),
    "no path": (METHOD, SCHEME, AUTHORITY),
    "no authority and no host": (METHOD, SCHEME, PATH),
    "repeated pseudo-header": (METHOD, SCHEME, PATH, PATH, AUTHORITY),
    "fifth pseudo-header repeated": (*HEAD, PATH),
    "fifth pseudo-header unknown": (*HEAD, (b":protocol", b"websocket")),
    "unknown pseudo-header": (METHOD, SCHEME, PATH, (b":protocol", b"websocket"), AUTHORITY),
    "unknown pseudo-header in place of one": (METHOD, SCHEME, PATH, (b":extra", b"x")),
    "pseudo-header of responses": (METHOD, SCHEME, PATH, (b":status", b"200"), AUTHORITY),
    "upper-case pseudo-header": (METHOD, SCHEME, (b":Path", b"/"), AUTHORITY),
    "late pseudo-header": (METHOD, SCHEME, PATH, REGULAR[0], AUTHORITY),
    "late pseudo-header after the four": (*HEAD, REGULAR[0], PATH),
    "host differs": (*HEAD, (b"host", b"elsewhere")),
    "hosts differ": (METHOD, SCHEME, PATH, (b"host", b"a"), (b"host", b"b")),
    "empty authority": (METHOD, SCHEME, PATH, (b":authority", b"")),
    "empty host": (METHOD, SCHEME, PATH, (b"host", b"")),
    "space in authority": (METHOD, SCHEME, PATH, (b":authority", b"a b")),
    "authority not ASCII": (METHOD, SCHEME, PATH, (b":authority", b"a\xff")),
    "CR in authority": (METHOD, SCHEME, PATH, (b":authority", b"a\r")),
    "CONNECT": ((b":method", b"CONNECT"), AUTHORITY),
    "CONNECT with all four": ((b":method", b"CONNECT"), SCHEME, PATH, AUTHORITY),
    "empty method": ((b":method", b""), SCHEME, PATH, AUTHORITY),
    "method is no token": ((b":method", b"GE T"), SCHEME, PATH, AUTHORITY),
    "method with NUL": ((b":method", b"GET\0"), SCHEME, PATH, AUTHORITY),
    "empty scheme": (METHOD, (b":scheme", b""), PATH, AUTHORITY),
    "scheme starts with a digit": (METHOD, (b":scheme", b"1http"), PATH, AUTHORITY),
    "scheme with LF": (METHOD, (b":scheme", b"http\n"), PATH, AUTHORITY),
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_bad_requests(name: str):
    with pytest.raises(FieldError):
        request_parts((*BAD_REQUESTS[name], *REGULAR))


@pytest.mark.parametrize(
    "path", [b"", b"*", b"a", b"//\0", b"/a b", b"/a\x7f", b"/\xc3\xa9", b"/\xff", b"/a\r\n", b"/a\n", b" /a"]
)
def test_bad_paths(path: bytes):
    with pytest.raises(FieldError):
        request_parts((METHOD, SCHEME, (b":path", path), AUTHORITY))


@pytest.mark.parametrize("path", [b"/", b"//", b"/a?b=%20#c", b"/" + bytes(range(0x21, 0x7F))])
def test_good_paths(path: bytes):
    assert request_parts((METHOD, SCHEME, (b":path", path), AUTHORITY))[3] == path


BAD_REGULAR = [
    (b"", b"x"),
    (b"Content-Type", b"x"),
    (b"content type", b"x"),
    (b"content-type:", b"x"),
    (b":late", b"x"),
    (b"na\0me", b"x"),
    (b"na\r\nme", b"x"),
    (b"name\x7f", b"x"),
    (b"name\xe9", b"x"),
    (b"a,b", b"x"),
    (b"connection", b"close"),
    (b"keep-alive", b"timeout=5"),
    (b"proxy-connection", b"keep-alive"),
    (b"transfer-encoding", b"chunked"),
    (b"upgrade", b"h2c"),
    (b"te", b"gzip"),
    (b"te", b"trailers, deflate"),
    (b"te", b""),
    (b"te", b"Trailers"),
    *((b"x", value) for value in (b"a\0b", b"a\rb", b"a\nb", b"\0", b"\r", b"\n", b"a\0", b"\0a", b"a\n")),
    *((b"x", value) for value in (b" a", b"a ", b"\ta", b"a\t", b" ", b"\t")),
]
PLACES = {
    "request": lambda fields: request_parts((*HEAD, *fields)),
    "response": lambda fields: response_parts(((b":status", b"200"), *fields)),
    "trailers": trailer_parts,
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("field", BAD_REGULAR)
def test_bad_regular_fields_are_refused_everywhere(place: str, field: tuple[bytes, bytes]):
    check = PLACES[place]
    check(REGULAR)
    for fields in ((field,), (field, *REGULAR), (*REGULAR, field), (*REGULAR, field, *REGULAR)):
        with pytest.raises(FieldError):
            check(fields)


def is_good_value(value: bytes) -> bool:
    return not set(value) & set(b"\0\r\n") and value == value.strip(b" \t")


@given(st.lists(st.binary(max_size=6) | st.sampled_from([b"", b"a b", b" a", b"a\t", b"\0", b"a\0 b"]), max_size=8))
def test_values_by_definition(values: list[bytes]):
    fields = tuple((b"x-%d" % number, value) for number, value in enumerate(values))
    if all(map(is_good_value, values)):
        assert trailer_parts(fields) == fields
    else:
        with pytest.raises(FieldError):
            trailer_parts(fields)


@pytest.mark.parametrize("count", [1, 255, 256, 257, 258, 700])
def test_any_number_of_fields(count: int):
    fields = ((b"x", b"value"),) * count
    assert trailer_parts(fields) == fields
    with pytest.raises(FieldError):
        trailer_parts((*fields, (b"x", b"a\0")))


def test_values_in_messages_are_readable():
    with pytest.raises(FieldError, match="x-broken"):
        trailer_parts(((b"x-fine", b"a"), (b"x-broken", b"a ")))


@pytest.mark.parametrize("status", [100, 103, 200, 404, 503, 599])
def test_response(status: int):
    assert response_parts(((b":status", b"%d" % status), *REGULAR)) == (status, REGULAR)


@pytest.mark.parametrize("status", [b"", b"99", b"099", b"600", b"2000", b"20", b"2x0", b" 200", b"+20", b"20\xb2"])
def test_bad_status(status: bytes):
    with pytest.raises(FieldError):
        response_parts(((b":status", status), *REGULAR))


@pytest.mark.parametrize(
    "fields",
    [
        (),
        REGULAR,
        (REGULAR[0], (b":status", b"200")),
        ((b":status", b"200"), (b":status", b"200")),
        ((b":status", b"200"), METHOD),
        ((b":status", b"200"), REGULAR[0], (b":path", b"/")),
    ],
)
def test_bad_responses(fields: tuple):
    with pytest.raises(FieldError):
        response_parts(fields)


def test_trailers():
    trailers = ((b"grpc-status", b"0"), (b"grpc-message", b""))
    assert trailer_parts(trailers) == trailers
    assert trailer_parts(()) == ()


@pytest.mark.parametrize("field", [*HEAD, (b":status", b"200")])
def test_trailers_have_no_pseudo_headers(field: tuple[bytes, bytes]):
    with pytest.raises(FieldError):
        trailer_parts((field, (b"grpc-status", b"0")))


def lengths(*values: bytes) -> list[tuple[bytes, bytes]]:
    return [REGULAR[0], *((b"content-length", value) for value in values), REGULAR[1]]


def test_content_length():
    assert content_length(REGULAR) is None
    assert content_length(lengths(b"0")) == 0
    assert content_length(lengths(b"205")) == 205
    assert content_length(lengths(b"7", b"7")) == 7
    assert content_length(lengths(b"9" * 18)) == 10**18 - 1


@pytest.mark.parametrize(
    "values",
    [
        (b"",),
        (b"-1",),
        (b"+1",),
        (b"1.0",),
        (b"0x1",),
        (b"1_0",),
        (b"5, 5",),
        (b" 5",),
        (b"\xb2",),
        (b"9" * 5000,),
        (b"5", b"6"),
        (b"5", b"x"),
    ],
)
def test_bad_content_length(values: tuple[bytes, ...]):
    with pytest.raises(FieldError):
        content_length(lengths(*values))


@given(st.lists(st.tuples(st.binary(max_size=12), st.binary(max_size=12)), max_size=10))
def test_any_bytes_raise_nothing_but_field_errors(fields: list[tuple[bytes, bytes]]):
    for check in (request_parts, response_parts, trailer_parts, content_length):
        try:
            check(fields)
        except FieldError:
            pass
