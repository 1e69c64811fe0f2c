"""The link to the control plane: one stream for as long as the process lives, to one of a list of addresses.

Always holds: nothing of a call waits for it; what is held stays in force while it is down. A lost control plane is
followed by the next address at once, and by backoff with jitter once all have been tried; the backoff begins anew only
after a control plane has said its first message. One that is silent is found by PING. Messages are bounded, and one
that cannot be read ends the stream, not the process.

Deliberately not here: what updates do (`edge.pushed`), the list of addresses and the token (`edge.control_plane`).
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from outrider_http2.client import ClientConnection
from outrider_http2.shell import Reactor, Shell, clock
from outrider_sidecar.core.metric import Family
from outrider_sidecar.core.resource import KIND_NAMES, Resource
from outrider_sidecar.edge import mesh_codec
from outrider_sidecar.edge.control_plane import ControlPlane
from outrider_sidecar.edge.fleet_rates import FleetRates
from outrider_sidecar.edge.grpc_stream import Ended, MessageStream
from outrider_sidecar.edge.load import Load
from outrider_sidecar.edge.mesh_codec import Announced
from outrider_sidecar.edge.pushed import Pushed
from outrider_sidecar.edge.rpc import connect, head_for
from outrider_sidecar.engines.backoff import control_delay_s

log = logging.getLogger(__name__)

PATH = "/outrider.v1.Mesh/Watch"
MAX_MESSAGE_BYTES = 16 * 1024 * 1024
DIAL_TIMEOUT_S = 1.5
WELCOME_TIMEOUT_S = 10.0  # a control plane that has just started is asked by everybody at once
PING_INTERVAL_S = 10.0
PING_TIMEOUT_S = 10.0
WITHDRAW_S = 1.0  # at most, for the last announcement to leave
SESSION_S = 1.0  # what ends sooner is a failure
_INTERVALS_MS = (100, 60_000)  # what a control plane may ask for
_DEFAULT_INTERVAL_MS = 1_000

Facts = Callable[[], Mapping[str, Any]]
Loads = Callable[[bool], Sequence[Load]]


class MeshLink:
    """`start`, `announce`, `withdraw`, `close`. `facts` are the fields of Hello, `loads` what a report says."""

    def __init__(
        self,
        reactor: Reactor,
        plane: ControlPlane,
        pushed: Pushed,
        facts: Facts,
        loads: Loads,
        spans_dropped: Callable[[], int],
        rng: random.Random,
        wall_clock: Callable[[], float] = time.time,
        rates: FleetRates | None = None,
    ):
        self._reactor = reactor
        self._plane = plane
        self._pushed = pushed
        self._facts = facts
        self._loads = loads
        self._spans_dropped = spans_dropped
        self._rng = rng
        self._wall_clock = wall_clock
        self._rates = rates
        self._announced: Sequence[Announced] | None = None
        self._stream: MessageStream | None = None  # set while a control plane is there
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._reporting: asyncio.Task[None] | None = None
        self._welcome = mesh_codec.Welcome()
        self._greeted = False  # the session under way has had its first message
        self._closing = False
        self._connected_at = 0.0
        self.last_error = ""
        self.sessions = 0  # control planes that said a first message
        self.reports = 0

    def start(self) -> None:
        """Begin to look for a control plane."""
        self._task = self._reactor.loop.create_task(self._run(), name="mesh link")

    async def close(self) -> None:
        """Give back what is held of limits over the fleet, and end the stream; takes a second at most."""
        self._closing = True
        if self._task is not None:
            if self._gave_back():
                # A stream that is reset takes with it what its peer has not read: have it ended there.
                await asyncio.wait([self._task], timeout=WITHDRAW_S)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _gave_back(self) -> bool:
        stream = self._stream
        uses = self._rates.give_back() if self._rates is not None and stream is not None and not stream.stalled else ()
        if stream is None or not uses:
            return False
        stream.send(mesh_codec.load((), int(self._wall_clock() * 1e3), self._spans_dropped(), uses))
        stream.finish()
        return True

    def woke(self) -> None:
        """An idle agent has a call: report it now, not at the next turn of the clock."""
        self._wake.set()

    # -- the announcement ------------------------------------------------------------------------------------------

    def announce(self, endpoints: Sequence[Announced]) -> None:
        """The endpoints this sidecar speaks for, from now on, on this stream and on those to come."""
        self._announced = tuple(endpoints)
        if self._stream is not None:
            self._stream.send(mesh_codec.announcement(self._announced))

    async def withdraw(self) -> None:
        """Speak for no endpoint any more; returns when that has left this process, within a second."""
        if self._announced is None:
            return
        self.announce(())
        give_up_at = clock() + WITHDRAW_S
        await asyncio.sleep(0)
        while self._stream is not None and self._stream.stalled and clock() < give_up_at:
            await asyncio.sleep(0.01)

    # -- the stream ------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        failures = 0  # addresses in a row that said nothing, or hung up at once
        while True:
            at = self._plane.current
            self._greeted = False
            reason = await self._session_ended(at)
            if self._closing:
                return
            self._say_lost(at, reason)
            self._plane.move_on(at)
            # One that greets and hangs up is no better than a silent one: two of them would be asked in turns for ever.
            lasted = self._greeted and clock() - self._connected_at >= SESSION_S
            failures = 0 if lasted else failures + 1
            rounds, left = divmod(failures, len(self._plane.addresses))
            others = len(self._plane.addresses) > 1
            if left or (lasted and others):
                continue  # the next address at once
            await asyncio.sleep(control_delay_s(max(1, rounds), self._rng))

    async def _session_ended(self, at: int) -> str:
        """One session with one control plane; why it is over."""
        try:
            await self._session(at)
        except Ended as ended:
            return str(ended)
        except TimeoutError:
            return "no answer in time"
        except (OSError, ValueError) as error:
            return (error.strerror if isinstance(error, OSError) else None) or str(error)
        except Exception as error:
            log.exception("the link to the control plane broke off; it is made anew")
            return f"{type(error).__name__}: {error}"
        return ""

    async def _session(self, at: int) -> None:
        stream: MessageStream | None = None
        shell: Shell | None = None
        address = self._plane.addresses[at]
        try:
            async with asyncio.timeout(DIAL_TIMEOUT_S):
                shell = await connect(self._reactor, address, self._plane.context(at)(), "", _keep_alive)
            conn = shell.conn
            assert isinstance(conn, ClientConnection)
            stream = MessageStream(conn, head_for(address, PATH, self._plane.fields()), MAX_MESSAGE_BYTES)
            stream.send(mesh_codec.hello(self._facts(), self._pushed.resources.values()))
            async with asyncio.timeout(WELCOME_TIMEOUT_S):
                message = mesh_codec.read_response(await stream.receive())
            self._greet(address, message)
            self._stream = stream
            if self._announced is not None:
                stream.send(mesh_codec.announcement(self._announced))
            self._reporting = self._reactor.loop.create_task(self._report(stream), name="load reports")
            while True:
                await self._take(stream, message)
                message = mesh_codec.read_response(await stream.receive())
        finally:
            self._stream = None
            if self._reporting is not None:
                self._reporting.cancel()
                self._reporting = None
            if stream is not None:
                stream.close()
            if shell is not None:
                shell.close()

    def _greet(self, address: str, message: mesh_codec.Response) -> None:
        if message.WhichOneof("message") == "welcome":
            self._welcome = message.welcome
        self._greeted = True
        self.sessions += 1
        self.last_error = ""
        self._connected_at = clock()
        log.info("connected to the control plane at %s, version %s", address, self._welcome.version or "unknown")

    async def _take(self, stream: MessageStream, message: mesh_codec.Response) -> None:
        if message.WhichOneof("message") == "grants" and self._rates is not None:
            said = message.grants
            self._rates.take(mesh_codec.read_grants(said), said.new_share, said.hash_key)
        if message.WhichOneof("message") != "update":
            return
        answer = await self._pushed.take(message.update)
        stream.send(mesh_codec.ack(answer.nonce, answer.refused, answer.applied_us))

    def _say_lost(self, at: int, reason: str) -> None:
        """Log changes only: a control plane that stays away says so once."""
        said = f"{self._plane.addresses[at]}: {reason}"
        if self._greeted or said != self.last_error:
            what = "is lost" if self._greeted else "cannot be reached"
            log.warning("the control plane %s (%s); the policy in force stays", what, said)
        self.last_error = said

    # -- load ------------------------------------------------------------------------------------------------------

    async def _report(self, stream: MessageStream) -> None:
        low, high = _INTERVALS_MS
        interval_s = min(max(self._welcome.load_interval_ms or _DEFAULT_INTERVAL_MS, low), high) / 1e3
        next_at = clock()
        while True:
            now = clock()
            periodic = now >= next_at
            if periodic:
                next_at = now + interval_s
            self._wake.clear()
            if not stream.stalled:  # a control plane that does not read needs no further figures
                try:
                    found = self._loads(periodic)
                    uses = self._rates.uses() if periodic and self._rates is not None else ()
                    stream.send(mesh_codec.load(found, int(self._wall_clock() * 1e3), self._spans_dropped(), uses))
                    self.reports += 1
                except Exception:
                    log.exception("a load report could not be made; the next one is due in %g s", interval_s)
            timer = self._reactor.loop.call_later(max(0.0, next_at - clock()), self._wake.set)
            try:
                await self._wake.wait()
            finally:
                timer.cancel()

    # -- for people ------------------------------------------------------------------------------------------------

    @property
    def connected_to(self) -> str:
        """The address of the control plane that is there; empty without one."""
        return self._plane.addresses[self._plane.current] if self._stream is not None else ""

    def state(self) -> dict[str, Any]:
        """The link as plain data."""
        welcome, connected = self._welcome, self._stream is not None
        return {
            "addresses": list(self._plane.addresses),
            "connected_to": self.connected_to or None,
            "connected_s": round(clock() - self._connected_at, 3) if connected else None,
            "instance_id": welcome.instance_id or None,
            "version": welcome.version or None,
            "last_error": self.last_error or None,
            "updates": self._pushed.updates,
            "held": [_shown(one) for one in self._pushed.resources.values()],
            "refused": [{**_shown(one), "reason": one.reason} for one in self._pushed.refused.values()],
            "rates": self._rates.state() if self._rates is not None else None,
        }

    def families(self) -> list[Family]:
        """The link as metrics."""
        counts = [((outcome,), float(count)) for outcome, count in self._pushed.counts.items()]
        connected = [((address,), float(address == self.connected_to)) for address in self._plane.addresses]
        return [
            Family("outrider_control_connected", "gauge", "1: watched here.", ("address",), connected),
            Family("outrider_control_sessions", "counter", "Control planes that answered.", (), [((), self.sessions)]),
            Family("outrider_control_resources", "counter", "Pushed, by outcome.", ("outcome",), counts),
            Family("outrider_control_updates", "counter", "Updates received.", (), [((), self._pushed.updates)]),
            Family("outrider_control_load_reports", "counter", "Load reports sent.", (), [((), self.reports)]),
        ]


def _shown(one: Resource) -> dict[str, Any]:
    return {"kind": KIND_NAMES[one.kind], "name": one.name, "version": one.version}


def _keep_alive(conn: ClientConnection) -> None:
    conn.limits = replace(conn.limits, ping_interval_s=PING_INTERVAL_S, ping_timeout_s=PING_TIMEOUT_S)
