"""Feedback on calls: `CollectFeedback` of the sidecar's own service, from the caller to the control plane.

Always holds: what is answered as taken cannot be lost: the control plane has it, or the spool. Of one request either
all right items are taken or none. An item waits `HOLD_S` at most for others to go with it. While the spool holds
anything, everything goes through it, so that the order stays. A control plane that cannot be reached, or refuses the
sidecar, costs nothing but the wait; nothing of a call waits for any of this.

Deliberately not here: whose variant a call had (the control plane joins feedback with calls: an index of recent calls
here would cost every call, for what nothing in the contract carries), the bytes (`edge.feedback_codec`).
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from typing import Any

from outrider.feedback_check import MAX_ITEMS, made_id, problem
from outrider_sidecar.core import errors
from outrider_sidecar.core.call import Call
from outrider_sidecar.core.metric import Family, Labels
from outrider_sidecar.core.runtime import Runtime
from outrider_sidecar.core.span import DETACHED
from outrider_sidecar.edge import feedback_codec as codec
from outrider_sidecar.edge.control_rpc import ControlRpc
from outrider_sidecar.edge.feedback_codec import Outcome
from outrider_sidecar.edge.feedback_spool import NotKept, Spool
from outrider_sidecar.edge.own_services import answer, end_in_time, unreadable
from outrider_sidecar.edge.rpc import RpcReply
from outrider_sidecar.engines.backoff import control_delay_s
from outrider_sidecar.payloads.wire import Unreadable, one_message

log = logging.getLogger(__name__)

DELIVER = "/outrider.v1.Mesh/DeliverFeedback"
HOLD_S = 1.0  # how long an item waits at most for others
TIMEOUT_S = 3.0  # of one delivery
OPEN_EVERY_S = 2.0  # a spool that another process has
MAX_REQUEST_BYTES = 4 * 1024 * 1024
MAX_WAITING = 10_000  # items of callers that wait for their answer
MAX_WAITING_BYTES = 16 * 1024 * 1024
DELIVERY_BYTES = 1024 * 1024  # of one delivery, unless one item is larger
QUEUED = "queued"
REFUSED = "refused"
_OVERHEAD_BYTES = 128  # of an item, beside its own
_NEVER = float("inf")


class _Group:
    """What one call brought: its right items, and where their outcomes go."""

    __slots__ = ("call", "due", "items", "outcomes", "places")

    def __init__(self, call: Call, due: float, outcomes: list[Outcome], places: list[int], items: list[bytes]):
        self.call = call
        self.due = due
        self.outcomes = outcomes  # of all items; of those at `places` only the id is known yet
        self.places = places
        self.items = items


class Feedback:
    """`start`, then `step` for every call, then `close`. `control`: None where the sidecar stands alone."""

    def __init__(self, runtime: Runtime, control: ControlRpc | None, spool: Spool, instance_id: str, min_batch: int):
        self._runtime = runtime
        self._control = control
        self._spool = spool
        self._instance_id = instance_id
        self._min_batch = min_batch
        self._groups: deque[_Group] = deque()
        self._waiting = 0  # items of `_groups`
        self._waiting_bytes = 0
        self._wake = asyncio.Event()
        self._flushing = False
        self._task: asyncio.Task[None] | None = None
        self._failures = 0  # deliveries in a row that did not reach a control plane
        self._retry_at = 0.0
        self._why = ""  # the last delivery failed
        self._open_at = 0.0  # when the spool is to be opened; it may be another process's for a while
        self.counts: dict[str, int] = {}

    def start(self) -> None:
        """Begin to deliver, with what a process before left."""
        self._task = self._runtime.reactor.loop.create_task(self._run(), name="feedback")

    async def close(self) -> None:
        """Settle what waits, and end. What is in the spool stays there."""
        self._flushing = True
        self._wake.set()
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)
        await asyncio.to_thread(self._spool.close)

    def families(self) -> list[Family]:
        """For /metrics."""
        counts: list[tuple[Labels, float]] = [((outcome,), count) for outcome, count in self.counts.items()]
        return [
            Family("outrider_feedback", "counter", "Pieces of feedback by what became of them.", ("outcome",), counts),
            Family("outrider_feedback_queued", "gauge", "Kept for the control plane.", (), [((), self._spool.count)]),
            Family("outrider_feedback_lost", "counter", "Records unreadable on disk.", (), [((), self._spool.lost)]),
        ]

    # -- a call ----------------------------------------------------------------------------------------------------

    def step(self, call: Call) -> bool:
        """Takes one CollectFeedback, once its request is whole."""
        call.hop |= DETACHED  # it is no call of an agent, and counts as none
        if call.timer is None:
            end_in_time(call)
        if call.want_body(MAX_REQUEST_BYTES, self.step):
            return True
        try:
            body = one_message(
                b"".join(call.body or ()), call.head.values.get(b"grpc-encoding", b""), MAX_REQUEST_BYTES
            )
            items = codec.read(body)
        except Unreadable as error:
            return unreadable(call, error.reason)
        except ValueError as error:
            return call.fail(errors.INVALID_ARGUMENT, str(error))
        call.drop_body()
        if not 0 < len(items) <= MAX_ITEMS:
            return call.fail(
                errors.INVALID_ARGUMENT, f"feedback: has {len(items):,} items; 1 to {MAX_ITEMS:,} are taken"
            )
        self._take(call, items)
        return True

    def _take(self, call: Call, items: Sequence[Any]) -> None:
        runtime = self._runtime
        agent_id = call.value(b"x-agent-id").decode("ascii", "replace")
        now_ms = int(runtime.wall_clock() * 1e3)
        outcomes: list[Outcome] = []
        places: list[int] = []
        right: list[bytes] = []
        for at, item in enumerate(items):
            if agent_id:
                item.agent_id = agent_id
            reason = problem(item)
            feedback_id = item.feedback_id if reason else made_id(item)
            outcomes.append(Outcome(feedback_id, REFUSED if reason else QUEUED, reason))
            if reason:
                self._count(REFUSED, 1)
                continue
            item.feedback_id = feedback_id
            item.at_unix_ms = item.at_unix_ms or now_ms
            places.append(at)
            right.append(item.SerializeToString())
        if not right:
            answer(call, codec.write_reply(outcomes))
            return
        size = sum(map(len, right))
        if self._waiting + len(right) > MAX_WAITING or self._waiting_bytes + size > MAX_WAITING_BYTES:
            reason = f"{self._waiting:,} pieces of feedback wait to be delivered already: send it again later"
            call.fail(errors.RESOURCE_EXHAUSTED, reason)
            return
        now = runtime.clock()
        hold_s = min(HOLD_S, (call.deadline - now) / 2) if call.deadline else HOLD_S
        self._groups.append(_Group(call, now + hold_s, outcomes, places, right))
        self._waiting += len(right)
        self._waiting_bytes += size
        self._wake.set()

    # -- delivery --------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            due = self._due()
            now = self._runtime.clock()
            if due <= now:
                if self._groups and self._groups_due() <= now:
                    await self._settle()
                elif self._open_at <= now:
                    await self._open()
                else:
                    await self._replay()
            elif self._flushing and not self._groups:
                return
            else:
                await self._sleep(due - now)

    def _groups_due(self) -> float:
        if not self._groups:
            return _NEVER
        if self._flushing or self._waiting >= self._min_batch:
            return 0.0
        return min([group.due for group in self._groups])

    def _due(self) -> float:
        """When there is something to do."""
        replay_at = _NEVER
        if self._spool.count and self._control is not None and not self._flushing:
            replay_at = self._retry_at
        return min(self._groups_due(), replay_at, _NEVER if self._flushing else self._open_at)

    async def _sleep(self, delay_s: float) -> None:
        self._wake.clear()
        loop = self._runtime.reactor.loop
        timer = loop.call_later(delay_s, self._wake.set) if delay_s != _NEVER else None
        try:
            await self._wake.wait()
        finally:
            if timer is not None:
                timer.cancel()

    async def _settle(self) -> None:
        """Deliver or keep what waits, and answer."""
        groups = self._next()
        items = [item for group in groups for item in group.items]
        if self._control is not None and not self._spool.count and self._runtime.clock() >= self._retry_at:
            outcomes = await self._deliver(items)
            if outcomes is not None:
                self._answer(groups, outcomes)
                return
        await self._keep(groups)

    def _next(self) -> list[_Group]:
        """The groups that go together."""
        taken = [self._groups.popleft()]
        size = sum(map(len, taken[0].items))
        count = len(taken[0].items)
        while self._groups:
            group = self._groups[0]
            size += sum(map(len, group.items))
            count += len(group.items)
            if size > DELIVERY_BYTES or count > MAX_ITEMS:
                break
            taken.append(self._groups.popleft())
        for group in taken:
            self._waiting -= len(group.items)
            self._waiting_bytes -= sum(map(len, group.items))
        return taken

    async def _deliver(self, items: Sequence[bytes]) -> list[Outcome] | None:
        """What the control plane made of them, one outcome each; None: it has not said."""
        assert self._control is not None
        outcomes: list[Outcome] = []
        for part in _parts(items):
            reply = await self._ask(part)
            if reply.status == errors.INVALID_ARGUMENT and len(part) > 1:  # one of them, then: the others need not go
                for item in part:
                    reply = await self._ask([item])
                    found = self._read(reply, 1)
                    if found is None:
                        return None
                    outcomes += found
                continue
            found = self._read(reply, len(part))
            if found is None:
                return None
            outcomes += found
        return outcomes

    async def _ask(self, items: Sequence[bytes]) -> RpcReply:
        assert self._control is not None
        request = codec.write_delivery(self._instance_id, items)
        try:
            return await self._control.unary(DELIVER, request, TIMEOUT_S)
        except Exception as error:  # a defect of ours must not end the task that keeps what is said
            log.exception("feedback could not be sent")
            return RpcReply(errors.INTERNAL, text=str(error))

    def _read(self, reply: RpcReply, count: int) -> list[Outcome] | None:
        if reply.status == errors.INVALID_ARGUMENT and count == 1:
            self._reached("")
            return [Outcome("", REFUSED, errors.decode_message(reply.text.encode()))]
        found = codec.read_reply(reply.message) if reply.status == errors.OK else []
        if reply.status == errors.OK and len(found) == count:
            self._reached("")
            return found
        text = errors.decode_message(reply.text.encode("ascii", "replace")) or "it did not answer as it should"
        self._reached(f"{errors.NAMES[reply.status]}: {text[:200]}")
        return None

    def _reached(self, why_not: str) -> None:
        if why_not:
            self._failures += 1
            self._retry_at = self._runtime.clock() + control_delay_s(self._failures, self._runtime.rng)
            if not self._why:
                log.warning("feedback cannot be delivered and is kept: %s", why_not)
        else:
            self._failures, self._retry_at = 0, 0.0
            if self._why:
                log.info("feedback is delivered again")
        self._why = why_not

    # -- the spool -------------------------------------------------------------------------------------------------

    async def _open(self) -> None:
        try:
            await asyncio.to_thread(self._spool.open)
            self._open_at = _NEVER
        except NotKept as error:
            if not self._open_at:
                log.warning("feedback is only taken while the control plane can be reached: %s", error)
            self._open_at = self._runtime.clock() + OPEN_EVERY_S

    async def _keep(self, groups: Sequence[_Group]) -> None:
        kept = await asyncio.to_thread(self._append, groups)
        for group, why_not in zip(groups, kept, strict=True):
            if why_not is None:
                reason = self._kept_reason()
                self._answer([group], [Outcome("", QUEUED, reason)] * len(group.items))
            else:
                status = errors.RESOURCE_EXHAUSTED if why_not.is_full else errors.UNAVAILABLE
                self._refuse(
                    group, status, f"the feedback cannot be kept: {why_not}. {self._state()}: send it again later"
                )

    def _append(self, groups: Sequence[_Group]) -> list[NotKept | None]:
        """Why each could not be kept; off the loop."""
        found: list[NotKept | None] = []
        for group in groups:
            try:
                self._spool.append(group.items)
                found.append(None)
            except NotKept as error:
                found.append(error)
            except OSError as error:
                found.append(NotKept(error.strerror or str(error)))
        try:
            self._spool.sync()
        except NotKept as error:
            return [one or error for one in found]
        return found

    def _state(self) -> str:
        if self._control is None:
            return "No control plane is configured"
        return f"The control plane has not taken it ({self._why})" if self._why else "What came before goes first"

    def _kept_reason(self) -> str:
        where = "on disk" if self._spool.is_durable else "in memory (state_dir would keep it on disk)"
        return f"{self._state()}: it is kept {where} until it can be delivered"

    async def _replay(self) -> None:
        """Deliver the oldest of what is kept."""
        try:
            await asyncio.to_thread(self._spool.open)
            items = await asyncio.to_thread(self._spool.first, MAX_ITEMS, DELIVERY_BYTES)
        except (NotKept, OSError) as error:
            self._reached(str(error))
            return
        outcomes = await self._deliver(items) if items else []
        if outcomes is None:
            return
        await asyncio.to_thread(self._spool.done, len(items) or self._spool.count)  # nothing: none can be read any more
        for outcome in outcomes:
            self._count(outcome.outcome, 1)
            if outcome.outcome == REFUSED:
                log.error("feedback %s was refused by the control plane: %s", outcome.feedback_id, outcome.reason)

    # -- answers ---------------------------------------------------------------------------------------------------

    def _answer(self, groups: Sequence[_Group], outcomes: Sequence[Outcome]) -> None:
        turn = self._runtime.reactor.turn
        turn.begin()
        at = 0
        for group in groups:
            for place in group.places:
                told = outcomes[at]
                at += 1
                group.outcomes[place] = Outcome(group.outcomes[place].feedback_id, told.outcome, told.reason)
                self._count(told.outcome, 1)
            if not group.call.over:
                answer(group.call, codec.write_reply(group.outcomes))
        turn.end()

    def _refuse(self, group: _Group, status: int, text: str) -> None:
        turn = self._runtime.reactor.turn
        turn.begin()
        group.call.fail(status, text)
        turn.end()

    def _count(self, outcome: str, count: int) -> None:
        self.counts[outcome] = self.counts.get(outcome, 0) + count


def _parts(items: Sequence[bytes]) -> list[list[bytes]]:
    """Items as they are delivered together."""
    parts: list[list[bytes]] = [[]]
    size = 0
    for item in items:
        size += len(item) + _OVERHEAD_BYTES
        if parts[-1] and (size > DELIVERY_BYTES or len(parts[-1]) == MAX_ITEMS):
            parts.append([])
            size = len(item)
        parts[-1].append(item)
    return parts
