"""The tables: one schema for SQLite and PostgreSQL.

Always holds: times are unix milliseconds; what a sidecar watches carries `revision`, a number of one counter in `meta`
that grows with every change, so that "what is new since r" is one indexed query. Documents are JSON text, figures and
spans are bytes whose first byte is the version of their encoding.

Deliberately not here: how the tables came to be (`migrations`), who reads and writes them (the modules beside).
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
)

# SQLite gives out row ids for INTEGER keys only.
BIG_ID = BigInteger().with_variant(Integer, "sqlite")

metadata = MetaData()

# One row per name: "revision" (the change counter), "default_agent" (its revision), "agents_file" (digest), ...
meta = Table(
    "meta",
    metadata,
    Column("name", Text, primary_key=True),
    Column("number", BigInteger, nullable=False, server_default="0"),
    Column("text", Text, nullable=False, server_default=""),
)

# Every version of every agent's policy; the newest is in force. `document` is empty where the version took it away.
agent_versions = Table(
    "agent_versions",
    metadata,
    Column("agent_id", Text, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("document", Text, nullable=False),
    Column("author", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("changes", Text, nullable=False),  # JSON: [[path, before, after], ...] against the version before
    Column("at_ms", BigInteger, nullable=False),
    PrimaryKeyConstraint("agent_id", "version"),
)

# The newest version of each agent, deleted ones included.
agents = Table(
    "agents",
    metadata,
    Column("agent_id", Text, primary_key=True),
    Column("version", BigInteger, nullable=False),
    Column("deleted", Integer, nullable=False, server_default="0"),
    Column("revision", BigInteger, nullable=False, index=True),
)

decisions = Table(
    "decisions",
    metadata,
    Column("id", BIG_ID, primary_key=True, autoincrement=True),
    Column("at_ms", BigInteger, nullable=False, index=True),
    Column("kind", Text, nullable=False),
    Column("agent_id", Text, nullable=False),
    Column("author", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("inputs", Text, nullable=False),  # JSON
    Column("outcome", Text, nullable=False),  # JSON
    Index("decisions_by_agent", "agent_id", "id"),
)

# Endpoints that registered. `owner` is a lease id, or the instance id of the sidecar that announced it.
leases = Table(
    "leases",
    metadata,
    Column("agent_id", Text, nullable=False),
    Column("address", Text, nullable=False),
    Column("owner", Text, nullable=False, index=True),
    Column("source", Text, nullable=False),  # registered, announced
    Column("node", Text, nullable=False),
    Column("endpoint", LargeBinary, nullable=False),  # outrider.v1.Endpoint
    Column("ttl_ms", BigInteger, nullable=False),
    Column("expires_ms", BigInteger, nullable=False),
    Column("draining", Integer, nullable=False, server_default="0"),  # 1: a lease still, but given no more calls
    PrimaryKeyConstraint("agent_id", "address"),
)

# How many instances each agent is to have. `version` grows with every change, `report` is only told to others.
scales = Table(
    "scales",
    metadata,
    Column("agent_id", Text, primary_key=True),
    Column("version", BigInteger, nullable=False, server_default="0"),
    Column("desired", BigInteger, nullable=True),  # NULL: not decided yet
    Column("changed_ms", BigInteger, nullable=False, server_default="0"),
    Column("paused_ms", BigInteger, nullable=False, server_default="0"),  # 0: it is not paused
    Column("paused_by", Text, nullable=False, server_default=""),
    Column("paused_reason", Text, nullable=False, server_default=""),
    Column("report", Text, nullable=False, server_default=""),  # JSON: what the leader last said of it
    Column("reported_ms", BigInteger, nullable=False, server_default="0"),
)

# The version of each agent's set of registered endpoints.
endpoint_sets = Table(
    "endpoint_sets",
    metadata,
    Column("agent_id", Text, primary_key=True),
    Column("revision", BigInteger, nullable=False, index=True),
)

# Cache invalidation. The row of scope ("", "", "") is the floor.
epochs = Table(
    "epochs",
    metadata,
    Column("agent_id", Text, nullable=False),
    Column("tenant_id", Text, nullable=False),
    Column("tag", Text, nullable=False),
    Column("value", BigInteger, nullable=False),
    Column("revision", BigInteger, nullable=False, index=True),
    PrimaryKeyConstraint("agent_id", "tenant_id", "tag"),
)

# What every control plane says of the sidecars it serves, for the others and for after a restart.
sidecars = Table(
    "sidecars",
    metadata,
    Column("instance_id", Text, primary_key=True),
    Column("control_id", Text, nullable=False),
    Column("connected", Integer, nullable=False),
    Column("seen_ms", BigInteger, nullable=False, index=True),
    Column("record", LargeBinary, nullable=False),  # outrider.v1.SidecarRecord
)

# Control planes on this store.
peers = Table(
    "peers",
    metadata,
    Column("control_id", Text, primary_key=True),
    Column("address", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("seen_ms", BigInteger, nullable=False),
)

tokens = Table(
    "tokens",
    metadata,
    Column("id", Text, primary_key=True),  # the token's first characters
    Column("hash", Text, nullable=False, unique=True),  # of the whole token
    Column("name", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("author", Text, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("expires_ms", BigInteger, nullable=False),  # 0: never
)

# The last batch taken of each exporter that numbers its batches.
batches = Table(
    "batches",
    metadata,
    Column("source", Text, primary_key=True),  # service.instance.id
    Column("sequence", BigInteger, nullable=False),
    Column("seen_ms", BigInteger, nullable=False, index=True),
)

# What was taken in and is not in the rollups yet: one row per commit, merged and deleted by the fold.
deltas = Table(
    "deltas",
    metadata,
    Column("id", BIG_ID, primary_key=True, autoincrement=True),
    Column("figures", LargeBinary, nullable=False),
)

series = Table(
    "series",
    metadata,
    Column("id", BIG_ID, primary_key=True, autoincrement=True),
    Column("agent_id", Text, nullable=False),
    Column("method", Text, nullable=False),
    Column("variant", Text, nullable=False),
    Column("endpoint", Text, nullable=False),
    Column("tenant", Text, nullable=False),
    Index("series_by_key", "agent_id", "method", "variant", "endpoint", "tenant", unique=True),
)

# Figures by window. `window_s` is 10, 60 or 3600, `start_s` unix seconds.
rollups = Table(
    "rollups",
    metadata,
    Column("window_s", Integer, nullable=False),
    Column("agent_id", Text, nullable=False),
    Column("start_s", BigInteger, nullable=False),
    Column("series_id", BigInteger, nullable=False),
    Column("figures", LargeBinary, nullable=False),
    PrimaryKeyConstraint("window_s", "agent_id", "start_s", "series_id"),
    Index("rollups_by_time", "window_s", "start_s"),
)

# Metrics that agents sent by themselves, by minute.
named_metrics = Table(
    "named_metrics",
    metadata,
    Column("agent_id", Text, nullable=False),
    Column("start_s", BigInteger, nullable=False, index=True),
    Column("name", Text, nullable=False),
    Column("unit", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("figures", LargeBinary, nullable=False),
    PrimaryKeyConstraint("agent_id", "start_s", "name", "unit", "kind"),
)

spans = Table(
    "spans",
    metadata,
    Column("trace_id", Text, nullable=False),
    Column("span_id", Text, nullable=False),
    Column("agent_id", Text, nullable=False),
    Column("start_ms", BigInteger, nullable=False, index=True),
    Column("duration_us", BigInteger, nullable=False),
    Column("failed", Integer, nullable=False),
    Column("kept", Text, nullable=False),  # why
    Column("span", LargeBinary, nullable=False),  # intake's encoding: resource attributes and the OTLP span
    PrimaryKeyConstraint("trace_id", "span_id"),
    Index("spans_by_id", "span_id"),
    Index("spans_by_agent", "agent_id", "start_ms"),
)

# How traffic is divided. `split` is an outrider.v1.SplitPolicy.
splits = Table(
    "splits",
    metadata,
    Column("name", Text, primary_key=True),
    Column("agent_id", Text, nullable=False, index=True),
    Column("split", LargeBinary, nullable=False),
)

# The version of each agent's set of splits.
split_sets = Table(
    "split_sets",
    metadata,
    Column("agent_id", Text, primary_key=True),
    Column("revision", BigInteger, nullable=False, index=True),
)

# `version` grows with every change, looks among them.
experiments = Table(
    "experiments",
    metadata,
    Column("name", Text, primary_key=True),  # of its split as well
    Column("agent_id", Text, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("state", Text, nullable=False),  # draft, running, paused, stopped
    Column("spec", LargeBinary, nullable=False),  # outrider.v1.ExperimentSpec
    Column("carried", Text, nullable=False, server_default=""),  # JSON: from look to look
    Column("decision", Text, nullable=False, server_default=""),  # JSON: the last look's
    Column("verdict", Text, nullable=False, server_default=""),
    Column("winner", Text, nullable=False, server_default=""),
    Column("reason", Text, nullable=False, server_default=""),
    Column("rollout", Text, nullable=False, server_default=""),  # that it has begun
    Column("author", Text, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("started_ms", BigInteger, nullable=False, server_default="0"),  # 0: it was not
    Column("stopped_ms", BigInteger, nullable=False, server_default="0", index=True),  # 0: it has not
    Index("experiments_by_agent", "agent_id", "created_ms"),
)

# The course of experiments, thinned out.
looks = Table(
    "looks",
    metadata,
    Column("experiment", Text, nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("units", BigInteger, nullable=False),
    Column("comparisons", Text, nullable=False),  # JSON: [[variant, effect, low, high], ...]
    PrimaryKeyConstraint("experiment", "number"),
)

# What each unit of a split came to. `changed` is of a counter in `meta` that every writer raises.
unit_sums = Table(
    "unit_sums",
    metadata,
    Column("split", Text, nullable=False),
    Column("unit", Text, nullable=False),  # keyed hash, 32 hex digits
    Column("variant", Text, nullable=False),  # empty: none yet, there is only its history
    Column("flipped", Integer, nullable=False, server_default="0"),  # 1: it came with another variant too
    Column("changed", BigInteger, nullable=False),
    Column("sums", LargeBinary, nullable=False),  # core.unit_sums
    PrimaryKeyConstraint("split", "unit"),
    Index("unit_sums_by_change", "split", "changed"),
)

# How many units of a split there are, how many calls of others found no room, and when the last call came.
unit_counts = Table(
    "unit_counts",
    metadata,
    Column("split", Text, primary_key=True),
    Column("units", BigInteger, nullable=False, server_default="0"),
    Column("left_out", BigInteger, nullable=False, server_default="0"),
    Column("last_ms", BigInteger, nullable=False, server_default="0"),
)

# How new versions go out. `split` is the one whose weights a rollout moves; its row is in `splits`.
rollouts = Table(
    "rollouts",
    metadata,
    Column("name", Text, primary_key=True),
    Column("agent_id", Text, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("phase", Text, nullable=False),
    Column("spec", LargeBinary, nullable=False),  # outrider.v1.RolloutSpec
    Column("state", Text, nullable=False),  # JSON
    Column("author", Text, nullable=False),
    Column("experiment", Text, nullable=False),
    Column("split", Text, nullable=False),
    Column("split_version", BigInteger, nullable=False, server_default="0"),
    Column("created_ms", BigInteger, nullable=False),
    Column("ended_ms", BigInteger, nullable=False, server_default="0", index=True),  # 0: it is under way
    Index("rollouts_by_agent", "agent_id", "created_ms"),
)

# What rollouts still have to tell their webhooks.
outbox = Table(
    "outbox",
    metadata,
    Column("id", BIG_ID, primary_key=True, autoincrement=True),
    Column("rollout", Text, nullable=False),
    Column("agent_id", Text, nullable=False),
    Column("url", Text, nullable=False),
    Column("body", Text, nullable=False),  # JSON
    Column("key", Text, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("due_ms", BigInteger, nullable=False),
    Index("outbox_by_url", "url", "id"),
)

# Calls as runs of many, so that feedback finds them. `part`: -1 not divided yet; 0 to 255 by the last byte of the call
# id; 256 to 511 pairs of trace and call by the last byte of the trace id.
calls = Table(
    "calls",
    metadata,
    Column("id", BIG_ID, primary_key=True, autoincrement=True),
    Column("part", Integer, nullable=False, index=True),
    Column("flush", BigInteger, nullable=False),  # what was divided together has the same
    Column("units", Integer, nullable=False),  # 1: calls with a unit are among them
    Column("calls", BigInteger, nullable=False),  # how many
    Column("looked", Integer, nullable=False),  # 1: for feedback that waits
    Column("last_ms", BigInteger, nullable=False),
    Column("run", LargeBinary, nullable=False),  # core.call_record
)

# What was said of calls. What follows `units` of the call is there once it is joined.
feedback = Table(
    "feedback",
    metadata,
    Column("feedback_id", Text, primary_key=True),
    Column("call_id", Text, nullable=False),
    Column("trace_id", Text, nullable=False, index=True),
    Column("named_agent", Text, nullable=False),  # by who sent it
    Column("by_trace", Integer, nullable=False),
    Column("joined", Integer, nullable=False),
    Column("agent_id", Text, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("variant", Text, nullable=False),
    Column("units", Text, nullable=False),
    Column("call_rank", Integer, nullable=False),
    Column("call_at_ms", BigInteger, nullable=False),
    Column("rating", Float, nullable=True),
    Column("correction", Text, nullable=False),
    Column("complaint", Text, nullable=False),
    Column("labels", Text, nullable=False),  # JSON
    Column("scores", Text, nullable=False),  # JSON
    Column("author", Text, nullable=False),
    Column("input", Text, nullable=False),
    Column("output", Text, nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("received_ms", BigInteger, nullable=False, index=True),
    Column("to_learn", Integer, nullable=False),  # 1: it waits to become an example
    Column("example_id", BigInteger, nullable=True, index=True),
    Index("feedback_by_join", "joined", "by_trace", "received_ms"),
    Index("feedback_by_agent", "agent_id", "at_ms"),
    Index("feedback_to_learn", "to_learn", "received_ms"),
)

# Learning examples: what people approve, edit or reject.
examples = Table(
    "examples",
    metadata,
    Column("id", BIG_ID, primary_key=True, autoincrement=True),
    Column("agent_id", Text, nullable=False),
    Column("key", Text, nullable=False),  # what says the same has the same
    Column("group_key", Text, nullable=False),  # what asks the same has the same
    Column("state", Text, nullable=False),  # candidate, approved, rejected
    Column("input", Text, nullable=False),
    Column("output", Text, nullable=False),
    Column("correction", Text, nullable=False),
    Column("complaint", Text, nullable=False),
    Column("labels", Text, nullable=False),  # JSON
    Column("trace_ids", Text, nullable=False),  # JSON
    Column("pieces", BigInteger, nullable=False),  # of feedback
    Column("first_ms", BigInteger, nullable=False),
    Column("last_ms", BigInteger, nullable=False),
    Column("reviewer", Text, nullable=False, server_default=""),
    Column("review_reason", Text, nullable=False, server_default=""),
    Column("reviewed_ms", BigInteger, nullable=False, server_default="0"),
    Index("examples_by_key", "agent_id", "key", unique=True),
    Index("examples_by_state", "agent_id", "state", "id"),
)

# Frozen examples: neither row is ever changed.
datasets = Table(
    "datasets",
    metadata,
    Column("agent_id", Text, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("author", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("counts", Text, nullable=False),  # JSON: by part
    Column("digest", Text, nullable=False),  # SHA-256 of all lines
    PrimaryKeyConstraint("agent_id", "version"),
)

dataset_items = Table(
    "dataset_items",
    metadata,
    Column("agent_id", Text, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("position", BigInteger, nullable=False),
    Column("part", Text, nullable=False),  # train, validation, holdout
    Column("group_key", Text, nullable=False),
    Column("line", Text, nullable=False),  # JSON, with its end
    PrimaryKeyConstraint("agent_id", "version", "position"),
    Index("dataset_items_by_group", "agent_id", "group_key"),
)
