"""What every test gets: uvloop, a leak check, one hypothesis profile and the recorded data sets.

A test that wants the standard library's loop, or both, says so: `@pytest.mark.asyncio(loop_factories=["uvloop",
"asyncio"])`. A test that leaves something behind on purpose says why: `@pytest.mark.leaks("reason")`.
"""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
import pytest_asyncio

from tests import leaks

try:
    from uvloop import new_event_loop as new_uvloop
except ImportError:  # no uvloop for this platform
    new_uvloop = asyncio.new_event_loop

GRACE_S = 2.0  # how long closing connections and cancelled tasks may take to be gone

hypothesis.settings.register_profile(
    "default", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow], print_blob=True
)
hypothesis.settings.register_profile("ci", hypothesis.settings.get_profile("default"), derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "default")


def pytest_asyncio_loop_factories(item: pytest.Item) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """uvloop, as the sidecar runs; both are on offer to a test that names its loops."""
    marker = item.get_closest_marker("asyncio")
    factories = {"uvloop": new_uvloop}
    if marker is not None and "loop_factories" in marker.kwargs:
        factories["asyncio"] = asyncio.new_event_loop
    return factories


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # First in the list is set up first and torn down last: after every fixture of the test has closed what it opened.
    for item in items:
        if isinstance(item, pytest.Function) and item.get_closest_marker("leaks") is None:
            is_async = pytest_asyncio.is_async_test(item)
            item.fixturenames.insert(0, "_no_leaks_in_loop" if is_async else "_no_leaks")


@pytest.fixture
def _no_leaks() -> Iterator[None]:
    before = leaks.take_stock()
    yield
    left = leaks.left_since(before)
    if left:
        gc.collect()
        give_up_at = time.monotonic() + GRACE_S
        while (left := leaks.left_since(before)) and time.monotonic() < give_up_at:
            time.sleep(0.01)  # another thread (grpcio's) closes them
    if left:
        pytest.fail("the test leaves behind:\n  " + "\n  ".join(left), pytrace=False)


@pytest_asyncio.fixture
async def _no_leaks_in_loop() -> AsyncIterator[None]:
    before = leaks.take_stock()
    others = asyncio.all_tasks()
    yield

    def left() -> list[str]:
        mine = asyncio.all_tasks() - others - {asyncio.current_task()}
        return [f"task {task.get_name()}: {task.get_coro()!r}" for task in mine] + leaks.left_since(before)

    give_up_at = time.monotonic() + GRACE_S
    while (rest := left()) and time.monotonic() < give_up_at:
        gc.collect()
        await asyncio.sleep(0.005)
    if rest:
        pytest.fail("the test leaves behind:\n  " + "\n  ".join(rest), pytrace=False)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of recorded data sets; tests that need one are skipped where there is none."""
    named = os.environ.get("OUTRIDER_DATA")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no data sets at {folder}: set OUTRIDER_DATA to their folder")
    return folder
