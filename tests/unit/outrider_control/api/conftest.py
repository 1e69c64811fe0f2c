"""A whole operator's API over either store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from outrider.policy import Agent, Optimization
from outrider_control.state.database import Database
from tests.operator_server import Plane, operator_plane

DEFAULTS = Agent("defaults", optimization=Optimization(cache_ttl=7_777))


@pytest_asyncio.fixture
async def plane(database: Database, tmp_path: Path) -> AsyncIterator[Plane]:
    async with operator_plane(database, tmp_path, DEFAULTS) as running:
        yield running
