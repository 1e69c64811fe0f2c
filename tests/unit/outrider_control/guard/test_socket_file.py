"""What killed processes leave of the guard's socket is taken away; what somebody uses, or may use, stays."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from outrider_control.guard import socket_file
from outrider_control.guard.socket_file import SocketFile, remove_stale

LATER_S = time.time() + 3_600


@pytest.fixture
def parent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Short enough for the address of a socket."""
    folder = Path(f"/tmp/{os.getpid()}-{tmp_path_factory.getbasetemp().name}")
    folder.mkdir()
    yield folder
    for path in sorted(folder.rglob("*"), reverse=True):
        path.unlink() if path.is_symlink() or not path.is_dir() else path.rmdir()
    folder.rmdir()


@pytest.fixture
def bound(parent: Path) -> Iterator[Callable[[str], socket.socket]]:
    """A socket in a folder as a control plane makes it."""
    opened: list[socket.socket] = []

    def bind(name: str) -> socket.socket:
        folder = parent / name
        folder.mkdir(mode=0o700)
        made = socket.socket(socket.AF_UNIX)
        opened.append(made)
        made.bind(str(folder / "grpc.sock"))
        return made

    yield bind
    for one in opened:
        one.close()


Bound = Callable[[str], socket.socket]


def names(parent: Path) -> set[str]:
    return {path.name for path in parent.iterdir()}


def test_only_what_nobody_listens_on_is_taken_away(parent: Path, bound: Bound) -> None:
    bound("outrider-control-dead").close()
    bound("outrider-control-alive").listen()
    full = bound("outrider-control-full")
    full.listen(0)
    waiting = socket.socket(socket.AF_UNIX)
    waiting.connect(full.getsockname())  # its queue has no more room
    bound("another-program").close()
    (parent / "outrider-control-starting").mkdir()
    (parent / "outrider-control-file").touch()
    plain = parent / "outrider-control-plain"
    plain.mkdir()
    (plain / "grpc.sock").touch()
    (parent / "outrider-control-link").symlink_to(parent / "another-program")
    before = names(parent)
    assert remove_stale(parent, LATER_S) == 1
    assert before - names(parent) == {"outrider-control-dead"}
    waiting.close()


def test_a_folder_with_more_in_it_stays(parent: Path, bound: Bound) -> None:
    bound("outrider-control-odd").close()
    (parent / "outrider-control-odd" / "notes").touch()
    assert remove_stale(parent, LATER_S) == 0
    assert names(parent) == {"outrider-control-odd"}
    assert (parent / "outrider-control-odd" / "notes").exists()


def test_one_that_was_made_lately_stays(parent: Path, bound: Bound) -> None:
    bound("outrider-control-new").close()
    assert remove_stale(parent, time.time()) == 0
    assert names(parent) == {"outrider-control-new"}


def test_another_users_stay(parent: Path, bound: Bound, monkeypatch: pytest.MonkeyPatch) -> None:
    bound("outrider-control-theirs").close()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert remove_stale(parent, LATER_S) == 0


def test_the_look_is_bounded(parent: Path, bound: Bound, monkeypatch: pytest.MonkeyPatch) -> None:
    for at in range(5):
        bound(f"outrider-control-{at}").close()
    monkeypatch.setattr(socket_file, "_TAKEN_AWAY", 2)
    assert remove_stale(parent, LATER_S) == 2
    monkeypatch.setattr(socket_file, "_LOOKED_AT", 1)
    assert remove_stale(parent, LATER_S) == 1
    assert len(names(parent)) == 2


def test_where_nothing_can_be_looked_at(parent: Path) -> None:
    assert remove_stale(parent / "nowhere", LATER_S) == 0


def test_the_next_process_takes_away_what_a_killed_one_left(parent: Path) -> None:
    code = (
        "import os, signal, socket, sys\n"
        "from outrider_control.guard.socket_file import SocketFile\n"
        "place = SocketFile()\n"
        "socket.socket(socket.AF_UNIX).bind(place.path)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = {**os.environ, "TMPDIR": str(parent), "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == -9
    (left,) = parent.iterdir()
    old_s = time.time() - 120
    os.utime(left / "grpc.sock", (old_s, old_s))
    place = SocketFile(parent)
    assert names(parent) == {Path(place.path).parent.name}
    place.remove()
    assert names(parent) == set()
