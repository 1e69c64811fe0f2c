"""The composition root: settings become a running control plane, and signals end it.

Always holds: nothing listens before the store is open and the policy read; the gRPC server listens on a private unix
socket alone, the guard before it is what others reach; SIGTERM ends watches so that sidecars take another control
plane, waits for batches on their way, and exits with 0.

Deliberately not here: what the services do.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import logging
import os
import random
import signal
import sys
import time
from pathlib import Path
from uuid import uuid4

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health  # pyright: ignore[reportAttributeAccessIssue] # not in its stubs

from outrider import __version__, heap
from outrider_control import agents_file, config, experiments, feedback, rollouts, scaling
from outrider_control.api import auth
from outrider_control.api.errors import answer
from outrider_control.api.operator_service import OperatorService, add_reflection
from outrider_control.chores import Chores
from outrider_control.core import query
from outrider_control.core.cardinality import Bounds
from outrider_control.guard.listener import BACKEND_OPTIONS, Guard, guard_reactor
from outrider_control.guard.socket_file import SocketFile
from outrider_control.http import Web
from outrider_control.intake.forward import Forward
from outrider_control.intake.ledger import Ledger
from outrider_control.intake.own_telemetry import OwnTelemetry
from outrider_control.intake.prices import Prices
from outrider_control.intake.reader import Reader
from outrider_control.intake.services import REQUEST_MAX_BYTES, Intake
from outrider_control.intake.tail import Tail, TailPolicy
from outrider_control.loops.tally import Tallies
from outrider_control.publish.fleet import Fleet
from outrider_control.publish.mesh_service import MeshService
from outrider_control.publish.publisher import Publisher
from outrider_control.state import tokens
from outrider_control.state.database import Database, DatabaseError
from outrider_control.state.leadership import Leadership
from outrider_control.status import Standing
from outrider_http2.tls import ServerTls

log = logging.getLogger("outrider.control")

SERVICES = ("", "outrider.v1.Mesh", "outrider.v1.Operator")
# Streams of sidecars never end by themselves; what else is under way is short.
_SERVER_OPTIONS = (
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", 2 * REQUEST_MAX_BYTES),  # what is a little too large is refused by the intake
    ("grpc.max_send_message_length", 64 * 1024 * 1024),
    ("grpc.max_concurrent_streams", 1_000_000),  # the guard bounds them
    *BACKEND_OPTIONS,
)


def clock_ms() -> int:
    """Unix milliseconds."""
    return time.time_ns() // 1_000_000


class Control:
    """One process. `start`, then `run_until_stopped`."""

    def __init__(self, settings: config.Settings):
        self.settings = settings
        self.control_id = str(uuid4())
        self.reached_at = ""  # by agents on this machine, once it listens
        self.stopping = False
        self._stop = asyncio.Event()
        self._closing = contextlib.AsyncExitStack()

    async def start(self) -> None:
        """Open the store, read the policy, listen, tell the ports.

        OSError, DatabaseError or ConfigError names what cannot be had; what was begun by then is closed.
        """
        try:
            await self._start()
        except BaseException:
            await self.close()
            raise

    async def _start(self) -> None:
        settings = self.settings
        log.info("outrider-control %s", __version__)
        tls = settings.tls
        server_tls = ServerTls(tls.cert, tls.key, tls.client_ca, False) if tls.cert and tls.key else None
        first = agents_file.read(settings.agents_file, settings.defaults) if settings.agents_file is not None else None
        db = self.db = await asyncio.to_thread(Database.open, settings.database)
        self._closing.push_async_callback(db.close)
        leadership = self.leadership = Leadership(settings.database)
        self._closing.push_async_callback(leadership.close)
        await leadership.start()
        if first is not None:
            policy, digest = first
            for applied in await db.write(agents_file.apply, policy, digest, str(settings.agents_file), clock_ms()):
                log.info("agent %s: %s, version %d", applied.agent_id, applied.outcome, applied.version)
        await self._start_services()
        await self._start_listening(server_tls)

    async def _start_services(self) -> None:
        """Everything behind the listeners."""
        settings, db, closing = self.settings, self.db, self._closing
        bounds = Bounds(settings.series.max_agents, settings.series.max_per_agent)
        ledger = self.ledger = Ledger(db, clock_ms, bounds)
        await ledger.start()
        closing.push_async_callback(ledger.close)
        kept = settings.retention
        reader = Reader(db, query.keep(kept.windows_10s_s, kept.windows_1m_s, kept.windows_1h_s))
        fleet = self.fleet = Fleet(
            self.control_id, clock_ms, lambda _, agent_id, growth: ledger.add_dropped(agent_id, growth, clock_ms())
        )
        publisher = self.publisher = Publisher(db, fleet, clock_ms, __version__)
        await publisher.start()
        closing.push_async_callback(publisher.close)
        scale = self.scale = scaling.make_loop(
            settings.scaling, db, publisher, lambda: self.leadership.leader, clock_ms, lambda: self.reached_at
        )
        closing.push_async_callback(scale.close)
        tallies = self.tallies = Tallies(db)
        rollout = self.rollouts = rollouts.make_loop(
            settings.rollouts, db, publisher, tallies, lambda: self.leadership.leader, clock_ms
        )
        closing.push_async_callback(rollout.close)
        own = (str(settings.grpc),)
        forward, notes = Forward.from_environment(os.environ, own, random.Random())
        for note in notes:
            log.warning("%s", note)
        self.forward = forward
        if forward is not None:
            forward.start()
            closing.push_async_callback(forward.close)
        prices = Prices(settings.prices)
        spans = settings.spans
        tail = Tail(TailPolicy(share=spans.share, slow_ms=spans.slow_ms, max_per_s=spans.max_per_s))
        intake = self.intake = Intake(ledger, fleet.clock_offset_ms, prices, tail, forward, clock_ms)
        await intake.start()
        closing.push_async_callback(intake.close)
        said = self.feedback = feedback.Feedback(db, intake.mark, lambda: self.leadership.leader, clock_ms)
        closing.push_async_callback(said.close)
        experiment = self.experiments = experiments.make_loop(
            db, publisher, tallies, intake, lambda: self.leadership.leader, clock_ms
        )
        closing.push_async_callback(experiment.close)
        chores = self.chores = Chores(
            db, publisher, self.leadership, bounds, settings, self.control_id, clock_ms, intake.has_sidecar
        )
        closing.push_async_callback(chores.close)
        self.standing = Standing(self, clock_ms)
        self._make_server(reader, prices)
        telemetry = OwnTelemetry.from_environment(os.environ, own, self.control_id, __version__)
        closing.push_async_callback(asyncio.to_thread, telemetry.close)
        telemetry.counters("outrider.control.intake", "{span}", "Taken in, by outcome.", lambda: intake.counts)
        telemetry.counters("outrider.control.watch", "{event}", "On watch streams.", lambda: publisher.counts)

    def _make_server(self, reader: Reader, prices: Prices) -> None:
        """The server of all services, which does not listen yet."""
        settings, db, publisher = self.settings, self.db, self.publisher
        authenticator = auth.Authenticator(
            lambda token, now_ms: db.read(tokens.find, token, now_ms),
            clock_ms,
            settings.auth.loopback,
            settings.auth.certificates,
        )
        server = self._server = grpc.aio.server(
            interceptors=[auth.Interceptor(authenticator)], options=list(_SERVER_OPTIONS)
        )
        OperatorService(
            db,
            publisher,
            self.fleet,
            reader,
            self.standing.status,
            clock_ms,
            defaults=settings.defaults,
            on_token_revoked=authenticator.forget_tokens,
            price=prices.cost_nano_usd,
            scales=self.scale,
            experiments=self.experiments,
            feedback=self.feedback.api,
            rollouts=self.rollouts,
        ).add_to(server)
        deliver = self.feedback.api.deliver
        MeshService(publisher, lambda request, context: answer(context, deliver(request))).add_to(server)
        keda = scaling.keda_of(self.scale, publisher, clock_ms)
        if keda is not None:
            keda.add_to(server)
        self.intake.add_to(server)
        self._health = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        add_reflection(server)

    async def _start_listening(self, server_tls: ServerTls | None) -> None:
        settings, closing = self.settings, self._closing
        socket_file = SocketFile()
        closing.callback(socket_file.remove)
        self._server.add_insecure_port(socket_file.address)
        await self._server.start()
        socket_file.protect()
        closing.push_async_callback(self._server.stop, 0.5)
        reactor = guard_reactor(asyncio.get_running_loop())
        closing.push_async_callback(reactor.close)
        guard = self.guard = Guard(reactor, socket_file.path)
        address = settings.grpc
        where = address.path if address.is_unix else (address.host, address.port)
        try:
            await guard.open(where, server_tls)
        except OSError as error:
            raise _named("grpc", str(address), error) from error
        closing.push_async_callback(guard.close)
        web = Web(self.standing.problem, self.standing.families)
        try:
            await web.open(settings.http.host, settings.http.port)
        except OSError as error:
            raise _named("http", str(settings.http), error) from error
        closing.push_async_callback(web.close)
        address_text = address.path or f"{address.host}:{guard.port}"
        self.reached_at = f"unix:{address.path}" if address.is_unix else address_text
        self.chores.start(address_text)
        self.scale.start()
        self.experiments.start()
        self.feedback.start()
        self.rollouts.start()
        for service in SERVICES:
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)
        log.info("gRPC on %s, HTTP on %s:%d, store %s", address_text, settings.http.host, web.port, self.db.place)
        if settings.ports_file is not None:
            _write_ports(settings.ports_file, {"grpc": guard.port, "http": web.port})

    def request_stop(self) -> None:
        """SIGTERM, SIGINT; a second one ends at once."""
        if self.stopping:
            os._exit(1)
        self.stopping = True
        self._stop.set()

    async def reload(self) -> None:
        """SIGHUP: apply the agents' file again if it changed; a wrong one is refused and changes nothing."""
        path = self.settings.agents_file
        if path is None:
            return
        try:
            policy, digest = await asyncio.to_thread(agents_file.read, path, self.settings.defaults)
            applied = await self.db.write(agents_file.apply, policy, digest, str(path), clock_ms())
        except (config.ConfigError, DatabaseError, agents_file.agents.StaleVersion) as error:
            log.error("reload refused, everything stays as it is: %s", error)
            return
        log.info("reload: %d agents looked at", len(applied))

    async def run_until_stopped(self) -> None:
        """Serve until asked to stop, then drain and close."""
        await self._stop.wait()
        log.info("stopping")
        await self._health.enter_graceful_shutdown()
        await self.scale.close()
        await self.experiments.close()
        await self.rollouts.close()
        await self.publisher.close()
        await self.guard.drain(self.settings.drain_grace_s)
        await self.close()

    async def close(self) -> None:
        """Close everything, the last first."""
        await self._closing.aclose()


