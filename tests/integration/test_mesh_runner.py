"""The mesh runner's pure parts: traces, the plan of calls, figures and table."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from itertools import islice, pairwise
from pathlib import Path

import pytest

from bench.agents.behaviour import Behaviour, input_tokens, output_tokens, reply_words
from bench.mesh import plan, report, trace
from bench.mesh.load import Outcome
from bench.process import BenchError
from outrider.v1 import agent_pb2

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,4808,10
2023-11-16 18:17:04.0319600,3180,8
2023-11-16 18:18:03.9799600,110,27
"""
MOONCAKE = """{"timestamp": 5000, "input_length": 1100, "output_length": 50, "hash_ids": [0, 1, 2]}
{"timestamp": 8000, "input_length": 1200, "output_length": 40, "hash_ids": [0, 1, 3]}
"""


def arrivals_of(text: str) -> list[trace.Arrival]:
    return list(trace.parse(text.splitlines(keepends=True), "trace"))


def test_azure_arrivals_count_from_the_first_one() -> None:
    arrivals = arrivals_of(AZURE)
    assert [arrival.at_s for arrival in arrivals] == pytest.approx([0.0, 0.052, 60.0], abs=1e-4)
    assert [(arrival.input_tokens, arrival.output_tokens) for arrival in arrivals] == [(4808, 10), (3180, 8), (110, 27)]


def test_mooncake_arrivals_keep_their_prefix_blocks() -> None:
    arrivals = arrivals_of(MOONCAKE)
    assert arrivals == [trace.Arrival(0.0, 1100, 50, (0, 1, 2)), trace.Arrival(3.0, 1200, 40, (0, 1, 3))]


@pytest.mark.parametrize("suffix", ["csv", "csv.gz"])
def test_read_stops_at_seconds_calls_and_takes_gzip(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"trace.{suffix}"
    path.write_bytes(gzip.compress(AZURE.encode()) if suffix.endswith("gz") else AZURE.encode())
    assert [a.at_s for a in trace.read(path, 10, 100, 0)] == pytest.approx([0, 0.0052, 6.0], abs=1e-4)
    assert len(list(trace.read(path, 1, 60, 0))) == 2, "an arrival at the bound is past it"
    assert len(list(trace.read(path, 1, 100, 1))) == 1


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "empty"),
        ("a,b,c\n1,2,3\n", "trace:1: neither Azure CSV"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,1,2\n", "trace:2: ValueError"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9799600,-4,2\n", "trace:2: ValueError"),
        ('{"timestamp": 1}\n', "trace:1: KeyError"),
        (MOONCAKE + "{broken\n", "trace:3: JSONDecodeError"),
    ],
)
def test_a_bad_line_is_named(text: str, told: str) -> None:
    with pytest.raises(BenchError) as error:
        arrivals_of(text)
    assert told in str(error.value)


def test_a_file_that_is_no_gzip_or_not_there_is_told(tmp_path: Path) -> None:
    broken = tmp_path / "trace.csv.gz"
    broken.write_bytes(gzip.compress(MOONCAKE.encode() * 100)[:-20])
    for path in (broken, tmp_path / "missing.csv"):
        with pytest.raises(BenchError, match="cannot be read as a trace"):
            list(trace.read(path, 1, 1e9, 0))


def test_the_recorded_traces_are_understood(data_dir: Path) -> None:
    for name in ("azure-llm-2023-conv.csv.gz", "mooncake-conversation.jsonl.gz"):
        arrivals = list(trace.read(data_dir / name, 1.0, 1e9, 500))
        assert len(arrivals) == 500
        assert all(a.at_s <= b.at_s for a, b in pairwise(arrivals))
        assert bool(arrivals[0].blocks) == ("mooncake" in name)


def test_a_traced_call_asks_for_the_traced_tokens_and_shares_its_prefix() -> None:
    calls = list(plan.traced(arrivals_of(MOONCAKE), ["tax", "audit"], seed=3))
    requests = [call.message for call in calls]
    assert all(isinstance(request, agent_pb2.InvokeRequest) for request in requests)
    first, second = requests
    assert isinstance(first, agent_pb2.InvokeRequest)
    assert isinstance(second, agent_pb2.InvokeRequest)
    assert first.context == second.context
    assert len(first.context) == 2
    assert first.messages[-1] != second.messages[-1]
    assert input_tokens(first) == pytest.approx(1100, rel=0.05)
    assert output_tokens(first, Behaviour()) == 50
    assert calls[0].agent_id == calls[1].agent_id, "a shared prefix meets one agent"


