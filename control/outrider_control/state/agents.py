"""Agents' policies: every version of each, the one in force, and the agent of calls that name none.

Always holds: a change is whole (all agents of one `apply` or none), raises the revision once, makes one version per
agent that really changes and one entry in the journal for it, all in the caller's transaction. Versions of an agent
count from 1 and go on after it was deleted. What is stored is valid by the rules of `policy_parse`; a policy in force
that this version cannot enforce (a newer program wrote it) is passed over for the newest one that it can, and said so.

Deliberately not here: documents and what differs between them (`documents`), telling sidecars (`publish`).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy import Connection

from outrider import policy_parse
from outrider.policy import Agent, Policy, PolicyError
from outrider_control.core.decision import Decision
from outrider_control.state import documents, journal, revision
from outrider_control.state.agent_errors import StaleVersion, UnknownAgent, UnknownVersion
from outrider_control.state.documents import FieldChange, difference
from outrider_control.state.rows import replace_rows
from outrider_control.state.schema import agent_versions, agents, meta

__all__ = [
    "AgentRecord", "Applied", "Changed", "FieldChange", "StaleVersion", "UnknownAgent", "UnknownVersion", "Version",
    "Wanted", "apply", "changed_since", "current", "default_agent", "delete", "difference", "get", "rollback",
    "set_default_agent", "versions",
]  # fmt: skip

_log = logging.getLogger(__name__)

_DEFAULT_AGENT = "default_agent"  # the row of `meta`: its revision and its name
_NAMES_A_QUERY = 500  # SQLite bounds the parameters of a statement
_MAX_VERSIONS = 10_000  # read at a time
_CHANGES_JOURNALLED = 50


@dataclass(frozen=True, slots=True)
class Version:
    """One version of an agent's policy; `changes` are against the version before."""

    agent_id: str
    version: int
    author: str
    at_ms: int
    reason: str
    changes: tuple[FieldChange, ...] = ()
    deleted: bool = False


@dataclass(frozen=True, slots=True)
class AgentRecord:
    """A policy and where it comes from."""

    agent: Agent
    version: Version


@dataclass(frozen=True, slots=True)
class Wanted:
    """An agent as it shall be; `expected_version` is what the change is based on: None any, 0 the agent is new."""

    agent: Agent
    expected_version: int | None = None


@dataclass(frozen=True, slots=True)
class Applied:
    """What came of one agent: "created", "changed", "unchanged" or "deleted", and the version in force."""

    agent_id: str
    outcome: str
    version: int
    changes: tuple[FieldChange, ...] = ()


class Changed(NamedTuple):
    """What changed after a revision: agents in force, (agent, version) of deleted ones, and the revision now.

    `unreadable` says of agents whose newest version this program cannot enforce why, and what is in force instead."""

    records: list[AgentRecord]
    deleted: list[tuple[str, int]]
    revision: int
    unreadable: dict[str, str]


@dataclass(frozen=True, slots=True)
class _Newest:
    version: int
    deleted: bool
    document: str

    @property
    def in_force(self) -> int:
        return 0 if self.deleted else self.version

    def agent(self) -> Agent | None:
        """None as well where this version of the program cannot read it: then any policy is a change."""
        try:
            return documents.decode(self.document) if self.document else None
        except PolicyError:
            return None


_NOTHING = _Newest(0, True, "")


def apply(
    connection: Connection, wanted: Sequence[Wanted], author: str, reason: str, now_ms: int, dry_run: bool = False
) -> list[Applied]:
    """Make each agent what is wanted, others stay as they are; what came of each, in order.

    StaleVersion, or PolicyError with the path of the wrong field, and nothing is done.
    """
    _check_valid(wanted)
    if not dry_run:
        revision.lock(connection)
    there = _newest(connection, [one.agent.agent_id for one in wanted])
    results: list[Applied] = []
    writes: list[tuple[Version, str]] = []
    for one in wanted:
        agent_id = one.agent.agent_id
        newest = there.get(agent_id, _NOTHING)
        _check_expected(agent_id, one.expected_version, newest)
        before = newest.agent()
        if newest.in_force and before == one.agent:
            results.append(Applied(agent_id, "unchanged", newest.version))
            continue
        changes = difference(before, one.agent)
        version = Version(agent_id, newest.version + 1, author, now_ms, reason, changes)
        writes.append((version, documents.encode(one.agent)))
        results.append(Applied(agent_id, "changed" if newest.in_force else "created", version.version, changes))
    if not dry_run:
        _write(connection, writes)
        done = [one for one in results if one.outcome != "unchanged"]
        _journal(connection, "apply", done, {name: at.in_force for name, at in there.items()}, author, reason, now_ms)
    return results


