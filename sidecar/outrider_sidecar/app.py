"""The composition root: settings become a running sidecar, and signals end it.

Always holds: nothing listens before the policy is compiled; a reload is applied whole or refused with the old policy
in force; SIGTERM drains before the process exits with 0.

Deliberately not here: anything about one call.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import random
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from outrider import __version__, heap
from outrider.digest import blake2b
from outrider.policy import Policy
from outrider_http2.limits import Limits
from outrider_http2.shell import Reactor, clock
from outrider_sidecar import config, stack
from outrider_sidecar.core import errors
from outrider_sidecar.core.resource import Key, Resource
from outrider_sidecar.core.runtime import Runtime, Snapshot
from outrider_sidecar.edge.access_log import AccessLog
from outrider_sidecar.edge.admin import Admin
from outrider_sidecar.edge.cache_file import SAVE_EVERY_S, CacheFile
from outrider_sidecar.edge.checks import Checks
from outrider_sidecar.edge.compress_service import CompressService
from outrider_sidecar.edge.compress_worker import CompressWorker
from outrider_sidecar.edge.listener import Listener
from outrider_sidecar.edge.own_services import own_services, sidecar_service
from outrider_sidecar.edge.parts import (
    connector_factory,
    control_plane,
    control_rpc,
    exporters,
    feedback,
    named,
    new_instance_id,
    node_name,
    rpc_factory,
    stamp,
    write_ports,
)
from outrider_sidecar.edge.purges import Purges
from outrider_sidecar.edge.resolver import Resolver
from outrider_sidecar.edge.session_file import SessionFile
from outrider_sidecar.edge.summarizer import Summarizer
from outrider_sidecar.edge.tls import ClientTls, ServerTls
from outrider_sidecar.edge.view import COMPILED, SidecarView
from outrider_sidecar.engines.epochs import Epochs
from outrider_sidecar.engines.overlay import overlay
from outrider_sidecar.engines.sampler import parse_sampler
from outrider_sidecar.engines.series import Series
from outrider_sidecar.engines.sessions import Sessions
from outrider_sidecar.filters.dispatch import FAILURES
from outrider_sidecar.filters.trace import Recorder, child_ids
from outrider_sidecar.payloads import Payloads

if TYPE_CHECKING:
    from outrider_sidecar.edge.control_side import ControlSide

log = logging.getLogger("outrider.sidecar")
TICK_S = 0.5
RESOLVE_FIRST_S = 0.3  # how long a start waits for names; later answers are taken as they come
GOODBYE_S = 1.0  # for peers to read what was written to them
QUIET_S = 0.5  # without a call: a draining egress closes

# Settings that are looked at once.
_FIXED = (
    *("listen", "admin", "ingress", "telemetry", "tls", "limits", "state_dir", "access_log", "feedback"),
    *("control", "control_tls", "control_token_file"),
)

# Fields never forwarded as they came: the sidecar writes its own, or the connection does.
OWNED = frozenset(
    {
        b"content-length",
        b"grpc-timeout",
        b"traceparent",
        b"tracestate",
        b"x-outrider-call-id",
        b"x-outrider-prompt-version",
        b"x-outrider-tokens-saved",
        b"x-outrider-trace-id",
        b"x-outrider-variant",
    }
)


class Sidecar:
    """One process. `start`, then `run_until_stopped`."""

    def __init__(self, settings: config.Settings, loop: asyncio.AbstractEventLoop):
        self.version = __version__
        self.settings = settings
        self.draining = False
        self.started = False
        self.reloads = {"applied": 0, "refused": 0}
        self.last_reload = ""
        limits = settings.limits
        self.reactor = Reactor(
            loop,
            Limits(max_streams=limits.max_streams, idle_timeout_s=limits.idle_timeout_s, max_age_s=limits.max_age_s),
            OWNED,
            limits.held_bytes,
        )
        self.runtime = runtime = Runtime(self.reactor, clock, time.time, random.Random(os.urandom(16)))
        runtime.epochs = Epochs()
        runtime.sampler = parse_sampler(settings.telemetry.sampler, str(settings.telemetry.sampler_ratio))
        self._cache_file = CacheFile(settings.state_dir, runtime) if settings.state_dir is not None else None
        header = self._cache_file.read_header() if self._cache_file is not None else None
        runtime.seed = header.seed if header is not None else int.from_bytes(os.urandom(8), "big")
        runtime.secret = blake2b(runtime.seed.to_bytes(8, "big"), person=b"outrider-auth").digest()[:32]
        runtime.payloads = Payloads(runtime.seed)
        sessions = runtime.sessions = Sessions()
        directory = settings.state_dir
        self.session_file = SessionFile(directory, sessions, loop, clock, time.time) if directory is not None else None
        runtime.local = own_services(runtime, lambda _: not self.draining)
        runtime.own_span = lambda call, parent: child_ids(call, parent, runtime)
        self._server_tls = ServerTls(settings.tls) if settings.tls.cert is not None else None
        self._client_tls = ClientTls(settings.tls.upstream) if settings.tls.upstream is not None else None
        self._resolver = Resolver(runtime, self._compile)
        server_name = self._resolver.server_name
        runtime.connector = connector_factory(
            self.reactor, runtime.rng, self._client_tls, limits.max_age_s, server_name
        )
        self.series = Series()
        # The epoch of the spans' batch numbers as well: one per process, whatever the environment calls the service.
        instance_id = new_instance_id(os.urandom(16))
        plane = control_plane(settings, self._client_tls)
        control = self._control_rpc = control_rpc(plane, self.reactor) if plane is not None else None
        self.export, self._export_rpcs = exporters(settings, self.reactor, self._client_tls, control, instance_id)
        self.feedback = feedback(settings, runtime, control, instance_id)
        runtime.node = node_name(settings.telemetry.resource)
        runtime.compressor = self.compressor = CompressWorker(self.reactor)
        runtime.summarizer = Summarizer(runtime)
        compression = CompressService(runtime)
        runtime.own = sidecar_service(
            {
                b"CollectFeedback": self.feedback.step,
                b"Compress": compression.compress,
                b"FetchOriginal": compression.fetch_original,
            }
        )
        self._purges = Purges(runtime, self._cache_file)
        self.purge = self._purges.purge
        self._control: ControlSide | None = None
        if plane is not None:
            from outrider_sidecar.edge.control_side import ControlSide  # only here: it costs protobuf

            self._control = ControlSide(
                settings, __version__, instance_id, runtime, plane, self.export, self._purges, self._compile_pushed
            )
        self.link = self._control.link if self._control is not None else None
        self.access_log = AccessLog(settings.access_log) if settings.access_log else None
        takers = [self.export.add] if self.access_log is None else [self.export.add, self.access_log.add]
        runtime.record = Recorder(self.series, clock, FAILURES, takers, self.reactor.turn).record
        self._checks = Checks(runtime, rpc_factory(self.reactor, self._client_tls, server_name))
        self.admin = Admin(SidecarView(self))
        self.listeners: dict[str, Listener] = {}
        self._ingress_snapshot = Snapshot(Policy(), {}, ())
        self._stop = asyncio.Event()
        self._trimmer = heap.Trimmer(heap.malloc_trim())
        self._ticking: asyncio.Task[None] | None = None
        self._file_seen = stamp(settings.source)
        self._saved_at = clock()

    # -- start -----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Compile, listen, tell the ports; OSError names what cannot be had."""
        settings = self.settings
        runtime = self.runtime
        log.info("outrider %s, data path %s", __version__, "compiled" if COMPILED else "interpreted")
        if self._control is not None:
            self._control.restore()
        self._compile()
        if self.session_file is not None:
            self.session_file.restore()  # after the splits: their idle times count
        await self._resolver.first(RESOLVE_FIRST_S)
        if self._cache_file is not None:
            self._cache_file.restore()
        await self._listen("egress", settings.listen, lambda: runtime.snapshot)
        if settings.ingress is not None:
            await self._listen("ingress", settings.ingress.listen, lambda: self._ingress_snapshot)
        admin = settings.admin
        try:
            admin_port = await self.admin.listen(admin.host, admin.port)
        except OSError as error:
            raise named("admin", str(admin), error) from error
        self.export.start()
        self.feedback.start()
        if self.access_log is not None:
            self.access_log.start()
        self._checks.start()
        self._resolver.start()
        self._ticking = self.reactor.loop.create_task(self._tick())
        self.started = True
        if self._control is not None:
            ingress_listener = self.listeners.get("ingress")
            self._control.start(ingress_listener.port if ingress_listener is not None else 0, admin_port)
        if settings.ports_file is not None:
            write_ports(settings.ports_file, {name: one.port for name, one in self.listeners.items()}, admin_port)

    async def _listen(self, name: str, address: config.Address, snapshot: stack.Snapshots) -> None:
        settings = self.settings
        listener = Listener(self.runtime, snapshot, settings.limits.max_connections)
        where = address.path if address.is_unix else (address.host, address.port)
        context = self._server_tls.context() if self._server_tls is not None else None
        try:
            await listener.open(where, context, settings.takeover)
        except OSError as error:
            raise named("listen" if name == "egress" else f"{name}.listen", str(address), error) from error
        self.listeners[name] = listener
        log.info("%s listens on %s", name, address.path or f"{address.host}:{listener.port}")

    # -- while it runs ---------------------------------------------------------------------------------------------

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            now = clock()
            try:
                pressure = 0.0
                for state in self.runtime.agents.values():
                    if state.pool is not None:
                        state.pool.tick(now)
                        pressure = max(pressure, state.admission.look(now))
                self.runtime.pressure = pressure
                if self.session_file is not None:
                    self.session_file.tick(now, not self.draining)
                else:
                    self.runtime.sessions.sweep(now)
                for tls in (self._server_tls, self._client_tls):
                    if tls is not None:
                        tls.poll()
                seen = stamp(self.settings.source)
                if seen != self._file_seen:
                    self._file_seen = seen
                    self.reload("the file changed")
                self._trimmer.tick()
                if self._cache_file is not None and now - self._saved_at >= SAVE_EVERY_S:
                    self._saved_at = now
                    await self._cache_file.save()
            except Exception:
                log.exception("a periodic task failed; it runs again in %g s", TICK_S)

    def reload(self, why: str) -> bool:
        """Read the file again and apply its policy; False when it is refused and the old policy stays."""
        source = self.settings.source
        if source is None:
            return False
        try:
            fresh = config.load(source, os.environ)
        except config.ConfigError as error:
            self.reloads["refused"] += 1
            self.last_reload = f"refused: {error}"
            log.error("reload (%s) refused, the old policy stays: %s", why, error)
            return False
        before = self.settings
        if fresh.policy != before.policy:
            self._compile(fresh.policy)
        fixed = [name for name in _FIXED if getattr(fresh, name) != getattr(before, name)]
        if fixed:
            log.warning("reload: %s change only with a restart", ", ".join(fixed))
        self.settings = fresh
        self.reloads["applied"] += 1
        self.last_reload = "applied"
        log.info("reload (%s) applied: %d agents", why, len(fresh.policy.agents))
        return True

    def _compile(self, file: Policy | None = None, resources: Mapping[Key, Resource] | None = None) -> None:
        """Put a policy in force: the file's (by default the one at hand, as its names resolve now) under the pushed."""
        if resources is None:
            resources = self._control.resources if self._control is not None else {}
        policy = overlay(file if file is not None else self.settings.policy, resources)
        if self.session_file is not None:
            self.session_file.flush()  # what splits gave is on disk before others take their place
        self.runtime.snapshot = stack.compile_snapshot(self._resolver.expand(policy), self.runtime)
        told = self.settings.ingress
        if told is not None:
            ingress = stack.compile_ingress(told.agent_id, str(told.target), self.runtime, told.capacity, policy)
            self._ingress_snapshot = ingress
            if self._control is not None:
                self._control.announce(ingress.policy.agents[told.agent_id].limits)

    def _compile_pushed(self, resources: Mapping[Key, Resource]) -> None:
        self._compile(resources=resources)

    @property
    def waiting_for_policy(self) -> bool:
        """Whether no agent is known because the control plane has not been heard yet."""
        control = self._control
        return control is not None and not control.pushed.informed and not self.runtime.snapshot.routes

    def on_hangup(self) -> None:
        """SIGHUP."""
        self.reload("SIGHUP")
        if self.access_log is not None:
            self.access_log.reopen()

    def request_stop(self) -> None:
        """SIGTERM, SIGINT: begin to drain; a second one ends at once."""
        if self.draining:
            self._stop.set()
        self.draining = True
        self._stop.set()

    # -- the end ---------------------------------------------------------------------------------------------------

    async def run_until_stopped(self) -> None:
        """Serve until asked to stop, then drain and close."""
        await self._stop.wait()
        self._stop.clear()
        await self._drain()
        await self.close()

    async def _drain(self) -> None:
        """Ingress first; egress serves its agent until that is quiet or the grace ends."""
        grace_ends = clock() + self.settings.drain_grace_s
        # Calls that are taken last need time as well.
        accept_ends = grace_ends - min(1.0, self.settings.drain_grace_s / 4)
        log.info("draining, for at most %g s", self.settings.drain_grace_s)
        if self._control is not None:
            await self._control.withdraw()
        ingress, egress = self.listeners.get("ingress"), self.listeners["egress"]
        if ingress is not None:
            ingress.stop_listening()
            ingress.drain()
        if self.settings.takeover:
            egress.stop_listening()
        egress.drain()
        quiet_since = clock()
        while clock() < accept_ends and not self._stop.is_set():
            calls = len(self.runtime.calls)
            if calls:
                quiet_since = clock()
            elif clock() - quiet_since >= QUIET_S or not egress.connections:
                break
            await asyncio.sleep(0.02)
        egress.stop_listening()
        for listener in self.listeners.values():
            listener.drain()
            listener.finish_drain()
        # Calls that came between are still served; whatever outlives the grace is told why.
        while self.runtime.calls and clock() < grace_ends and not self._stop.is_set():
            await asyncio.sleep(0.02)
        turn = self.reactor.turn
        turn.begin()
        # Those that wait first: else they would get the permits of the others.
        for call in sorted(self.runtime.calls, key=lambda call: call.waiter is None):
            call.fail(errors.UNAVAILABLE, "the sidecar is shutting down and the grace period is over")
        turn.end()

    async def close(self) -> None:
        """Flush and close everything."""
        if self._ticking is not None:
            self._ticking.cancel()
            await asyncio.gather(self._ticking, return_exceptions=True)
        if self._control is not None:
            await self._control.close()
        await self._checks.close()
        await self._resolver.close()
        await asyncio.gather(self.export.close(), self.feedback.close())
        for rpc in self._export_rpcs:
            await rpc.close()
        if self._control_rpc is not None:
            await self._control_rpc.close()
        await self.compressor.close()
        if self.access_log is not None:
            await self.access_log.close()
        if self._cache_file is not None:
            await self._cache_file.save()
        if self.session_file is not None:
            await self.session_file.close()
        for listener in self.listeners.values():
            listener.close()
        goodbye_ends = clock() + GOODBYE_S
        while clock() < goodbye_ends and any([listener.connections for listener in self.listeners.values()]):
            await asyncio.sleep(0.005)
        for state in self.runtime.agents.values():
            if state.pool is not None:
                state.pool.close()
        await self.admin.close()
        await self.reactor.close()


