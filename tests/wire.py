"""A sidecar's data path without sockets, tasks or waiting: its real runtime between callers and agents made of bytes.

    wire = Wire(agent())
    caller = wire.call(body=message(b"hello"))      # a request, on its way through the real connections
    wire.link().served[0].reply(message(b"hi"))     # what the agent answers
    assert caller.status == 0

Always holds: time moves by `pass_s` only; bytes move by `flow` (which most methods call at their end, `held` puts
off), so events can cross each other in any order; every peer checks that what it hears is in order and ends once.
`check` compares what must agree at every moment, `left` lists what has not been given back.

Deliberately not here: dialling (`edge.upstream`) and what a test expects. A `Link` stands in for a connector: it
offers attempts connections whose other end is the test's.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from typing import Any

from outrider.policy import Agent, EndpointPolicy, Policy
from outrider_http2.client import ClientConnection
from outrider_http2.head import Head, Rest
from outrider_http2.hpack import literal
from outrider_http2.limits import Limits
from outrider_http2.server import ServerConnection
from outrider_http2.shell import Reactor
from outrider_http2.stream import Stream
from outrider_sidecar import stack
from outrider_sidecar.app import OWNED
from outrider_sidecar.core.attempt import Attempt
from outrider_sidecar.core.call import Call
from outrider_sidecar.core.endpoint import Endpoint
from outrider_sidecar.core.runtime import AgentState, Runtime, Snapshot
from outrider_sidecar.core.span import Span
from outrider_sidecar.engines.epochs import Epochs
from outrider_sidecar.engines.sampler import parse_sampler
from outrider_sidecar.filters.trace import child_ids, span_of
from outrider_sidecar.payloads import Payloads
from tests.wire_bytes import Loop, Pipe, turn_of
from tests.wire_peers import Caller, Served, request_head

ECHO = "/test.Echo/Unary"
ADDRESS = "a:1"
WALL_S = 1_700_000_000.0


def agent(*addresses: str, **policy: Any) -> Agent:
    """An agent named "a"; by default with one endpoint and no policy of its own."""
    return Agent("a", tuple([EndpointPolicy(address) for address in addresses or (ADDRESS,)]), **policy)


def message(data: bytes) -> bytes:
    """One gRPC message."""
    return b"\0" + len(data).to_bytes(4, "big") + data


class Link:
    """One endpoint: its connector as the sidecar sees it, and the agent at the other end.

    `mode` is what an attempt without a connection meets: "up" connects at once, "wait" lets it wait for `come_up` or
    `refuse`, "refuse" refuses at once.
    """

    def __init__(self, wire: Wire, endpoint: Endpoint, mode: str):
        self._wire = wire
        self.endpoint = endpoint
        self.mode = mode
        self.literal = literal(b"x-outrider-endpoint", endpoint.address.encode())
        self.conn: ClientConnection | None = None
        self.conns: list[tuple[ClientConnection, ServerConnection]] = []
        self.waiting: dict[Any, None] = {}
        self.served: list[Served] = []
        self.peak = 0  # calls at once that the agent has seen
        self.hurried = 0
        self.last_error = ""
        self.closed = False
        self._changed: Callable[[], Any] = lambda: None

    # -- the connector's side --------------------------------------------------------------------------------------

    def begin(self, changed: Callable[[], Any]) -> None:
        self._changed = changed
        if self.mode == "up":
            self.come_up()

    def wait(self, attempt: Any) -> None:
        if self.closed or self.mode == "refuse":
            attempt.refused(self.last_error or "the endpoint is leaving")
            return
        self.waiting[attempt] = None
        if self.mode == "up" and self.conn is None:
            self.come_up()

    def hurry(self) -> None:
        self.hurried += 1

    def leave(self, attempt: Any) -> None:
        self.waiting.pop(attempt, None)

    def drain(self) -> None:
        self.closed = True
        self.refuse("the endpoint is leaving")
        self.conn = None
        for near, _ in self.conns:
            near.shutdown()

    @property
    def connections(self) -> int:
        return int(self.conn is not None)

    # -- the test's side -------------------------------------------------------------------------------------------

    def come_up(self) -> None:
        """A connection is made; attempts that wait are served once the agent has spoken."""
        wire = self._wire
        if self.closed or self.conn is not None:
            return
        near = ClientConnection(*wire.parts_of(wire.reactor))
        far = ServerConnection(self._accept, *wire.parts_of(wire.agents))
        near.on_ready, near.on_gone, near.on_room = self._ready, self._gone, self._serve
        near.on_closed = self._gone
        wire.join(near, far)
        self.conns.append((near, far))
        self.conn = near
        wire.flow()

    def refuse(self, reason: str = "connection refused") -> None:
        """Attempts that wait are refused."""
        self.last_error = reason
        while self.waiting:
            attempt = next(iter(self.waiting))
            del self.waiting[attempt]
            attempt.refused(reason)
        self._wire.flow()

    def set_reachable(self, reachable: bool) -> None:
        self.endpoint.reachable = reachable
        self._changed()

    def lose(self) -> None:
        """The socket breaks."""
        conns, self.conns = self.conns, []  # who waits may dial anew meanwhile
        for near, far in conns:
            for reactor, conn in ((self._wire.reactor, near), (self._wire.agents, far)):
                conn.now = self._wire.loop.now
                with turn_of(reactor):
                    conn.lost()
        self._wire.flow()

    def go_away(self) -> None:
        """The agent drains: GOAWAY with the last stream it has seen."""
        for _, far in self.conns:
            with turn_of(self._wire.agents):
                far.shutdown()
                far.finish_shutdown()
        self._wire.flow()

    def _accept(self, stream: Stream, head: Head, rest: Rest, end: bool) -> None:
        served = Served(self._wire, stream, head, rest, end)
        stream.handler = served
        self.served.append(served)
        self.peak = max(self.peak, sum(one.alive for one in self.served))

    def _ready(self, conn: ClientConnection) -> None:
        self._serve(conn)

    def _gone(self, conn: Any) -> None:
        if self.conn is conn:
            self.conn = None
            if self.waiting and self.mode == "up":
                self.come_up()

    def _serve(self, _: Any = None) -> None:
        while self.waiting and self.conn is not None and self.conn.has_room:
            attempt = next(iter(self.waiting))
            del self.waiting[attempt]
            attempt.open(self.conn)


class Wire:
    """See the module. `window_bytes` is the stream window callers and agents announce."""

    def __init__(
        self,
        policy: Agent | Policy,
        mode: str = "up",
        window_bytes: int = 65_535,
        held_bytes: int = 64 * 1024 * 1024,
        before: Callable[[Call], Any] | None = None,
    ):
        self.loop = Loop()
        self.mode = mode
        self.reactor = Reactor(self.loop, Limits(), OWNED, held_bytes)  # type: ignore[arg-type]
        peers = Limits(stream_window_bytes=window_bytes, max_streams=100_000)
        self.callers = Reactor(self.loop, peers)  # type: ignore[arg-type]
        self.agents = Reactor(self.loop, peers)  # type: ignore[arg-type]
        self.pipes: list[Pipe] = []
        self.links: list[Link] = []
        self.states: dict[int, AgentState] = {}  # by id: all there ever were
        self.spans: list[Span] = []
        self.ended: list[Call] = []
        self._before = before  # a step that runs first of all but the trace
        self._held = False
        runtime = self.runtime = Runtime(self.reactor, self.loop.time, self.wall, random.Random(7))
        runtime.epochs, runtime.payloads, runtime.sampler = Epochs(), Payloads(7), parse_sampler("")
        runtime.own_span = lambda call, parent: child_ids(call, parent, runtime)
        runtime.record = self._record
        runtime.connector = self._connector
        self.near = ServerConnection(self._accept, *self.parts_of(self.reactor))
        self.caller = ClientConnection(*self.parts_of(self.callers))
        self.apply(policy)
        self.join(self.caller, self.near)
        self.flow()

    def wall(self) -> float:
        return WALL_S + self.loop.now

    def parts_of(self, reactor: Reactor) -> tuple[Any, ...]:
        return reactor.limits, reactor.heads, reactor.turn, reactor.ledger, self.loop.now

    def apply(self, policy: Agent | Policy) -> Snapshot:
        """Put a policy in force."""
        if isinstance(policy, Agent):
            policy = Policy({policy.agent_id: policy}, policy.agent_id)
        snapshot = stack.compile_snapshot(policy, self.runtime)
        if self._before is not None:
            first, *others = snapshot.steps
            snapshot.steps = (first, self._before, *others)
        self.runtime.snapshot = snapshot
        self.states.update({id(state): state for state in self.runtime.agents.values()})
        return snapshot

    def state(self, agent_id: str = "a") -> AgentState:
        return self.runtime.agents[agent_id]

    def link(self, address: str = ADDRESS) -> Link:
        """The newest link to an address."""
        return next(link for link in reversed(self.links) if link.endpoint.address == address)

    @property
    def served(self) -> list[Served]:
        """All tries that have reached an agent, by link."""
        return [served for link in self.links for served in link.served]

    def _connector(self, endpoint: Endpoint, policy: Agent) -> Link:
        link = Link(self, endpoint, self.mode)
        self.links.append(link)
        return link

    def _record(self, call: Call) -> None:
        self.ended.append(call)
        self.spans.append(span_of(call, self.loop.now, call.snapshot.kind))

    def _accept(self, stream: Stream, head: Head, rest: Rest, end: bool) -> None:
        call = Call(self.runtime, self.runtime.snapshot, stream, head, rest, end, self.loop.now)
        stream.handler = call
        call.run()

    # -- events ----------------------------------------------------------------------------------------------------

    def join(self, one: ClientConnection, other: ServerConnection) -> None:
        """Connect two connections and exchange prefaces."""
        reactors = {id(reactor.turn): reactor for reactor in (self.reactor, self.callers, self.agents)}
        for conn, peer in ((one, other), (other, one)):
            pipe = Pipe(reactors[id(peer.turn)], peer, self.loop)
            self.pipes.append(pipe)
            conn.write_out = pipe.write
            conn.write_parts = lambda parts, pipe=pipe: pipe.write(b"".join(parts))
        for conn in (one, other):
            with turn_of(reactors[id(conn.turn)]):
                conn.open()

    def flow(self) -> None:
        """Deliver bytes until nothing moves; nothing at all while `held`."""
        if self._held:
            return
        for _ in range(20_000):
            moved = self.loop.run_soon()
            for pipe in list(self.pipes):
                moved = pipe.deliver() or moved
            if not moved:
                return
        raise AssertionError("the bytes do not come to rest")

    def hold(self) -> None:
        """Bytes stay where they are from now on, so that what is sent crosses."""
        self._held = True

    def release(self) -> None:
        """Let bytes move again."""
        self._held = False
        self.flow()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """`hold` for the length of a block."""
        self.hold()
        try:
            yield
        finally:
            self.release()

    def pass_s(self, seconds: float) -> None:
        """Let time pass, timer by timer."""
        until = self.loop.now + seconds
        more = True
        while more:
            more = self.loop.run_until(until)
            self.flow()
        for state in list(self.runtime.agents.values()):
            state.pool.tick(until)
            state.admission.look(until)
        self.flow()

    def call(
        self,
        *fields: tuple[str, str],
        body: bytes | None = None,
        end: bool = True,
        path: str = ECHO,
        reads: bool = True,
        authority: str = "test",
    ) -> Caller:
        """Begin a call; `body` is its first DATA, `end` says that nothing follows."""
        stream = self.caller.open_stream(None)
        caller = Caller(self, stream, reads)
        stream.handler = caller
        stream.send_head(request_head(path, authority, *fields), b"", end and body is None)
        if body is not None:
            stream.send_data(body, end)
        self.flow()
        return caller

    # -- what must agree -------------------------------------------------------------------------------------------

    def check(self) -> None:
        """What holds between any two events."""
        calls = self.runtime.calls
        streams = list(self.near.streams.values())
        tries = [stream for link in self.links for near, _ in link.conns for stream in near.streams.values()]
        flights: list[Any] = [call.tap for call in calls if call.tap is not None]
        held = [stream.queued for stream in streams + tries] + [one.held_bytes for one in [*calls, *flights]]
        assert self.reactor.ledger.held_bytes == sum(held)
        assert sum(call.live for call in calls) == sum(link.endpoint.pending for link in self.links)
        for stream in streams:
            if not stream.remote_closed and stream.handler is not None:
                assert isinstance(stream.handler, Call)
                owed = stream.handler.uncredited
                assert stream.recv_window + stream.credit_due + owed == self.reactor.limits.stream_window_bytes
        for stream in tries:
            if not stream.remote_closed and stream.handler is not None:
                assert isinstance(stream.handler, Attempt)
                owed = stream.handler.owed
                assert stream.recv_window + stream.credit_due + owed == self.reactor.limits.stream_window_bytes
        for state in self.states.values():
            mine = [call for call in calls if call.route is not None and call.route.state is state]
            queued = [call for call in mine if call.waiter is not None and not call.tried]
            assert state.admission.queue.waiting == len(queued)
            assert sum(state.admission.queue.lane_waiting()) == len(queued)
            admission = state.admission
            admitted = [call for call in mine if call not in queued and admission._on_done in call.done]
            assert state.in_flight == len(admitted)
            if queued:  # nobody waits for nothing
                assert state.in_flight >= admission.limit or not admission.has_room()
        for call in calls:
            assert not call.over
            if call.replied:
                assert call.hedges is None
                assert call.live <= 1
        for conn in (self.near, self.caller, *[one for link in self.links for pair in link.conns for one in pair]):
            assert conn.failed is None, conn.failed

    def left(self) -> list[str]:
        """One line for everything that has been taken and not given back."""
        counts = {
            "calls": len(self.runtime.calls),
            "permits": sum(state.in_flight for state in self.states.values()),
            "queued": sum(state.admission.queue.waiting for state in self.states.values()),
            "pending": sum(link.endpoint.pending for link in self.links),
            "waiting": sum(len(link.waiting) for link in self.links),
            "held bytes": self.reactor.ledger.held_bytes,
            "stalled": len(self.reactor.ledger.stalled),
            "timers": len(self.runtime.wheel),
            "flights": sum(len(state.cache.flights) for state in self.states.values() if state.cache),
            "streams": len(self.near.streams),
            "upstream streams": sum(len(near.streams) for link in self.links for near, _ in link.conns),
        }
        return [f"{count} {name}" for name, count in counts.items() if count]

    def assert_clean(self) -> None:
        """Everything was given back."""
        self.check()
        assert self.left() == []