def _named(field: str, address: str, error: OSError) -> OSError:
    reason = error.strerror or str(error)
    if error.errno == 98:
        reason = "another process is listening there; stop it or choose another port"
    return OSError(f"{field}: {address}: {reason}")  # without its number, which is not for people


def _write_ports(path: Path, ports: dict[str, int]) -> None:
    """The ports really bound, as JSON, in one step."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(json.dumps(ports) + "\n", encoding="utf-8")
    aside.replace(path)


async def serve(settings: config.Settings) -> int:
    """Run one control plane until a signal ends it; the process's exit code."""
    control = Control(settings)
    loop = asyncio.get_running_loop()
    reloads: set[asyncio.Task[None]] = set()

    def reload() -> None:
        task = loop.create_task(control.reload())
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    await control.start()
    heap.settle()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, control.request_stop)
    loop.add_signal_handler(signal.SIGHUP, reload)
    await control.run_until_stopped()
    gc.freeze()  # else the interpreter's end looks at it all once more, for seconds
    return 0


def main() -> int:
    """The program `outrider-control`. Exit code 2: it cannot be started as it is configured."""
    parser = argparse.ArgumentParser(prog="outrider-control", description="The control plane of an Outrider mesh.")
    parser.add_argument("--config", type=Path, help="YAML file; without one the defaults hold")
    parser.add_argument("--check", action="store_true", help="only read the configuration")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    try:
        settings = config.load(options.config, os.environ)
        if options.check:
            if settings.agents_file is not None:
                agents_file.read(settings.agents_file, settings.defaults)
            print("the configuration can be used")
            return 0
        return _run(settings)
    except (config.ConfigError, DatabaseError, OSError) as error:
        print(f"outrider-control: {error}", file=sys.stderr)
        return 2


def _run(settings: config.Settings) -> int:
    try:
        import uvloop
    except ImportError:
        return asyncio.run(serve(settings))
    return uvloop.run(serve(settings))


if __name__ == "__main__":
    sys.exit(main())
