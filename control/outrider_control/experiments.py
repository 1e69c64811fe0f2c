"""Puts together what experiments and rollouts are decided by: one count of units, and the loop of experiments.

Deliberately not here: the loops (`loops.experiment`, `loops.rollout`), how units are counted (`loops.tally`).
"""

from __future__ import annotations

import random
from collections.abc import Callable

from outrider_control.intake.services import Intake
from outrider_control.loops.experiment.loop import ExperimentLoop
from outrider_control.loops.tally import Tallies
from outrider_control.publish.publisher import Publisher
from outrider_control.state.database import Database


def make_loop(
    db: Database,
    publisher: Publisher,
    tallies: Tallies,
    intake: Intake,
    leads: Callable[[], bool],
    clock_ms: Callable[[], int],
) -> ExperimentLoop:
    """`leads` says whether this control plane may act."""
    return ExperimentLoop(db, publisher, tallies, intake.want_attributes, leads, clock_ms, random.Random())
