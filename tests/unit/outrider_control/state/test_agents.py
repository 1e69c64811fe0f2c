from __future__ import annotations

import pytest
import sqlalchemy as sa

from outrider.policy import Agent, EndpointPolicy, Optimization, PolicyError, Scaling
from outrider_control.core.decision import Decision
from outrider_control.state import agents, journal, revision, schema
from outrider_control.state.agents import FieldChange, StaleVersion, UnknownAgent, UnknownVersion, Wanted
from outrider_control.state.database import Database


def agent(name: str = "tax", ttl: int = 60) -> Agent:
    return Agent(name, optimization=Optimization(cache_ttl=ttl))


async def apply(database: Database, *wanted: Agent, expected: int | None = None) -> list[agents.Applied]:
    several = [Wanted(one, expected) for one in wanted]
    return await database.write(agents.apply, several, "ann", "because", 1_000)


async def decisions(database: Database) -> list[Decision]:
    return await database.read(journal.read)


async def test_an_apply_makes_a_version_with_author_reason_and_diff(database: Database) -> None:
    (applied,) = await apply(database, agent())
    created = (FieldChange("agent_id", "", '"tax"'), FieldChange("optimization.cache_ttl", "", "60"))
    assert applied == agents.Applied("tax", "created", 1, created)
    (applied,) = await database.write(agents.apply, [Wanted(agent(ttl=90))], "bob", "longer", 2_000)
    change = (FieldChange("optimization.cache_ttl", "60", "90"),)
    assert applied == agents.Applied("tax", "changed", 2, change)
    record = await database.read(agents.get, "tax")
    assert record == agents.AgentRecord(agent(ttl=90), agents.Version("tax", 2, "bob", 2_000, "longer", change))
    assert (await database.read(agents.get, "tax", 1)).agent == agent()
    assert [version.version for version in await database.read(agents.versions, "tax")] == [2, 1]
    assert [version.version for version in await database.read(agents.versions, "tax", 1)] == [2]


async def test_each_change_is_in_the_journal(database: Database) -> None:
    await apply(database, agent("a"), agent("b"))
    await apply(database, agent("a"), agent("b", ttl=5))
    await database.write(agents.delete, ["a"], "ann", "gone", 2_000)
    await database.write(agents.rollback, "b", 1, "ann", "back", 3_000)
    await database.write(agents.set_default_agent, "b", "ann", "calls without", 4_000)
    found = [(one.kind, one.agent_id, one.inputs.get("version")) for one in await decisions(database)]
    assert found == [
        ("default_agent", "b", None),
        ("rollback", "b", 2),
        ("delete", "a", 1),
        ("apply", "b", 1),
        ("apply", "b", 0),
        ("apply", "a", 0),
    ]
    (last,) = await database.read(journal.read, "a", "delete")
    assert (last.author, last.reason, last.at_ms) == ("ann", "gone", 2_000)
    assert last.outcome["outcome"] == "deleted"
    assert last.outcome["version"] == 2
    assert ["optimization.cache_ttl", "60", ""] in last.outcome["changes"]


async def test_what_is_as_wanted_stays_as_it_is(database: Database) -> None:
    await apply(database, agent())
    before = await database.read(revision.current)
    assert await apply(database, agent()) == [agents.Applied("tax", "unchanged", 1)]
    assert await database.read(revision.current) == before
    assert len(await decisions(database)) == 1


async def test_all_of_one_apply_have_one_revision(database: Database) -> None:
    await apply(database, agent("a"), agent("b"), agent("c"))
    assert await database.read(revision.current) == 1


async def test_a_dry_run_says_the_same_and_does_nothing(database: Database) -> None:
    await apply(database, agent())
    wanted = [Wanted(agent(ttl=1)), Wanted(agent("new"))]
    dry = await database.read(agents.apply, wanted, "ann", "", 2_000, True)  # not even able to write
    assert [version.version for version in await database.read(agents.versions, "tax")] == [1]
    assert dry == await database.write(agents.apply, wanted, "ann", "", 2_000)
    dry = await database.read(agents.delete, ["tax"], "ann", "", 3_000, True)
    assert dry == await database.write(agents.delete, ["tax"], "ann", "", 3_000)


