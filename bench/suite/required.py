"""What a run measured, and what must be reached: the one list of requirements.

Always holds: a requirement that was not measured is told as such. Limits are those the project sets itself; raise them
here when a run of the suite shows that they hold.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from bench.suite import admission, control, hpack_ratio, memory, parts, streaming
from bench.suite.latency import Added
from bench.suite.memory import Memory
from bench.suite.report import Case, Verdict


@dataclass(slots=True)
class Results:
    cases: dict[str, Case] = field(default_factory=dict)
    cadence: dict[str, dict[str, float]] = field(default_factory=dict)
    added: Added | None = None
    memory: Memory = field(default_factory=Memory)
    hpack: dict[str, dict[str, float]] = field(default_factory=dict)
    spans: dict[str, tuple[int, int]] = field(default_factory=dict)  # by target: delivered, calls
    control: control.Figures = field(default_factory=dict)
    admission: admission.Figures = field(default_factory=dict)
    experiment: parts.Figures = field(default_factory=dict)
    compression: parts.Figures = field(default_factory=dict)

    def ratio(self, case: str, target: str, base: str, figure: str = "cpu_us") -> list[float]:
        """Of two targets, per round; empty where one was not measured."""
        return self.cases[case].ratios(target, base, figure) if case in self.cases else []

    def cpu_us(self, case: str, target: str) -> float:
        """CPU of one call, the median of its rounds; 0 where it was not measured."""
        return self.cases[case].median(target, "cpu_us") if self.ratio(case, target, target) else 0.0

    def added_ratio(self, p90: bool) -> list[float]:
        """(low, median, high) of what the sidecar adds to a call over what bare Envoy adds."""
        return self.added.ratio("sidecar", "envoy bare", p90) if self.added else []

    def lateness_ms(self) -> list[float]:
        """How much later than direct the latest message of a paced stream comes through the sidecar."""
        if not {"sidecar", "direct"} <= self.cadence.keys():
            return []
        return [self.cadence["sidecar"]["p50_ms"] - self.cadence["direct"]["p50_ms"]]


def verdicts(results: Results, soak_calls: int) -> list[Verdict]:
    """Every requirement with what this run measured."""
    held, ratio = results.memory, results.ratio
    one, varied, bare = "unary-1024-32", "unary-varied", "envoy bare"
    rss = [ours / theirs for ours, theirs in zip(held.sidecar_mb, held.envoy_mb, strict=False)]
    hpack = [results.hpack[hpack_ratio.GO_STYLE]["ratio"]] if results.hpack else []
    firsts = ratio("stream-paced", "sidecar", bare, "first_p50_us")
    growth = f"growth over {soak_calls} calls with cancels and errors (--soak)"
    return [
        Verdict("CPU per unary call, 1 KB, 32 in flight, of Envoy bare", 0.6, ratio(one, "sidecar", bare)),
        Verdict("the same, of Envoy with tracing, stats, outliers", 0.5, ratio(one, "sidecar", "envoy full")),
        Verdict("the same with unique traceparent, of Envoy bare", 0.6, ratio(varied, "sidecar", bare)),
        Verdict("CPU per cache hit, of Envoy bare", 0.3, ratio(one, "sidecar hit", bare)),
        Verdict("added latency p50, of Envoy bare", 0.6, results.added_ratio(p90=False)),
        Verdict("added latency p90, of Envoy bare", 0.6, results.added_ratio(p90=True)),
        Verdict("CPU per 64 B message, burst, of Envoy bare", 1.0, ratio("stream-burst", "sidecar", bare)),
        Verdict("CPU per 64 B message, paced, of Envoy bare", 1.0, ratio("stream-paced", "sidecar", bare)),
        Verdict("first message p50, paced, of Envoy bare", 1.0, firsts),
        Verdict("latest message of a paced stream, beyond direct", streaming.HELD_MS, results.lateness_ms(), "ms"),
        Verdict("RSS after load with an 8 MB cache", 45.0, held.sidecar_mb, "MB"),
        Verdict("RSS after load, of Envoy bare", 1.0, rss),
        Verdict("RSS a filled cache adds, of its configured bytes", 1.3, held.cache_factor),
        Verdict("ready", 0.6, held.ready_s, "s"),
        Verdict(growth, memory.GROWTH_MB, held.growth_mb, "MB"),
        Verdict("HPACK decode, Go-style, unique traceparent, of hpack", 0.25, hpack),
        *control.verdicts(results.control),
        *admission.verdicts(results.admission),
        *parts.verdicts(results.experiment, results.cpu_us(one, "sidecar")),
    ]
