"""What the settings of both programs share: how a field is read from YAML, what is wrong with it, and in which words.

Always holds: what is wrong raises PolicyError with the field's path; paths in a file are relative to the file's folder.

Deliberately not here: which fields a program has (its `config`), opening what is named.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from outrider import tree
from outrider.address import Address, parse_address
from outrider.policy import PolicyError


class ConfigError(ValueError):
    """Settings that cannot be used. `str()` is one line for people: file, field, reason."""

    def __init__(self, file: str, field: str, reason: str):
        super().__init__(": ".join(part for part in (file, field, reason) if part))
        self.file = file
        self.field = field
        self.reason = reason


def address(value: Any, path: str) -> Address:
    """An address to listen on or to dial; port 0 is let through."""
    text = tree.scalar(str, value, path)
    try:
        return parse_address(text, allow_port_zero=True)
    except ValueError as error:
        raise PolicyError(path, f"{tree.show(text)} {error}") from None


def file_path(value: Any, path: str, folder: Path) -> Path:
    """A file's path, relative to `folder`."""
    text = tree.scalar(str, value, path)
    if not text:
        raise PolicyError(path, "is empty; leave the field out for its default")
    return folder / Path(text).expanduser()


def reader(folder: Path) -> tree.Tree:
    """Reads settings with addresses and paths in them."""
    return tree.Tree({Address: address, Path: lambda value, path: file_path(value, path, folder)})


def check_pair(cert: Path | None, key: Path | None, path: str) -> None:
    """A certificate and its key go together."""
    if (cert is None) != (key is None):
        missing, given = ("key", "cert") if key is None else ("cert", "key")
        raise PolicyError(f"{path}.{missing}", f"is missing: {given} is given, and they go together")


def check_file(file: Path | None, path: str) -> None:
    """A file that is named is there."""
    if file is not None and not file.is_file():
        raise PolicyError(path, f"{str(file)!r} is not a file")


def check_listener(address: Address, path: str, has_tls: bool, may_have_tls: bool, allow_insecure: bool) -> None:
    """An address to listen on is one, and open to other machines only by TLS or where that is asked for."""
    if address.resolve:
        raise PolicyError(path, "has dns: in front, which only an address to dial may have")
    if not (address.is_loopback or has_tls or allow_insecure):
        mend = "add tls.cert and tls.key" if may_have_tls else "listen on 127.0.0.1"
        reason = f"{str(address)!r} is open to other machines without TLS: {mend}, or say allow_insecure: true"
        raise PolicyError(path, reason)


def within(value: float, low: float, high: float, path: str) -> None:
    """A number is between two bounds."""
    if not low <= value <= high:
        raise PolicyError(path, f"{value} is not between {low} and {high}")


def whole_number(fields: Mapping[str, Any], name: str, path: str, default: int, low: int, high: int) -> int:
    """The whole number under a name of the section at `path`; PolicyError unless low <= number <= high."""
    if name not in fields:
        return default
    at = tree.join(path, name)
    value: int = tree.scalar(int, fields[name], at)
    within(value, low, high, at)
    return value
