"""How a simulated agent behaves: timing, failures, token counts and reply text, all pure.

Always holds: the same seed gives the same draws; the text of a reply depends on the request alone, so that a cached
reply can be compared with a fresh one. A token is taken as four characters, one short word. Deliberately not here:
the server (`bench.agents.server`).
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields

from outrider.v1 import agent_pb2

CHARACTERS_PER_TOKEN = 4
_WORDS = ("the", "sum", "of", "all", "items", "was", "found", "in", "row", "and", "it", "may", "be", "due", "by", "law")


@dataclass(frozen=True, slots=True)
class Behaviour:
    """The knobs of one agent process. Every time is divided by `speed`."""

    first_token_ms: float = 40.0  # median of a lognormal: queueing and prefill
    sigma: float = 0.4  # of that lognormal; 0: always the median
    tokens_per_s: float = 400.0
    reply_tokens: int = 40  # where the request does not say `max_output_tokens`
    chunk_tokens: int = 4  # per chunk of a stream
    failure_rate: float = 0.0  # share of calls answered UNAVAILABLE before the first token
    concurrency: int = 32  # calls worked on at once; the others wait their turn
    refuses: int = 0  # 1: calls over `concurrency` are refused instead
    speed: float = 1.0

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name) >= 0:
                raise ValueError(f"{field.name} must not be negative")
        if not (self.tokens_per_s > 0 and self.speed > 0 and self.concurrency >= 1 and self.chunk_tokens >= 1):
            raise ValueError("tokens_per_s, speed, concurrency and chunk_tokens must be above 0")
        if self.failure_rate > 1:
            raise ValueError("failure_rate is a share: at most 1")

    def first_token_s(self, rng: random.Random) -> float:
        """Seconds until the first token: lognormal with the configured median."""
        median_s = self.first_token_ms / 1000 / self.speed
        return median_s * math.exp(rng.gauss(0.0, self.sigma)) if self.sigma else median_s

    def tokens_s(self, tokens: int) -> float:
        """Seconds that `tokens` tokens take once the first is there."""
        return tokens / self.tokens_per_s / self.speed

    def fails(self, rng: random.Random) -> bool:
        return self.failure_rate > 0 and rng.random() < self.failure_rate


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One option per knob, named as it is."""
    for field in fields(Behaviour):
        kind = int if isinstance(field.default, int) else float
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=field.default)


def from_arguments(options: argparse.Namespace) -> Behaviour:
    return Behaviour(**{field.name: getattr(options, field.name) for field in fields(Behaviour)})


def _text_of(parts: Iterable[agent_pb2.Part]) -> Iterator[str]:
    for part in parts:
        if part.text:
            yield part.text
        elif part.json:
            yield part.json
        elif part.HasField("tool_result"):
            yield from _text_of(part.tool_result.parts)


def input_tokens(request: agent_pb2.InvokeRequest) -> int:
    """Tokens the agent reads: messages and context blocks."""
    characters = 0
    for message in (*request.messages, *request.context):
        characters += sum(map(len, _text_of(message.parts)))
    return max(1, characters // CHARACTERS_PER_TOKEN)


def output_tokens(request: agent_pb2.InvokeRequest, behaviour: Behaviour) -> int:
    asked = request.generation.max_output_tokens
    return asked if request.generation.HasField("max_output_tokens") and asked else behaviour.reply_tokens


def reply_words(request: agent_pb2.InvokeRequest, tokens: int) -> Iterator[str]:
    """The words of the answer: a function of the last message only."""
    last = "".join(_text_of(request.messages[-1].parts)) if request.messages else ""
    rng = random.Random(last)
    for _ in range(tokens):
        yield rng.choice(_WORDS)


def usage(request: agent_pb2.InvokeRequest, tokens: int) -> agent_pb2.Usage:
    return agent_pb2.Usage(input_tokens=input_tokens(request), output_tokens=tokens)
