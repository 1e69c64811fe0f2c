"""How long things are kept: what is older goes.

Always holds: what is in force is never taken: the newest version of an agent's policy, leases, epochs, tokens that
live. Of decisions, versions and what is small one call takes at most `PORTION` rows a table, so that the writer is free
again soon; a count of `PORTION` says that there is more. Every table that grows by itself has its bound here.

Deliberately not here: when it runs (the leader's loop), rows that end by their own rules (`core.leases`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Table

from outrider_control.state import (
    call_index,
    examples,
    experiments,
    feedback,
    kept_spans,
    named_metrics,
    rollouts,
    rollups,
    scales,
    schema,
    unit_sums,
)

PORTION = 5_000
_MAX_VERSIONS = 1_000  # of one agent's policy
_MAX_SPANS = 1_000_000  # some GB at most: beyond it the oldest go before their time
_DAY_MS = 86_400_000
_SIDECARS_MS = _DAY_MS  # after a sidecar was heard last
_BATCHES_MS = _DAY_MS  # a source that is silent for longer does not send its last batch again
_TOKENS_MS = 30 * _DAY_MS  # a token that is over is shown as such for a while
_PEERS_MS = 10 * 60_000


@dataclass(frozen=True, slots=True)
class Retention:
    """How long things are kept, in seconds."""

    windows_10s_s: int = 7_200
    windows_1m_s: int = 172_800
    windows_1h_s: int = 7_776_000
    spans_s: int = 259_200
    decisions_s: int = 31_536_000
    calls_s: int = 604_800  # that feedback may come after its call
    feedback_s: int = 31_536_000  # but for what approved examples are made of


def prune(connection: Connection, now_ms: int, retention: Retention) -> dict[str, int]:
    """Take away what is over; how many rows of each table went."""
    decisions, sidecars, peers, tokens = schema.decisions, schema.sidecars, schema.peers, schema.tokens
    windows = {10: retention.windows_10s_s, 60: retention.windows_1m_s, 3_600: retention.windows_1h_s}
    ended = sa.and_(tokens.c.expires_ms > 0, tokens.c.expires_ms < now_ms - _TOKENS_MS)
    return {
        "rollups": rollups.prune(connection, now_ms, windows),
        "named_metrics": named_metrics.prune(connection, now_ms - retention.windows_1m_s * 1000),
        "spans": kept_spans.prune(connection, now_ms - retention.spans_s * 1000, _MAX_SPANS),
        "batches": rollups.prune_sources(connection, now_ms - _BATCHES_MS),
        "decisions": _take(connection, decisions, decisions.c.at_ms < now_ms - retention.decisions_s * 1000),
        "agent_versions": _prune_versions(connection),
        "sidecars": _take(connection, sidecars, sidecars.c.seen_ms < now_ms - _SIDECARS_MS),
        "peers": _take(connection, peers, peers.c.seen_ms < now_ms - _PEERS_MS),
        "tokens": _take(connection, tokens, ended),
        "scales": scales.prune(connection),
        "experiments": experiments.prune(connection, now_ms - retention.decisions_s * 1000, PORTION),
        "rollouts": rollouts.prune(connection, now_ms - retention.decisions_s * 1000, PORTION),
        "unit_sums": unit_sums.prune(connection, PORTION),
        "calls": call_index.prune(connection, now_ms - retention.calls_s * 1000),
        "feedback": feedback.prune(connection, now_ms - retention.feedback_s * 1000),
        "examples": examples.prune(connection, now_ms - retention.feedback_s * 1000, PORTION),
    }


def _prune_versions(connection: Connection) -> int:
    table, heads = schema.agent_versions, schema.agents
    newest = sa.select(heads.c.version).where(heads.c.agent_id == table.c.agent_id).scalar_subquery()
    return _take(connection, table, table.c.version <= newest - _MAX_VERSIONS)


def _take(connection: Connection, table: Table, over: Any) -> int:
    keys = list(table.primary_key.columns)
    some = sa.select(*keys).where(over).limit(PORTION)
    key = sa.tuple_(*keys) if len(keys) > 1 else keys[0]
    return connection.execute(sa.delete(table).where(key.in_(some))).rowcount
