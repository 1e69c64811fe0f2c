"""Runs the suite: `make bench`, or `python -m bench.suite [--quick] [--only SECTION ...] [--rounds N] [--soak]`.

Sections: unary, h2load, streaming, latency, memory, hpack, admission, control, experiment, compression, soak. Ends with
the list of what must be reached, each PASS or MISS with the figure of this run, and writes everything to
bench/out/*.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from bench import machine
from bench.process import BenchError, Children, stop_on_signals
from bench.suite import (
    admission,
    control,
    h2load,
    hpack_ratio,
    latency,
    memory,
    parts,
    required,
    streaming,
    targets,
    unary,
)
from bench.suite.report import Verdict
from bench.suite.required import Results
from bench.suite.targets import Bed
from bench.suite.unary import Effort

SECTIONS: tuple[str, ...] = (
    "unary",
    "h2load",
    "streaming",
    "latency",
    "memory",
    "hpack",
    "admission",
    "control",
    "experiment",
    "compression",
    "soak",
)
OUT = Path(__file__).resolve().parent.parent / "out"
SOAK_CALLS = 500_000
_SPANS_WHOLE = 0.98


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer sizes and rounds, under two minutes")
    parser.add_argument("--only", action="append", choices=SECTIONS, default=[])
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--soak", action="store_true", help="add 500,000 calls with cancels and errors mixed in")
    parser.add_argument("--soak-calls", type=int, default=SOAK_CALLS)
    return parser.parse_args()


def _wanted(options: argparse.Namespace) -> set[str]:
    if options.only:
        return set(options.only) | ({"soak"} if options.soak else set())
    return set(SECTIONS) - (set() if options.soak else {"soak"})


def _unary(bed: Bed, results: Results, effort: Effort, quick: bool) -> None:
    fewer = replace(effort, rounds=min(effort.rounds, 3))
    for size, in_flight in unary.shapes(quick):
        judged = (size, in_flight) == (1024, 32)
        case = unary.case_raw(bed, size, in_flight, effort if judged else fewer)
        results.cases[f"unary-{size}-{in_flight}"] = case
    results.cases["unary-varied"] = unary.case_raw(bed, 1024, 32, effort, varied=True)


def _h2load(bed: Bed, results: Results, effort: Effort, quick: bool) -> None:
    if not h2load.available():
        bed.notes.append("h2load is not installed (Debian package nghttp2-client): its rows are left out")
        return
    for in_flight in (32,) if quick else (32, 1):
        results.cases[f"h2load-1024-{in_flight}"] = unary.case_h2load(bed, 1024, in_flight, effort)


def _streaming(bed: Bed, results: Results, effort: Effort, quick: bool) -> None:
    results.cases["stream-burst"] = streaming.burst(bed, effort)
    results.cases["stream-paced"] = streaming.paced(bed, effort)
    results.cadence = streaming.cadence(bed, effort)


def _latency(bed: Bed, results: Results, effort: Effort, quick: bool) -> None:
    results.added = latency.run(bed, rounds=5 if quick else 20, calls=100 if quick else 400)


def _memory(bed: Bed, results: Results, effort: Effort, quick: bool) -> None:
    results.memory = memory.measure(bed, quick)


def _hpack(bed: Bed, results: Results, effort: Effort, quick: bool) -> None:
    results.hpack = hpack_ratio.run(bed, rounds=5 if quick else 15)


def _spans(bed: Bed, results: Results) -> None:
    """What exporters delivered: a span lost is work not done, so it is told beside the figures."""
    by_sink: dict[int, tuple[str, int]] = {}
    for target in bed.targets.values():
        if target.sink_port is not None:
            name, calls = by_sink.get(target.sink_port, (target.name, 0))
            by_sink[target.sink_port] = (name, calls + target.calls)
    for port, (name, calls) in by_sink.items():
        results.spans[name] = (targets.sink_spans(port), calls)
        if calls:
            share = results.spans[name][0] / calls
            print(f"spans delivered by {name}: {results.spans[name][0]} for {calls} measured calls ({share:.0%})")
            if share < _SPANS_WHOLE:
                bed.notes.append(
                    f"{name} delivered spans for {share:.0%} of its calls: its CPU lacks the others' share"
                )


def _write(results: Results, judged: list[Verdict], notes: list[str], options: argparse.Namespace) -> Path:
    OUT.mkdir(exist_ok=True)
    path = OUT / time.strftime("suite-%Y%m%d-%H%M%S.json", time.gmtime())
    document = {
        "machine": {"cpu": _cpu_model(), "python": platform.python_version(), "cores": machine.cores()},
        "options": vars(options),
        "notes": notes,
        "cases": {
            key: {"name": case.name, "unit": case.unit, "samples": targets.mapping_of(case.samples)}
            for key, case in results.cases.items()
        },
        "cadence": results.cadence,
        "latency": asdict(results.added) if results.added else None,
        "memory": asdict(results.memory),
        "hpack": results.hpack,
        "spans": results.spans,
        "control": results.control,
        "admission": results.admission,
        "experiment": results.experiment,
        "compression": results.compression,
        "verdicts": [verdict.json() for verdict in judged],
    }
    path.write_text(json.dumps(document, indent=1), encoding="utf-8")
    return path


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def _run(options: argparse.Namespace, children: Children) -> int:
    quick, wanted = options.quick, _wanted(options)
    effort = Effort(options.rounds or (2 if quick else 5), 0.3 if quick else 1.0)
    results = Results()
    notes: list[str] = []
    failures: list[str] = []
    print(f"{_cpu_model()}, load average {machine.load_average():.1f}, {effort.rounds} rounds")
    if wanted - {"control", "admission", "experiment", "compression"}:
        bed = _run_proxies(options, children, effort, results)
        notes, failures = bed.notes, bed.failures
    children.close()  # what follows wants the cores for itself
    if "admission" in wanted:
        results.admission = admission.run(effort.rounds)
    if "control" in wanted:
        results.control = control.run(quick, min(effort.rounds, 3))
    if "experiment" in wanted:
        results.experiment = parts.experiment(quick, effort.rounds)
    if "compression" in wanted:
        results.compression = parts.compression(quick)
    judged = required.verdicts(results, options.soak_calls)
    print("\nwhat must be reached (median of rounds [lowest - highest])")
    for verdict in judged:
        print(verdict.text)
    for note in (*notes, *failures):
        print(f"NOTE: {note}")
    print(f"written to {_write(results, judged, notes + failures, options)}")
    return 1 if failures else 0


def _run_proxies(options: argparse.Namespace, children: Children, effort: Effort, results: Results) -> Bed:
    """The sections that compare proxies, side by side on one bed."""
    quick, wanted = options.quick, _wanted(options)
    print("starting the proxies")
    bed = targets.lay(children)
    unary.verify_all(bed)
    for note in bed.notes:
        print(f"NOTE: {note}", flush=True)
    steps: dict[str, Callable[[Bed, Results, Effort, bool], None]] = {
        "unary": _unary,
        "h2load": _h2load,
        "streaming": _streaming,
        "latency": _latency,
        "memory": _memory,
        "hpack": _hpack,
    }
    for name, step in steps.items():
        if name in wanted:
            step(bed, results, effort, quick)
    if "soak" in wanted and "sidecar" in bed.targets:
        memory.soak(bed, options.soak_calls, results.memory)
    unary.verify_all(bed)
    _spans(bed, results)
    return bed


def main() -> int:
    options = _arguments()
    stop_on_signals()
    try:
        with Children() as children:
            return _run(options, children)
    except BenchError as error:
        print(f"bench: {error}")
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