def test_the_made_up_plan_is_seeded_and_mixed() -> None:
    agents = ["tax", "revenue", "audit"]
    calls = list(plan.made_up(agents, 100.0, 20.0, seed=5))
    assert calls == list(plan.made_up(agents, 100.0, 20.0, seed=5))
    assert calls != list(plan.made_up(agents, 100.0, 20.0, seed=6))
    assert 1700 < len(calls) < 2300
    assert all(a.at_s <= b.at_s < 20 for a, b in pairwise(calls))
    assert all(call.agent_id != agents[call.caller] for call in calls), "a caller asks the others"
    assert set(Counter(call.tier for call in calls)) == set(plan.TIERS)
    assert 0.4 < sum(call.repeated for call in calls) / len(calls) < 0.6
    unique = [str(call.message) for call in calls if not call.repeated]
    assert len(set(unique)) == len(unique)


def test_the_plan_stops_at_the_number_of_calls() -> None:
    assert len(list(plan.made_up(["tax"], 100.0, 1e9, seed=1, calls=7))) == 7


def test_a_reply_depends_on_the_last_message_only() -> None:
    one, two = (call.message for call in islice(plan.traced(arrivals_of(AZURE), ["tax"], seed=1), 2))
    assert isinstance(one, agent_pb2.InvokeRequest)
    assert isinstance(two, agent_pb2.InvokeRequest)
    assert list(reply_words(one, 20)) == list(reply_words(one, 20)) != list(reply_words(two, 20))


@pytest.mark.parametrize("knob", [{"concurrency": 0}, {"failure_rate": 1.5}, {"sigma": -1.0}, {"speed": 0.0}])
def test_a_behaviour_out_of_range_is_refused(knob: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(knob))):
        Behaviour(**knob)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("values", "share", "wanted"),
    [([], 0.5, None), ([3.0], 0.99, 3.0), ([4.0, 1.0, 3.0, 2.0], 0.5, 2.0), (list(range(1, 101)), 0.95, 95)],
)
def test_percentiles_are_nearest_rank(values: list[float], share: float, wanted: float | None) -> None:
    assert report.percentile(values, share) == wanted


def outcome(cache: str, ok: bool = True, tier: str = "llm", endpoint: str = "a:1", streamed: bool = False) -> Outcome:
    reason = "" if ok else "UNAVAILABLE: gone"
    return Outcome("tax", tier, streamed, ok, reason, 10.0, 4.0, cache, endpoint, 100, 7)


def test_hit_rate_leaves_bypassed_calls_out() -> None:
    outcomes = [outcome(verdict) for verdict in ("hit", "stale", "coalesced", "miss", "bypass", "")]
    assert report.hit_rate(outcomes) == 0.75
    assert report.hit_rate([outcome("bypass")]) is None


def test_the_summary_counts_failures_apart_and_names_endpoints() -> None:
    outcomes = [
        outcome("hit", endpoint=""),
        outcome("miss", streamed=True),
        outcome("miss", ok=False),
        outcome("miss", tier="tool"),
    ]
    figures = report.summary(outcomes, {"a:1": "tax-1", "b:1": "tax-2"}, elapsed_s=2.0)
    assert figures["all"]["calls"] == 4
    assert figures["all"]["ok"] == 3
    assert figures["all"]["output_tokens"] == 21, "a failed call's tokens are not counted"
    assert figures["hit_rates"] == {"llm": pytest.approx(1 / 3), "tool": 0.0, "raw": None}
    assert figures["endpoints"] == {"tax-1": 3, "tax-2": 0}
    assert figures["failures"] == {"UNAVAILABLE: gone": 1}
    assert figures["kinds"]["streaming"]["first_chunk_p50_ms"] == 4.0
    assert figures["kinds"]["unary"]["first_chunk_p50_ms"] is None
    json.dumps(figures)


def test_the_table_shows_every_group_and_failure() -> None:
    figures = report.summary([outcome("hit"), outcome("miss", ok=False)], {}, elapsed_s=0.5)
    text = report.table(figures)
    assert "FAILED 1 x UNAVAILABLE: gone" in text
    assert "llm 50, tool -, raw -" in text
    assert "4 calls/s over 0.5 s" in text
    assert [line.split()[0] for line in text.splitlines()[1:4]] == ["tax", "unary", "all"]
    assert text.splitlines()[1].split()[1:3] == ["2", "50.00"]
