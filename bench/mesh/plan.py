"""What the load asks: a seeded schedule of calls, made up or after a trace. Pure.

Always holds: the same seed gives the same calls at the same times. Half of the made-up calls repeat a question out of
a few (Zipf), the others are new; a third is streamed; some carry a read-only tool, some are raw bytes without the
Agent API. A traced call asks for the traced number of tokens and carries each shared prefix block as a context block
of its own, equal wherever the trace has the same id.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from bench.agents.behaviour import CHARACTERS_PER_TOKEN
from bench.mesh.trace import BLOCK_TOKENS, Arrival
from outrider.v1 import agent_pb2

TIERS = ("llm", "tool", "raw")
_QUESTIONS = 24
_ASKED = 3  # agents that one caller asks
_REPEATED, _STREAMED, _TOOL, _RAW = 0.5, 0.35, 0.15, 0.1
_TOPICS = ("the invoice of March", "late payments", "the travel policy", "a duplicate entry", "the VAT rate", "refunds")


@dataclass(frozen=True, slots=True)
class PlannedCall:
    """One call: when, from whose sidecar, to which agent, with what. `message` is raw bytes in the raw tier."""

    at_s: float
    caller: int
    agent_id: str
    tier: str
    streamed: bool
    repeated: bool
    message: agent_pb2.InvokeRequest | bytes


def made_up(
    agents: Sequence[str], rate_per_s: float, seconds: float, seed: int, calls: int = 0
) -> Iterator[PlannedCall]:
    """Poisson arrivals at `rate_per_s` over all callers; one caller per agent asks the agents it works with: the next
    few after its own."""
    rng = random.Random(seed)
    weights = [1 / (rank + 1) for rank in range(_QUESTIONS)]
    at_s, number = 0.0, 0
    while True:
        at_s += rng.expovariate(rate_per_s)
        if at_s >= seconds or (calls and number >= calls):
            return
        number += 1
        caller = rng.randrange(len(agents))
        asked = [agents[(caller + after) % len(agents)] for after in range(1, min(_ASKED, len(agents) - 1) + 1)]
        agent_id = rng.choice(asked or agents)
        repeated = rng.random() < _REPEATED
        question = rng.choices(range(_QUESTIONS), weights)[0] if repeated else _QUESTIONS + number
        dice = rng.random()
        tier = "raw" if dice < _RAW else "tool" if dice < _RAW + _TOOL else "llm"
        streamed = tier == "llm" and rng.random() < _STREAMED
        yield PlannedCall(at_s, caller, agent_id, tier, streamed, repeated, _message(agent_id, tier, question))


def _message(agent_id: str, tier: str, question: int) -> agent_pb2.InvokeRequest | bytes:
    text = f"Question {question} to {agent_id}: what do we know about {_TOPICS[question % len(_TOPICS)]}?"
    if tier == "raw":
        return text.encode() * 4
    request = _request(agent_id, text)
    if tier == "tool":
        tool = request.tools.add(name="ledger_lookup", description="Reads one row of the ledger.")
        tool.side_effects = agent_pb2.SIDE_EFFECTS_READ_ONLY
        tool.input_schema_json = '{"type":"object","properties":{"row":{"type":"integer"}}}'
    return request


def _request(agent_id: str, text: str) -> agent_pb2.InvokeRequest:
    request = agent_pb2.InvokeRequest(agent_id=agent_id)
    system = request.messages.add(role=agent_pb2.ROLE_SYSTEM, cache_boundary=True)
    system.parts.add(text=f"You are the {agent_id} agent. Answer from the ledger, briefly and with the row's number.")
    request.messages.add(role=agent_pb2.ROLE_USER).parts.add(text=text)
    request.generation.temperature = 0.0
    return request


def traced(arrivals: Iterable[Arrival], agents: Sequence[str], seed: int) -> Iterator[PlannedCall]:
    """One streamed call per arrival; its first own block names the agent, so that a shared prefix meets one agent."""
    rng = random.Random(seed)
    for number, arrival in enumerate(arrivals):
        first = arrival.blocks[1] if len(arrival.blocks) > 1 else number
        agent_id = agents[first % len(agents)]
        request = _request(agent_id, f"Call {number} of the trace.")
        shared = arrival.blocks[:-1]  # the last block of a call is its own, and seldom full
        for block in shared:
            context = request.context.add(block_id=f"block-{block}", kind=agent_pb2.CONTEXT_KIND_DOCUMENT)
            context.parts.add(text=filler(f"block {block}", BLOCK_TOKENS))
        rest = max(1, arrival.input_tokens - len(shared) * BLOCK_TOKENS)
        request.messages.add(role=agent_pb2.ROLE_USER).parts.add(text=filler(f"call {number}", rest))
        request.generation.max_output_tokens = max(1, arrival.output_tokens)
        yield PlannedCall(arrival.at_s, rng.randrange(len(agents)), agent_id, "llm", True, False, request)


def filler(name: str, tokens: int) -> str:
    """Text of `tokens` tokens that is the same for the same name and differs early for another."""
    piece = f"{name} holds "
    size = tokens * CHARACTERS_PER_TOKEN
    return (piece * (size // len(piece) + 1))[:size]
