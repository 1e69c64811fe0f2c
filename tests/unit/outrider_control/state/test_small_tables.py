"""Sidecars, peers, remembered texts, the journal's own rules."""

from __future__ import annotations

import pytest

from outrider_control.core.decision import Decision
from outrider_control.state import journal, meta, peers, sidecars
from outrider_control.state.database import Database
from outrider_control.state.peers import PeerRow
from outrider_control.state.sidecars import SidecarRow


async def test_the_last_heard_of_a_sidecar_counts(database: Database) -> None:
    await database.write(sidecars.put, [SidecarRow("s1", "c1", True, 1_000, b"1"), ("s2", "c1", True, 1_000, b"1")])
    await database.write(sidecars.put, [SidecarRow("s1", "c2", True, 3_000, b"2")])
    await database.write(sidecars.put, [SidecarRow("s1", "c1", False, 2_000, b"3")])  # heard before it moved to c2
    assert await database.read(sidecars.current) == [
        SidecarRow("s1", "c2", True, 3_000, b"2"),
        SidecarRow("s2", "c1", True, 1_000, b"1"),
    ]
    assert [row.instance_id for row in await database.read(sidecars.current, 1_001)] == ["s1"]
    await database.write(sidecars.put, [SidecarRow("s1", "c2", False, 3_000, b"4")])
    assert (await database.read(sidecars.current))[0] == SidecarRow("s1", "c2", False, 3_000, b"4")
    await database.write(sidecars.put, [])


async def test_peers_come_and_go(database: Database) -> None:
    await database.write(peers.put, PeerRow("c2", "127.0.0.1:2", "1.0", 1_000))
    await database.write(peers.put, PeerRow("c1", "127.0.0.1:1", "1.0", 2_000))
    await database.write(peers.put, PeerRow("c2", "127.0.0.1:2", "1.1", 3_000))
    assert [(row.control_id, row.version) for row in await database.read(peers.current)] == [
        ("c1", "1.0"),
        ("c2", "1.1"),
    ]
    assert [row.control_id for row in await database.read(peers.current, 2_500)] == ["c2"]
    await database.write(peers.remove, "c2")
    assert [row.control_id for row in await database.read(peers.current)] == ["c1"]


async def test_texts_are_remembered_but_not_those_with_rules_of_their_own(database: Database) -> None:
    await database.write(meta.put_text, "agents_file", "abc")
    await database.write(meta.put_text, "agents_file", "def")
    assert await database.read(meta.text, "agents_file") == "def"
    with pytest.raises(ValueError, match="rules of its own"):
        await database.write(meta.put_text, "revision", "x")


async def test_the_journal_is_read_newest_first_and_by_filter(database: Database) -> None:
    for number in range(6):
        decision = Decision("apply" if number % 2 else "purge", "ann", "", "ab"[number // 3], at_ms=number)
        assert await database.write(journal.append, decision) == number + 1
    assert [one.at_ms for one in await database.read(journal.read)] == [5, 4, 3, 2, 1, 0]
    assert [one.at_ms for one in await database.read(journal.read, limit=2)] == [5, 4]
    assert [one.at_ms for one in await database.read(journal.read, "a")] == [2, 1, 0]
    assert [one.at_ms for one in await database.read(journal.read, "a", "purge")] == [2, 0]
    assert [one.at_ms for one in await database.read(journal.read, since_ms=4)] == [5, 4]


async def test_an_entry_is_bounded_and_holds_what_it_was_given(database: Database) -> None:
    inputs = {"a": [1, 2.5, None, True, {"b": "\u2603\0"}]}
    await database.write(journal.append, Decision("loop", "scale", "x" * 10_000, "", inputs, {"big": "y" * 100_000}))
    (entry,) = await database.read(journal.read)
    assert entry.inputs == inputs
    assert set(entry.outcome) == {"truncated_chars"}
    assert len(entry.reason) == 4_096
    await database.write(journal.append_all, [])
