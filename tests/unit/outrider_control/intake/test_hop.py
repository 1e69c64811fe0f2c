"""One hop counts a call."""

from __future__ import annotations

import itertools

import pytest

from outrider_control.intake.hop import AGENTS_MAX, COVERED_MS, Counting, Hops, counting

SERVER, CLIENT, INTERNAL = 2, 3, 1


@pytest.mark.parametrize(
    ("ours", "kind", "through_ingress", "detached", "covered", "wanted"),
    [
        (True, SERVER, False, False, True, Counting(True, True, False)),  # an ingress
        (True, CLIENT, False, False, True, Counting(True, True, True)),  # an egress without ingress, or a hit
        (True, CLIENT, True, False, True, Counting(False, False, True)),  # the ingress counts; the verdict is here
        (True, CLIENT, False, True, True, Counting(False, True, False)),  # a background flight
        (True, CLIENT, True, True, True, Counting(False, False, False)),  # the same, seen by an ingress
        (False, SERVER, False, False, False, Counting(True, True, False)),  # an instrumented agent without sidecar
        (False, SERVER, False, False, True, Counting(False, False, False)),
        (False, INTERNAL, False, False, False, Counting(False, True, False)),  # a model call within an agent
        (False, CLIENT, False, False, True, Counting(False, False, False)),
    ],
)
def test_rules(ours: bool, kind: int, through_ingress: bool, detached: bool, covered: bool, wanted: Counting):
    assert counting(ours, kind, through_ingress, detached, covered) == wanted


def test_a_call_over_two_sidecars_counts_once():
    """Whatever hops there are, together they count one call and its tokens once."""
    for ingress, foreign in itertools.product((False, True), repeat=2):
        hops = [counting(True, CLIENT, ingress, False, True)]
        if ingress:
            hops.append(counting(True, SERVER, False, False, True))
        if foreign:
            hops.append(counting(False, SERVER, False, False, True))
        assert sum(hop.call for hop in hops) == sum(hop.tokens for hop in hops) == 1


def test_an_agent_is_covered_for_ten_minutes():
    hops = Hops()
    assert not hops.covered("a", 1_000)
    hops.saw("a", 1_000)
    assert hops.covered("a", 1_000 + COVERED_MS)
    assert not hops.covered("a", 1_001 + COVERED_MS)


def test_memory_is_bounded_and_the_latest_stay():
    hops = Hops()
    for number in range(3 * AGENTS_MAX):
        hops.saw(f"agent-{number}", number)
    assert len(hops._seen_ms) <= AGENTS_MAX
    assert hops.covered(f"agent-{3 * AGENTS_MAX - 1}", 3 * AGENTS_MAX)
