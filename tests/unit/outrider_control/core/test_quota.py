"""The division of one limit: fair, never above the whole, and given only when it was given back."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider_control.core import quota
from outrider_control.core.quota import IDLE_MS, REMEMBERED_MS, RESEND_MS, SILENT_MS, QuotaKey, Quotas, Share, fair

NOW = 1_700_000_000_000
KEY = QuotaKey("a", "agent", "", "requests")
RATE = 10.0


class Fleet:
    """Sidecars that hear everything at once, unless told otherwise; time is the control plane's."""

    def __init__(self, *names: str, warm_ms: int = 0):
        self.now_ms = NOW
        self.quotas = Quotas(NOW + warm_ms)
        self.held: dict[str, tuple[float, int]] = {}
        self.demand: dict[str, float] = {}
        self.rate = RATE
        self.part = 1.0
        for name in names:
            self.quotas.came(name, NOW)
            self.held[name] = (1 / len(names), 0)
            self.demand[name] = 0.0

    def report(self, *names: str) -> None:
        for name in names or self.held:
            self.quotas.heard(name, self.now_ms)
            if self.demand[name] or self.held[name][1]:
                self.quotas.report(name, KEY, self.demand[name], *self.held[name], self.now_ms)

    def divide(self, take: bool = True) -> list[Share]:
        self.now_ms += 1_000
        shares = self.quotas.divide(KEY, self.rate, self.part, self.now_ms)
        for share in shares if take else ():
            if share.version > self.held[share.sidecar][1]:
                self.held[share.sidecar] = (share.share, share.version)
        return shares

    def settle(self, rounds: int = 12) -> dict[str, float]:
        for _ in range(rounds):
            self.report()
            self.divide()
        return {name: share for name, (share, _) in self.held.items()}

    @property
    def total(self) -> float:
        return sum(share for share, _ in self.held.values())


def test_shares_follow_demand_and_the_idle_keep_a_little() -> None:
    fleet = Fleet("one", "two", "three")
    fleet.demand |= {"one": 100.0, "two": 2.0}
    shares = fleet.settle()
    assert shares["two"] == pytest.approx(0.2, abs=0.03)
    assert shares["one"] + shares["two"] >= 0.95
    fleet.demand |= {"one": 0.0, "two": 0.0, "three": 1.0}
    shares = fleet.settle(40)
    assert shares["three"] >= 0.3
    assert fleet.total <= 1.0 + 1e-9


def test_an_increase_waits_until_the_decrease_is_confirmed() -> None:
    fleet = Fleet("one", "two")
    fleet.demand |= {"one": 100.0, "two": 1.0}
    fleet.report()
    shares = {share.sidecar: share for share in fleet.divide(take=False)}
    assert shares.keys() == {"two"}
    for _ in range(2):
        fleet.report()
        assert all(share.sidecar == "two" for share in fleet.divide(take=False))
    two = shares["two"]
    fleet.held["two"] = (two.share, two.version)
    fleet.report()
    shares = {share.sidecar: share for share in fleet.divide()}
    assert 0.95 < shares["one"].share + two.share <= 1.0 + 1e-9


def test_who_goes_keeps_its_share_until_it_is_forgotten() -> None:
    fleet = Fleet("one", "two")
    fleet.demand |= {"one": 100.0, "two": 100.0}
    fleet.settle()
    fleet.quotas.left("two", fleet.now_ms)
    gone_ms = fleet.now_ms
    while fleet.now_ms + 1_000 - gone_ms <= REMEMBERED_MS:
        fleet.report("one")
        fleet.divide()
        assert fleet.total <= 1.0 + 1e-9
        assert fleet.quotas.remembered(fleet.now_ms) == 2
    fleet.report("one")
    fleet.divide()
    assert fleet.held["one"][0] == pytest.approx(1.0)
    assert fleet.quotas.remembered(fleet.now_ms) == 1


