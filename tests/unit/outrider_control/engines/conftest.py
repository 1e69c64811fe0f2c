"""A yard for local engines, looked over after each test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.local_engine import Yard


@pytest_asyncio.fixture
async def yard(tmp_path: Path) -> AsyncIterator[Yard]:
    """Fails the test that leaves processes behind: who wants some to go on ends them with `end_all`."""
    yard = Yard(tmp_path)
    yield yard
    await yard.close()
    left = yard.end_all()
    if left:
        pytest.fail(f"the test leaves processes behind: {sorted(left)}", pytrace=False)
