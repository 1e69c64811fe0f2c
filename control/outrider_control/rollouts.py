"""Puts the rollout loop together as it is configured.

Always holds: what webhooks are told is signed where a secret is configured.

Deliberately not here: the loop (`loops.rollout`), how units are counted (`loops.tally`).
"""

from __future__ import annotations

import random
from collections.abc import Callable

from outrider_control import config
from outrider_control.loops.rollout.loop import RolloutLoop
from outrider_control.loops.rollout.observe import Tally
from outrider_control.loops.rollout.webhook import Webhooks
from outrider_control.publish.publisher import Publisher
from outrider_control.state.database import Database


def make_loop(
    settings: config.Rollouts,
    db: Database,
    publisher: Publisher,
    tally: Tally,
    leads: Callable[[], bool],
    clock_ms: Callable[[], int],
) -> RolloutLoop:
    """`leads` says whether this control plane may act."""
    webhooks = Webhooks(db, clock_ms, random.Random(), settings.webhook_secret_file)
    return RolloutLoop(db, publisher, tally, webhooks, leads, clock_ms, settings.interval_ms)
