"""What stands behind the mesh's well-known ports of this machine.

Always holds: looking changes nothing and takes a bounded time.
"""

from __future__ import annotations

import http.client
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

from outrider_control.commands.findings import NOTE, OK, WRONG, Finding

HOST = "127.0.0.1"
WAIT_S = 2.0
_TCP_TABLES = ("/proc/net/tcp", "/proc/net/tcp6")
_LISTENING = "0A"
_MAX_PROCESSES = 10_000
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"  # and an empty SETTINGS
_SETTINGS = 4


@dataclass(frozen=True, slots=True)
class Port:
    """One well-known port."""

    number: int
    what: str
    speaks: str  # "http" (/readyz) or "http2"
    todo: str  # where nobody listens


PORTS = (
    Port(7600, "the sidecar's egress", "http2", "start outrider-sidecar, if agents on this machine make calls"),
    Port(7602, "the sidecar's admin port", "http", "start outrider-sidecar, if agents on this machine make calls"),
    Port(7700, "the control plane", "http2", "start outrider-control, if it is to run on this machine"),
    Port(7701, "the control plane's HTTP port", "http", "start outrider-control, if it is to run on this machine"),
)


def look(port: Port) -> Finding:
    """Who listens there, and whether it is what it should be."""
    try:
        if port.speaks == "http":
            answer = _http_answer(port.number)
        else:
            answer = _http2_answer(port.number)
    except ConnectionRefusedError:
        return Finding("port", NOTE, f"{port.number}: nobody listens ({port.what})", port.todo)
    except (OSError, http.client.HTTPException):
        answer = ""
    who = listener(port.number)
    by = f" (process {who})" if who else ""
    if not answer:
        text = f"{port.number}: what listens there{by} is not {port.what}"
        return Finding("port", WRONG, text, "stop that program, or give ours another port in its configuration")
    if answer.startswith("not ready"):
        return Finding("port", WRONG, f"{port.number}: {port.what}{by} is {answer}", "its log says what it waits for")
    return Finding("port", OK, f"{port.number}: {port.what}{by} {answer}")


def _http_answer(number: int) -> str:
    """ "is ready", "not ready: ..." or "" for a stranger."""
    connection = http.client.HTTPConnection(HOST, number, timeout=WAIT_S)
    try:
        connection.request("GET", "/readyz")
        reply = connection.getresponse()
        body = reply.read(4096).decode("utf-8", "replace")
    finally:
        connection.close()
    if reply.status == http.HTTPStatus.OK:
        return "is ready"
    return f"not ready: {' '.join(body.split())[:200]}" if reply.status == http.HTTPStatus.SERVICE_UNAVAILABLE else ""


def _http2_answer(number: int) -> str:
    """ "speaks HTTP/2", with or without TLS, or "" for a stranger."""
    try:
        if _speaks_http2(number):
            return "speaks HTTP/2"
    except ConnectionRefusedError:
        raise
    except OSError:  # silent or gone: a listener with TLS takes no preface
        pass
    return "speaks HTTP/2 over TLS" if _offers_http2_by_tls(number) else ""


def _offers_http2_by_tls(number: int) -> bool:
    context = ssl.create_default_context()
    context.check_hostname = False  # who it is does not matter here, and nothing is sent
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection((HOST, number), timeout=WAIT_S) as connection,
        context.wrap_socket(connection, server_hostname=HOST) as encrypted,
    ):
        return encrypted.selected_alpn_protocol() == "h2"


def _speaks_http2(number: int) -> bool:
    with socket.create_connection((HOST, number), timeout=WAIT_S) as connection:
        connection.sendall(_PREFACE)
        head = b""
        while len(head) < 4:
            part = connection.recv(4096)
            if not part:
                return False
            head += part
        return head[3] == _SETTINGS


def listener(number: int) -> str:
    """The program that listens on a port, where this machine tells: "1234 python3"."""
    inodes = {
        columns[9]
        for table in _TCP_TABLES
        for columns in _rows(table)
        if columns[3] == _LISTENING and int(columns[1].rpartition(":")[2], 16) == number
    }
    if not inodes:
        return ""
    wanted = {f"socket:[{inode}]" for inode in inodes}
    processes = [entry for entry in Path("/proc").iterdir() if entry.name.isdecimal()]
    for process in processes[:_MAX_PROCESSES]:
        try:
            if any(str(one.readlink()) in wanted for one in (process / "fd").iterdir()):
                return f"{process.name} {(process / 'comm').read_text().strip()}"
        except OSError:  # of another user, or gone meanwhile
            continue
    return ""


def _rows(table: str) -> list[list[str]]:
    try:
        lines = Path(table).read_text().splitlines()[1:]
    except OSError:  # not Linux
        return []
    return [columns for line in lines if len(columns := line.split()) > 9]
