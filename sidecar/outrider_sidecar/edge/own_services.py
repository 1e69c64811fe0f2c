"""Calls the sidecar answers itself: health (grpc.health.v1), reflection (v1 and v1alpha), and its own service.

Always holds: they are steps like any other, so they are traced and end by the caller's deadline or cancellation; open
streams are bounded in number and in what they hold, and end once their connection drains, so that they never hold up
a shutdown. Watchers hear of a change within LOOK_EVERY_S.

Deliberately not here: when these steps are taken (filter `identify`), descriptors (`reflection`, loaded by the first
reflection call), what the methods of the sidecar's own service do (the modules beside), the health of agents: name the
agent, and its own health service answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from outrider_http2.stream import Stream
from outrider_sidecar.core import errors
from outrider_sidecar.core.call import Call, Step
from outrider_sidecar.core.payload import UNKNOWN_ENCODING
from outrider_sidecar.core.runtime import Runtime
from outrider_sidecar.edge.protobuf import bytes_field, last_bytes, varint_field
from outrider_sidecar.filters.deadline import parse_timeout_s
from outrider_sidecar.payloads.wire import Deframer, Unreadable, one_message

HEALTH = b"/grpc.health.v1.Health"
REFLECTION = b"/grpc.reflection.v1.ServerReflection"
REFLECTION_ALPHA = b"/grpc.reflection.v1alpha.ServerReflection"
SIDECAR = b"/outrider.v1.Sidecar"
SERVICES = (
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
    "outrider.v1.Agent",
    "outrider.v1.Sidecar",
)
NAMES = frozenset(("", *SERVICES))  # health is known of; "" is the sidecar as a whole

MAX_STREAMS = 1_024  # watches and reflection streams, all callers together
MAX_REQUEST_BYTES = 16 * 1024
MAX_WAITING = 256  # requests of one reflection stream whose caller does not read, or asks faster than it is answered
ANSWERS_PER_TURN = 8  # of one reflection stream: an answer takes some 20 us
LOOK_EVERY_S = 0.25  # while there are streams
SERVING, NOT_SERVING, SERVICE_UNKNOWN = 1, 2, 3


def own_services(runtime: Runtime, serving: Callable[[str], bool]) -> Mapping[bytes, Step]:
    """The steps by the path of their service. `serving(name)`, for any of NAMES: whether calls are taken now."""
    streams = Streams(runtime)
    return {
        HEALTH: Health(serving, streams).step,
        REFLECTION: Reflection("grpc.reflection.v1", streams).step,
        REFLECTION_ALPHA: Reflection("grpc.reflection.v1alpha", streams).step,
    }


def sidecar_service(methods: Mapping[bytes, Step]) -> Mapping[bytes, Step]:
    """The step of the service `outrider.v1.Sidecar` by its path, of the steps by its methods' names."""
    by_path = {SIDECAR + b"/" + name: step for name, step in methods.items()}

    def sidecar(call: Call) -> bool:
        step = by_path.get(call.head.path)
        return step(call) if step is not None else unimplemented(call)

    return {SIDECAR: sidecar}


class Streams:
    """Calls that stay open. While there are any, each is looked at in turn, every LOOK_EVERY_S."""

    def __init__(self, runtime: Runtime):
        self._runtime = runtime
        self._open: dict[Call, Callable[[Call], Any]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, call: Call, look: Callable[[Call], Any]) -> bool:
        """Have `look(call)` called until the call is over; False when the call was refused."""
        if len(self._open) >= MAX_STREAMS:
            call.fail(errors.RESOURCE_EXHAUSTED, f"{MAX_STREAMS} streams of health and reflection are open already")
            return False
        self._open[call] = look
        call.on_done(self._forget)
        if call.timer is None:
            end_in_time(call)
        if self._timer is None:
            self._timer = self._runtime.reactor.loop.call_later(LOOK_EVERY_S, self._look)
        return not call.over

    def _forget(self, call: Call) -> None:
        del self._open[call]
        if not self._open and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        turn = self._runtime.reactor.turn
        turn.begin()
        for call, look in list(self._open.items()):
            if call.over:
                continue
            down = call.down
            stuck = down.queue is not None
            look(call)
            draining = isinstance(down, Stream) and down.conn.draining
            if not call.over and draining and (stuck or down.queue is None):
                call.fail(errors.UNAVAILABLE, "the sidecar is draining this connection")
        turn.end()
        if self._open and self._timer is None:
            self._timer = self._runtime.reactor.loop.call_later(LOOK_EVERY_S, self._look)


def end_in_time(call: Call) -> None:
    """The call ends by its caller's deadline, where it has one."""
    raw = call.rest.values.get(b"grpc-timeout")
    left_s = parse_timeout_s(raw) if raw is not None else None
    if left_s is not None:
        call.set_deadline(call.started_at + left_s)


# -- health ------------------------------------------------------------------------------------------------------------


