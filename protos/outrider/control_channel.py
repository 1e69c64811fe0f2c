"""How an operator's client reaches the control plane: addresses, credentials, and what a failed call means.

Always holds: addresses are tried in the order given; a token goes out as `authorization: Bearer`; a status becomes an
OperatorError that says which address answered.

Deliberately not here: the calls themselves (`operator`), reading files and the environment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import grpc

from outrider.address import Address, parse_address

DEFAULT_CONTROL = "127.0.0.1:7700"
DEFAULT_TIMEOUT_S = 10.0
MAX_MESSAGE_BYTES = 64 * 1024 * 1024
OPTIONS = (
    ("grpc.enable_http_proxy", 0),  # the control plane is inside, whatever the environment says about proxies
    ("grpc.enable_retries", 0),  # a change is sent once; reads go to the next address
    ("grpc.initial_reconnect_backoff_ms", 200),  # a control plane that is back is found within seconds
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.keepalive_time_ms", 30_000),  # a stream whose other end is gone ends
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.use_local_subchannel_pool", 1),  # a closed client leaves no connection behind
)
_MAX_ADDRESSES = 64


class OperatorError(Exception):
    """A call to the control plane that failed. `str()` is one line for people."""

    def __init__(self, status: grpc.StatusCode, text: str, address: str = ""):
        super().__init__(f"{status.name}: {text}" if text else status.name)
        self.status = status
        self.text = text
        self.address = address  # of the control plane that was asked; of all, where all were and none answered

    @property
    def is_unreachable(self) -> bool:
        """Whether nobody answered in time: the same call may do later or elsewhere."""
        return self.status in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


@dataclass(frozen=True, slots=True)
class Access:
    """How the control plane is dialled. PEM bytes; a token is a secret and shows in no text of this."""

    token: str = ""
    tls: bool = False  # implied by `ca` and `cert`
    ca: bytes | None = None  # verifies the control plane; None: the roots that come with grpcio
    cert: bytes | None = None  # ours, with `key`
    key: bytes | None = None

    def __repr__(self) -> str:
        return f"Access(token={'***' if self.token else ''!r}, tls={self.has_tls})"

    @property
    def has_tls(self) -> bool:
        return self.tls or self.ca is not None or self.cert is not None

    @property
    def credentials(self) -> grpc.ChannelCredentials | None:
        """Of the channel; None: in the clear."""
        return grpc.ssl_channel_credentials(self.ca, self.key, self.cert) if self.has_tls else None

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Of every call."""
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()


def parse_control(control: str | Sequence[str]) -> tuple[Address, ...]:
    """The addresses in a list, or in a text with commas between them; ValueError says which is none."""
    texts = control.split(",") if isinstance(control, str) else control
    given = [text.strip() for text in texts if text.strip()]
    if not given:
        raise ValueError("names no address: host:port, or several with commas between them")
    if len(given) > _MAX_ADDRESSES:
        raise ValueError(f"names {len(given)} addresses; at most {_MAX_ADDRESSES} are tried")
    addresses = []
    for text in given:
        try:
            addresses.append(parse_address(text))
        except ValueError as error:
            raise ValueError(f"{text!r} {error}") from None
    return tuple(addresses)


def dial_target(address: Address) -> str:
    """An address as grpcio writes it."""
    if address.path:
        return f"unix:{address.path}"
    return f"dns:///{str(address).removeprefix('dns:')}" if address.resolve else str(address)


def operator_error(error: grpc.RpcError, address: Address) -> OperatorError:
    """What a failed call says, in our terms; the error is one of a call that has ended."""
    code = getattr(error, "code", None)
    details = getattr(error, "details", None)
    status = code() if callable(code) else None
    text = details() if callable(details) else ""
    known = status if isinstance(status, grpc.StatusCode) else grpc.StatusCode.UNKNOWN
    return OperatorError(known, " ".join(str(text or "").split()), str(address))
