"""What a `webhook` engine is told: whom to ask for instances, with which credentials.

Always holds: what is sent stays on this machine or goes by TLS, unless `allow_insecure` says otherwise; no part of a
URL that may be secret is repeated in a message.

Deliberately not here: reading the files (`webhook`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from outrider import tree
from outrider.address import Address, is_host
from outrider.policy import PolicyError
from outrider.settings import check_file, file_path, within

_FIELDS: Final = (
    *("kind", "url", "instances_url", "agents", "token_file", "secret_file", "ca", "timeout_ms", "allow_insecure"),
)


@dataclass(frozen=True, slots=True)
class WebhookSettings:
    """One section of `scaling.engines` of kind `webhook`."""

    url: str  # told how many there are to be, by POST
    instances_url: str = ""  # says what there is, by GET; empty: what has registered is what there is
    agents: tuple[str, ...] = ()  # empty: any
    token_file: Path | None = None  # sent as `authorization: Bearer`
    secret_file: Path | None = None  # what is sent is signed with it
    ca: Path | None = None  # None: the authorities this machine trusts
    timeout_ms: int = 5_000


def settings(data: Any, path: str, folder: Path) -> WebhookSettings:
    """The settings of one engine; PolicyError with the path of the first wrong field. `folder`: of the file."""
    fields = tree.section(data, path, _FIELDS)
    insecure = tree.scalar(bool, fields.get("allow_insecure", False), tree.join(path, "allow_insecure"))
    if "url" not in fields:
        raise PolicyError(tree.join(path, "url"), "is missing")
    timeout_ms = tree.scalar(int, fields.get("timeout_ms", 5_000), tree.join(path, "timeout_ms"))
    within(timeout_ms, 10, 25_000, tree.join(path, "timeout_ms"))
    at = tree.join(path, "instances_url")
    return WebhookSettings(
        url=_url(fields["url"], tree.join(path, "url"), insecure),
        instances_url=_url(fields["instances_url"], at, insecure) if "instances_url" in fields else "",
        agents=_agents(fields.get("agents", ()), tree.join(path, "agents")),
        token_file=_file(fields, "token_file", path, folder),
        secret_file=_file(fields, "secret_file", path, folder),
        ca=_file(fields, "ca", path, folder),
        timeout_ms=timeout_ms,
    )


def shown(url: str) -> str:
    """A URL for people: without its query, which may hold a secret."""
    return url.partition("?")[0]


def _url(value: Any, path: str, allow_insecure: bool) -> str:
    text = tree.scalar(str, value, path)
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise PolicyError(path, "is no URL: https://HOST/PATH") from None
    if parts.scheme not in ("https", "http") or not (is_host(host) or ":" in host) or " " in text:
        raise PolicyError(path, "is not https://HOST/PATH")
    if parts.username is not None or parts.password is not None or parts.fragment:
        raise PolicyError(path, "holds a name, a password or a fragment: credentials go into token_file")
    if parts.scheme == "http" and not (allow_insecure or Address(host, port or 80).is_loopback):
        raise PolicyError(path, f"{tree.show(shown(text))} is not encrypted: use https, or say allow_insecure: true")
    return text


def _agents(data: Any, path: str) -> tuple[str, ...]:
    return tuple([tree.scalar(str, one, f"{path}[{at}]") for at, one in enumerate(tree.items(data, path))])


def _file(fields: Mapping[str, Any], name: str, path: str, folder: Path) -> Path | None:
    if name not in fields:
        return None
    file = file_path(fields[name], tree.join(path, name), folder)
    check_file(file, tree.join(path, name))
    return file