class Health:
    """Check, List and Watch."""

    def __init__(self, serving: Callable[[str], bool], streams: Streams):
        self._serving = serving
        self._streams = streams
        self._methods: dict[bytes, Callable[[Call, str], Any]] = {
            HEALTH + b"/Check": self._check,
            HEALTH + b"/List": self._list,
            HEALTH + b"/Watch": self._watch,
        }

    def step(self, call: Call) -> bool:
        """Answers one call, once its request is whole."""
        method = self._methods.get(call.head.path)
        if method is None:
            return unimplemented(call)
        if call.timer is None:
            end_in_time(call)
        if call.want_body(MAX_REQUEST_BYTES, self.step):
            return True
        try:
            encoding = call.head.values.get(b"grpc-encoding", b"")
            message = one_message(b"".join(call.body or ()), encoding, MAX_REQUEST_BYTES)
        except Unreadable as error:
            return unreadable(call, error.reason)
        method(call, last_bytes(message, 1).decode("utf-8", "replace"))
        return True

    def _status(self, name: str) -> int:
        return SERVING if self._serving(name) else NOT_SERVING

    def _check(self, call: Call, name: str) -> None:
        if name not in NAMES:
            call.fail(errors.NOT_FOUND, f"no service {name[:100]!r} here; health is known of {', '.join(SERVICES)}")
            return
        answer(call, varint_field(1, self._status(name)))

    def _list(self, call: Call, _: str) -> None:
        entries = [(name.encode(), varint_field(1, self._status(name))) for name in sorted(NAMES)]
        answer(call, b"".join([bytes_field(1, bytes_field(1, name) + bytes_field(2, one)) for name, one in entries]))

    def _watch(self, call: Call, name: str) -> None:
        told = 0

        def tell(call: Call) -> None:
            nonlocal told
            status = self._status(name) if name in NAMES else SERVICE_UNKNOWN
            if status != told and call.down.queue is None:  # who does not read is told the newest later
                told = status
                call.reply_data(_framed(varint_field(1, status)))

        if self._streams.add(call, tell):
            call.reply_head(errors.REPLY_HEAD)
            tell(call)


# -- reflection --------------------------------------------------------------------------------------------------------


class Reflection:
    """ServerReflectionInfo of one version of the service."""

    def __init__(self, package: str, streams: Streams):
        self._package = package
        self._path = f"/{package}.ServerReflection/ServerReflectionInfo".encode()
        self._streams = streams

    def step(self, call: Call) -> bool:
        """Opens the stream of one call."""
        if call.head.path != self._path:
            return unimplemented(call)
        from outrider_sidecar.edge.reflection import answer

        if self._streams.add(call, _nothing):
            Conversation(call, lambda message: answer(self._package, message)).begin()
        return True


class Conversation:
    """A bidirectional stream answered message by message, in order.

    Stands where a call's attempt stands: it takes the live request, and while the caller does not read replies the
    request is not credited, so that it stops too.
    """

    def __init__(self, call: Call, answer: Callable[[bytes], bytes]):
        self._call = call
        self._answer = answer
        self._deframer = Deframer(call.head.values.get(b"grpc-encoding", b""), MAX_REQUEST_BYTES)
        self._waiting: list[bytes] = []  # messages whose turn has not come
        self._ended = False
        self._busy = False
        self._again_due = False
        self.stream = self

    def begin(self) -> None:
        """Take over the call with what has come of its request."""
        call = self._call
        data, ended = b"".join(call.body or ()), call.request_ended
        call.drop_body()
        call.attempt = self
        call.reply_head(errors.REPLY_HEAD)
        self.send_data(data, ended)

    # What a call asks of the attempt that takes its request.

    @property
    def queue(self) -> Any:
        """None when there is room for more of the request."""
        return self._waiting or None

    def send_data(self, data: bytes, end: bool) -> None:
        """A piece of the request."""
        self._waiting += self._deframer.feed(data)
        self._ended = end
        if len(self._waiting) > MAX_WAITING:
            self._call.fail(errors.RESOURCE_EXHAUSTED, f"{MAX_WAITING} requests of this stream wait for an answer")
        elif not self._again_due:
            self._go_on()

    def reply_taken(self, sent_bytes: int, all_taken: bool) -> None:
        """The caller reads."""
        if all_taken and self._waiting and not self._again_due:
            self._go_on()

    def abort(self) -> None:
        """The call is over."""
        self._waiting.clear()

    def _go_on(self) -> None:
        """Answer what waits, as far as the caller reads and the turn allows."""
        call = self._call
        if self._busy:  # a reply that leaves at once may bring us here again
            return
        self._busy = True
        for _ in range(ANSWERS_PER_TURN):
            if call.over or not self._waiting or call.down.queue is not None:
                break
            call.reply_data(_framed(self._answer(self._waiting.pop(0))))
        self._busy = False
        if call.over:
            return
        if self._waiting:
            if call.down.queue is None:
                self._again_due = True
                call.runtime.reactor.loop.call_soon(self._again)
        elif self._deframer.reason:
            unreadable(call, self._deframer.reason)
        elif self._ended:
            call.attempt = None
            call.reply_tail(errors.ERROR_TAILS[errors.OK], b"", errors.OK)
        else:
            call.request_taken(0, True)

    def _again(self) -> None:
        self._again_due = False
        self._go_on()


def answer(call: Call, message: bytes) -> None:
    """The whole reply to a unary call."""
    call.reply_head(errors.REPLY_HEAD)
    call.reply_data(_framed(message))
    call.reply_tail(errors.ERROR_TAILS[errors.OK], b"", errors.OK)


def unimplemented(call: Call) -> bool:
    """The call names no method that is served here."""
    return call.fail(errors.UNIMPLEMENTED, f"{call.head.path_text[:200]} is no method of this sidecar's own services")


def unreadable(call: Call, reason: str) -> bool:
    """The request is no message that can be read; `reason` as in `payloads.wire`."""
    status = errors.UNIMPLEMENTED if reason == UNKNOWN_ENCODING else errors.INVALID_ARGUMENT
    return call.fail(status, f"the request cannot be read: {reason}")


def _framed(message: bytes) -> bytes:
    return b"\0" + len(message).to_bytes(4, "big") + message


def _nothing(_: Call) -> None:
    """Nothing changes by itself."""