def delete(
    connection: Connection, agent_ids: Sequence[str], author: str, reason: str, now_ms: int, dry_run: bool = False
) -> list[Applied]:
    """Take agents away. UnknownAgent, or PolicyError for the default agent, and nothing is done."""
    if not dry_run:
        revision.lock(connection)
    there = _newest(connection, agent_ids)
    default, _ = default_agent(connection)
    results: list[Applied] = []
    writes: list[tuple[Version, str]] = []
    for at, agent_id in enumerate(agent_ids):
        newest = there.get(agent_id, _NOTHING)
        if not newest.in_force:
            raise UnknownAgent(agent_id)
        if agent_id == default:
            raise PolicyError(f"agent_ids[{at}]", f"{agent_id!r} is the default agent: set another one first")
        if agent_id in agent_ids[:at]:
            raise PolicyError(f"agent_ids[{at}]", f"{agent_id!r} stands here twice")
        changes = difference(newest.agent(), None)
        writes.append((Version(agent_id, newest.version + 1, author, now_ms, reason, changes, deleted=True), ""))
        results.append(Applied(agent_id, "deleted", newest.version + 1, changes))
    if not dry_run:
        _write(connection, writes)
        before = {name: at.in_force for name, at in there.items()}
        _journal(connection, "delete", results, before, author, reason, now_ms)
    return results


def rollback(
    connection: Connection,
    agent_id: str,
    version: int,
    author: str,
    reason: str,
    now_ms: int,
    expected_version: int | None = None,
) -> AgentRecord:
    """Make the policy of an older version (0: the one before the newest) the newest again; also of a deleted agent.

    Where it is in force already nothing is done. UnknownAgent, UnknownVersion, StaleVersion.
    """
    revision.lock(connection)
    newest = _newest(connection, [agent_id]).get(agent_id)
    if newest is None:
        raise UnknownAgent(agent_id)
    _check_expected(agent_id, expected_version, newest)
    target = version or newest.version - 1
    query = sa.select(agent_versions.c.document).where(*_is(agent_id, target))
    document = connection.execute(query).scalar()
    if document is None:
        raise UnknownVersion(agent_id, target)
    if not document:
        raise UnknownVersion(agent_id, target, "took the agent away: delete the agent, or name an older version")
    try:
        agent = documents.decode(document)
    except PolicyError as error:
        raise UnknownVersion(agent_id, target, f"cannot be enforced by this program: {error}") from None
    before = newest.agent()
    if newest.in_force and before == agent:
        return get(connection, agent_id)
    changes = difference(before, agent)
    made = Version(agent_id, newest.version + 1, author, now_ms, reason, changes)
    _write(connection, [(made, document)])
    outcome = [Applied(agent_id, "changed" if newest.in_force else "created", made.version, changes)]
    _journal(connection, "rollback", outcome, {agent_id: newest.in_force}, author, reason, now_ms, {"to": target})
    return AgentRecord(agent, made)


def get(connection: Connection, agent_id: str, version: int = 0) -> AgentRecord:
    """An agent in force, or at a version. UnknownAgent, UnknownVersion."""
    newest = _newest(connection, [agent_id]).get(agent_id)
    if newest is None or not (newest.in_force or version):
        raise UnknownAgent(agent_id)
    at = version or newest.version
    row = connection.execute(sa.select(agent_versions).where(*_is(agent_id, at))).one_or_none()
    if row is None:
        raise UnknownVersion(agent_id, at)
    if not row.document:
        raise UnknownVersion(agent_id, at, "took the agent away: it has no policy")
    try:
        return AgentRecord(documents.decode(row.document), _version(row))
    except PolicyError as error:
        raise UnknownVersion(agent_id, at, f"cannot be enforced by this program: {error}") from None


def current(connection: Connection) -> list[AgentRecord]:
    """All agents in force, in the order of their ids."""
    return _records(connection, agents.c.deleted == 0)[0]


def versions(connection: Connection, agent_id: str, limit: int = 100) -> list[Version]:
    """The versions of an agent, deleted ones too, newest first; UnknownAgent."""
    query = sa.select(agent_versions).where(agent_versions.c.agent_id == agent_id)
    query = query.order_by(agent_versions.c.version.desc()).limit(max(1, min(limit, _MAX_VERSIONS)))
    found = [_version(row) for row in connection.execute(query)]
    if not found:
        raise UnknownAgent(agent_id)
    return found


def changed_since(connection: Connection, since: int) -> Changed:
    """What changed after revision `since`; 0: all there is."""
    now = revision.current(connection)
    query = sa.select(agents.c.agent_id, agents.c.version).where(agents.c.revision > since, agents.c.deleted == 1)
    deleted = [(row.agent_id, row.version) for row in connection.execute(query.order_by(agents.c.agent_id))]
    records, unreadable = _records(connection, sa.and_(agents.c.revision > since, agents.c.deleted == 0))
    return Changed(records, deleted, now, unreadable)


def default_agent(connection: Connection) -> tuple[str, int]:
    """The agent of calls that name none ("": as each sidecar's file says) and the revision that set it."""
    row = connection.execute(sa.select(meta.c.text, meta.c.number).where(meta.c.name == _DEFAULT_AGENT)).one_or_none()
    return (row.text, row.number) if row is not None else ("", 0)


