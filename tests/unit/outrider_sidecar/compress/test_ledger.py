"""What is decided stays decided, within bounds."""

from __future__ import annotations

from outrider_sidecar.compress.block import Result
from outrider_sidecar.compress.ledger import IDLE_S, Decision, Ledger, Made, Memo, chain_of
from outrider_sidecar.compress.originals import Originals


def result(size: int) -> Result:
    return Result("x" * size, "json", "json/1", 1, True)


def test_a_chain_is_of_everything_before() -> None:
    one = chain_of(chain_of(b"", "user", b"a"), "tool", b"b")
    assert one == chain_of(chain_of(b"", "user", b"a"), "tool", b"b")
    assert one != chain_of(chain_of(b"", "user", b"c"), "tool", b"b")
    assert one != chain_of(chain_of(b"", "user", b"a"), "user", b"b")


def test_decisions_are_bounded_in_number_and_bytes_and_the_longest_unused_goes() -> None:
    ledger = Ledger(max_entries=3, max_bytes=100_000)
    for at in range(3):
        ledger.put(b"%d" % at, Decision(), float(at))
    assert ledger.get(b"0", 5.0) == Decision()
    ledger.put(b"3", Decision(), 6.0)
    assert [ledger.get(b"%d" % at, 7.0) is None for at in range(4)] == [False, True, False, False]
    ledger.put(b"big", Decision("compressed", result(60_000)), 8.0)
    assert (len(ledger), ledger.size_bytes, ledger.forgotten) == (0, 0, 5)


def test_what_is_idle_is_forgotten() -> None:
    ledger = Ledger()
    ledger.put(b"a", Decision(), 0.0)
    ledger.put(b"b", Decision(), 10.0)
    assert ledger.expire(IDLE_S + 5.0) == 1
    assert ledger.get(b"a", 20.0) is None
    assert ledger.get(b"b", 20.0) is not None


def test_the_memo_is_bounded_and_remembers_that_nothing_was_made() -> None:
    memo = Memo(max_bytes=3_000)
    memo.put(b"none", Made(None, 5, 5))
    assert memo.get(b"none") == Made(None, 5, 5)
    assert memo.get(b"other") is None
    for at in range(10):
        memo.put(b"%d" % at, Made(result(500), 9, 1))
    assert memo.size_bytes <= 3_000
    assert b"none" not in memo
    assert b"9" in memo
    assert (memo.hits, memo.misses) == (1, 1)


def test_originals_are_their_tenants_for_a_time_and_within_bytes() -> None:
    kept = Originals(max_bytes=2_000, ttl_s=60.0)
    kept.keep("one", "h", "text", 0.0)
    assert kept.get("one", "h", 59.0) == "text"
    assert kept.get("two", "h", 1.0) is None
    assert kept.get("one", "h", 60.0) is None
    kept.keep("one", "h", "text", 50.0)
    assert kept.get("one", "h", 100.0) == "text"
    kept.keep("one", "big", "x" * 1_700, 100.0)
    assert kept.get("one", "h", 100.0) is None
    assert kept.size_bytes <= 2_000
    kept.expire(1_000.0)
    assert (len(kept), kept.size_bytes) == (0, 0)
    kept.keep("one", "h", "text", 0.0)
    kept.configure(10, 5.0)
    assert len(kept) == 0
