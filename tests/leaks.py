"""What a test may leave behind: nothing. Takes stock before a test and compares after it.

Always holds: only what is new since the first stock counts as left behind; fixtures of a wider scope may keep theirs.
A package that counts its own live objects (streams, permits, callbacks) adds them by `watch`.

Deliberately not here: memory, and descriptors other than TCP sockets (grpcio keeps some for the life of the process).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

_DESCRIPTORS = Path("/proc/self/fd")  # absent outside Linux: there only tasks and counters are compared
_TCP_TABLES = (Path("/proc/self/net/tcp"), Path("/proc/self/net/tcp6"))
_counters: list[Callable[[], Mapping[str, int]]] = []


def watch(counters: Callable[[], Mapping[str, int]]) -> None:
    """Have a function's counts of live things compared around every test from now on."""
    _counters.append(counters)


@dataclass(frozen=True)
class Stock:
    """What is open at one moment."""

    sockets: frozenset[str] = frozenset()  # socket inodes of this process, of any family
    counts: Mapping[str, int] = field(default_factory=dict)


def take_stock() -> Stock:
    """The sockets and counted objects that are alive now."""
    return Stock(_socket_inodes(), _counts())


def left_since(before: Stock) -> list[str]:
    """One line for each thing that is alive now and was not in `before`."""
    left = [
        f"{name}: {now - before.counts.get(name, 0)} more than before the test"
        for name, now in _counts().items()
        if now > before.counts.get(name, 0)
    ]
    fresh = _socket_inodes() - before.sockets
    if fresh:
        left += [f"TCP socket left open: {text}" for inode, text in _tcp_sockets().items() if inode in fresh]
    return left


def _counts() -> dict[str, int]:
    counts: dict[str, int] = {}
    for counters in _counters:
        counts.update(counters())
    return counts


def _socket_inodes() -> frozenset[str]:
    found = set()
    if _DESCRIPTORS.exists():
        for descriptor in _DESCRIPTORS.iterdir():
            try:
                target = str(descriptor.readlink())
            except OSError:  # closed while we look
                continue
            if target.startswith("socket:["):
                found.add(target[len("socket:[") : -1])
    return frozenset(found)


def _tcp_sockets() -> dict[str, str]:
    """Inode -> "local port -> remote port (state)" of every TCP socket on this machine."""
    sockets = {}
    for table in _TCP_TABLES:
        if not table.exists():
            continue
        for line in table.read_text().splitlines()[1:]:
            columns = line.split()
            local, remote = (int(columns[at].rpartition(":")[2], 16) for at in (1, 2))
            sockets[columns[9]] = f"port {local} -> {remote}, state {columns[3]}"
    return sockets