def set_default_agent(connection: Connection, agent_id: str, author: str, reason: str, now_ms: int) -> int:
    """Set the agent of calls that name none, "" for none; the revision that set it. UnknownAgent."""
    revision.lock(connection)
    before, at = default_agent(connection)
    if agent_id and not _newest(connection, [agent_id]).get(agent_id, _NOTHING).in_force:
        raise UnknownAgent(agent_id)
    if agent_id == before:
        return at
    at = revision.bump(connection)
    replace_rows(connection, meta, [{"name": _DEFAULT_AGENT, "number": at, "text": agent_id}])
    inputs, outcome = {"before": before}, {"default_agent": agent_id}
    journal.append(connection, Decision("default_agent", author, reason, agent_id, inputs, outcome, now_ms))
    return at


def _check_valid(wanted: Sequence[Wanted]) -> None:
    seen: dict[str, int] = {}
    for at, one in enumerate(wanted):
        first = seen.setdefault(one.agent.agent_id, at)
        if first != at:
            raise PolicyError(f"agents[{at}].agent_id", f"{one.agent.agent_id!r} is already agents[{first}]")
    policy_parse.validate(Policy(MappingProxyType({one.agent.agent_id: one.agent for one in wanted})))


def _check_expected(agent_id: str, expected: int | None, newest: _Newest) -> None:
    if expected is not None and expected != newest.in_force:
        raise StaleVersion(agent_id, expected, newest.in_force)


def _newest(connection: Connection, agent_ids: Iterable[str]) -> dict[str, _Newest]:
    """The newest version of each agent that ever was."""
    names = list(dict.fromkeys(agent_ids))
    found: dict[str, _Newest] = {}
    for at in range(0, len(names), _NAMES_A_QUERY):
        query = _join(agents.c.version, agents.c.deleted, agent_versions.c.document, agents.c.agent_id)
        for row in connection.execute(query.where(agents.c.agent_id.in_(names[at : at + _NAMES_A_QUERY]))):
            found[row.agent_id] = _Newest(row.version, bool(row.deleted), row.document)
    return found


def _join(*columns: Any) -> Any:
    same = sa.and_(agents.c.agent_id == agent_versions.c.agent_id, agents.c.version == agent_versions.c.version)
    return sa.select(*columns).select_from(agents.join(agent_versions, same))


def _records(connection: Connection, condition: Any) -> tuple[list[AgentRecord], dict[str, str]]:
    """Agents by their newest version that can be enforced, and what is wrong with newer ones."""
    records: list[AgentRecord] = []
    unreadable: dict[str, str] = {}
    for row in connection.execute(_join(agent_versions).where(condition).order_by(agents.c.agent_id)):
        try:
            records.append(AgentRecord(documents.decode(row.document), _version(row)))
        except PolicyError as error:
            older = _last_readable(connection, row.agent_id)
            records += older
            instead = f"version {older[0].version.version} is in force" if older else "and there is none that can"
            unreadable[row.agent_id] = f"version {row.version} cannot be enforced by this program: {error}; {instead}"
            _log.error("agent %s: %s", row.agent_id, unreadable[row.agent_id])
    return records, unreadable


def _last_readable(connection: Connection, agent_id: str) -> list[AgentRecord]:
    query = sa.select(agent_versions).where(agent_versions.c.agent_id == agent_id)
    for row in connection.execute(query.order_by(agent_versions.c.version.desc()).limit(_MAX_VERSIONS)):
        try:
            if row.document:
                return [AgentRecord(documents.decode(row.document), _version(row))]
        except PolicyError:
            continue
    return []


def _is(agent_id: str, version: int) -> tuple[Any, Any]:
    return agent_versions.c.agent_id == agent_id, agent_versions.c.version == version


def _version(row: Any) -> Version:
    changes = tuple(FieldChange(*change) for change in json.loads(row.changes))
    return Version(row.agent_id, row.version, row.author, row.at_ms, row.reason, changes, not row.document)


def _write(connection: Connection, made: Sequence[tuple[Version, str]]) -> None:
    """Add versions ("" as document: the agent is deleted), all at one new revision."""
    if not made:
        return
    at = revision.bump(connection)
    rows = [
        {
            "agent_id": version.agent_id,
            "version": version.version,
            "document": document,
            "author": journal.stored(version.author),
            "reason": journal.stored(version.reason),
            "changes": json.dumps([[c.path, c.before, c.after] for c in version.changes], ensure_ascii=False),
            "at_ms": version.at_ms,
        }
        for version, document in made
    ]
    connection.execute(sa.insert(agent_versions), rows)
    heads = [
        {"agent_id": version.agent_id, "version": version.version, "deleted": int(version.deleted), "revision": at}
        for version, _ in made
    ]
    replace_rows(connection, agents, heads)


def _journal(
    connection: Connection,
    kind: str,
    done: Sequence[Applied],
    before: Mapping[str, int],
    author: str,
    reason: str,
    now_ms: int,
    inputs: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    entries = []
    for one in done:
        changes = [[change.path, change.before, change.after] for change in one.changes[:_CHANGES_JOURNALLED]]
        outcome = {"outcome": one.outcome, "version": one.version, "fields": len(one.changes), "changes": changes}
        given = {"version": before.get(one.agent_id, 0), **inputs}
        entries.append(Decision(kind, author, reason, one.agent_id, given, outcome, now_ms))
    journal.append_all(connection, entries)
