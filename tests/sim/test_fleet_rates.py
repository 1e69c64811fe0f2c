"""A limit over the fleet in virtual time: real cells and shares in every sidecar, the real division, a poor network.

The bound, over any window of t seconds: limit * (t + burst_s), one call for each sidecar, and for each sidecar that
begins to use the limit within SETTLED_S before the window or in it, `new_share` of a burst and of SETTLED_S (longer
where it is cut off meanwhile).
"""

from __future__ import annotations

import random
from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider_control.core.quota import REMEMBERED_MS, QuotaKey, Quotas
from outrider_control.publish.quotas import TICK_S
from outrider_sidecar.engines.gcra import Cell
from outrider_sidecar.engines.shares import Granted, Held, Shares

STEP_S = 0.05
DELAY_S = 0.4  # of a message, at most
LOST_IN_A_ROW = 3
SETTLED_S = 1.0 + TICK_S + 2 * DELAY_S + 1.2 + LOST_IN_A_ROW  # a report, a turn of the division, the way of both
HASH_KEY = b"k" * 32
KEY = QuotaKey("a", "agent", "", "requests")
WALL_MS = 1_700_000_000_000


class Sidecar:
    """One sidecar; `rate_per_s` is how many calls come."""

    def __init__(self, mesh: Mesh, name: str, new_share: float):
        self.mesh = mesh
        self.name = name
        self.connected = True
        self.rate_per_s = 0.0
        self.shares = Shares(0.0)
        self.shares.take((), new_share, HASH_KEY, 0.0)
        self.held: Held | None = None
        self.report_at = mesh.rng.random()
        self.back_at = 0.0
        self.lost = 0
        self.begun = -1  # its last beginning, among the mesh's
        self.grants_at = 0.0  # when the last one is there: they come in order

    def calls(self, now: float) -> int:
        """How many calls pass in this step."""
        mesh = self.mesh
        expected = self.rate_per_s * STEP_S
        arrivals = int(expected) + (mesh.rng.random() < expected % 1)
        passed = 0
        for _ in range(arrivals):
            passed += self._call(now)
        return passed

    def _call(self, now: float) -> bool:
        held = self.held
        if held is None:
            held = self.held = self.shares.hold(*KEY[:2], b"", KEY.unit, now)
            held.rate_per_s, held.burst_s = self.mesh.limit_per_s, self.mesh.burst_s
            held.cell = Cell(held.rate_per_s * held.share, held.burst_s, now)
            held.cell.held = held
            self.mesh.begins(self, now)
        elif held.forgotten:
            self.mesh.begins(self, now)
        self.shares.ask(held, 1.0, now)
        cell: Cell = held.cell
        if cell.wait_s(1.0, now) > 0.0:
            return False
        cell.take(1.0, now)
        return True


