"""How long to wait before trying again: retries (gRFC A6) and connections (gRPC's connection-backoff document).

Always holds: a delay is within its ceiling times the jitter, for any number of attempts.
Deliberately not here: whether to try again at all (`budget`, the retry filter).
"""

from __future__ import annotations

import random

from outrider.policy import Retry

RETRY_JITTER = 0.2
CONNECT_MIN_S = 0.1
CONNECT_MAX_S = 60.0
CONNECT_MULTIPLIER = 1.6
CONNECT_JITTER = 0.2
CONTROL_MIN_S = 0.1
CONTROL_MAX_S = 3.0  # back on the watch within 5 s of the control plane's return, a dial that hangs included
CONTROL_JITTER = 0.5
MAX_PUSHBACK_S = 300.0


def retry_delay_s(policy: Retry, retries: int, rng: random.Random) -> float:
    """The wait before retry number `retries` (from 1): min(initial * multiplier^(n-1), max) * U(0.8, 1.2)."""
    ceiling_s = _grown(policy.backoff_ms, policy.backoff_multiplier, retries, policy.max_backoff_ms) / 1000.0
    return ceiling_s * rng.uniform(1.0 - RETRY_JITTER, 1.0 + RETRY_JITTER)


def connect_delay_s(failures: int, rng: random.Random) -> float:
    """The wait after `failures` (from 1) failed connection attempts in a row."""
    ceiling_s = _grown(CONNECT_MIN_S, CONNECT_MULTIPLIER, failures, CONNECT_MAX_S)
    return ceiling_s * rng.uniform(1.0 - CONNECT_JITTER, 1.0 + CONNECT_JITTER)


def control_delay_s(failures: int, rng: random.Random) -> float:
    """The wait after `failures` (from 1) rounds through all control planes; never above CONTROL_MAX_S."""
    ceiling_s = _grown(CONTROL_MIN_S, CONNECT_MULTIPLIER, failures, CONTROL_MAX_S)
    return ceiling_s * rng.uniform(1.0 - CONTROL_JITTER, 1.0)


def _grown(initial: float, multiplier: float, attempt: int, ceiling: float) -> float:
    try:
        return min(initial * float(multiplier) ** max(0, attempt - 1), ceiling)
    except OverflowError:
        return ceiling


def pushback_s(value: bytes) -> float | None:
    """Read `grpc-retry-pushback-ms`: the wait the endpoint asks for, or None: do not retry (negative or no number)."""
    if not value.isdigit() or len(value) > 18:
        return None
    return min(int(value) / 1000.0, MAX_PUSHBACK_S)
