"""What the operating system says about a process: CPU time, memory, cores.

Always holds: CPU time is of the whole process (every thread), user and kernel, in seconds with nanosecond steps.
Linux only. Deliberately not here: starting and stopping processes (`bench.process`).
"""

from __future__ import annotations

import os
import time
from pathlib import Path


def cpu_s(pid: int) -> float:
    """CPU seconds spent so far by `pid`, after clock_getcpuclockid(3): the clock id of a process is (~pid << 3) | 2."""
    return time.clock_gettime_ns((~pid << 3) | 2) / 1e9


def rss_bytes(pid: int) -> int:
    """Resident memory of `pid`; 0 once it is gone."""
    return _status_bytes(pid, "VmRSS:")


def peak_rss_bytes(pid: int) -> int:
    """The most resident memory `pid` ever had; 0 once it is gone."""
    return _status_bytes(pid, "VmHWM:")


def _status_bytes(pid: int, field: str) -> int:
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:
        return 0
    for line in text.splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    return 0


def cores() -> tuple[int, int]:
    """(core of the proxy, core of load and backend). The same one twice where only one may be used."""
    usable = sorted(os.sched_getaffinity(0))
    return usable[0], usable[1 % len(usable)]


def load_average() -> float:
    return os.getloadavg()[0]
