"""Which share is in force, what is told of it, and what is forgotten."""

from __future__ import annotations

import math
from hashlib import blake2b

import pytest

from outrider_sidecar.engines.shares import IDLE_S, Granted, Held, Shares, Use

NOW = 100.0
KEY = b"k" * 32


def made(new_share: float = 0.5, key: bytes = KEY, **bounds: int) -> Shares:
    shares = Shares(NOW, **bounds)
    shares.take((), new_share, key, NOW)
    return shares


def user(shares: Shares, name: bytes = b"ann", now: float = NOW) -> Held:
    return shares.hold("a", "user", name, "requests", now)


def granted(use: Use, share: float, version: int) -> Granted:
    return Granted(use.agent_id, use.scope, use.key, use.unit, share, version)


def test_before_a_control_plane_is_heard_the_whole_limit_holds_and_nothing_is_told() -> None:
    shares = Shares(NOW)
    held = user(shares)
    shares.ask(held, 1.0, NOW)
    assert held.share == 1.0
    assert shares.uses(NOW + 1) == []
    shares.take((), 0.25, KEY, NOW)
    assert held.share == 0.25
    (use,) = shares.uses(NOW + 2)
    assert use.demand_per_s == 0.5  # what was asked for meanwhile is not lost


def test_what_is_told_names_nobody_and_is_the_same_everywhere() -> None:
    one, other, stranger = made(), made(), made(key=b"x" * 32)
    told = []
    for shares in (one, other, stranger):
        shares.ask(user(shares, b"ann@example.com"), 3.0, NOW)
        told += shares.uses(NOW + 2)
    digest = blake2b(b"ann@example.com", digest_size=16, key=KEY).hexdigest()
    assert told[0] == told[1] == Use("a", "user", digest, "requests", 1.5, 0.5, 0)
    assert told[2].key != digest
    agent = one.hold("a", "agent", b"", "tokens", NOW)
    one.ask(agent, 10.0, NOW + 2)
    assert one.uses(NOW + 3) == [Use("a", "agent", "", "tokens", 10.0, 0.5, 0)]


def test_demand_is_told_once_and_nothing_of_what_is_idle() -> None:
    shares = made()
    held = user(shares)
    shares.ask(held, 5.0, NOW)
    shares.ask(held, 5.0, NOW)
    shares.ask(held, -4.0, NOW)
    assert [use.demand_per_s for use in shares.uses(NOW + 2)] == [3.0]
    assert shares.uses(NOW + 3) == []
    shares.ask(held, -4.0, NOW + 3)
    assert [use.demand_per_s for use in shares.uses(NOW + 4)] == [0.0]


def test_grants_are_taken_by_their_version_and_told_back() -> None:
    shares = made()
    held = user(shares)
    shares.ask(held, 1.0, NOW)
    (use,) = shares.uses(NOW + 1)
    shares.take([granted(use, 0.8, 5)], 0.5, KEY, NOW)
    assert (held.share, held.version) == (0.8, 5)
    assert [(use.share, use.version) for use in shares.uses(NOW + 2)] == [(0.8, 5)]
    shares.take([granted(use, 0.1, 4), granted(use, 0.2, 5)], 0.5, KEY, NOW)
    assert held.share == 0.8
    assert [(use.share, use.version) for use in shares.uses(NOW + 3)] == [(0.8, 5)]  # told anyhow: it was asked for
    shares.take((), 0.3, KEY, NOW)
    assert held.share == 0.8  # a granted one does not change with the others


@pytest.mark.parametrize("share", [0.0, -1.0, 1.5, math.nan, math.inf])
def test_grants_that_make_no_sense_change_nothing(share: float) -> None:
    shares = made()
    held = user(shares)
    shares.ask(held, 1.0, NOW)
    (use,) = shares.uses(NOW + 1)
    shares.take([granted(use, share, 5), Granted("b", "user", "00", "requests", 0.5, 9)], share, KEY, NOW)
    assert (held.share, shares.new_share) == (0.5, 0.5)


