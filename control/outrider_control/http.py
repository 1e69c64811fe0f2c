"""HTTP 7701: `/healthz` (the process lives), `/readyz` (it serves), `/metrics` (Prometheus).

Always holds: nothing here changes anything or tells a secret; every answer is made when it is asked for.

Deliberately not here: the dashboard, the operator's API (gRPC alone).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SHUTDOWN_S = 1.0


class Family(NamedTuple):
    """One metric: `samples` by the values of `labels`."""

    name: str
    kind: str  # counter, gauge
    help: str
    labels: tuple[str, ...]
    samples: Mapping[tuple[str, ...], float]


class Web:
    """The listener. `problem()` is why the process does not serve, empty where it does."""

    def __init__(self, problem: Callable[[], str], families: Callable[[], Iterable[Family]]):
        self._problem = problem
        self._registry = CollectorRegistry()
        self._registry.register(_Families(families))
        self._runner: web.AppRunner | None = None
        self.port = 0

    async def open(self, host: str, port: int) -> None:
        """Bind and listen; OSError when the address cannot be had."""
        app = web.Application()
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=_SHUTDOWN_S)
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def close(self) -> None:
        """Stop listening and end what is under way."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, _: web.Request) -> web.Response:
        problem = self._problem()
        return web.Response(text=f"{problem or 'ok'}\n", status=503 if problem else 200)

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self._registry), headers={"content-type": CONTENT_TYPE})


class _Families(Collector):
    def __init__(self, families: Callable[[], Iterable[Family]]):
        self._families = families

    def describe(self) -> Iterable[Metric]:
        return ()  # names are known when they are asked for, not before

    def collect(self) -> Iterable[Metric]:
        for name, kind, text, labels, samples in self._families():
            make = CounterMetricFamily if kind == "counter" else GaugeMetricFamily
            family = make(name, text, labels=labels)
            for values, value in samples.items():
                family.add_metric(values, value)
            yield family
