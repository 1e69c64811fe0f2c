"""Sessions that call an agent, keep what they are told of variants, and say how content they are.

Always holds: a session's calls go one after the other, through one sidecar; what an answer was worth is drawn from the
version that really gave it, so that the true difference is known; seeded.

Deliberately not here: what is tried on them (`bench.ab.__main__`).
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from outrider.client import AsyncOutrider
from outrider.reply import OutriderError, Reply
from outrider.v1 import agent_pb2

CALLS = 2  # of a session
_TIMEOUT_S = 20.0


@dataclass(slots=True)
class Seen:
    """What all sessions came to."""

    sessions: int = 0
    calls: int = 0
    failed: int = 0
    told: int = 0  # pieces of feedback that were taken
    flipped: int = 0  # sessions whose variant changed although it was not taken back
    by_version: Counter[str] = field(default_factory=Counter)  # calls that were answered, by who answered


class Sessions:
    """`start`, then `close`: sessions come one after the other in `width` lanes."""

    def __init__(self, agent_id: str, ports: Sequence[int], quality: Mapping[str, float], seed: int, width: int = 24):
        self._clients = [AsyncOutrider(f"127.0.0.1:{port}", agent_id=agent_id, timeout_s=_TIMEOUT_S) for port in ports]
        self._quality = quality  # chance that an answer is right, by version
        self._rng = random.Random(seed)
        self.width = width
        self._number = 0
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []
        self.seen = Seen()

    def start(self) -> None:
        """Begin."""
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._lane()) for _ in range(self.width)]

    async def close(self) -> None:
        """No further session; those under way end."""
        self._stopping = True
        await asyncio.gather(*self._tasks)
        for client in self._clients:
            await client.close()

    async def _lane(self) -> None:
        while not self._stopping:
            self._number += 1
            await self._session(f"session-{self._number}")

    async def _session(self, session: str) -> None:
        self.seen.sessions += 1
        variants: set[str] = set()
        last: Reply | None = None
        client = self._rng.choice(self._clients)
        for turn in range(CALLS):
            request = agent_pb2.InvokeRequest(session_id=session)
            request.messages.add(role=agent_pb2.ROLE_USER).parts.add(text=f"{session}, turn {turn}: what is due?")
            request.generation.max_output_tokens = 4
            self.seen.calls += 1
            try:
                last = await client.invoke(request)
            except OutriderError:
                self.seen.failed += 1
                continue
            self.seen.by_version[_version(last)] += 1
            if last.info.variant:
                variants.add(last.info.variant)
        self.seen.flipped += len(variants) > 1
        if last is not None:
            await self._tell(client, last)

    async def _tell(self, client: AsyncOutrider, reply: Reply) -> None:
        right = self._rng.random() < self._quality[_version(reply)]
        try:
            told = await client.collect_feedback(
                reply, rating=5.0 if right else 1.0, scores={"accuracy": float(right)}, author="bench"
            )
        except OutriderError:
            return
        self.seen.told += told.outcome in ("taken", "unknown_call", "queued")


def _version(reply: Reply) -> str:
    """Of the instance that answered: "v1" of "tax-v1"."""
    return reply.message.attributes["instance"].rpartition("-")[2]
