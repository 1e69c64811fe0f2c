"""The control plane's figures: push, intake, questions, and an outage. Each by its own bench in processes of its own.

Always holds: nothing is judged that was not measured; a bench that fails is an error and not a figure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from bench.suite.part import run_bench
from bench.suite.report import Verdict

_SPAN_US = 50.0  # 20,000 spans/s on one core

Figures = dict[str, Any]


def run(quick: bool, rounds: int) -> Figures:
    """Everything, by name; lists hold one value per round."""
    figures: Figures = {"push": {}, "intake": [], "questions": {}, "outage": [], "abort": []}
    print("\ncontrol plane: policy pushed to watchers, through the guard", flush=True)
    for _ in range(rounds):
        for one in _lines(
            run_bench("bench.watch", "--guard", "--json", f"--changes={15 if quick else 40}", codes=(0, 1))
        ):
            figures["push"].setdefault(str(one["watchers"]), []).append(one)
            print(f"  {one['watchers']} watchers: p50 {one['p50_ms']:.1f} ms, p99 {one['p99_ms']:.1f} ms", flush=True)
    print("\ncontrol plane: spans taken in, one core", flush=True)
    for _ in range(rounds):
        one = json.loads(run_bench("bench.intake", "--json", f"--spans={600_000 if quick else 1_500_000}"))
        figures["intake"].append(one)
        print(
            f"  read {one['read_and_sample_us']:.1f} us a span, to the store {one['stored_cpu_us_per_span']:.1f},"
            f" by gRPC {one['received_cpu_us_per_span']:.1f}; RSS grew by {one['received_rss_growth_mb']:.1f} MB",
            flush=True,
        )
    print("\ncontrol plane: questions over stored figures", flush=True)
    figures["questions"] = json.loads(run_bench("bench.intake_query", "--json", f"--rounds={5 if quick else 15}"))
    for name, one in figures["questions"].items():
        print(f"  {name:48} {one['median']:8.1f} ms  worst {one['worst']:.1f}", flush=True)
    print("\ncontrol plane: a rollout aborted, to the last of 51 sidecars", flush=True)
    for _ in range(rounds):
        told = run_bench("bench.rollout_abort", "--json", f"--rounds={5 if quick else 15}", codes=(0, 1))
        figures["abort"].append(one := json.loads(told))
        hand, auto = one["by_hand"]["last_max_ms"], one["by_itself"]["last_max_ms"]
        print(f"  worst from an operator's call {hand:.1f} ms, from the loop's decision {auto:.1f} ms", flush=True)
    print("\ncontrol plane: killed under load and started again", flush=True)
    for _ in range(rounds):
        figures["outage"].append(one := _outage())
        print(f"  {one['calls']} calls, {one['failed']} failed, counted {one['counted']}, back {one['back_s']:.2f} s")
    return figures


def _outage() -> dict[str, float]:
    told = json.loads(run_bench("bench.mesh", "--json", "--outage", "--agents=8", "--seconds=12", codes=(0, 1)))
    calls = told["all"]["calls"]
    return {
        "calls": calls,
        "failed": calls - told["all"]["ok"],
        "counted": sum(agent["requests"] for agent in told["overview"]["agents"]),
        "back_s": told["back_s"],
    }


def verdicts(figures: Mapping[str, Any]) -> list[Verdict]:
    """What must be reached, with what was measured."""
    push, intake, outage = figures.get("push", {}), figures.get("intake", []), figures.get("outage", [])
    aborts = [max(one[name]["last_max_ms"] for name in ("by_hand", "by_itself")) for one in figures.get("abort", [])]
    day = figures.get("questions", {}).get("24 h of one agent")
    return [
        Verdict(
            "policy change to applied, 51 sidecars, p99", 100.0, [one["p99_ms"] for one in push.get("51", [])], "ms"
        ),
        Verdict("the same, 1,000 watchers, p99", 1_000.0, [one["p99_ms"] for one in push.get("1000", [])], "ms"),
        Verdict("a rollout's abort to the last of 51 sidecars, worst", 1_000.0, aborts, "ms"),
        Verdict("CPU per span taken in by gRPC", _SPAN_US, [one["received_cpu_us_per_span"] for one in intake], "us"),
        Verdict("spans lost on the way in", 0.0, [one["received_missing"] for one in intake], ""),
        Verdict("memory growth over the second half", 5.0, [one["received_rss_growth_mb"] for one in intake], "MB"),
        Verdict("24 h of one agent", 50.0, [day["median"]] if day else [], "ms"),
        Verdict("calls failed by an outage", 0.0, [one["failed"] for one in outage], ""),
        Verdict("calls counted twice or not at all", 0.0, [abs(one["calls"] - one["counted"]) for one in outage], ""),
        Verdict("sidecars back on their watch", 5.0, [one["back_s"] for one in outage], "s"),
    ]


def _lines(text: str) -> list[dict[str, float]]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]
