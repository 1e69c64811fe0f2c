"""The one table of names: attributes of spans, events and the resource.

Always holds: a name is spelled here and nowhere else. `rpc.*`, `server.*`, `error.*` and `service.*` are OpenTelemetry
semantic conventions 1.40; `gen_ai.*` are those of semantic-conventions-genai (Development: names may move);
`outrider.*` is ours. Units stand last in our names.

Deliberately not here: when an attribute is written (`engines.otlp`), names of gRPC statuses (`core.errors`).
"""

from __future__ import annotations

from typing import Final

SCHEMA_URL: Final = "https://opentelemetry.io/schemas/1.40.0"
SCOPE_NAME: Final = "outrider"

# Resource
SERVICE_NAME: Final = "service.name"
SERVICE_INSTANCE_ID: Final = "service.instance.id"  # one per process start: the epoch of the batch sequence
HOST_NAME: Final = "host.name"
NODE_NAME: Final = "k8s.node.name"
SERVICE_VERSION: Final = "service.version"

# Scope, only towards the control plane
BATCH_SEQUENCE: Final = "outrider.batch.sequence"

# RPC
RPC_SYSTEM_NAME: Final = "rpc.system.name"
RPC_METHOD: Final = "rpc.method"  # "pkg.Svc/Method"
RPC_STATUS_CODE: Final = "rpc.response.status_code"  # "OK", "UNAVAILABLE", ...
SERVER_ADDRESS: Final = "server.address"
SERVER_PORT: Final = "server.port"
ERROR_TYPE: Final = "error.type"

# GenAI
AGENT_ID: Final = "gen_ai.agent.id"
CONVERSATION_ID: Final = "gen_ai.conversation.id"
OPERATION_NAME: Final = "gen_ai.operation.name"
REQUEST_MODEL: Final = "gen_ai.request.model"
RESPONSE_MODEL: Final = "gen_ai.response.model"
FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
CACHE_READ_TOKENS: Final = "gen_ai.usage.cache_read.input_tokens"
CACHE_WRITE_TOKENS: Final = "gen_ai.usage.cache_write.input_tokens"

# Ours
ENDPOINT: Final = "outrider.endpoint"  # the address as configured
CACHE: Final = "outrider.cache"  # hit, stale, miss, coalesced, bypass
CACHE_TIER: Final = "outrider.cache.tier"
VARIANT: Final = "outrider.variant"
UNIT: Final = "outrider.unit"  # keyed hash of the experiment unit
TOKENS_SAVED: Final = "outrider.tokens_saved"
TOKENS_BEFORE: Final = "outrider.compression.tokens_before"  # of the request, by the sidecar's count
COMPRESSORS: Final = "outrider.compression.compressors"  # with their versions
COMPRESSION_NET: Final = "outrider.compression.net"  # money saved, in the prices of the agent's policy
COMPRESSION_US: Final = "outrider.compression.us"  # on the sidecar's loop
QUEUE_US: Final = "outrider.queue_us"
LANE: Final = "outrider.lane"  # low, normal, high, critical; of calls that waited, were degraded, or are not normal
DEGRADED: Final = "outrider.degraded"  # steps of degradation that the call felt
CONNECT_US: Final = "outrider.connect_us"
FIRST_BYTE_US: Final = "outrider.first_byte_us"
REQUEST_BYTES: Final = "outrider.request_bytes"
REPLY_BYTES: Final = "outrider.reply_bytes"
STATUS_MESSAGE: Final = "outrider.status_message"  # grpc-message of a status that is not an error of this hop
HOP: Final = "outrider.hop"  # "ingress": the reply came through an ingress, which counts the call
DETACHED: Final = "outrider.detached"  # true: no call of anybody's, but the flight or refresh behind one
TENANT: Final = "outrider.tenant"
CACHE_KEY: Final = "outrider.cache.key"  # hex; of calls worth a look only, as the next
PICK: Final = "outrider.pick"  # "address score" of each endpoint that was compared, the last attempt's
NOTES: Final = "outrider.notes"  # features that stepped aside, and why

# Event, one per attempt
ATTEMPT: Final = "outrider.attempt"
ATTEMPT_US: Final = "outrider.attempt_us"
ATTEMPT_REASON: Final = "outrider.attempt.reason"

# Statuses that make a SERVER span an error, by the gRPC conventions; on a CLIENT span every status but OK does.
SERVER_ERRORS: Final = frozenset((2, 4, 12, 13, 14, 15))
