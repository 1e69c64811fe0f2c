"""The balancing strategies by the name a policy gives them.

Always holds: every name in `outrider.policy.STRATEGIES` has a balancer, and every balancer is made the same way.
Deliberately not here: the algorithms (`engines`) and the calls that use them (`dispatch`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from types import MappingProxyType

from outrider.policy import Balancing
from outrider_sidecar.core.balancer import Balancer
from outrider_sidecar.engines.least_request import LeastRequest
from outrider_sidecar.engines.peak_ewma import PeakEwma
from outrider_sidecar.engines.random_pick import RandomPick
from outrider_sidecar.engines.ring_hash import RingHash
from outrider_sidecar.engines.round_robin import RoundRobin
from outrider_sidecar.engines.weighted_round_robin import WeightedRoundRobin

FACTORIES: Mapping[str, Callable[[Balancing, random.Random], Balancer]] = MappingProxyType(
    {
        "peak_ewma": PeakEwma,
        "least_request": LeastRequest,
        "round_robin": RoundRobin,
        "weighted_round_robin": WeightedRoundRobin,
        "ring_hash": RingHash,
        "random": RandomPick,
    }
)


def make_balancer(policy: Balancing, rng: random.Random) -> Balancer:
    """A balancer without endpoints. ValueError if the policy names no known strategy."""
    factory = FACTORIES.get(policy.strategy)
    if factory is None:
        raise ValueError(f"balancing strategy {policy.strategy!r} is unknown; choose one of {', '.join(FACTORIES)}")
    return factory(policy, rng)
