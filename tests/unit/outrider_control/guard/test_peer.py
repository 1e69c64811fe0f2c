"""Names of peers: what counts as loopback, what a certificate says, what a client may not say of itself."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider_control.guard.peer import certificate_name, identify, is_loopback, without_peer
from outrider_http2.head import Head
from outrider_http2.hpack import Decoder

PLAIN = Head(((b"te", b"trailers"),), b"POST", b"http", b"mesh", b"/a.B/C")


def fields(peername: object, unix: bool = False, certificate: Any = None, head: Head = PLAIN) -> dict[str, str]:
    """The fields as the server behind reads them."""
    block = identify(peername, unix, certificate).fields(head)
    return {name.decode(): value.decode() for name, value in Decoder(4_096, 65_536).decode(block)}


def certified(*names: tuple[str, str], common_name: str = "") -> dict[str, Any]:
    """As `ssl_object.getpeercert()` returns it."""
    subject = ((("organizationName", "o"),), (("commonName", common_name),)) if common_name else ()
    return {"subject": subject, "subjectAltName": names}


@pytest.mark.parametrize(
    ("host", "wanted"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("::ffff:192.0.2.1", False),
        ("192.0.2.1", False),
        ("10.0.0.1", False),
        ("0.0.0.0", False),
        ("fe80::1%eth0", False),
        ("localhost", False),  # a name is no address
        ("", False),
    ],
)
def test_loopback_is_an_address_of_this_machine(host: str, wanted: bool) -> None:
    assert is_loopback(host) is wanted
    assert fields((host, 1))["x-outrider-peer-loopback"] == str(int(wanted))


def test_addresses() -> None:
    assert fields(("127.0.0.1", 5_555)) == {"x-outrider-peer": "127.0.0.1:5555", "x-outrider-peer-loopback": "1"}
    assert fields(("2001:db8::1", 7, 0, 0)) == {"x-outrider-peer": "[2001:db8::1]:7", "x-outrider-peer-loopback": "0"}
    assert fields("", unix=True) == {"x-outrider-peer": "unix", "x-outrider-peer-loopback": "1"}


@pytest.mark.parametrize("peername", [None, "", ()])
def test_a_tcp_peer_that_cannot_be_named_is_no_loopback(peername: object) -> None:
    assert fields(peername) == {"x-outrider-peer": "unknown", "x-outrider-peer-loopback": "0"}


@pytest.mark.parametrize("name", [b"forwarded", b"x-forwarded-for", b"x-real-ip", b"x-envoy-external-address"])
def test_a_call_that_was_forwarded_did_not_begin_here(name: bytes) -> None:
    head = Head((*PLAIN.fields, (name, b"192.0.2.1")), b"POST", b"http", b"mesh", b"/a.B/C")
    assert fields(("127.0.0.1", 1), head=head)["x-outrider-peer-loopback"] == "0"
    assert fields("", unix=True, head=head)["x-outrider-peer-loopback"] == "0"


@pytest.mark.parametrize(
    ("certificate", "name"),
    [
        (
            certified(("DNS", "d1"), ("URI", "spiffe://mesh/a"), ("URI", "spiffe://mesh/b"), common_name="c"),
            "spiffe://mesh/a",
        ),
        (certified(("IP Address", "127.0.0.1"), ("DNS", "d1"), ("DNS", "d2"), common_name="c"), "d1"),
        (certified(("IP Address", "127.0.0.1"), common_name="c"), "c"),
        (certified(common_name="a b%\r\nx-outrider-peer-loopback: 1"), "a%20b%25%0D%0Ax-outrider-peer-loopback:%201"),
        (certified(common_name="Größe"), "Gr%C3%B6%C3%9Fe"),
        (certified(common_name="n" * 512), "n" * 512),
        (certified(common_name="n" * 513), ""),
        (certified(), ""),
        ({}, ""),
    ],
)
def test_the_name_of_a_certificate(certificate: dict[str, Any], name: str) -> None:
    assert certificate_name(certificate) == name
    assert fields(("192.0.2.1", 1), certificate=certificate).get("x-outrider-peer-certificate", "") == name


@given(st.text(max_size=300))
def test_no_name_can_be_more_than_a_value(text: str) -> None:
    name = certificate_name(certified(("URI", text)))
    assert all("!" <= letter <= "~" for letter in name)
    found = fields(("192.0.2.1", 1), certificate=certified(("URI", text)))
    assert found["x-outrider-peer-loopback"] == "0"
    assert set(found) <= {"x-outrider-peer", "x-outrider-peer-loopback", "x-outrider-peer-certificate"}


@given(st.text(max_size=20), st.text(max_size=20))
def test_two_names_are_never_one(one: str, two: str) -> None:
    if one.encode("utf-8", "replace") != two.encode("utf-8", "replace"):
        assert certificate_name(certified(("URI", one))) != certificate_name(certified(("URI", two)))


def test_the_guards_fields_are_taken_out_and_others_stay() -> None:
    assert without_peer(PLAIN) is PLAIN
    sent = (
        (b"a", b"1"),
        (b"x-outrider-peer", b"x"),
        (b"x-outrider-peer-else-bin", b"x"),
        (b"x-outrider-variant", b"v"),
    )
    kept = without_peer(Head(sent, b"POST", b"http", b"mesh", b"/a.B/C"))
    assert kept.fields == (sent[0], sent[3])
    assert kept.request_fields(b"http")[:4] == PLAIN.request_fields(b"http")[:4]
