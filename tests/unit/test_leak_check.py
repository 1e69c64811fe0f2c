"""The leak check itself: it must see a task, a socket and a counted object, and let a clean test pass."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytest_plugins = ["pytester"]

CASES = """
import asyncio, socket, pytest
from tests import leaks

kept, live = [], {"permits": 0}
leaks.watch(lambda: live)

async def test_task():
    kept.append(asyncio.create_task(asyncio.Event().wait()))

def test_socket():
    server = socket.create_server(("127.0.0.1", 0))
    kept.append(server)

async def test_socket_in_loop():
    async def serve(reader, writer): pass
    kept.append(await asyncio.start_server(serve, "127.0.0.1", 0))

def test_counter():
    live["permits"] += 1

@pytest.mark.leaks("shows the way out")
def test_let_off():
    kept.append(socket.create_server(("127.0.0.1", 0)))

async def test_clean():
    task = asyncio.create_task(asyncio.sleep(0))
    task.cancel()

@pytest.mark.asyncio(loop_factories=["uvloop", "asyncio"])
async def test_both_loops():
    kept.append(type(asyncio.get_running_loop()).__module__.partition(".")[0])
    if len(kept) > 1 and isinstance(kept[-2], str):
        assert kept[-2:] == ["uvloop", "asyncio"]
"""


def test_leaks_fail_the_test_that_leaves_them(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pytester.makeconftest((ROOT / "tests" / "conftest.py").read_text().replace("GRACE_S = 2.0", "GRACE_S = 0.05"))
    pytester.makepyfile(CASES)
    pytester.makeini("[pytest]\nasyncio_mode = auto\nmarkers = leaks\nasyncio_default_fixture_loop_scope = function\n")
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-q", "-W", "ignore")
    result.assert_outcomes(passed=8, errors=4)
    result.stdout.fnmatch_lines(["*task Task-*", "*TCP socket left open*", "*permits: 1 more than before the test*"])
