"""`x-cache-control`: what a caller asks of the cache for one call.

Always holds: parsing never fails. Unknown directives are ignored, as RFC 9111 section 5.2 asks; a malformed `max-age`
counts as 0 (section 4.2.1 encourages to treat it as stale); of several the strictest holds. Repeated values are
parsed once.

Deliberately not here: `only-if-cached`, `max-stale`, `min-fresh`, which are ignored.
"""

from __future__ import annotations

from typing import NamedTuple

_MAX_BYTES = 1_024
_MEMO_VALUES = 256
_MAX_AGE_S = 1 << 31  # section 1.2.2: larger values count as this


class CacheControl(NamedTuple):
    """`no_cache`: do not answer from the cache, but store. `no_store`: neither. `max_age_s`: None when not bounded."""

    no_cache: bool = False
    no_store: bool = False
    max_age_s: float | None = None


DEFAULT = CacheControl()
_UNREADABLE = CacheControl(no_cache=True, no_store=True)
_memo: dict[bytes, CacheControl] = {}


def parse(value: bytes | None) -> CacheControl:
    """Read one metadata value (several values joined by commas). An absurdly long one bypasses the cache."""
    if not value:
        return DEFAULT
    found = _memo.get(value)
    if found is None:
        if len(value) > _MAX_BYTES:
            return _UNREADABLE
        found = _parse(value)
        if len(_memo) >= _MEMO_VALUES:
            _memo.clear()
        _memo[value] = found
    return found


def _parse(value: bytes) -> CacheControl:
    no_cache = no_store = False
    max_age_s: float | None = None
    for directive in value.lower().split(b","):
        name, equals, argument = directive.strip().partition(b"=")
        name = name.rstrip()
        if name == b"no-cache":
            no_cache = True
        elif name == b"no-store":
            no_store = True
        elif name == b"max-age":
            age_s = _seconds(argument.strip()) if equals else 0.0
            max_age_s = age_s if max_age_s is None else min(max_age_s, age_s)
    return CacheControl(no_cache, no_store, max_age_s)


def _seconds(argument: bytes) -> float:
    if len(argument) >= 2 and argument[:1] == argument[-1:] == b'"':
        argument = argument[1:-1]
    if not argument.isdigit():
        return 0.0
    return float(min(int(argument[:12]), _MAX_AGE_S))
