from __future__ import annotations

import pytest
import sqlalchemy as sa
from sqlalchemy import Connection

from outrider.policy import Agent, Optimization
from outrider_control.core.decision import Decision
from outrider_control.state import agents, journal, peers, retention, scales, schema, sidecars, tokens
from outrider_control.state.database import Database
from outrider_control.state.retention import Retention

DAY_MS = 86_400_000
NOW_MS = 1_000 * DAY_MS


def fill(connection: Connection) -> None:
    """In each table something that stays and something that is over."""
    for age_ms in (0, 364 * DAY_MS, 366 * DAY_MS):
        journal.append(connection, Decision("apply", "ann", "", at_ms=NOW_MS - age_ms))
    sidecars.put(connection, [("new", "c", True, NOW_MS - 1, b""), ("old", "c", True, NOW_MS - 2 * DAY_MS, b"")])
    peers.put(connection, peers.PeerRow("new", "a", "1", NOW_MS))
    peers.put(connection, peers.PeerRow("old", "a", "1", NOW_MS - DAY_MS))
    tokens.create(connection, "forever", "viewer", "ann", NOW_MS)
    tokens.create(connection, "over lately", "viewer", "ann", NOW_MS, NOW_MS - DAY_MS)
    tokens.create(connection, "over", "viewer", "ann", NOW_MS, NOW_MS - 31 * DAY_MS)
    scales.change(connection, "nobody", 0, 3, NOW_MS, None)
    now_s = NOW_MS // 1000
    windows = [(10, 7_100), (10, 7_300), (60, 172_000), (60, 173_500), (3_600, 7_775_000), (3_600, 7_790_000)]
    common = {"agent_id": "a", "series_id": 0, "figures": b""}
    connection.execute(
        sa.insert(schema.rollups), [{"window_s": size, "start_s": now_s - age, **common} for size, age in windows]
    )
    for source, age_ms in (("new", 0), ("old", 8 * DAY_MS)):
        connection.execute(sa.insert(schema.batches).values(source=source, sequence=1, seen_ms=NOW_MS - age_ms))
        common = {"trace_id": source, "span_id": source, "agent_id": "a", "duration_us": 1, "failed": 0, "kept": "x"}
        connection.execute(sa.insert(schema.spans).values(start_ms=NOW_MS - age_ms, span=b"", **common))
        common = {"agent_id": "a", "name": source, "unit": "", "kind": "sum", "figures": b""}
        connection.execute(sa.insert(schema.named_metrics).values(start_s=now_s - age_ms // 1000, **common))


async def test_what_is_over_goes_and_the_rest_stays(database: Database) -> None:
    await database.write(fill)
    gone = await database.write(retention.prune, NOW_MS, Retention())
    assert gone == {
        "rollups": 3, "named_metrics": 1, "spans": 1, "batches": 1, "decisions": 1, "agent_versions": 0,
        "sidecars": 1, "peers": 1, "tokens": 1, "scales": 1, "experiments": 0, "rollouts": 0, "unit_sums": 0,
        "calls": 0, "feedback": 0, "examples": 0,
    }  # fmt: skip
    assert {token.name for token in await database.read(tokens.current)} == {"forever", "over lately"}
    assert set((await database.write(retention.prune, NOW_MS, Retention())).values()) == {0}


async def test_of_an_agent_the_newest_versions_stay(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "_MAX_VERSIONS", 3)
    for ttl in range(1, 8):
        wanted = [agents.Wanted(Agent("a", optimization=Optimization(cache_ttl=ttl)))]
        await database.write(agents.apply, wanted, "ann", "", NOW_MS)
    await database.write(agents.apply, [agents.Wanted(Agent("b"))], "ann", "", NOW_MS)
    assert (await database.write(retention.prune, NOW_MS, Retention()))["agent_versions"] == 4
    assert [version.version for version in await database.read(agents.versions, "a")] == [7, 6, 5]
    assert len(await database.read(agents.current)) == 2
    with pytest.raises(agents.UnknownVersion, match="is not kept"):
        await database.read(agents.get, "a", 4)


async def test_a_long_list_goes_in_portions(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "PORTION", 4)
    several = [Decision("apply", "ann", "", at_ms=number) for number in range(10)]
    await database.write(journal.append_all, several)
    counts = [(await database.write(retention.prune, NOW_MS, Retention()))["decisions"] for _ in range(4)]
    assert counts == [4, 4, 2, 0]
