"""Division of limits that hold over the fleet: the share of each that every sidecar may use, by what it is asked for.

Max-min fair: nobody gets more than it needs while another one needs more; what nobody needs is spread evenly. Who is
asked for nothing keeps a small share to begin with.

Always holds: `Member.most` is at least the share its sidecar uses, whatever was lost or delayed on the way, and an
increase is given only out of what all `most` of a limit leave of the whole: what is taken from one sidecar goes to
others when it has said that it holds the smaller grant. So the shares in use never sum above the whole, but for
sidecars that have begun to use the limit and have not been told of a share of it yet (each uses `new_share`; all of
them together may keep _FLOOR), and for those out of reach for longer than REMEMBERED_MS, whose shares are then given
to others. Numbers of limits and members are bounded: what there is no room for is used by `new_share`.

Deliberately not here: messages and streams (`publish.quotas`), rates and time (the sidecar's).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

REMEMBERED_MS = 60_000  # the share of a sidecar out of reach stays reserved
IDLE_MS = 75_000  # without demand a member is none any more: a sidecar forgets its share after 60 s
RESEND_MS = 3_000  # without an echo a grant is sent again
SILENT_MS = 10_000  # a sidecar that says nothing is out of reach, whatever its stream
MAX_LIMITS = 10_000
MAX_MEMBERS = 200_000  # of all limits
MAX_PENDING = 4  # grants on their way to one member
MIN_SHARE = 1e-6
_FLOOR = 0.02  # of the whole: what members without need keep, all together
_TOLERANCE = 0.03  # a decrease by a smaller part of the share, or of an even share, is not made; nor an increase
_FADE = 0.02  # what a second without any demand leaves of what there was
_NOISE = 2.0  # demand that changes by a smaller factor is smoothed over seconds
_MAX_VERSION = 1 << 62
SCOPES = ("agent", "user", "tenant")
UNITS = ("requests", "tokens")
_MAX_KEY = 64


class QuotaKey(NamedTuple):
    """One limit; the names of `outrider.v1.Quota`."""

    agent_id: str
    scope: str
    key: str
    unit: str


class Share(NamedTuple):
    """One share of one limit, to be sent to one sidecar."""

    sidecar: str
    share: float
    version: int


class Member:
    """One sidecar under one limit."""

    __slots__ = ("demand", "newest", "pending", "reported_ms", "sent_ms", "share", "used_ms", "version")

    def __init__(self, share: float, version: int, now_ms: int):
        self.share = share  # that it says it holds
        self.version = version
        self.newest = version  # of all it was ever sent
        self.pending: list[tuple[int, float]] = []  # (version, share) sent since, the oldest first
        self.demand = 0.0
        self.reported_ms = self.used_ms = now_ms
        self.sent_ms = 0

    @property
    def most(self) -> float:
        """The largest share it may be using now."""
        return max([self.share, *[share for _, share in self.pending]])

    @property
    def granted(self) -> float:
        """The share it will have when it has heard everything."""
        return self.pending[-1][1] if self.pending else self.share

    def confirm(self, share: float, version: int) -> bool:
        """It says that it holds this. False: that was said before something newer."""
        if version == 0:
            if self.version:  # it has forgotten what it held, or this is late: a grant and its echo will tell
                self.share, self.version = self.most, 0
                self.pending.clear()
            self.share = max(self.share, share)
            return True
        if version < self.version:
            return False
        if version > self.version:
            # What is not pending is of another control plane, or of this one before a restart.
            self.share = dict(self.pending).get(version, share)
            self.version = version
            self.newest = max(self.newest, version)
            self.pending = [one for one in self.pending if one[0] > version]
        return True

    def ask(self, demand_per_s: float) -> None:
        """What a report says it was asked for: a step counts at once, what may be chance little by little."""
        if demand_per_s == 0.0:
            self.demand *= _FADE
            return
        is_step = demand_per_s > self.demand * _NOISE or demand_per_s * _NOISE < self.demand
        self.demand += (demand_per_s - self.demand) * (0.6 if is_step else 0.2)

    def demand_at(self, heard_ms: int) -> float:
        """What it is asked for, by its sidecar's last word: a report that does not name the limit says nothing is."""
        missed_s = (heard_ms - self.reported_ms) / 1_000
        return self.demand if missed_s < 0.5 else self.demand * _FADE**missed_s


