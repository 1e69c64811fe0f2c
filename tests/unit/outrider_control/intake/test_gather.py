"""Batches that arrive together go on together."""

from __future__ import annotations

import asyncio

from outrider_control.intake.gather import ENOUGH, Gather


async def test_they_go_on_together_once_all_have_arrived():
    arriving = 3
    gather = Gather(lambda: arriving)
    order: list[int] = []

    async def one(number: int) -> None:
        await gather.wait(1)
        order.append(number)

    first = [asyncio.create_task(one(number)) for number in range(2)]
    await asyncio.sleep(0)
    assert order == []
    third = asyncio.create_task(one(2))
    await asyncio.gather(*first, third)
    assert order == [0, 1, 2]


async def test_enough_is_enough():
    gather = Gather(lambda: 100)
    await asyncio.gather(gather.wait(ENOUGH - 1), gather.wait(1))
    await asyncio.wait_for(gather.wait(ENOUGH), 5)


async def test_nobody_waits_for_one_who_never_arrives():
    gather = Gather(lambda: 2)
    await asyncio.wait_for(gather.wait(1), 5)


async def test_one_that_gives_up_does_not_hold_up_the_others():
    gather = Gather(lambda: 2)
    quitter = asyncio.create_task(gather.wait(1))
    await asyncio.sleep(0)
    quitter.cancel()
    await asyncio.wait_for(gather.wait(1), 5)
    assert quitter.cancelled()
