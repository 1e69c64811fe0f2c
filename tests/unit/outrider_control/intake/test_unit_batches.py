"""Batches of our sidecar's spans, to sums of units: each counted once, with the figures of the batch or not at all."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from sqlalchemy import Connection

from outrider_control.intake.ledger import Ledger
from outrider_control.intake.prices import Prices
from outrider_control.intake.reader import Reader
from outrider_control.intake.services import Intake
from outrider_control.intake.tail import Tail
from outrider_control.state import call_index, unit_sums
from outrider_control.state.database import Database
from outrider_sidecar.core.span import CLIENT, SERVER, Span
from outrider_sidecar.engines.otlp import Encoder
from tests.units import put_split

UNITS = [f"{at:032x}" for at in range(1, 6)]


def wall_ms() -> int:
    return time.time_ns() // 1_000_000


@pytest.fixture
async def intake(database: Database) -> AsyncIterator[Callable[[], Any]]:
    """Makes intakes on the store: of one control plane after another."""
    ledgers: list[Ledger] = []

    async def make() -> Intake:
        ledger = Ledger(database, wall_ms)
        await ledger.start()
        ledgers.append(ledger)
        return Intake(ledger, lambda _: 0, Prices({}), Tail(), None, wall_ms)

    yield make
    for ledger in ledgers:
        await ledger.close()


class Sidecar:
    """Batches as one sidecar numbers them."""

    def __init__(self, seed: int = 1):
        self._rng = random.Random(seed)
        self._encoder = Encoder({"service.name": "outrider-sidecar", "service.instance.id": "one"})

    def span(self, unit: str, variant: str = "test=a", kind: int = CLIENT, status: int = 0) -> Any:
        trace_id, span_id = b"%032x" % self._rng.getrandbits(128), b"%016x" % self._rng.getrandbits(64)
        return self._encoder.span(
            Span(
                trace_id, span_id, b"", b"", 1, kind, "/p.S/M", "agent", "h:1", time.time_ns() - 10**9, 5_000, status,
                variant=variant, unit=unit,
            )
        )  # fmt: skip

    def batch(self, number: int, *spans: Any) -> bytes:
        return self._encoder.request(spans, number)


async def sums(database: Database) -> dict[str, tuple[str, int, int]]:
    """Of each unit: its variant, its calls, and those that failed."""
    rows = await database.read(unit_sums.changed_since, "test", 0, 1_000)
    return {row.unit: (row.variant, row.sums.seen.calls, row.sums.seen.failed) for row in rows}


async def test_a_batch_counts_once_however_often_and_wherever_it_is_sent(
    database: Database, intake: Callable[[], Any]
) -> None:
    await put_split(database)
    sidecar = Sidecar()
    batches = [
        sidecar.batch(number, *[sidecar.span(f"test={unit}", status=13 * (number == 2)) for unit in UNITS])
        for number in range(3)
    ]
    one, other = await intake(), await intake()
    for number, batch in enumerate(batches):
        for each in (one, one, other)[number % 2 :]:
            await each.take_traces(batch)
    assert await sums(database) == dict.fromkeys(UNITS, ("a", 3, 1))
    figures = (await Reader(database).metrics("agent", wall_ms() - 3_600_000, wall_ms())).total
    assert figures.requests == 3 * len(UNITS)


async def test_a_batch_whose_commit_fails_leaves_no_trace_of_its_units(
    database: Database, intake: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    await put_split(database)
    sidecar = Sidecar()
    batch = sidecar.batch(0, sidecar.span(f"test={UNITS[0]}"))
    taker = await intake()

    def fails(_connection: Connection, _calls: Any) -> None:
        raise ValueError("after the units, in the same transaction")

    with monkeypatch.context() as patch:
        patch.setattr(call_index, "add", fails)
        with pytest.raises(ValueError, match="after the units"):
            await taker.take_traces(batch)
    assert await sums(database) == {}
    await taker.take_traces(batch)
    assert await sums(database) == {UNITS[0]: ("a", 1, 0)}


async def test_only_the_hop_beside_the_caller_says_whose_a_call_is(
    database: Database, intake: Callable[[], Any]
) -> None:
    await put_split(database)
    sidecar = Sidecar()
    pair = f"test={UNITS[0]}"
    await (await intake()).take_traces(
        sidecar.batch(
            0,
            sidecar.span(pair, kind=SERVER),  # the ingress, which counts the call in the figures
            sidecar.span(pair),
            sidecar.span(pair, status=1),  # its caller cancelled it
            sidecar.span("", variant="test=b"),  # a tester
            sidecar.span("gone=" + UNITS[1], variant="gone=a"),  # of a split that is not there
        )
    )
    assert await sums(database) == {UNITS[0]: ("a", 1, 0)}


async def test_a_split_that_is_observed_has_history_alone(database: Database, intake: Callable[[], Any]) -> None:
    await put_split(database)
    sidecar = Sidecar()
    taker = await intake()
    await taker.take_traces(sidecar.batch(0, sidecar.span(f"test={UNITS[0]}", variant="")))
    await taker.take_traces(sidecar.batch(1, sidecar.span(f"test={UNITS[0]}", variant="test=b", status=13)))
    (row,) = await database.read(unit_sums.changed_since, "test", 0, 10)
    assert (row.variant, row.sums.vector("error_rate")) == ("b", (1.0, 1.0, 0.0, 1.0))
