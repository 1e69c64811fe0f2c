from __future__ import annotations

from dataclasses import replace

import hypothesis
from hypothesis import strategies as st

from outrider_control.state import leases, revision
from outrider_control.state.database import Database
from outrider_control.state.leases import LeaseRow


def row(agent_id: str = "tax", address: str = "10.0.0.1:1", owner: str = "o", endpoint: bytes = b"e") -> LeaseRow:
    return LeaseRow(agent_id, address, owner, "registered", "node", endpoint, 15_000, 20_000)


async def test_only_endpoints_that_change_make_a_version(database: Database) -> None:
    both = [row(), row("law", "10.0.0.2:1")]
    assert await database.write(leases.put, both, 0) == 1
    assert await database.read(leases.versions) == {"tax": 1, "law": 1}
    assert await database.write(leases.put, both, 0) is None
    elsewhere = replace(row(), owner="other", node="n2", source="announced", ttl_ms=1, expires_ms=9)
    assert await database.write(leases.put, [elsewhere], 0) is None
    assert await database.read(leases.current) == [row("law", "10.0.0.2:1"), elsewhere]
    assert await database.write(leases.put, [row(endpoint=b"heavier")], 0) == 2
    assert await database.read(leases.versions) == {"tax": 2, "law": 1}
    assert await database.read(revision.current) == 2


async def test_the_last_of_one_address_counts(database: Database) -> None:
    assert await database.write(leases.put, [row(endpoint=b"1"), row(endpoint=b"2")], 0) == 1
    assert [one.endpoint for one in await database.read(leases.current)] == [b"2"]
    assert await database.write(leases.put, [], 0) is None


async def test_renewals_are_by_owner_and_make_no_version(database: Database) -> None:
    several = [row(address=f"10.0.0.{number}:1", owner=f"o{number % 3}") for number in range(9)]
    await database.write(leases.put, several, 0)
    assert await database.write(leases.renew, ["o0", "o1", "nobody"], 99_000) == 6
    ends = {one.owner: one.expires_ms for one in await database.read(leases.current)}
    assert ends == {"o0": 99_000, "o1": 99_000, "o2": 20_000}
    assert await database.read(revision.current) == 1
    assert await database.write(leases.renew, [f"x{number}" for number in range(2_000)], 1) == 0


async def test_marks_of_those_that_drain(database: Database) -> None:
    announced = replace(row(address="h:2"), source="announced")
    assert await database.write(leases.put, [row(), announced], 0) == 1
    assert await database.write(leases.mark, "tax", ["10.0.0.1:1", "h:2", "nowhere"], True) == 2
    assert await database.write(leases.mark, "tax", ["h:2"], True) == 2
    assert [one.draining for one in await database.read(leases.current)] == [1, 1]
    same = [replace(row(), owner="newer lease"), replace(announced, ttl_ms=7)]
    assert await database.write(leases.put, same, 0) is None
    assert [one.draining for one in await database.read(leases.current)] == [1, 1]
    assert await database.write(leases.put, [replace(announced, owner="another process", draining=1)], 0) == 3
    assert [one.draining for one in await database.read(leases.current)] == [1, 0]
    assert await database.write(leases.mark, "tax", ["10.0.0.1:1"], False) == 4
    assert await database.write(leases.mark, "law", ["10.0.0.1:1"], True) == 0
    several = [f"h:{number}" for number in range(1_000)]
    assert await database.write(leases.mark, "tax", several, True) == 5


async def test_removals(database: Database) -> None:
    await database.write(leases.put, [row(), row(address="10.0.0.2:1", owner="p"), row("law", owner="p")], 0)
    assert await database.write(leases.remove, [("tax", "10.0.0.1:1"), ("tax", "nowhere")]) == 2
    assert await database.write(leases.remove, [("tax", "10.0.0.1:1")]) is None
    assert await database.write(leases.remove, []) is None
    assert await database.write(leases.remove_owner, "p") == 3
    assert await database.write(leases.remove_owner, "p") is None
    assert await database.read(leases.current) == []
    assert await database.read(leases.versions) == {"tax": 3, "law": 3}


async def test_what_is_new_since_a_revision_has_sets_that_are_empty_now(database: Database) -> None:
    await database.write(leases.put, [row(), row("law")], 0)
    await database.write(leases.remove, [("tax", "10.0.0.1:1")])
    assert await database.read(leases.changed_since, 0) == {"law": (1, [row("law")]), "tax": (2, [])}
    assert await database.read(leases.changed_since, 1) == {"tax": (2, [])}
    assert await database.read(leases.changed_since, 2) == {}


async def test_many_at_once(database: Database) -> None:
    several = [row(f"agent-{number % 51}", f"10.0.{number // 256}.{number % 256}:1") for number in range(2_000)]
    assert await database.write(leases.put, several, 0) == 1
    assert await database.write(leases.put, several, 0) is None
    assert len(await database.read(leases.current)) == 2_000
    assert await database.write(leases.remove, [(one.agent_id, one.address) for one in several]) == 2
    assert await database.read(leases.current) == []


rows = st.builds(
    row, st.sampled_from("ab"), st.sampled_from("xy"), st.sampled_from("op"), st.sampled_from([b"1", b"2"])
)
steps = st.one_of(
    st.tuples(st.just("put"), st.lists(rows, max_size=3)),
    st.tuples(st.just("remove"), st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xy")), max_size=3)),
    st.tuples(st.just("remove_owner"), st.sampled_from("op")),
)


@hypothesis.settings(
    max_examples=25, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture], deadline=None
)
@hypothesis.given(st.lists(steps, max_size=12))
def test_versions_rise_exactly_where_endpoints_differ(database: Database, steps: list) -> None:
    def endpoints() -> dict[str, dict[str, bytes]]:
        found: dict[str, dict[str, bytes]] = {"a": {}, "b": {}}
        for one in database.read_now(leases.current):
            found[one.agent_id][one.address] = one.endpoint
        return found

    for kind, argument in steps:
        before, old = endpoints(), database.read_now(leases.versions)
        if kind == "put":
            raised = database.write_now(leases.put, argument, 0)
        else:
            raised = database.write_now(getattr(leases, kind), argument)
        after, new = endpoints(), database.read_now(leases.versions)
        differ = {agent_id for agent_id in after if after[agent_id] != before[agent_id]}
        assert {agent_id for agent_id in new if new[agent_id] != old.get(agent_id)} == differ
        assert (raised is None) == (not differ)
        assert all(new[agent_id] == raised for agent_id in differ)
