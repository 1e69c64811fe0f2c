"""Units of splits for tests: calls as the intake makes them, put into a real store."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from outrider.split import Split, Variant
from outrider_control.core.unit_sums import UnitCall
from outrider_control.state import splits, unit_sums
from outrider_control.state.database import Database

AGENT = "agent"


def call(unit: str, variant: str = "a", split: str = "test", **more: Any) -> UnitCall:
    """One call of 100 ms that went well."""
    fields: dict[str, Any] = {
        "failed": False,
        "total_us": 100_000,
        "first_chunk_us": 0,
        "cost_nano_usd": 0,
        "tokens": 0,
        "attributes": {},
    }
    return UnitCall(split, unit, variant, **(fields | more))


def split(name: str = "test", agent_id: str = AGENT) -> Split:
    return Split(name, agent_id, (Variant("a", 0.5), Variant("b", 0.5)))


async def put_split(database: Database, name: str = "test") -> None:
    await database.write(splits.put, split(name))


async def put(database: Database, calls: Iterable[UnitCall]) -> None:
    await database.write(unit_sums.add, list(calls), 1)
