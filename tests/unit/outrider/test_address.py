"""Addresses: the grammar, its refusals, and that printing and parsing are each other's inverse."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.address import Address, parse_address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:9001", Address("127.0.0.1", 9001)),
        ("agent-1.agents.svc:443", Address("agent-1.agents.svc", 443)),
        ("tax_agent:1", Address("tax_agent", 1)),
        ("host.:65535", Address("host.", 65535)),
        ("[::1]:9001", Address("::1", 9001)),
        ("[fe80::1%eth0]:9001", Address("fe80::1%eth0", 9001)),
        ("dns:agents.svc:9001", Address("agents.svc", 9001, resolve=True)),
        ("dns:///agents.svc:9001", Address("agents.svc", 9001, resolve=True)),
        ("dns:9001", Address("dns", 9001)),
        ("unix:/run/agent.sock", Address(path="/run/agent.sock")),
        ("unix:///run/agent.sock", Address(path="/run/agent.sock")),
    ],
)
def test_parses(text: str, address: Address) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is not an address"),
        ("host", "is not an address"),
        (":80", "is not an address"),
        ("host:", "port from 1 to 65535"),
        ("host:0", "port from 1 to 65535"),
        ("host:65536", "port from 1 to 65535"),
        ("host:8o", "port from 1 to 65535"),
        ("host:٣", "port from 1 to 65535"),
        ("host:000080", "port from 1 to 65535"),
        ("127.0.0.256:80", "neither a host name"),
        ("1.2.3:80", "neither a host name"),
        ("ho st:80", "neither a host name"),
        ("-host:80", "neither a host name"),
        ("a..b:80", "neither a host name"),
        ("bücher.de:80", "neither a host name"),
        (f"{'a' * 64}:80", "neither a host name"),
        ("host:80\n", "port from 1 to 65535"),
        ("::1:80", "needs brackets"),
        ("[::g]:80", "no IPv6 address"),
        ("[1\0]:80", "no IPv6 address"),
        ("unix:run/agent.sock", "absolute path"),
        ("unix:", "absolute path"),
        (f"unix:/{'a' * 107}", "107 bytes"),
        ("unix:/a\0b", "NUL"),
    ],
)
def test_refuses(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_address(text)


def test_port_zero_is_for_listeners() -> None:
    assert parse_address("127.0.0.1:0", allow_port_zero=True) == Address("127.0.0.1", 0)


@pytest.mark.parametrize("text", ["127.0.0.1:1", "127.9.9.9:1", "localhost:1", "LocalHost:1", "[::1]:1", "unix:/s"])
def test_loopback(text: str) -> None:
    assert parse_address(text).is_loopback


@pytest.mark.parametrize("text", ["0.0.0.0:1", "10.0.0.1:1", "[::]:1", "127.0.0.1.example.org:1", "localhost.org:1"])
def test_not_loopback(text: str) -> None:
    assert not parse_address(text).is_loopback


@given(
    st.text(max_size=40) | st.from_regex(r"(dns:|unix:)?(//)?[/\[]?[a-z0-9.:%-]{0,12}\]?:[0-9]{1,6}", fullmatch=True)
)
def test_what_parses_prints_as_itself(text: str) -> None:
    try:
        address = parse_address(text)
    except ValueError:
        return
    assert parse_address(str(address)) == address