def test_a_silent_sidecar_is_out_of_reach() -> None:
    fleet = Fleet("one", "two")
    fleet.demand |= {"one": 100.0, "two": 100.0}
    fleet.settle()
    for _ in range(SILENT_MS // 1_000 + 5):
        fleet.report("one")
        assert all(share.sidecar == "one" for share in fleet.divide()) or fleet.now_ms - NOW < 30_000
    assert fleet.total <= 1.0 + 1e-9


def test_one_that_gives_back_leaves_its_share_to_others_at_once() -> None:
    fleet = Fleet("one", "two")
    fleet.demand |= {"one": 100.0, "two": 100.0}
    fleet.settle()
    fleet.quotas.report("two", KEY, 0.0, 0.0, fleet.held["two"][1], fleet.now_ms)
    fleet.quotas.left("two", fleet.now_ms)
    fleet.report("one")
    fleet.divide()
    assert fleet.held["one"][0] == pytest.approx(1.0)


def test_one_that_moved_to_another_control_plane_is_counted_there() -> None:
    fleet = Fleet("one", "two")
    fleet.demand |= {"one": 100.0, "two": 100.0}
    fleet.settle()
    fleet.quotas.left("two", fleet.now_ms)
    fleet.quotas.moved("two")
    fleet.part = 0.5
    fleet.report("one")
    fleet.divide()
    assert fleet.held["one"][0] == pytest.approx(0.5, abs=0.02)


def test_what_is_idle_is_forgotten() -> None:
    fleet = Fleet("one", "two")
    fleet.demand |= {"one": 5.0, "two": 5.0}
    fleet.settle()
    fleet.demand["two"] = 0.0
    for _ in range(IDLE_MS // 1_000 + 2):
        fleet.report("one")
        fleet.quotas.heard("two", fleet.now_ms)
        fleet.divide()
    assert fleet.held["one"][0] == pytest.approx(1.0)
    fleet.demand["one"] = 0.0
    for _ in range(IDLE_MS // 1_000 + 2):
        fleet.quotas.heard("one", fleet.now_ms)
        fleet.divide()
    assert len(fleet.quotas) == 0


def test_a_grant_that_is_not_echoed_is_sent_again() -> None:
    fleet = Fleet("one", "two")
    fleet.demand |= {"one": 100.0, "two": 1.0}
    fleet.report()
    (first,) = fleet.divide(take=False)
    again: list[Share] = []
    for _ in range(RESEND_MS // 1_000):
        fleet.report()
        again += fleet.divide(take=False)
    (second,) = again
    assert (second.sidecar, second.share) == ("two", first.share)
    assert second.version > first.version
    fleet.held["two"] = (first.share, first.version)  # the first one came late, the second never
    fleet.report()
    assert {share.sidecar for share in fleet.divide()} == {"one"}
    assert fleet.held["one"][0] > 0.8
    assert fleet.total <= 1.0 + 1e-9


def test_what_a_predecessor_granted_is_taken_over() -> None:
    fleet = Fleet("one", "two", warm_ms=3_000)
    fleet.held |= {"one": (0.7, NOW - 5_000), "two": (0.3, NOW - 9_000)}
    fleet.demand |= {"one": 1.0, "two": 100.0}
    fleet.report()
    assert [(share.sidecar, share.version > NOW) for share in fleet.divide()] == [("one", True)]
    fleet.report()
    assert fleet.divide() == []  # who else is there?
    shares = fleet.settle()
    assert shares["two"] == pytest.approx(0.9, abs=0.05)


def test_a_late_word_changes_nothing_and_a_forgotten_share_is_the_larger_one() -> None:
    fleet = Fleet("one", "two")
    fleet.demand |= {"one": 100.0, "two": 1.0}
    fleet.settle()
    share, version = fleet.held["one"]
    fleet.quotas.report("one", KEY, 100.0, 0.5, version - 1, fleet.now_ms)
    fleet.quotas.report("one", KEY, 100.0, 0.1, 0, fleet.now_ms)  # it has forgotten, or this is late
    fleet.quotas.report("two", KEY, 100.0, *fleet.held["two"], fleet.now_ms)
    shares = fleet.divide()
    assert {one.sidecar for one in shares} == {"one"}
    assert all(one.version > version for one in shares)
    assert fleet.total <= 1.0 + 1e-9
    assert share > 0.8


def test_a_lower_limit_and_none() -> None:
    fleet = Fleet("one", "two")
    fleet.demand |= {"one": 8.0, "two": 2.0}
    fleet.settle()
    fleet.rate = 2.0
    shares = fleet.settle()
    assert shares["one"] == pytest.approx(0.5, abs=0.05)
    fleet.rate = 0.0
    assert fleet.divide() == []
    assert len(fleet.quotas) == 0


@pytest.mark.parametrize(
    ("key", "demand", "share", "version"),
    [
        (KEY._replace(scope="planet"), 1.0, 0.5, 0),
        (KEY._replace(unit="dollars"), 1.0, 0.5, 0),
        (KEY._replace(key="x" * 65), 1.0, 0.5, 0),
        (KEY, math.nan, 0.5, 0),
        (KEY, math.inf, 0.5, 0),
        (KEY, -1.0, 0.5, 0),
        (KEY, 1.0, 1.5, 0),
        (KEY, 1.0, math.nan, 0),
        (KEY, 1.0, 0.5, 1 << 62),
    ],
)
def test_reports_that_make_no_sense_are_passed_over(key: QuotaKey, demand: float, share: float, version: int) -> None:
    quotas = Quotas()
    quotas.came("one", NOW)
    quotas.report("one", key, demand, share, version, NOW)
    assert len(quotas) == 0


def test_numbers_of_limits_and_members_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quota, "MAX_LIMITS", 5)
    monkeypatch.setattr(quota, "MAX_MEMBERS", 8)
    quotas = Quotas()
    for name in ("one", "two"):
        quotas.came(name, NOW)
        for number in range(20):
            quotas.report(name, KEY._replace(scope="user", key=str(number)), 1.0, 0.5, 0, NOW)
    assert (len(quotas), quotas._members, quotas.refused) == (5, 8, 15 + 17)
    assert quotas.divide(KEY._replace(scope="user", key="19"), 1.0, 1.0, NOW) == []


@given(st.lists(st.floats(0, 5), min_size=1, max_size=20), st.floats(0, 1), st.floats(0.001, 0.1))
def test_fair_is_max_min_fair(demands: list[float], room: float, floor: float) -> None:
    shares = fair(demands, room, floor)
    assert sum(shares) == pytest.approx(max(room, floor))
    least = floor / len(demands)
    assert min(shares) >= least - 1e-9
    lowest = min(shares)
    for demand, share in zip(demands, shares, strict=True):
        # Whoever has less than it asks for has as little as anybody.
        if share < demand + least - 1e-9:
            others = [other for wanted, other in zip(demands, shares, strict=True) if wanted >= demand]
            assert share >= max(others) - 1e-9 or share == pytest.approx(max(others))
    assert lowest <= max(room, floor) / len(demands) + 1e-9
