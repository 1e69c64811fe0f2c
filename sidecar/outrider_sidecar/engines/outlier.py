"""Passive ejection of endpoints that fail more than the others (gRFC A50), or many times in a row.

Per interval: the endpoints whose success rate is below `mean - success_rate_stdev * stdev` of all that had enough
calls, then those whose share of failures is above `failure_share`, the worst first. An ejection lasts
`base_ejection_ms` times the endpoint's multiplier, which grows by one per ejection and shrinks by one per interval
spent in the set. `consecutive_failures` in a row eject at once.

Always holds: an ejection never takes the ejected above max(1, floor(max_ejected_share * members)), and never takes the
last endpoint that is well. An ejected endpoint keeps its connections. Counts live in `Endpoint.outlier` and outlive
this object. `Endpoint.added_at` is set to the end of the ejection: the endpoint returns on a slow-start ramp.

Deliberately not here: what a failure is (the caller maps statuses) and the panic threshold (`availability`).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

from outrider.policy import Outlier
from outrider_sidecar.core.endpoint import Endpoint


class _Counts:
    """One endpoint's outcomes in the interval that runs, and its record of ejections."""

    __slots__ = ("failures", "multiplier", "run", "successes")

    def __init__(self) -> None:
        self.successes = 0
        self.failures = 0
        self.run = 0  # failures in a row
        self.multiplier = 0


class OutlierDetector:
    """See the module. One per agent; `changed` answers mean: compute the usable set anew."""

    __slots__ = ("_members", "_policy")

    def __init__(self, policy: Outlier):
        self._policy = policy
        self._members: Sequence[Endpoint] = ()

    def update(self, endpoints: Sequence[Endpoint]) -> None:
        """All endpoints of the agent, usable or not: the caps are shares of these. None known: no ejection."""
        self._members = tuple(endpoints)

    def record(self, endpoint: Endpoint, ok: bool, now: float) -> bool:
        """Count an outcome; leave out attempts their caller cancelled. True if it ejected the endpoint."""
        counts = endpoint.outlier
        if counts is None:
            counts = endpoint.outlier = _Counts()
        if ok:
            counts.successes += 1
            counts.run = 0
            return False
        counts.failures += 1
        if endpoint.ejected_until > now:  # attempts still out when it was ejected are no new evidence
            return False
        counts.run += 1
        policy = self._policy
        if not policy.enabled or not policy.consecutive_failures or counts.run < policy.consecutive_failures:
            return False
        return self._eject(endpoint, now)

    def sweep(self, endpoints: Sequence[Endpoint], now: float) -> bool:
        """End the interval: eject, let return, start counting anew. Call it every `interval_ms`."""
        self.update(endpoints)
        changed = False
        if self._policy.enabled:
            for endpoint in self._outliers():
                changed |= self._eject(endpoint, now)
        for endpoint in self._members:
            counts = endpoint.outlier
            if counts is not None:
                counts.successes = counts.failures = 0
            if endpoint.ejected_until > now and self._policy.enabled:
                continue
            if endpoint.ejected_until:
                endpoint.added_at = min(endpoint.added_at, now)  # ended early: by a policy without ejection
                endpoint.ejected_until = 0.0
                changed = True
            elif counts is not None and counts.multiplier:
                counts.multiplier -= 1
        return changed

    def _outliers(self) -> list[Endpoint]:
        """Outliers by success rate, then by share of failures, each the worst first."""
        policy = self._policy
        rates: list[tuple[float, int, Endpoint]] = []
        shares: list[tuple[float, int, Endpoint]] = []
        for position, endpoint in enumerate(self._members):
            counts = endpoint.outlier
            if counts is None:
                continue
            calls = counts.successes + counts.failures
            if calls and calls >= policy.success_rate_min_calls:
                rates.append((counts.successes / calls, position, endpoint))
            if calls and calls >= policy.failure_min_calls:
                shares.append((-counts.failures / calls, position, endpoint))
        found: list[Endpoint] = []
        if rates and len(rates) >= policy.success_rate_min_hosts:
            mean = sum(rate for rate, _, _ in rates) / len(rates)
            stdev = sqrt(sum((rate - mean) ** 2 for rate, _, _ in rates) / len(rates))
            bound = mean - policy.success_rate_stdev * stdev
            found += [endpoint for rate, _, endpoint in sorted(rates) if rate < bound]
        if shares and len(shares) >= policy.failure_min_hosts:
            found += [endpoint for share, _, endpoint in sorted(shares) if -share > policy.failure_share]
        return found

    def _eject(self, endpoint: Endpoint, now: float) -> bool:
        if endpoint.ejected_until > now or not self._may_eject(endpoint, now):
            return False
        policy = self._policy
        counts = endpoint.outlier
        counts.multiplier += 1
        counts.run = 0
        longest_ms = max(policy.base_ejection_ms, policy.max_ejection_ms)
        endpoint.ejected_until = now + min(policy.base_ejection_ms * counts.multiplier, longest_ms) / 1000.0
        endpoint.added_at = endpoint.ejected_until
        return True

    def _may_eject(self, endpoint: Endpoint, now: float) -> bool:
        members = self._members
        if endpoint not in members:
            return False
        ejected = 0
        others_well = False
        for other in members:
            if other.ejected_until > now:
                ejected += 1
            elif other is not endpoint and other.serving and other.reachable and not other.draining:
                others_well = others_well or other.open_until <= now
        return others_well and ejected < max(1, int(self._policy.max_ejected_share * len(members)))
