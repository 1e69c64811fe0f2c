"""One process of an instance: started in a session of its own, watched, ended with all that it started itself.

Always holds: no signal goes to a pid that is not ours: a process is known by its pid and the time it started at, and is
signalled through a descriptor (pidfd) that cannot come to mean another one. A process that ends is seen at once, and
what it leaves in its session is killed. Dropping a `Process` leaves the process as it is.

Where there is no /proc (not Linux) only what was started here can be ended, and nothing can be taken over; where there
are no pidfds an end is seen within POLL_S.

Deliberately not here: processes that leave their session on purpose (daemons); when to start or end one.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

POLL_S: Final = 0.1
_PROC: Final = Path("/proc")
_HAS_PROC: Final = (_PROC / "self" / "stat").exists()
_GONE = (b"Z", b"X", b"x")


@dataclass(frozen=True, slots=True)
class Stat:
    """What /proc/PID/stat says, as far as it is needed."""

    pid: int
    state: bytes
    parent: int
    session: int
    start: int  # clock ticks since boot

    @property
    def runs(self) -> bool:
        return self.state not in _GONE


def stat_of(pid: int) -> Stat | None:
    """None: there is no such process, or no /proc."""
    try:
        text = (_PROC / str(pid) / "stat").read_bytes()
        fields = text[text.rindex(b")") + 2 :].split()  # the name before may hold anything
        return Stat(pid, fields[0], int(fields[1]), int(fields[3]), int(fields[19]))
    except (OSError, ValueError, IndexError):
        return None


def boot_id() -> str:
    """Of this run of the machine: start times of processes count from it. Empty: not known."""
    try:
        return (_PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def leader_with(variable: str) -> Stat | None:
    """The leader of a session, of this user, that was started with "NAME=value"; None: there is none."""
    wanted = variable.encode()
    for pid in _pids():
        try:
            environment = (_PROC / str(pid) / "environ").read_bytes()
        except OSError:
            continue
        if wanted in environment.split(b"\0"):
            found = stat_of(pid)
            if found is not None and found.session == pid and found.runs:
                return found
    return None


def _pids() -> list[int]:
    return [int(entry.name) for entry in _PROC.iterdir() if entry.name.isdecimal()] if _HAS_PROC else []


class Process:
    """A running process. `exited` is done when it has ended: with its code, minus a signal's number, or None where that
    is not known (it was started by somebody else)."""

    __slots__ = ("_fd", "_loop", "_timer", "exited", "pid", "start")

    def __init__(self, pid: int, start: int, loop: asyncio.AbstractEventLoop):
        self.pid = pid
        self.start = start  # as in Stat; 0: not known
        self.exited: asyncio.Future[int | None] = loop.create_future()
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None
        self._fd = _open(pid)
        if self._fd is not None:
            loop.add_reader(self._fd, self._ended)
        else:
            self._poll()

    @classmethod
    def spawn(cls, command: Sequence[str], env: Mapping[str, str], cwd: Path, log: Path) -> Process:
        """Start one; OSError. What it says is appended to `log`."""
        loop = asyncio.get_running_loop()
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            child = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                env=dict(env),
                start_new_session=True,
                close_fds=True,
            )
        finally:
            os.close(output)
        child.returncode = 0  # it is ours from here on: Popen neither waits for it nor warns that it still runs
        found = stat_of(child.pid)  # it is not reaped by anybody else: its pid is its own
        return cls(child.pid, found.start if found is not None else 0, loop)

    @classmethod
    def adopt(cls, pid: int, start: int) -> Process | None:
        """One that was started before; None: it does not run any more."""
        found = stat_of(pid)
        if found is None or not start or found.start != start:
            return None
        if not found.runs:
            _reap(pid)  # it was ours all the same: this program started it, and let go of it
            return None
        process = cls(pid, start, asyncio.get_running_loop())
        if _is(pid, start):  # looked at again: the descriptor is of this very process
            return process
        process.release()
        return None

    def terminate(self) -> None:
        """SIGTERM to it alone: it knows what to do with what it has started."""
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to it and to all of its session."""
        self._send(signal.SIGKILL)
        self._kill_session()

    def release(self) -> None:
        """Let it run, unwatched."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._fd is not None:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = None

    def _send(self, number: signal.Signals) -> None:
        try:
            if self._fd is not None:
                signal.pidfd_send_signal(self._fd, number)
            elif not self.exited.done() and (not self.start or _is(self.pid, self.start)):
                os.kill(self.pid, number)
        except (ProcessLookupError, PermissionError):  # it is gone, or became another user's
            pass

    def _kill_session(self) -> None:
        if not _HAS_PROC:
            try:
                os.killpg(self.pid, signal.SIGKILL)  # our child, not reaped: the number is still its own
            except (ProcessLookupError, PermissionError):
                pass
            return
        # The number of a session is not given to a new process while anybody is in it, but may be once nobody is: so
        # each is held by a descriptor and looked at once more.
        for pid in _pids():
            found = stat_of(pid)
            if pid == self.pid or found is None or found.session != self.pid or found.start < self.start:
                continue
            descriptor = _open(pid)
            try:
                if _same(stat_of(pid), found):
                    if descriptor is not None:
                        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                    else:
                        os.kill(pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                pass
            finally:
                if descriptor is not None:
                    os.close(descriptor)

    def _poll(self) -> None:
        found = stat_of(self.pid) if _HAS_PROC else None
        if _HAS_PROC:
            ended = found is None or not found.runs or (self.start != 0 and found.start != self.start)
        else:
            ended = _has_ended(self.pid)
        if ended:
            self._ended()
        else:
            self._timer = self._loop.call_later(POLL_S, self._poll)

    def _ended(self) -> None:
        """The leader has ended and is not reaped, if it is our child."""
        another = stat_of(self.pid)
        if another is None or another.start == self.start or not self.start:
            self._kill_session()
        code = _reap(self.pid)
        self.release()
        if not self.exited.done():
            self.exited.set_result(code)


def _open(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except (OSError, AttributeError):  # no such call here, or no such process: then polling finds that it is gone
        return None


def _is(pid: int, start: int) -> bool:
    found = stat_of(pid)
    return found is not None and found.start == start and found.runs


def _same(now: Stat | None, before: Stat) -> bool:
    return now is not None and now.session == before.session and now.start == before.start


def _reap(pid: int) -> int | None:
    """Its exit code, where it is a child of ours that has ended."""
    try:
        found, status = os.waitpid(pid, os.WNOHANG)
    except (ChildProcessError, OverflowError):
        return None
    return os.waitstatus_to_exitcode(status) if found == pid else None


def _has_ended(pid: int) -> bool:
    """Of a child, without reaping it."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True
