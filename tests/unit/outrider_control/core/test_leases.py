"""Leases in virtual time: what lives, what ends, and that nothing ends en masse."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from outrider_control.core.leases import (
    ANNOUNCED,
    ANNOUNCED_TTL_MS,
    REGISTERED,
    START_GRACE_MS,
    STREAM_GRACE_MS,
    UNWRITTEN,
    Lease,
    Leases,
)

T = 1_700_000_000_000


def lease(address: str = "a:1", owner: str = "o", agent_id: str = "x", ttl_ms: int = 15_000, now_ms: int = T) -> Lease:
    return Lease(agent_id, address, owner, REGISTERED, "n", address.encode(), ttl_ms, now_ms + ttl_ms)


def announced(address: str, owner: str, now_ms: int = T) -> Lease:
    return Lease("x", address, owner, ANNOUNCED, "n", b"e", ANNOUNCED_TTL_MS, now_ms + ANNOUNCED_TTL_MS)


def run(leases: Leases, start_ms: int, end_ms: int) -> list[str]:
    """Ticks every second; the addresses that ended, in order."""
    ended = []
    for now_ms in range(start_ms, end_ms + 1, 1_000):
        leases.tick(now_ms)
        for due in leases.due(now_ms):
            leases.drop(due.key)
            ended.append(due.address)
    return ended


def test_a_lease_ends_at_its_time_and_not_before() -> None:
    leases = Leases()
    leases.put(lease())
    assert run(leases, T, T + 14_000) == []
    assert run(leases, T + 15_000, T + 15_000) == ["a:1"]
    assert len(leases) == 0
    assert leases.size_bytes == 0
    assert not leases.renew("o", T)


def test_a_renewed_lease_lives() -> None:
    leases = Leases()
    leases.put(lease())
    for at in range(T, T + 100_000, 5_000):
        assert leases.renew("o", at)
        assert run(leases, at, at + 4_000) == []


def test_what_is_due_is_named_until_it_is_dropped() -> None:
    leases = Leases()
    leases.put(lease())
    assert [due.address for due in leases.due(T + 20_000)] == ["a:1"]
    assert [due.address for due in leases.due(T + 20_001)] == ["a:1"]
    leases.renew("o", T + 20_002)
    assert leases.due(T + 20_003) == []
    assert [due.address for due in leases.due(T + 40_000)] == ["a:1"]


def test_the_newest_claim_of_an_endpoint_counts() -> None:
    leases = Leases()
    leases.put(lease(owner="first"))
    leases.put(lease(owner="second"))
    assert len(leases) == 1
    assert not leases.renew("first", T)
    assert leases.renew("second", T)


def test_a_held_lease_lives_and_has_a_grace_after_its_stream() -> None:
    leases = Leases()
    leases.put(announced("a:1", "sidecar"))
    leases.hold("sidecar")
    end_ms = T + 300_000
    assert run(leases, T, end_ms) == []
    leases.release("sidecar", end_ms)
    assert run(leases, end_ms, end_ms + STREAM_GRACE_MS - 1_000) == []
    assert run(leases, end_ms + STREAM_GRACE_MS, end_ms + STREAM_GRACE_MS) == ["a:1"]


def test_a_reconnect_within_the_grace_flaps_nothing() -> None:
    leases = Leases()
    leases.put(announced("a:1", "sidecar"))
    leases.hold("sidecar")
    leases.release("sidecar", T)
    assert run(leases, T, T + 10_000) == []
    leases.hold("sidecar")
    assert run(leases, T + 11_000, T + 100_000) == []


def test_after_a_start_everything_has_its_whole_time_and_a_grace() -> None:
    leases = Leases()
    now_ms = T + 3_600_000  # the control plane was away for an hour
    leases.load([lease(f"a:{at}", f"o{at}") for at in range(1, 100)], now_ms)
    assert run(leases, now_ms, now_ms + START_GRACE_MS + 14_000) == []
    leases.renew("o7", now_ms + START_GRACE_MS + 14_000)
    ended = run(leases, now_ms + START_GRACE_MS + 15_000, now_ms + START_GRACE_MS + 16_000)
    assert len(ended) == 98
    assert "a:7" not in ended


def test_a_stall_prolongs_everything_by_its_length() -> None:
    leases = Leases()
    leases.put(lease())
    leases.tick(T)
    assert leases.tick(T + 60_000) == 60_000
    assert leases.due(T + 60_000) == []
    assert run(leases, T + 61_000, T + 74_000) == []
    assert run(leases, T + 75_000, T + 75_000) == ["a:1"]


def test_two_intervals_are_no_stall() -> None:
    leases = Leases()
    leases.tick(T)
    assert leases.tick(T + 2_000) == 0


def test_limits_say_what_is_full_and_let_standing_endpoints_renew() -> None:
    leases = Leases(max_endpoints=3, max_per_agent=2, max_bytes=12)
    leases.put(lease("a:1"))
    leases.put(lease("a:2"))
    assert "agent x has 2" in leases.refusal(lease("a:3"))
    assert leases.refusal(lease("a:1", owner="other")) == ""
    leases.put(lease("b:1", agent_id="y"))
    assert "3 endpoints are registered" in leases.refusal(lease("b:2", agent_id="y"))
    leases.drop(("x", "a:1"))
    assert leases.refusal(lease("a:3")) == ""
    assert "12 bytes" in leases.refusal(lease("abcdef:3"))


def test_learning_keeps_the_later_end_and_says_what_is_gone() -> None:
    leases = Leases()
    leases.put(lease("a:1", "o1"))
    leases.put(lease("a:2", "o2"))
    leases.renew("o1", T + 10_000)
    gone = leases.learn("x", [lease("a:1", "o1"), lease("a:3", "o3")], 7)
    assert [each.address for each in gone] == ["a:2"]
    assert [each.address for each in leases.of_agent("x")] == ["a:1", "a:3"]
    assert run(leases, T, T + 24_000) == ["a:3"]


def test_what_was_written_after_the_store_was_read_stays() -> None:
    leases = Leases()
    written, unwritten = lease("a:1", "new"), lease("a:2")
    written.revision, unwritten.revision = 8, UNWRITTEN
    leases.put(written)
    leases.put(unwritten)
    assert leases.learn("x", [lease("a:1", "old")], 8) == []
    assert [(each.address, each.owner) for each in leases.of_agent("x")] == [("a:1", "new"), ("a:2", "o")]
    assert leases.learn("x", [], 9) == [written]
    assert [each.address for each in leases.of_agent("x")] == ["a:2"]


def test_renewals_are_told_to_the_store_once() -> None:
    leases = Leases()
    leases.put(lease())
    assert leases.renewals() == {}
    leases.renew("o", T + 5_000)
    told = leases.renewals()
    assert list(told.values()) == [["o"]]
    assert next(iter(told)) >= T + 20_000
    leases.stored(told)
    assert leases.renewals() == {}


def test_what_is_held_is_told_when_a_third_of_its_time_is_gone() -> None:
    leases = Leases()
    held = announced("a:1", "sidecar")
    held.stored_ms = held.expires_ms
    leases.put(held)
    leases.hold("sidecar")
    told_at = []
    for now_ms in range(T, T + 60_000, 1_000):
        leases.tick(now_ms)
        if told := leases.renewals():
            told_at.append(now_ms - T)
            leases.stored(told)
    assert told_at
    assert all(9_000 <= later - earlier <= 12_000 for earlier, later in zip([0, *told_at], told_at, strict=False))


def test_a_released_stream_shortens_what_the_store_says() -> None:
    leases = Leases()
    held = announced("a:1", "sidecar")
    held.stored_ms = held.expires_ms
    leases.put(held)
    leases.hold("sidecar")
    leases.release("sidecar", T + 1_000)
    (expires_ms,) = leases.renewals()
    assert expires_ms == T + 1_000 + STREAM_GRACE_MS


@given(st.integers(0, 2**32), st.integers(1, 300))
def test_any_course_agrees_with_a_plain_model(seed: int, steps: int) -> None:
    chance = random.Random(seed)
    leases = Leases()
    model: dict[str, tuple[str, int]] = {}  # address -> (owner, expires_ms)
    now_ms = T
    leases.tick(now_ms)
    for _ in range(steps):
        address, owner = f"a:{chance.randrange(5)}", f"o{chance.randrange(5)}"
        match chance.randrange(4):
            case 0:
                leases.put(lease(address, owner, now_ms=now_ms))
                model[address] = owner, now_ms + 15_000
            case 1:
                known = leases.renew(owner, now_ms)
                assert known == any(of == owner for of, _ in model.values())
                model = {at: (of, now_ms + 15_000 if of == owner else end) for at, (of, end) in model.items()}
            case 2:
                leases.drop(("x", address))
                model.pop(address, None)
            case _:
                now_ms += chance.choice([1_000, 1_500, 2_000])
                leases.tick(now_ms)
                due = leases.due(now_ms)
                assert {each.address for each in due} == {at for at, (_, end) in model.items() if end <= now_ms}
                for each in due:
                    leases.drop(each.key)
                    del model[each.address]
        assert {each.address: each.owner for each in leases} == {at: of for at, (of, _) in model.items()}
        assert leases.size_bytes == sum(len(each.endpoint) for each in leases)


def test_memory_does_not_grow_with_the_number_of_claims() -> None:
    leases = Leases()
    for at in range(10_000):
        leases.put(lease("a:1", f"o{at % 7}", now_ms=T + at))
    assert len(leases) == 1
    assert len(leases._ends) <= 2 * len(leases) + 65
    assert len(leases._owners) == 1
