"""Child processes of the bench: started in a session of their own, stopped by pid, never left behind.

Always holds: every child started through a `Children` is gone when it closes, also on an exception or Ctrl-C; first
SIGTERM, after a grace SIGKILL, each to the child's own process group. A child that ends by itself while it is waited
for is an error that shows the end of its log.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.error import URLError
from urllib.request import urlopen

ROOT = Path(__file__).resolve().parent.parent
SOURCE_ROOTS = ("protos", "sidecar", "control", ".")


class BenchError(Exception):
    """Something the person at the terminal can act on: says what, where and what to do."""


@dataclass(slots=True)
class Child:
    name: str
    process: subprocess.Popen[bytes]
    log: Path
    started_at: float

    @property
    def pid(self) -> int:
        return self.process.pid

    def log_tail(self, lines: int = 15) -> str:
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    def check(self) -> None:
        """Raise BenchError if the process has ended."""
        code = self.process.poll()
        if code is not None:
            raise BenchError(f"{self.name} ended by itself with code {code}; the end of its log:\n{self.log_tail()}")

    def signal_group(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)


def python_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This environment with the source roots importable, whether or not the project is installed.

    What PYTHONPATH names comes first: that is how children run on the compiled modules (`make native`).
    """
    environment = dict(os.environ)
    paths = [str(ROOT / root) for root in SOURCE_ROOTS]
    if environment.get("PYTHONPATH"):
        paths.insert(0, environment["PYTHONPATH"])
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    environment.update(extra or {})
    return environment


class Children:
    """Owns processes and one temporary directory for their files; a context manager."""

    def __init__(self, grace_s: float = 5.0) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="outrider-bench-"))
        self.grace_s = grace_s
        self._children: list[Child] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def start(
        self,
        name: str,
        command: Sequence[str],
        core: int | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Child:
        """Start `command` in its own session, its output in a log file, on one core where one is named."""
        log = self.directory / f"{name}.log"
        started_at = time.monotonic()
        with log.open("wb") as output:
            process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=ROOT,
                env=python_environment(environment),
            )
        if core is not None:
            os.sched_setaffinity(process.pid, {core})  # before it starts threads, which inherit it
        child = Child(name, process, log, started_at)
        self._children.append(child)
        return child

    def start_module(
        self, name: str, module: str, *arguments: str, core: int | None = None, timeout_s: float = 20.0
    ) -> tuple[Child, dict[str, int]]:
        """Start `python -m module ... --ports-file F` and wait for its ports."""
        ports_file = self.directory / f"{name}.ports.json"
        command = [sys.executable, "-m", module, "--ports-file", str(ports_file), *arguments]
        child = self.start(name, command, core)
        return child, self.ports(child, ports_file, timeout_s)

    def ports(self, child: Child, ports_file: Path, timeout_s: float = 20.0) -> dict[str, int]:
        """Wait until `ports_file` appears and return what it says."""
        deadline = time.monotonic() + timeout_s
        while not ports_file.exists():
            child.check()
            if time.monotonic() > deadline:
                raise BenchError(f"{child.name} told no ports within {timeout_s:g} s; its log:\n{child.log_tail()}")
            time.sleep(0.01)
        return {str(name): int(port) for name, port in json.loads(ports_file.read_text(encoding="utf-8")).items()}

    def stop(self, child: Child) -> int:
        """Stop one child; its exit code."""
        self._stop([child])
        return child.process.returncode

    def close(self) -> None:
        """Stop everything. A second Ctrl-C does not cut it short, since the grace is bounded anyway."""
        if threading.current_thread() is threading.main_thread():
            previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
            try:
                self._stop(self._children)
            finally:
                signal.signal(signal.SIGINT, previous)
        else:
            self._stop(self._children)
        self._children.clear()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _stop(self, children: Sequence[Child]) -> None:
        for child in children:
            if child.process.poll() is None:
                child.signal_group(signal.SIGTERM)
        deadline = time.monotonic() + self.grace_s
        for child in children:
            try:
                child.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.signal_group(signal.SIGKILL)
                child.process.wait()


def stop_on_signals() -> None:
    """SIGINT and SIGTERM end this process by KeyboardInterrupt, so that a `Children` closes on the way out."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs start with it ignored
    signal.signal(signal.SIGTERM, interrupt)


def wait_ready(child: Child, url: str, timeout_s: float = 20.0) -> float:
    """Wait until `url` answers 200; seconds since the process was started."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        child.check()
        with suppress(URLError, OSError), urlopen(url, timeout=1.0) as reply:
            if reply.status == 200:
                return time.monotonic() - child.started_at
        time.sleep(0.005)
    raise BenchError(f"{child.name} is not ready at {url} after {timeout_s:g} s; its log:\n{child.log_tail()}")