async def serve(settings: config.Settings) -> int:
    """Run one sidecar until a signal ends it; the process's exit code."""
    loop = asyncio.get_running_loop()
    try:
        sidecar = Sidecar(settings, loop)
    except OSError as error:  # a certificate that cannot be used
        print(f"outrider-sidecar: {error.strerror or error}", file=sys.stderr)
        return 2
    try:
        await sidecar.start()
    except OSError as error:
        print(f"outrider-sidecar: {error.strerror or error}", file=sys.stderr)
        await sidecar.close()
        return 1
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, sidecar.request_stop)
    loop.add_signal_handler(signal.SIGHUP, sidecar.on_hangup)
    heap.settle()
    await sidecar.run_until_stopped()
    return 0


def main(argv: list[str] | None = None) -> None:
    """`outrider-sidecar --config FILE`."""
    parser = argparse.ArgumentParser(prog="outrider-sidecar", description="The sidecar beside an agent.")
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="settings and agents, YAML")
    parser.add_argument("--check", action="store_true", help="read the file, say whether it is good, and exit")
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        settings = config.load(options.config, os.environ)
    except config.ConfigError as error:
        print(f"outrider-sidecar: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    for note in settings.notes:
        log.warning("%s", note)
    if options.check:
        print(f"{options.config}: {len(settings.policy.agents)} agents, nothing wrong")
        raise SystemExit(0)
    with contextlib.suppress(KeyboardInterrupt):
        raise SystemExit(run(settings))


def run(settings: config.Settings) -> int:
    """Serve on uvloop."""
    import uvloop

    return uvloop.run(serve(settings))
