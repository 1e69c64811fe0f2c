"""What compression costs: CPU beside reading and writing the same JSON, memoised blocks, and how long others wait.

Always holds: rounds of the two that are compared alternate, and the median of the rounds' ratios counts; the wait is
told by a real sidecar of its own longest step on the loop, over requests that a real agent answers.
"""

from __future__ import annotations

import json
import random
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any
from urllib.request import urlopen

import grpc

from bench.compression import corpora
from bench.process import Children, wait_ready
from outrider.policy import Compression
from outrider.v1 import agent_pb2, agent_pb2_grpc
from outrider_sidecar.compress import catalog, openai_messages, tokens
from outrider_sidecar.compress.billing import rules_of
from outrider_sidecar.compress.block import Block, Budget, Context
from outrider_sidecar.compress.controller import Controller
from outrider_sidecar.compress.conversation import Planner
from outrider_sidecar.compress.ledger import Ledger, Memo
from outrider_sidecar.compress.tokens import Count

_METRIC = re.compile(r"^outrider_compression_longest_seconds\{[^}]*\} (\S+)$", re.MULTILINE)


def beside_json(texts: Sequence[str], rounds: int) -> dict[str, float]:
    """CPU of lossless compression, of json.loads and json.dumps of the same blocks, nanoseconds a byte; their ratio."""

    def compress() -> None:
        for text in texts:
            catalog.lossless(Block(text), Context(Budget(10**9)))

    def read_and_write() -> None:
        for text in texts:
            json.dumps(json.loads(text))

    size = sum([len(text) for text in texts])
    ours, plain = [], []
    for _ in range(rounds):
        ours.append(_cpu_s(compress) / size * 1e9)
        plain.append(_cpu_s(read_and_write) / size * 1e9)
    ratios = [one / other for one, other in zip(ours, plain, strict=True)]
    return {
        "compress_ns_per_byte": statistics.median(ours),
        "json_ns_per_byte": statistics.median(plain),
        "ratio": statistics.median(ratios),
        "bytes": size,
    }


def memoised(messages: Sequence[dict[str, Any]], rounds: int) -> dict[str, float]:
    """Planning a conversation whose blocks are known (its next call), beside its first: microseconds."""
    policy = Compression(provider="none")
    parts = openai_messages.parts_of(messages, ())
    first, again = [], []
    for _ in range(rounds):
        planner = Planner(policy, Controller(rules_of(policy)), Ledger(), Memo())
        first.append(_cpu_s(lambda planner=planner: planner.plan(parts, 0.0)) * 1e6)
        again.append(min([_cpu_s(lambda planner=planner: planner.plan(parts, 0.0)) * 1e6 for _ in range(5)]))
    return {"blocks": len(parts), "first_us": statistics.median(first), "again_us": statistics.median(again)}


def estimate_error(texts: Sequence[str], count: Count) -> dict[str, float]:
    """Of the estimate against exact counts, texts of 40 bytes and more: mean and 95th percentile of the error of one,
    and of all together."""
    counted = [(tokens.estimate(text), count(text)) for text in texts if len(text) >= 40]
    errors = sorted([abs(told - true) / true for told, true in counted])
    told, true = (sum([one[at] for one in counted]) for at in (0, 1))
    return {"mean": statistics.fmean(errors), "p95": errors[int(0.95 * len(errors))], "together": told / true - 1}


def wait_ms(seed: int, rounds: int, sidecars: int = 3) -> dict[str, list[float]]:
    """By mode, the longest that compression held up each of some sidecars at a time, milliseconds of processor time:
    requests with blocks that nobody has seen, of 1 KB to 900 KB, one by one."""
    return {
        mode: [_longest_ms(mode, random.Random(seed + at), rounds) for at in range(sidecars)]
        for mode in ("lossless", "lossy")
    }


def _longest_ms(mode: str, rng: random.Random, rounds: int) -> float:
    with Children() as children:
        _, agent = children.start_module("agent", "bench.agents", "--name", "echo-1", "--first-token-ms", "0")
        target, admin = _sidecar(children, agent["port"], mode)
        with grpc.insecure_channel(target) as channel:
            stub = agent_pb2_grpc.AgentStub(channel)
            for at in range(rounds):
                for size in (1_000, 4_000, 16_000, 64_000, 250_000, 900_000):
                    stub.Invoke(_request(rng, size, at), metadata=(("x-agent-id", "echo"),), timeout=30)
        with urlopen(f"http://127.0.0.1:{admin}/metrics", timeout=5) as reply:
            return max([float(told) * 1e3 for told in _METRIC.findall(reply.read().decode())])


def _sidecar(children: Children, agent_port: int, mode: str) -> tuple[str, int]:
    ports_file = children.directory / "sidecar.ports.json"
    file = children.directory / "sidecar.yaml"
    agent = {
        "agent_id": "echo",
        "endpoints": [f"127.0.0.1:{agent_port}"],
        "optimization": {"compression": True},
        "compression": {"mode": mode, "provider": "none"},
    }
    listen = {"listen": "127.0.0.1:0", "admin": "127.0.0.1:0", "ports_file": str(ports_file)}
    file.write_text(json.dumps({**listen, "default_agent": "echo", "agents": [agent]}), encoding="utf-8")
    child = children.start("sidecar", [sys.executable, "-m", "outrider_sidecar", "--config", str(file)])
    ports = children.ports(child, ports_file)
    wait_ready(child, f"http://127.0.0.1:{ports['admin']}/readyz")
    return f"127.0.0.1:{ports['egress']}", ports["admin"]


def _request(rng: random.Random, size: int, at: int) -> agent_pb2.InvokeRequest:
    """A question, a tool's answer of about this size in one of three kinds, and context."""
    kind = at % 3
    if kind == 0:
        text = corpora.records(rng.randrange(10**9), max(2, size // 160))[0]
    elif kind == 1:
        text = corpora.service_logs(rng.randrange(10**9), max(3, size // 75))[0]
    else:
        words = ["the", "claims", "of", "taxpayers", "follow", "from", "revenue", "that", "audits", "have", "found"]
        text = " ".join([rng.choice(words) + (".\n\n" if place % 50 == 49 else "") for place in range(size // 6)])
    request = agent_pb2.InvokeRequest(agent_id="echo", session_id=f"s{rng.randrange(10**9)}")
    request.messages.add(role=agent_pb2.ROLE_USER, parts=[agent_pb2.Part(text="what has the audit found?")])
    call = agent_pb2.ToolCall(call_id="1", name="search", arguments_json="{}")
    request.messages.add(role=agent_pb2.ROLE_ASSISTANT, parts=[agent_pb2.Part(tool_call=call)])
    result = agent_pb2.ToolResult(call_id="1", name="search", parts=[agent_pb2.Part(text=text)])
    request.messages.add(role=agent_pb2.ROLE_TOOL, parts=[agent_pb2.Part(tool_result=result)])
    return request


def _cpu_s(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started
