"""`grpc-timeout` on its way upstream: what is left of a deadline, as a literal for any block.

Always holds: at most eight digits, rounded down, never zero. Deliberately not here: reading it (filter `deadline`).
"""

from __future__ import annotations

from typing import Final

from outrider_http2.hpack import literal

_PREFIX: Final = {size: literal(b"grpc-timeout", b"0" * size)[:-size] for size in range(2, 10)}


def timeout_literal(left_us: int) -> bytes:
    """The field for so many microseconds."""
    if left_us < 100_000_000:
        value = b"%du" % max(1, left_us)
    elif left_us < 100_000_000_000:
        value = b"%dm" % (left_us // 1_000)
    else:
        value = b"%dS" % min(left_us // 1_000_000, 99_999_999)
    return _PREFIX[len(value)] + value
