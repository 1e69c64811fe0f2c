"""Runs a module and samples where its CPU time goes, by SIGPROF: about 1 % of overhead, shares that can be trusted.

`python -m bench.sampling OUT -m MODULE [ARGUMENTS]`; SIGUSR2 writes the samples so far to OUT as JSON and starts
afresh. Always holds: only CPU time is sampled, so waiting is not in it; time inside C code belongs to the line that
called it. A sample is taken between two bytecodes: a line after a long C call may catch its neighbour's share.
"""

from __future__ import annotations

import json
import runpy
import signal
import sys
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType

INTERVAL_S = 0.001  # asked for; the kernel counts CPU timers in its own ticks, of 4 ms at 250 Hz
_DEPTH = 60


class Samples:
    def __init__(self, out: Path) -> None:
        self.out = out
        self.total = 0
        self.own: Counter[CodeType] = Counter()
        self.whole: Counter[CodeType] = Counter()
        self.lines: Counter[tuple[CodeType, int]] = Counter()

    def take(self, number: int, frame: FrameType | None) -> None:
        if frame is None:
            return
        self.total += 1
        self.own[frame.f_code] += 1
        self.lines[frame.f_code, frame.f_lineno] += 1
        seen: set[CodeType] = set()
        for _ in range(_DEPTH):
            seen.add(frame.f_code)
            if frame.f_back is None:
                break
            frame = frame.f_back
        self.whole.update(seen)

    def write(self, number: int, frame: FrameType | None) -> None:
        document = {
            "total": self.total,
            "functions": [
                {"where": _where(code), "own": self.own[code], "whole": count}
                for code, count in self.whole.most_common(200)
            ],
            "lines": [
                {"where": _where(code), "line": line, "own": count}
                for (code, line), count in self.lines.most_common(200)
            ],
        }
        beside = self.out.with_suffix(".part")
        beside.write_text(json.dumps(document), encoding="utf-8")
        beside.replace(self.out)
        self.total = 0
        for counter in (self.own, self.whole, self.lines):
            counter.clear()


def _where(code: CodeType) -> str:
    return f"{'/'.join(Path(code.co_filename).parts[-2:])}:{code.co_qualname}"


def main() -> None:
    out, flag, module = sys.argv[1:4]
    if flag != "-m":
        raise SystemExit(__doc__)
    samples = Samples(Path(out))
    signal.signal(signal.SIGPROF, samples.take)
    signal.signal(signal.SIGUSR2, samples.write)
    signal.setitimer(signal.ITIMER_PROF, INTERVAL_S, INTERVAL_S)
    sys.argv = [module, *sys.argv[4:]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
