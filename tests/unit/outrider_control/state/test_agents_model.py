"""Applies, deletions and rollbacks in any order, against a list of what was written."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from hypothesis import stateful
from hypothesis import strategies as st

from outrider.policy import Agent, Limits, Optimization
from outrider_control.state import agents, journal, revision
from outrider_control.state.agents import StaleVersion, UnknownAgent, UnknownVersion, Wanted
from outrider_control.state.database import Database

NAMES = ("a", "b", "c")
names = st.sampled_from(NAMES)
expectations = st.one_of(st.none(), st.integers(0, 6))
policies = st.builds(
    lambda name, ttl, most: Agent(name, optimization=Optimization(cache_ttl=ttl), limits=Limits(most)),
    names, st.integers(1, 3), st.integers(1, 2),
)  # fmt: skip


class Histories(stateful.RuleBasedStateMachine):
    """`model[name]` is the list of an agent's policies, None where it was deleted."""

    def __init__(self) -> None:
        super().__init__()
        self.database = Database.open(next(self.urls()))
        self.model: dict[str, list[Agent | None]] = {name: [] for name in NAMES}
        self.made = 0
        self.now = itertools.count(1)

    @staticmethod
    def urls() -> Iterator[str]:
        raise NotImplementedError

    def in_force(self, name: str) -> int:
        history = self.model[name]
        return len(history) if history and history[-1] is not None else 0

    @stateful.rule(wanted=st.lists(st.tuples(policies, expectations), min_size=1, max_size=3), dry=st.booleans())
    def apply(self, wanted: list[tuple[Agent, int | None]], dry: bool) -> None:
        if len({agent.agent_id for agent, _ in wanted}) < len(wanted):
            return
        several = [Wanted(agent, expected) for agent, expected in wanted]
        stale = [name for name, expected in ((a.agent_id, e) for a, e in wanted)
                 if expected is not None and expected != self.in_force(name)]  # fmt: skip
        if stale:
            with pytest.raises(StaleVersion) as caught:
                self.database.write_now(agents.apply, several, "ann", "", next(self.now), dry)
            assert caught.value.agent_id == stale[0]
            return
        applied = self.database.write_now(agents.apply, several, "ann", "", next(self.now), dry)
        for (agent, _), one in zip(wanted, applied, strict=True):
            history = self.model[agent.agent_id]
            there = self.in_force(agent.agent_id)
            if there and history[-1] == agent:
                assert (one.outcome, one.version) == ("unchanged", there)
                continue
            assert (one.outcome, one.version) == ("changed" if there else "created", len(history) + 1)
            if not dry:
                history.append(agent)
                self.made += 1

    @stateful.rule(wanted=st.lists(names, min_size=1, max_size=2, unique=True))
    def delete(self, wanted: list[str]) -> None:
        if not all(self.in_force(name) for name in wanted):
            with pytest.raises(UnknownAgent):
                self.database.write_now(agents.delete, wanted, "ann", "", next(self.now))
            return
        self.database.write_now(agents.delete, wanted, "ann", "", next(self.now))
        for name in wanted:
            self.model[name].append(None)
            self.made += 1

    @stateful.rule(name=names, version=st.integers(0, 6), expected=expectations)
    def roll_back(self, name: str, version: int, expected: int | None) -> None:
        history = self.model[name]
        target = version or len(history) - 1
        error: type[Exception] | None = None
        if not history:
            error = UnknownAgent
        elif expected is not None and expected != self.in_force(name):
            error = StaleVersion
        elif not 1 <= target <= len(history) or history[target - 1] is None:
            error = UnknownVersion
        arguments = (name, version, "ann", "", next(self.now), expected)
        if error is not None:
            with pytest.raises(error):
                self.database.write_now(agents.rollback, *arguments)
            return
        record = self.database.write_now(agents.rollback, *arguments)
        assert record.agent == history[target - 1]
        if not (self.in_force(name) and history[-1] == history[target - 1]):
            history.append(history[target - 1])
            self.made += 1
        assert record.version.version == len(history)

    @stateful.invariant()
    def the_store_is_as_the_model(self) -> None:
        current = {record.agent.agent_id: record for record in self.database.read_now(agents.current)}
        assert {name: record.agent for name, record in current.items()} == {
            name: history[-1] for name, history in self.model.items() if self.in_force(name)
        }
        for name, history in self.model.items():
            if not history:
                continue
            versions = self.database.read_now(agents.versions, name)
            assert [version.version for version in versions] == list(range(len(history), 0, -1))
            assert [version.deleted for version in versions] == [agent is None for agent in reversed(history)]
            for version, before, after in zip(reversed(versions), [None, *history], history, strict=False):
                assert version.changes == agents.difference(before, after)
        assert len(self.database.read_now(journal.read, limit=10_000)) == self.made

    @stateful.invariant()
    def what_is_new_leads_to_the_same(self) -> None:
        records, deleted, now, _ = self.database.read_now(agents.changed_since, 0)
        assert {record.agent.agent_id for record in records} == {name for name in NAMES if self.in_force(name)}
        gone = {name: len(history) for name, history in self.model.items() if history and history[-1] is None}
        assert dict(deleted) == gone
        assert now == self.database.read_now(revision.current)

    def teardown(self) -> None:
        self.database.close_now()


SETTINGS = hypothesis.settings(max_examples=15, stateful_step_count=20)
FEWER = hypothesis.settings(max_examples=6, stateful_step_count=15)  # a database for each


def test_on_sqlite(tmp_path: Path) -> None:
    numbers = itertools.count()

    class OnSqlite(Histories):
        @staticmethod
        def urls() -> Iterator[str]:
            yield f"sqlite:///{tmp_path / f'{next(numbers)}.db'}"

    stateful.run_state_machine_as_test(OnSqlite, settings=SETTINGS)


def test_on_postgresql(request: pytest.FixtureRequest) -> None:
    server, template = request.getfixturevalue("postgres"), request.getfixturevalue("_migrated_name")

    class OnPostgresql(Histories):
        @staticmethod
        def urls() -> Iterator[str]:
            yield server.url(server.create(template))

    stateful.run_state_machine_as_test(OnPostgresql, settings=FEWER)