def test_what_is_idle_is_forgotten_and_new_when_it_comes_again() -> None:
    shares = made()
    held = user(shares)
    shares.ask(held, 1.0, NOW)
    (use,) = shares.uses(NOW + 1)
    shares.take([granted(use, 0.9, 5)], 0.5, KEY, NOW)
    shares.uses(NOW + 2)
    shares.expire(NOW + IDLE_S)
    assert held.share == 0.9
    shares.expire(NOW + 1 + IDLE_S)
    assert (held.share, held.version, len(shares)) == (0.5, 0, 0)
    shares.take([granted(use, 0.9, 6)], 0.5, KEY, NOW)  # nobody knows it any more
    assert held.share == 0.5
    shares.ask(held, 1.0, NOW + 100)
    assert user(shares) is held
    assert [(use.share, use.version) for use in shares.uses(NOW + 101)] == [(0.5, 0)]
    shares.take([granted(use, 0.9, 5)], 0.5, KEY, NOW)  # of the time before
    assert held.share == 0.5
    shares.take([granted(use, 0.7, 7)], 0.5, KEY, NOW)
    assert held.share == 0.7


def test_what_is_asked_for_between_two_reports_is_not_idle() -> None:
    shares = made()
    held = user(shares)
    shares.ask(held, 1.0, NOW + IDLE_S + 5)
    shares.expire(NOW + IDLE_S + 6)
    assert not held.forgotten


def test_a_report_is_bounded_and_the_rest_is_told_next() -> None:
    shares = made(max_uses=10)
    for number in range(25):
        shares.ask(user(shares, b"%d" % number), 1.0, NOW)
    told = [shares.uses(NOW + second) for second in range(1, 5)]
    assert [len(uses) for uses in told] == [10, 10, 5, 0]
    assert len({use.key for uses in told for use in uses}) == 25


def test_memory_is_bounded_with_or_without_a_control_plane() -> None:
    for shares in (made(max_held=50), Shares(NOW, max_held=50)):
        first = user(shares, b"first")
        shares.ask(first, 1.0, NOW)
        shares.uses(NOW + 1)
        for number in range(500):
            shares.ask(user(shares, b"%d" % number), 1.0, NOW + 1)
        assert len(shares) == 50
        assert len(shares._touched) == 50
        assert len(shares._by_key) <= 50
        assert first.forgotten
        shares.ask(first, 1.0, NOW + 1)
        assert not first.forgotten
        assert len(shares) == 50


def test_long_names_are_kept_as_digests() -> None:
    shares = made()
    held = user(shares, b"n" * 10_000)
    assert len(held.name) == 16
    assert user(shares, b"n" * 10_000) is held


def test_another_key_names_everything_anew() -> None:
    shares = made()
    held = user(shares)
    shares.ask(held, 1.0, NOW)
    (before,) = shares.uses(NOW + 1)
    shares.take((), 0.5, b"y" * 32, NOW)
    shares.ask(held, 1.0, NOW + 1)
    (after,) = shares.uses(NOW + 2)
    assert before.key != after.key
    shares.take([granted(before, 0.9, 8)], 0.5, b"y" * 32, NOW)
    assert held.share == 0.5
    shares.take([granted(after, 0.9, 9)], 0.5, b"y" * 32, NOW)
    assert held.share == 0.9


def test_a_process_that_ends_gives_back_what_it_was_granted() -> None:
    shares = made()
    shares.ask(user(shares), 1.0, NOW)
    user(shares, b"bob")
    (use,) = shares.uses(NOW + 1)
    shares.take([granted(use, 0.9, 5)], 0.5, KEY, NOW)
    assert shares.give_back() == [Use("a", "user", use.key, "requests", 0.0, 0.0, 5)]
    assert Shares(NOW).give_back() == []


class Passing:
    """Stands where a cell of `gcra` does."""

    def __init__(self, held: Held):
        self.held = held
        held.cell, held.rate_per_s, held.burst_s = self, 100.0, 10.0
        self.configured: list[tuple[float, float, float]] = []

    def configure(self, rate_per_s: float, burst_s: float, now: float) -> None:
        self.configured.append((rate_per_s, burst_s, now))


def test_whoever_passes_a_limit_is_told_of_every_other_share() -> None:
    shares = made(max_held=1)
    held = user(shares)
    cell = Passing(held)
    shares.ask(held, 1.0, NOW)
    (use,) = shares.uses(NOW + 1)
    shares.take((), 0.25, KEY, NOW + 2)
    shares.take([granted(use, 0.8, 5)], 0.25, KEY, NOW + 3)
    user(shares, b"bob", NOW + 4)  # there is room for one
    assert cell.configured == [(25.0, 10.0, NOW + 2), (80.0, 10.0, NOW + 3), (25.0, 10.0, NOW + 4)]
    cell.held = user(shares, b"bob")
    shares.ask(held, 1.0, NOW + 5)
    shares.take((), 0.5, KEY, NOW + 6)  # what the cell passes now is another's
    assert len(cell.configured) == 3
