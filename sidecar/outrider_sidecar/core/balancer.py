"""What every balancing strategy offers, and the slow-start ramp they share.

Always holds: a balancer does no I/O, reads no clock, never changes `Endpoint.pending` and never picks outside the
endpoints of its last `update`. What it learns about an endpoint lives in `Endpoint.balance`, so that it outlives the
balancer when a policy is replaced; what concerns the set as a whole (a ring, a rotation) lives in the balancer.

Deliberately not here: which endpoints may be used at all (`engines.availability`) and the strategies themselves.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Final

from outrider_http2.compiled import mypyc_attr
from outrider_sidecar.core.endpoint import Endpoint
from outrider_sidecar.core.load_report import LoadReport

CANCELLED_BY_CALLER: Final = -1  # the `status` of an attempt its caller gave up; no verdict on the endpoint
SLOW_START_FLOOR: Final = 0.1  # share of its traffic an endpoint gets as its ramp begins


@mypyc_attr(allow_interpreted_subclasses=True)
class Balancer:
    """Picks one endpoint per attempt.

    One attempt is, in this order: `pick`, the caller's `pending += 1`, `first_byte` exactly once, `report` if there
    is a load report, the caller's `pending -= 1`, `ended` exactly once.
    """

    __slots__ = ()

    def update(self, endpoints: Sequence[Endpoint], now: float) -> None:
        """Use these endpoints from now on. Call it when the usable set, a weight or an `added_at` changes."""
        raise NotImplementedError  # abstract

    def pick(self, now: float, key: bytes = b"", avoid: Collection[Endpoint] = ()) -> Endpoint | None:
        """The endpoint for one attempt; None only if there is none.

        `avoid` holds the endpoints this call has tried: they are picked only if nothing else is left.
        """
        raise NotImplementedError  # abstract

    def compared(self) -> tuple[tuple[Endpoint, float], ...]:
        """What the last pick was made of, with the loads (the lower one won); empty where nothing was compared."""
        return ()

    def first_byte(self, endpoint: Endpoint, rtt_s: float, now: float) -> None:
        """The first data frame or a reply of trailers only came `rtt_s` after the attempt began.

        An attempt that ends without either (cancelled, timed out, connection lost) reports the time it waited.
        """
        raise NotImplementedError  # abstract

    def ended(self, endpoint: Endpoint, status: int, penalty_s: float, now: float) -> None:
        """The attempt is over with this gRPC status, or `CANCELLED_BY_CALLER`.

        `penalty_s` is what the endpoint asked for (grpc-retry-pushback-ms, Retry-After), else 0.
        """
        raise NotImplementedError  # abstract

    def report(self, endpoint: Endpoint, load: LoadReport, now: float) -> None:
        """The endpoint sent its own load with a reply."""
        raise NotImplementedError  # abstract

    def explain(self, now: float, key: bytes = b"") -> list[tuple[str, float, str]]:
        """(address, score, reason) of every endpoint, the best (lowest) score first. Changes nothing."""
        raise NotImplementedError  # abstract


def warm_share(endpoint: Endpoint, now: float, slow_start_s: float) -> float:
    """The part of its full traffic a ramping endpoint should get: linear from SLOW_START_FLOOR to 1."""
    age_s = now - endpoint.added_at
    if age_s >= slow_start_s or slow_start_s <= 0.0:
        return 1.0
    share = age_s / slow_start_s
    return max(SLOW_START_FLOOR, share)


def ramp_end(endpoints: Iterable[Endpoint], slow_start_s: float) -> float:
    """The time from which none of these endpoints ramps any more."""
    if slow_start_s <= 0.0:
        return float("-inf")
    return max((endpoint.added_at for endpoint in endpoints), default=float("-inf")) + slow_start_s


def spared(endpoints: Sequence[Endpoint], avoid: Collection[Endpoint]) -> Sequence[Endpoint]:
    """The endpoints without those to avoid, or all of them if nothing else is left."""
    return [endpoint for endpoint in endpoints if endpoint not in avoid] or endpoints