class Seen:
    """One sidecar, whatever its limits."""

    __slots__ = ("away_ms", "before_ms", "came_ms", "connected", "heard_ms")

    def __init__(self, now_ms: int):
        self.connected = True
        self.came_ms = now_ms  # within reach since then
        self.heard_ms = now_ms  # its last report
        self.before_ms = now_ms  # the one before
        self.away_ms = 0

    def is_away(self, now_ms: int) -> bool:
        return not self.connected or now_ms - self.heard_ms > SILENT_MS

    def is_gone(self, now_ms: int) -> bool:
        since_ms = max(self.heard_ms, self.away_ms)
        return self.is_away(now_ms) and now_ms - since_ms > REMEMBERED_MS

    def is_idle(self, used_ms: int, now_ms: int) -> bool:
        """Whether it has forgotten a limit used then: out of reach it forgets nothing, and says first what it used."""
        return not self.is_away(now_ms) and now_ms - max(used_ms, self.came_ms) > IDLE_MS


class Quotas:
    """All limits one control plane divides. `warm_until_ms`: sidecars of a predecessor may not have spoken yet."""

    def __init__(self, warm_until_ms: int = 0):
        self.sidecars: dict[str, Seen] = {}
        self.refused = 0  # members there was no room for
        self._limits: OrderedDict[QuotaKey, dict[str, Member]] = OrderedDict()
        self._members = 0
        self._warm_until_ms = warm_until_ms
        self._due: dict[QuotaKey, None] = {}

    def __len__(self) -> int:
        return len(self._limits)

    # What sidecars say.

    def came(self, sidecar: str, now_ms: int) -> None:
        """Its stream is open."""
        seen = self.sidecars[sidecar] = self.sidecars.get(sidecar) or Seen(now_ms)
        seen.connected = True
        seen.came_ms = seen.heard_ms = now_ms

    def left(self, sidecar: str, now_ms: int) -> None:
        """Its stream has ended. It goes on with what it holds: that stays reserved."""
        seen = self.sidecars.get(sidecar)
        if seen is not None:
            seen.connected = False
            seen.away_ms = now_ms

    def moved(self, sidecar: str) -> None:
        """It is with another control plane, which knows what it holds."""
        if self.sidecars.pop(sidecar, None) is not None:
            for key in [key for key, members in self._limits.items() if sidecar in members]:
                self._drop(key, sidecar)

    def remembered(self, now_ms: int) -> int:
        """Sidecars that are here, or were within REMEMBERED_MS."""
        for sidecar in [sidecar for sidecar, seen in self.sidecars.items() if seen.is_gone(now_ms)]:
            if not self.sidecars[sidecar].connected:
                del self.sidecars[sidecar]
        return len(self.sidecars)

    def heard(self, sidecar: str, now_ms: int) -> None:
        """A report came; what it says of limits comes next."""
        seen = self.sidecars.get(sidecar)
        if seen is not None:
            if seen.is_away(now_ms):
                seen.came_ms = now_ms
            seen.before_ms, seen.heard_ms = seen.heard_ms, now_ms

    def report(self, sidecar: str, key: QuotaKey, demand_per_s: float, share: float, version: int, now_ms: int) -> None:
        """What a report says of one limit; what makes no sense is passed over. Share 0: it is given back."""
        if not _is_sound(key, demand_per_s, share, version):
            return
        members = self._limits.get(key)
        member = members.get(sidecar) if members is not None else None
        if share == 0.0:
            if member is not None:
                self._drop(key, sidecar)
            return
        if member is None:
            member = self._join(key, sidecar, Member(share, version, now_ms))
            if member is None:
                return
        elif not member.confirm(share, version):
            return
        seen = self.sidecars.get(sidecar)
        if seen is not None:
            member.demand = member.demand_at(seen.before_ms)
        member.ask(demand_per_s)
        member.reported_ms = now_ms
        if demand_per_s > 0.0:
            member.used_ms = now_ms
        self._due[key] = None

    def _join(self, key: QuotaKey, sidecar: str, member: Member) -> Member | None:
        members = self._limits.get(key)
        if self._members >= MAX_MEMBERS or (members is None and len(self._limits) >= MAX_LIMITS):
            self.refused += 1
            return None
        if members is None:
            members = self._limits[key] = {}
        members[sidecar] = member
        self._members += 1
        return member

    def _drop(self, key: QuotaKey, sidecar: str) -> None:
        members = self._limits[key]
        del members[sidecar]
        self._members -= 1
        if members:
            self._due[key] = None
        else:
            del self._limits[key]
            self._due.pop(key, None)

    # What they are given.

    def due(self) -> list[QuotaKey]:
        """Limits to look at now; the others are as they were."""
        due, self._due = self._due, {}
        return list(due)

    def keys(self) -> list[QuotaKey]:
        """All limits, for a look at what has gone idle; every few seconds."""
        return list(self._limits)

    def divide(self, key: QuotaKey, limit_per_s: float, part: float, now_ms: int) -> list[Share]:
        """Shares to send now. `part` is what this control plane divides of the limit; 0 `limit_per_s`: no limit."""
        members = self._limits.get(key)
        if members is None:
            return []
        for sidecar, member in list(members.items()):
            seen = self.sidecars.get(sidecar)
            if seen is None or seen.is_gone(now_ms) or seen.is_idle(member.used_ms, now_ms) or limit_per_s <= 0.0:
                self._drop(key, sidecar)
        if key not in self._limits:
            return []
        present = {name: member for name, member in members.items() if not self.sidecars[name].is_away(now_ms)}
        if not present:
            return []
        reserved = sum([member.most for name, member in members.items() if name not in present])
        demands = []
        for name, member in present.items():
            member.demand = min(member.demand, limit_per_s)  # refused calls that come again ask for more than there is
            demands.append(member.demand_at(self.sidecars[name].heard_ms) / limit_per_s)
        targets = fair(demands, max(0.0, part - reserved), _FLOOR * part)
        shares = self._decrease(present, targets, now_ms)
        if now_ms >= self._warm_until_ms:
            pool = part - sum([member.most for member in members.values()])
            shares += self._increase(present, targets, pool, now_ms)
        if any([member.pending for member in present.values()]):
            self._due[key] = None
        return shares + self._again(present, now_ms)

    def _decrease(self, present: dict[str, Member], targets: Sequence[float], now_ms: int) -> list[Share]:
        even = 1.0 / len(present)
        return [
            self._grant(sidecar, member, target, now_ms)
            for (sidecar, member), target in zip(present.items(), targets, strict=True)
            if member.granted - target > _TOLERANCE * max(member.granted, even) and len(member.pending) < MAX_PENDING
        ]

    def _increase(self, present: dict[str, Member], targets: Sequence[float], pool: float, now_ms: int) -> list[Share]:
        if pool <= 0.0:
            return []
        wanted = [
            (sidecar, member, target - member.share)
            for (sidecar, member), target in zip(present.items(), targets, strict=True)
            if not member.pending and target > member.share * (1.0 + _TOLERANCE)
        ]
        given = min(1.0, pool / sum([more for _, _, more in wanted])) if wanted else 0.0
        return [
            self._grant(sidecar, member, member.share + more * given, now_ms)
            for sidecar, member, more in wanted
            if more * given > member.share * _TOLERANCE
        ]

    def _grant(self, sidecar: str, member: Member, share: float, now_ms: int) -> Share:
        # Larger than what a predecessor gave, which counted by the same clock.
        version = member.newest = max(now_ms, member.newest + 1)
        share = min(1.0, max(MIN_SHARE, share))
        member.pending.append((version, share))
        member.sent_ms = now_ms
        return Share(sidecar, share, version)

    def _again(self, present: dict[str, Member], now_ms: int) -> list[Share]:
        shares = []
        for sidecar, member in present.items():
            if member.pending and now_ms - member.sent_ms >= RESEND_MS:
                share = member.pending.pop()[1]
                # By a version of its own: the one before may be of a time that the sidecar has forgotten.
                shares.append(self._grant(sidecar, member, share, now_ms))
        return shares


def fair(demands: Sequence[float], room: float, floor: float) -> list[float]:
    """Max-min fair shares of `room` for these demands (as shares), each at least its part of `floor`.

    The sum is the larger of `room` and `floor`.
    """
    count = len(demands)
    least = floor / count
    left = max(0.0, room - floor)
    shares = [least] * count
    order = sorted(range(count), key=demands.__getitem__)
    for at, index in enumerate(order):
        given = min(demands[index], left / (count - at))
        shares[index] += given
        left -= given
    return [share + left / count for share in shares]


def _is_sound(key: QuotaKey, demand_per_s: float, share: float, version: int) -> bool:
    return (
        key.scope in SCOPES
        and key.unit in UNITS
        and len(key.key) <= _MAX_KEY
        and math.isfinite(demand_per_s)
        and demand_per_s >= 0.0
        and 0.0 <= share <= 1.0
        and 0 <= version < _MAX_VERSION
    )