async def test_one_stale_version_refuses_all(database: Database) -> None:
    await apply(database, agent())
    await apply(database, agent(ttl=90))
    several = [Wanted(agent("other")), Wanted(agent(ttl=7), 1)]
    with pytest.raises(StaleVersion) as caught:
        await database.write(agents.apply, several, "ann", "", 3_000)
    assert (caught.value.agent_id, caught.value.expected, caught.value.actual) == ("tax", 1, 2)
    assert [record.agent.agent_id for record in await database.read(agents.current)] == ["tax"]
    assert await database.read(revision.current) == 2


async def test_a_version_of_zero_wants_a_new_agent(database: Database) -> None:
    await apply(database, agent(), expected=0)
    with pytest.raises(StaleVersion):
        await apply(database, agent(), expected=0)
    await database.write(agents.delete, ["tax"], "ann", "", 2_000)
    with pytest.raises(StaleVersion) as caught:
        await apply(database, agent(), expected=1)
    assert caught.value.actual == 0
    assert (await apply(database, agent(), expected=0))[0].version == 3


async def test_wrong_policies_are_named_and_refused(database: Database) -> None:
    with pytest.raises(PolicyError) as caught:
        await apply(database, agent("a"), Agent("b", scaling=Scaling(min_instances=5, max_instances=2)))
    assert caught.value.path == "agents[1].scaling.min_instances"
    with pytest.raises(PolicyError) as caught:
        await apply(database, agent("a"), agent("b"), agent("a"))
    assert caught.value.path == "agents[2].agent_id"
    assert await database.read(agents.current) == []


async def test_a_deleted_agent_is_gone_but_not_forgotten(database: Database) -> None:
    await apply(database, agent())
    await database.write(agents.delete, ["tax"], "ann", "gone", 2_000)
    assert await database.read(agents.current) == []
    with pytest.raises(UnknownAgent):
        await database.read(agents.get, "tax")
    with pytest.raises(UnknownAgent):
        await database.write(agents.delete, ["tax"], "ann", "", 3_000)
    assert (await database.read(agents.get, "tax", 1)).agent == agent()
    with pytest.raises(UnknownVersion, match="took the agent away"):
        await database.read(agents.get, "tax", 2)
    newest, oldest = await database.read(agents.versions, "tax")
    assert (newest.version, newest.deleted, oldest.deleted) == (2, True, False)
    record = await database.write(agents.rollback, "tax", 0, "ann", "back", 4_000)
    assert (record.version.version, record.agent) == (3, agent())


async def test_a_delete_is_whole(database: Database) -> None:
    await apply(database, agent("a"), agent("b"))
    with pytest.raises(UnknownAgent):
        await database.write(agents.delete, ["a", "x"], "ann", "", 2_000)
    with pytest.raises(PolicyError, match="twice"):
        await database.write(agents.delete, ["a", "a"], "ann", "", 2_000)
    assert len(await database.read(agents.current)) == 2


async def test_a_rollback_makes_an_old_policy_the_newest(database: Database) -> None:
    for ttl in (1, 2, 3):
        await apply(database, agent(ttl=ttl))
    record = await database.write(agents.rollback, "tax", 1, "ann", "worse", 2_000)
    assert record.agent == agent(ttl=1)
    assert record.version.version == 4
    assert record.version.changes == (FieldChange("optimization.cache_ttl", "3", "1"),)
    record = await database.write(agents.rollback, "tax", 0, "ann", "", 3_000)
    assert record.agent == agent(ttl=3)
    record = await database.write(agents.rollback, "tax", 3, "ann", "", 3_000)  # in force already
    assert record.version.version == 5
    with pytest.raises(UnknownVersion):
        await database.write(agents.rollback, "tax", 9, "ann", "", 4_000)
    with pytest.raises(StaleVersion):
        await database.write(agents.rollback, "tax", 1, "ann", "", 4_000, 4)
    with pytest.raises(UnknownAgent):
        await database.write(agents.rollback, "nobody", 1, "ann", "", 4_000)


async def test_a_rollback_to_a_deletion_is_refused(database: Database) -> None:
    await apply(database, agent())
    await database.write(agents.delete, ["tax"], "ann", "", 2_000)
    await apply(database, agent(ttl=9))
    with pytest.raises(UnknownVersion, match="took the agent away"):
        await database.write(agents.rollback, "tax", 2, "ann", "", 3_000)
    with pytest.raises(UnknownVersion):
        await database.write(agents.rollback, "tax", 0, "ann", "", 3_000)