class Mesh:
    """Sidecars, one control plane, and messages on their way. `poor`: reports are lost and overtake each other."""

    def __init__(self, seed: int, sidecars: int, limit_per_s: float, burst_s: float, poor: bool = False):
        self.rng = random.Random(seed)
        self.limit_per_s = limit_per_s
        self.burst_s = burst_s
        self.poor = poor
        self.new_share = 1.0 / sidecars
        self.now = 0.0
        self.quotas = Quotas()
        self.tick_at = self.rng.random()
        self.sidecars = [Sidecar(self, f"s{number}", self.new_share) for number in range(sidecars)]
        for sidecar in self.sidecars:
            self.quotas.came(sidecar.name, self.ms)
        self._messages: list[tuple[float, int, Any]] = []
        self._numbers = count()
        self.passed: list[tuple[float, int]] = []
        # When a sidecar began, when it is settled, and what may pass beside the limit meanwhile.
        self.begun: list[tuple[float, float, float]] = []
        self.worst_sum = 0.0

    @property
    def ms(self) -> int:
        return WALL_MS + int(self.now * 1_000)

    def begins(self, sidecar: Sidecar, now: float) -> None:
        cut_off_s = max(0.0, sidecar.back_at - now) if not sidecar.connected else 0.0
        sidecar.begun = len(self.begun)
        self.begun.append(self._beginning(now, now + SETTLED_S + cut_off_s))

    def _beginning(self, now: float, settled_at: float) -> tuple[float, float, float]:
        return now, settled_at, self.new_share * self.limit_per_s * (self.burst_s + settled_at - now)

    def run(self, seconds: float) -> None:
        until = self.now + seconds
        while self.now < until:
            self.now += STEP_S
            self._deliver()
            passed = 0
            for sidecar in self.sidecars:
                passed += sidecar.calls(self.now)
                self._speak(sidecar)
                if not sidecar.connected and self.now >= sidecar.back_at:
                    sidecar.connected = True
                    self.quotas.came(sidecar.name, self.ms)
            if passed:
                self.passed.append((self.now, passed))
            if self.now >= self.tick_at:
                self.tick_at += TICK_S
                self._divide()
            self.worst_sum = max(self.worst_sum, sum(s.held.share for s in self.sidecars if s.held is not None))

    def cut_off(self, sidecar: Sidecar, seconds: float) -> None:
        if sidecar.connected:
            sidecar.connected = False
            sidecar.back_at = self.now + seconds
            self.quotas.left(sidecar.name, self.ms)
            if 0 <= sidecar.begun < len(self.begun) and self.begun[sidecar.begun][1] > self.now:  # it is not settled
                begun_at = self.begun[sidecar.begun][0]
                self.begun[sidecar.begun] = self._beginning(begun_at, sidecar.back_at + SETTLED_S)

    def _send(self, at: float, what: Any) -> None:
        self._messages.append((at, next(self._numbers), what))

    def _deliver(self) -> None:
        due = sorted(message for message in self._messages if message[0] <= self.now)
        self._messages = [message for message in self._messages if message[0] > self.now]
        for _, _, (sidecar, sent_at, what) in due:
            if not sidecar.connected or sidecar.back_at > sent_at:  # of a stream that is gone
                continue
            if isinstance(what, Granted):
                sidecar.shares.take([what], self.new_share, HASH_KEY, self.now)
                continue
            self.quotas.heard(sidecar.name, self.ms)
            for use in what:
                self.quotas.report(sidecar.name, KEY, use.demand_per_s, use.share, use.version, self.ms)

    def _speak(self, sidecar: Sidecar) -> None:
        if self.now < sidecar.report_at or not sidecar.connected:
            return
        sidecar.report_at = self.now + 1.0
        sidecar.shares.expire(self.now)
        uses = sidecar.shares.uses(self.now)
        if self.poor and sidecar.lost < LOST_IN_A_ROW and self.rng.random() < 0.3:
            sidecar.lost += 1
            return
        sidecar.lost = 0
        delay_s = self.rng.random() * DELAY_S * (4 if self.poor and self.rng.random() < 0.2 else 1)
        self._send(self.now + delay_s, (sidecar, self.now, uses))

    def _divide(self) -> None:
        by_name = {sidecar.name: sidecar for sidecar in self.sidecars}
        for key in self.quotas.due():
            for share in self.quotas.divide(key, self.limit_per_s, 1.0, self.ms):
                sidecar = by_name[share.sidecar]
                at = sidecar.grants_at = max(sidecar.grants_at, self.now + self.rng.random() * DELAY_S)
                self._send(at, (sidecar, self.now, Granted(*key, share.share, share.version)))

    def check(self) -> None:
        """No window has let more pass than the bound."""
        calls = len(self.sidecars)
        begun = sorted([(at, extra) for at, _, extra in self.begun], reverse=True)
        settled = sorted([(at, extra) for _, at, extra in self.begun], reverse=True)
        total = extra = extra_before = highest = 0.0
        lowest = 1e18
        for now, passed in self.passed:  # every one of them begins windows and ends others
            while begun and begun[-1][0] <= now:
                extra += begun.pop()[1]
            while settled and settled[-1][0] < now:
                extra_before += settled.pop()[1]
            lowest = min(lowest, total - self.limit_per_s * now - extra_before)
            total += passed
            highest = max(highest, total - self.limit_per_s * now - extra - lowest)
        assert highest <= self.limit_per_s * self.burst_s + calls + 1e-6

    def used(self, seconds: float) -> float:
        """What passed in the last seconds, as a part of the limit."""
        return sum(passed for at, passed in self.passed if at > self.now - seconds) / (self.limit_per_s * seconds)


