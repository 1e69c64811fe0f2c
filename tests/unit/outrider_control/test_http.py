"""The control plane's HTTP port, asked over real sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
import pytest

from outrider_control.http import Family, Web


class Told:
    """What the port is told to say."""

    def __init__(self) -> None:
        self.problem = ""
        self.web = Web(lambda: self.problem, lambda: self.families)
        self.families = [
            Family(
                "outrider_control_intake_spans", "counter", "Spans.", ("outcome",), {("accepted",): 7, ("late",): 1}
            ),
            Family("outrider_control_sidecars", "gauge", "Sidecars connected.", (), {(): 51}),
        ]


@pytest.fixture
async def told() -> AsyncIterator[Told]:
    told = Told()
    await told.web.open("127.0.0.1", 0)
    yield told
    await told.web.close()


async def get(told: Told, path: str) -> tuple[int, str, str]:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{told.web.port}{path}") as reply,
    ):
        return reply.status, reply.headers["content-type"], await reply.text()


async def test_health_and_readiness_are_two_things(told: Told) -> None:
    assert (await get(told, "/readyz"))[0] == 200
    told.problem = "the store does not answer"
    status, _, text = await get(told, "/readyz")
    assert (status, text) == (503, "the store does not answer\n")
    assert (await get(told, "/healthz"))[0] == 200
    assert (await get(told, "/nothing"))[0] == 404


async def test_metrics_are_as_they_are_now(told: Told) -> None:
    _, kind, text = await get(told, "/metrics")
    assert kind.startswith("text/plain; version=0.0.4")
    assert 'outrider_control_intake_spans_total{outcome="accepted"} 7.0' in text
    assert "outrider_control_sidecars 51.0" in text
    told.families = []
    assert "51" not in (await get(told, "/metrics"))[2]
