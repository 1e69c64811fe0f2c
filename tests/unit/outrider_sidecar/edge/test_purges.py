"""Purges from here and from the mesh: on disk first, and their memory freed where that is cheap."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from outrider.policy import Optimization, Policy
from outrider_sidecar.edge.cache_file import CacheFile
from outrider_sidecar.edge.purges import Purges
from tests.wire import ECHO, Wire, agent, message

ASK, ANSWER = message(b"ask"), message(b"answer")
CACHED = agent(optimization=Optimization(cache_enabled=True, cache_methods=(ECHO,)))
LATE = 2_000_000_000_000  # milliseconds, after the wall clock of the test


def filled() -> Wire:
    """A data path that has stored one reply."""
    wire = Wire(CACHED)
    wire.call(body=ASK)
    wire.link().served[0].reply(ANSWER)
    assert len(wire.state().cache.store) == 1
    return wire


@pytest.mark.parametrize(
    ("exported", "left"),
    [
        ({"floor": LATE, "counters": []}, 0),
        ({"floor": 0, "counters": [["a", "", "", LATE]]}, 0),
        ({"floor": 0, "counters": [["other", "", "", LATE]]}, 1),
        ({"floor": 0, "counters": [["a", "acme", "", LATE]]}, 1),  # unreachable, and found only by a search
        ({"floor": 0, "counters": [["", "", "price-list", LATE]]}, 1),
    ],
)
def test_a_merge_frees_what_it_makes_unreachable(exported: dict[str, Any], left: int) -> None:
    wire = filled()
    Purges(wire.runtime, None).merge(exported)
    assert len(wire.state().cache.store) == left


def test_what_is_known_already_frees_nothing() -> None:
    wire = filled()
    wire.runtime.epochs.merge({"floor": LATE, "counters": [["a", "", "", LATE]]})
    Purges(wire.runtime, None).merge({"floor": LATE, "counters": [["a", "", "", LATE]]})
    assert len(wire.state().cache.store) == 1


def test_a_call_after_a_merge_is_no_hit() -> None:
    wire = filled()
    Purges(wire.runtime, None).merge({"floor": 0, "counters": [["a", "", "", LATE]]})
    caller = wire.call(body=ASK)
    assert caller.status is None
    caller.cancel()


def test_epochs_are_on_disk_when_a_purge_is_answered(tmp_path: Path) -> None:
    wire = filled()
    purges = Purges(wire.runtime, CacheFile(tmp_path, wire.runtime))
    epoch = purges.purge("a", "", "")
    purges.merge({"floor": 0, "counters": [["b", "", "", LATE]]})
    again = Wire(Policy())
    CacheFile(tmp_path, again.runtime).read_header()
    assert again.runtime.epochs.export() == {"floor": 0, "counters": [["a", "", "", epoch], ["b", "", "", LATE]]}
    assert len(wire.state().cache.store) == 0
