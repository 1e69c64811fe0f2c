"""Peak EWMA: of two random endpoints, the one with less expected waiting (power of two choices).

    load = rtt(now) * (pending + 1) / weight / warm share

`rtt` is a moving average of the time to the first byte that jumps to a slower sample at once and forgets over
`decay_ms` (linkerd2-proxy `linkerd/ewma`, Finagle `p2c/PeakEwma`). Its time to the first byte is what a call waits for;
the length of a stream says nothing about the endpoint.

Always holds: a pick costs two draws and two loads, whatever the number of endpoints. An endpoint without history gets
exactly one attempt, at once, and no second one while that is out unless everything else is in the same state. A failed
attempt counts as PENALTY_S or what the endpoint asked for, wherever in a stream the status arrives.

Deliberately not here: exclusion. A failing endpoint gets rare, not forbidden; the outlier detector forbids.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from math import exp
from typing import Final

from outrider.policy import Balancing
from outrider_sidecar.core.balancer import Balancer, warm_share
from outrider_sidecar.core.endpoint import Endpoint
from outrider_sidecar.core.load_report import LoadReport

SEED_RTT_S: Final = 0.030  # what the first sample is averaged with
PENALTY_S: Final = 5.0
MAX_PENALTY_S: Final = 300.0
# UNKNOWN, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, INTERNAL, UNAVAILABLE, DATA_LOSS
PENALISED: Final = frozenset((2, 4, 8, 13, 14, 15))
_FLOOR_S: Final = 1e-6  # long idle averages decay to noise; from here on `pending` decides
_UNPROVEN_LOAD: Final = 1e9  # above any load an endpoint with history can have


class _Rtt:
    """The moving average of one endpoint."""

    __slots__ = ("at", "endpoint", "measured", "rtt_s", "weight")

    def __init__(self, endpoint: Endpoint, now: float):
        self.endpoint = endpoint
        self.weight = 1
        self.rtt_s = SEED_RTT_S
        self.at = now
        self.measured = False


class PeakEwma(Balancer):
    """See the module. Loads are seconds."""

    __slots__ = ("_compared", "_decay_rate", "_draw", "_rtts", "_slow_start_s")

    def __init__(self, policy: Balancing, rng: random.Random):
        self._draw = rng.random
        self._decay_rate = 1000.0 / max(1, policy.decay_ms)
        self._slow_start_s = policy.slow_start_ms / 1000.0
        self._rtts: list[_Rtt] = []
        self._compared: tuple[tuple[Endpoint, float], ...] = ()

    def update(self, endpoints: Sequence[Endpoint], now: float) -> None:
        rtts: list[_Rtt] = []
        for endpoint in endpoints:
            rtt = endpoint.balance
            if type(rtt) is not _Rtt:
                rtt = endpoint.balance = _Rtt(endpoint, now)
            rtt.weight = max(1, endpoint.weight)
            rtts.append(rtt)
        self._rtts = rtts
        self._compared = ()

    def pick(self, now: float, key: bytes = b"", avoid: Collection[Endpoint] = ()) -> Endpoint | None:
        rtts = self._rtts
        if avoid:
            rtts = [rtt for rtt in rtts if rtt.endpoint not in avoid] or rtts
            self._compared = ()
        count = len(rtts)
        if count < 2:
            return rtts[0].endpoint if rtts else None
        draw = self._draw
        index = int(draw() * count)
        other = int(draw() * (count - 1))
        if other >= index:
            other += 1
        first = rtts[index]
        second = rtts[other]
        load = self._load(first, now)
        other_load = self._load(second, now)
        self._compared = ((first.endpoint, load), (second.endpoint, other_load))
        return first.endpoint if load <= other_load else second.endpoint

    def compared(self) -> tuple[tuple[Endpoint, float], ...]:
        return self._compared

    def _load(self, rtt: _Rtt, now: float) -> float:
        endpoint = rtt.endpoint
        if not rtt.measured:
            return _UNPROVEN_LOAD * endpoint.pending / rtt.weight  # idle: 0, so that the one probe starts at once
        rtt_s = rtt.rtt_s * exp((rtt.at - now) * self._decay_rate)
        if rtt_s < _FLOOR_S:
            rtt_s = _FLOOR_S
        load = rtt_s * (endpoint.pending + 1) / rtt.weight
        if now - endpoint.added_at < self._slow_start_s:
            load /= warm_share(endpoint, now, self._slow_start_s)
        return load

    def first_byte(self, endpoint: Endpoint, rtt_s: float, now: float) -> None:
        rtt = endpoint.balance
        if type(rtt) is not _Rtt:  # another strategy took the endpoint over while this attempt was out
            return
        kept = exp(min(0.0, rtt.at - now) * self._decay_rate)
        decayed_s = rtt.rtt_s * kept
        rtt.rtt_s = rtt_s if rtt_s > decayed_s else decayed_s + rtt_s * (1.0 - kept)
        rtt.at = now
        rtt.measured = True

    def ended(self, endpoint: Endpoint, status: int, penalty_s: float, now: float) -> None:
        if status not in PENALISED:
            return
        rtt = endpoint.balance
        if type(rtt) is not _Rtt:
            return
        current_s = rtt.rtt_s * exp(min(0.0, rtt.at - now) * self._decay_rate)
        rtt.rtt_s = max(PENALTY_S, min(penalty_s, MAX_PENALTY_S), current_s)
        rtt.at = now
        rtt.measured = True

    def report(self, endpoint: Endpoint, load: LoadReport, now: float) -> None:
        """Measured waiting stands for the load; a report adds nothing."""

    def explain(self, now: float, key: bytes = b"") -> list[tuple[str, float, str]]:
        rows: list[tuple[str, float, str]] = []
        for rtt in self._rtts:
            endpoint = rtt.endpoint
            if not rtt.measured:
                reason = "no history: " + ("probe in flight" if endpoint.pending else "next in line for one probe")
            else:
                rtt_ms = rtt.rtt_s * exp((rtt.at - now) * self._decay_rate) * 1000.0
                share = warm_share(endpoint, now, self._slow_start_s)
                reason = f"rtt {rtt_ms:.2f} ms, pending {endpoint.pending}, weight {rtt.weight}, warm {share:.0%}"
            rows.append((endpoint.address, self._load(rtt, now), reason))
        return sorted(rows, key=lambda row: row[1])
