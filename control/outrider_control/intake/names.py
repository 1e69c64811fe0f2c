"""Names of attributes the intake reads, as bytes (hot path) and texts.

Always holds: what our sidecars write is spelled as in the sidecar's table of names; a test compares them.
"""

from __future__ import annotations

from typing import Final

OUTRIDER_SCOPE: Final = "outrider"

# Resource and scope
SERVICE_NAME: Final = "service.name"
SERVICE_INSTANCE_ID: Final = "service.instance.id"
BATCH_SEQUENCE: Final = "outrider.batch.sequence"

# RPC
RPC_METHOD: Final = "rpc.method"
RPC_SERVICE: Final = "rpc.service"  # older conventions: service and method apart
RPC_STATUS_CODE: Final = "rpc.response.status_code"
RPC_GRPC_STATUS_CODE: Final = "rpc.grpc.status_code"  # older conventions: a number

# GenAI
AGENT_ID: Final = "gen_ai.agent.id"
PROVIDER: Final = "gen_ai.provider.name"
SYSTEM: Final = "gen_ai.system"  # older conventions: the provider
REQUEST_MODEL: Final = "gen_ai.request.model"
RESPONSE_MODEL: Final = "gen_ai.response.model"
INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
CACHE_READ_TOKENS: Final = "gen_ai.usage.cache_read.input_tokens"
CACHE_WRITE_TOKENS: Final = "gen_ai.usage.cache_write.input_tokens"
CACHE_CREATION_TOKENS: Final = "gen_ai.usage.cache_creation.input_tokens"  # the same by the conventions' later name
FIRST_CHUNK_S: Final = "gen_ai.response.time_to_first_chunk"

# Ours
ENDPOINT: Final = "outrider.endpoint"
CACHE: Final = "outrider.cache"
CACHE_TIER: Final = "outrider.cache.tier"
VARIANT: Final = "outrider.variant"
UNIT: Final = "outrider.unit"  # "split=HASH[,split=HASH...]": where the call is to be counted, and as whose
TENANT: Final = "outrider.tenant"
HOP: Final = "outrider.hop"  # "ingress" on a CLIENT span: the reply came through an ingress, which counts the call
DETACHED: Final = "outrider.detached"  # of a background flight: no call, but its tokens count
TOKENS_SAVED: Final = "outrider.tokens_saved"
QUEUE_US: Final = "outrider.queue_us"
FIRST_BYTE_US: Final = "outrider.first_byte_us"
STATUS_MESSAGE: Final = "outrider.status_message"