seeds = st.integers(0, 2**32)


@settings(max_examples=25, deadline=None)
@given(seeds, st.integers(1, 8), st.sampled_from([0.5, 10.0, 100.0]), st.sampled_from([0.5, 5.0, 20.0]), st.booleans())
def test_no_window_lets_more_pass_than_the_stated_bound(
    seed: int, sidecars: int, limit_per_s: float, burst_s: float, poor: bool
) -> None:
    mesh = Mesh(seed, sidecars, limit_per_s, burst_s, poor)
    rng = mesh.rng
    for _ in range(rng.randint(3, 12)):
        for sidecar in mesh.sidecars:
            if rng.random() < 0.5:
                sidecar.rate_per_s = rng.choice([0.0, 0.0, 0.1, 1.0, 5.0]) * limit_per_s
            if rng.random() < 0.15:
                mesh.cut_off(sidecar, rng.uniform(0.1, REMEMBERED_MS / 1_000 - 5))
        mesh.run(rng.choice([3.0, 10.0, 30.0, 80.0]))
    mesh.check()


@settings(max_examples=15, deadline=None)
@given(seeds, st.integers(2, 8), st.booleans())
def test_once_all_have_begun_the_bound_is_a_burst_and_one_call_each(seed: int, sidecars: int, poor: bool) -> None:
    mesh = Mesh(seed, sidecars, 50.0, 5.0, poor)
    for sidecar in mesh.sidecars:
        sidecar.rate_per_s = 1.0
    mesh.run(30.0)
    begun = len(mesh.begun)
    assert begun == sidecars
    mesh.passed.clear()
    mesh.begun.clear()
    mesh.worst_sum = 0.0
    rng = mesh.rng
    for _ in range(12):
        for sidecar in mesh.sidecars:
            sidecar.rate_per_s = rng.choice([0.5, 5.0, 50.0, 300.0])
            if rng.random() < 0.1:
                mesh.cut_off(sidecar, rng.uniform(1.0, 50.0))
        mesh.run(rng.choice([2.0, 7.0, 15.0]))
    assert mesh.begun == []
    assert mesh.worst_sum <= 1.0 + 1e-9
    mesh.check()


@settings(max_examples=15, deadline=None)
@given(seeds, st.integers(1, 8), st.floats(1.2, 5.0))
def test_nine_tenths_are_used_when_more_is_asked_for(seed: int, sidecars: int, asked: float) -> None:
    mesh = Mesh(seed, sidecars, 40.0, 5.0)
    parts = [mesh.rng.random() ** 3 + 0.001 for _ in mesh.sidecars]
    for sidecar, part in zip(mesh.sidecars, parts, strict=True):
        sidecar.rate_per_s = 40.0 * asked * part / sum(parts)
    mesh.run(30.0)
    mesh.run(60.0)
    assert mesh.used(60.0) >= 0.9
    mesh.check()


@pytest.mark.parametrize("moves", [1, 3])
def test_demand_that_moves_is_followed(moves: int) -> None:
    mesh = Mesh(5, 4, 40.0, 2.0)
    for turn in range(moves + 1):
        for at, sidecar in enumerate(mesh.sidecars):
            sidecar.rate_per_s = 80.0 if at == turn % 4 else 0.0
        mesh.run(40.0)
        assert mesh.used(30.0) >= 0.9
    mesh.check()