async def test_what_is_new_since_a_revision(database: Database) -> None:
    await apply(database, agent("a"), agent("b"))
    await apply(database, agent("c"))
    await database.write(agents.delete, ["a"], "ann", "", 2_000)
    records, deleted, now, _ = await database.read(agents.changed_since, 1)
    assert ([record.agent.agent_id for record in records], deleted, now) == (["c"], [("a", 2)], 3)
    records, deleted, now, unreadable = await database.read(agents.changed_since, 0)
    assert ([record.agent.agent_id for record in records], deleted, now) == (["b", "c"], [("a", 2)], 3)
    assert unreadable == {}
    assert await database.read(agents.changed_since, 3) == ([], [], 3, {})


async def test_the_default_agent(database: Database) -> None:
    assert await database.read(agents.default_agent) == ("", 0)
    with pytest.raises(UnknownAgent):
        await database.write(agents.set_default_agent, "tax", "ann", "", 1_000)
    await apply(database, agent())
    assert await database.write(agents.set_default_agent, "tax", "ann", "", 1_000) == 2
    assert await database.write(agents.set_default_agent, "tax", "ann", "", 1_000) == 2
    assert await database.read(agents.default_agent) == ("tax", 2)
    with pytest.raises(PolicyError, match="is the default agent"):
        await database.write(agents.delete, ["tax"], "ann", "", 2_000)
    await database.write(agents.set_default_agent, "", "ann", "", 2_000)
    await database.write(agents.delete, ["tax"], "ann", "", 2_000)
    assert await database.read(agents.default_agent) == ("", 3)


async def test_a_policy_this_program_cannot_enforce_blocks_no_other(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    await apply(database, agent("a"), agent("b"))
    await apply(database, agent("a", ttl=7))
    table = schema.agent_versions
    newer = sa.update(table).where(table.c.agent_id == "a", table.c.version == 2)
    document = '{"agent_id":"a","balancing":{"strategy":"clairvoyant"}}'
    await database.write(lambda connection: connection.execute(newer.values(document=document)))
    records = await database.read(agents.current)
    assert [(record.agent.agent_id, record.version.version) for record in records] == [("a", 1), ("b", 1)]
    assert "agent a: version 2 cannot be enforced by this program: balancing.strategy" in caplog.text
    with pytest.raises(UnknownVersion, match="cannot be enforced"):
        await database.read(agents.get, "a")
    unreadable = (await database.read(agents.changed_since, 0)).unreadable
    assert unreadable.keys() == {"a"}
    assert unreadable["a"].startswith("version 2 cannot be enforced by this program: balancing.strategy: 'clairvoyant'")
    assert unreadable["a"].endswith("; version 1 is in force")
    (applied,) = await apply(database, agent("a", ttl=8))
    assert (applied.outcome, applied.version) == ("changed", 3)
    assert (await database.read(agents.changed_since, 0)).unreadable == {}


async def test_an_agent_without_any_policy_that_can_be_enforced(database: Database) -> None:
    await apply(database, agent("a"))
    newer = sa.update(schema.agent_versions).values(document='{"agent_id":"a","timeout_ms":-1}')
    await database.write(lambda connection: connection.execute(newer))
    changed = await database.read(agents.changed_since, 0)
    assert changed.records == []
    assert changed.unreadable["a"].endswith("; and there is none that can")


async def test_a_thousand_agents_at_once(database: Database) -> None:
    several = [Wanted(Agent(f"agent-{number}", endpoints=(EndpointPolicy("10.0.0.1:1"),))) for number in range(1_000)]
    assert len(await database.write(agents.apply, several, "ann", "many", 1_000)) == 1_000
    assert len(await database.read(agents.current)) == 1_000
    applied = await database.write(agents.apply, several, "ann", "again", 2_000)
    assert {one.outcome for one in applied} == {"unchanged"}


async def test_odd_words_are_kept_where_they_can_be(database: Database) -> None:
    await database.write(agents.apply, [Wanted(agent())], "ann\0", "because\0 of \u2603 and \U0001f600", 1_000)
    version = (await database.read(agents.get, "tax")).version
    assert (version.author, version.reason) == ("ann", "because of \u2603 and \U0001f600")
