"""Compress and FetchOriginal of the sidecar's own service: a context made smaller on demand, and what it was.

Always holds: nobody is called; what is compressed leaves the loop where it would hold it up, and is asked for again
until a worker is there; a call that comes too soon, or with too much, is told so. Originals are given to their tenant
alone. What a request names that is not understood is an error, never a guess.

Deliberately not here: what is made of blocks (`compress`), the same on the way to an agent (filter `compress`, whose
conversations, memory and originals these are).
"""

from __future__ import annotations

from typing import Any

from outrider.policy import COMPRESSIONS, Compression
from outrider_sidecar.core import errors
from outrider_sidecar.core.call import Call
from outrider_sidecar.core.runtime import Route, Runtime
from outrider_sidecar.core.span import DETACHED
from outrider_sidecar.edge.own_services import answer, end_in_time, unreadable
from outrider_sidecar.filters.compress import CompressFilter, is_heavy
from outrider_sidecar.payloads.fields import Broken
from outrider_sidecar.payloads.native_blocks import located, replaced
from outrider_sidecar.payloads.wire import Unreadable, one_message

MAX_REQUEST_BYTES = 4 * 1024 * 1024
MAX_HANDLE_REQUEST_BYTES = 4 * 1024
WORKER_S = 5.0  # for the worker to be there, and to answer
LOOK_EVERY_S = 0.05  # whether it is there
_NO_WORKER = "no worker was there in time: large blocks stay as they are"


class CompressService:
    """The steps of the two methods, `compress` and `fetch_original`."""

    def __init__(self, runtime: Runtime):
        self._runtime = runtime

    # -- Compress --------------------------------------------------------------------------------------------------

    def compress(self, call: Call) -> bool:
        """Takes one Compress, once its request is whole."""
        from google.protobuf.message import DecodeError

        from outrider.v1 import sidecar_pb2

        call.hop |= DETACHED  # it is no call of an agent, and counts as none
        if call.timer is None:
            end_in_time(call)
        if call.want_body(MAX_REQUEST_BYTES, self.compress):
            return True
        try:
            encoding = call.head.values.get(b"grpc-encoding", b"")
            body = one_message(b"".join(call.body or ()), encoding, MAX_REQUEST_BYTES)
            request = sidecar_pb2.CompressRequest.FromString(body)
        except Unreadable as error:
            return unreadable(call, error.reason)
        except DecodeError:
            return call.fail(errors.INVALID_ARGUMENT, "it is no outrider.v1.CompressRequest")
        call.drop_body()
        asked = self._asked(call, request)
        if asked is not None:
            asked.go_on()
        return True

    def _asked(self, call: Call, request: Any) -> _Asked | None:
        """What is asked for, or None: the call has been told what is wrong."""
        snapshot = self._runtime.snapshot
        agent_id = call.value(b"x-agent-id").decode("ascii", "replace") or request.agent_id
        route = snapshot.routes.get(agent_id or snapshot.policy.default_agent)
        if route is None and agent_id:
            call.fail(errors.NOT_FOUND, f"no agent {agent_id!r} is configured")
        elif route is None:
            call.fail(errors.INVALID_ARGUMENT, "agent_id: is empty, and the sidecar has no default agent")
        elif request.mode and request.mode not in COMPRESSIONS:
            call.fail(errors.INVALID_ARGUMENT, f"mode: {request.mode[:50]!r} is none of {', '.join(COMPRESSIONS)}")
        elif request.token_budget < 0:
            call.fail(errors.INVALID_ARGUMENT, f"token_budget: is {request.token_budget}; 0 and more are taken")
        else:
            assert route is not None
            try:
                return _Asked(self._runtime, call, route, request)
            except Broken:
                call.fail(errors.INVALID_ARGUMENT, "the conversation cannot be read, or has too many parts")
        return None

    # -- FetchOriginal ---------------------------------------------------------------------------------------------

    def fetch_original(self, call: Call) -> bool:
        """Takes one FetchOriginal, once its request is whole."""
        from google.protobuf.message import DecodeError

        from outrider.v1 import sidecar_pb2

        call.hop |= DETACHED
        if call.timer is None:
            end_in_time(call)
        if call.want_body(MAX_HANDLE_REQUEST_BYTES, self.fetch_original):
            return True
        try:
            encoding = call.head.values.get(b"grpc-encoding", b"")
            body = one_message(b"".join(call.body or ()), encoding, MAX_HANDLE_REQUEST_BYTES)
            request = sidecar_pb2.FetchOriginalRequest.FromString(body)
        except Unreadable as error:
            return unreadable(call, error.reason)
        except DecodeError:
            return call.fail(errors.INVALID_ARGUMENT, "it is no outrider.v1.FetchOriginalRequest")
        if not request.handle:
            return call.fail(errors.INVALID_ARGUMENT, "handle: is empty")
        tenant = call.value(b"x-tenant-id").decode("utf-8", "replace") or request.tenant_id
        now = self._runtime.clock()
        for state in self._runtime.agents.values():
            found = state.compression.originals.get(tenant, request.handle, now) if state.compression else None
            if found is not None:
                answer(call, sidecar_pb2.FetchOriginalReply(original=found.encode()).SerializeToString())
                return True
        return call.fail(errors.NOT_FOUND, self._why_not(request.handle))

    def _why_not(self, handle: str) -> str:
        node = handle.partition("@")[2]
        if node and node != self._runtime.node:
            return f"the original {handle[:100]!r} is kept by the sidecar of node {node[:100]!r}: ask that one"
        return (
            f"the original {handle[:100]!r} is not kept here for this tenant: its time (compression.handle_ttl_s) is"
            " over, there was no room for it (compression.handle_max_bytes), or the sidecar has been started anew"
        )


class _Asked:
    """One Compress under way."""

    def __init__(self, runtime: Runtime, call: Call, route: Route, request: Any):
        from outrider.v1 import agent_pb2
        from outrider_sidecar.compress import tokens
        from outrider_sidecar.compress.billing import Rules
        from outrider_sidecar.compress.block import digest_of
        from outrider_sidecar.compress.controller import Controller
        from outrider_sidecar.compress.conversation import Planner

        state = route.state
        if state.compression is None:
            state.compression = CompressFilter(route.agent, runtime)
        owner = self._owner = state.compression
        self._runtime = runtime
        self._call = call
        self._request = request
        self._tenant = call.value(b"x-tenant-id").decode("utf-8", "replace") or request.tenant_id
        session = call.value(b"x-session-id").decode("utf-8", "replace") or request.session_id
        # A conversation of its own: nothing here is billed by a provider yet, so everything that is smaller is taken.
        self._scope = digest_of(f"on demand\0{self._tenant}\0{session}")
        policy: Compression = route.agent.compression
        self._planner = Planner(
            policy, Controller(Rules("none")), owner.ledger, owner.memo, tokens.estimate, runtime.node, request.mode
        )
        self._vocabulary = ""
        if policy.exact_tokens:
            vocabulary, _ = tokens.vocabulary_of(request.model or policy.model)
            try:
                self._planner.count = tokens.exact(vocabulary)
                self._vocabulary = vocabulary
            except LookupError:
                pass  # the reply says that it is an estimate
        whole = agent_pb2.InvokeRequest(messages=request.messages, context=request.context)
        self._message = whole.SerializeToString()
        self._spots = located(self._message)
        self._parts = owner.parts(self._spots, self._tenant, runtime.clock())
        self._give_up_at = runtime.clock() + WORKER_S
        self._waited = False

    def go_on(self) -> None:
        """Compress, here or by the worker; answers the call in the end."""
        if self._call.over:
            return
        now = self._runtime.clock()
        pending = self._planner.pending(self._parts, now, self._scope)
        lossy = (self._planner.mode or self._planner.policy.mode) == "lossy" or self._vocabulary
        heavy = is_heavy(pending, bool(lossy))
        if not heavy:
            self._answer(now, True)
        elif self._waited or self._runtime.compressor is None or now >= self._give_up_at:
            self._answer(now, False)
        elif self._offered(pending, self._give_up_at - now):
            self._waited = True
        else:
            self._runtime.reactor.loop.call_later(LOOK_EVERY_S, self._again)

    def _again(self) -> None:
        turn = self._runtime.reactor.turn
        turn.begin()
        try:
            self.go_on()
        finally:
            turn.end()

    def _offered(self, pending: list[Any], wait_s: float) -> bool:
        from outrider_sidecar.compress.work import Job

        planner = self._planner
        mode = planner.mode or planner.policy.mode
        jobs = [
            Job(block, question, mode, planner.policy, planner.node, self._vocabulary) for _, block, question in pending
        ]

        def made(found: list[Any] | None) -> None:
            for (key, _, _), one in zip(pending, found or (), strict=False):
                planner.memo.put(key, one)
            self.go_on()

        return self._runtime.compressor.offer(jobs, made, wait_s)

    def _answer(self, now: float, may_compress: bool) -> None:
        from outrider.v1 import agent_pb2, sidecar_pb2

        turns = max([spot.turn for spot in self._spots], default=-1) + 1
        budget = self._request.token_budget
        plan = self._planner.plan(self._parts, now, self._scope, may_compress, turns, budget)
        for handle, text in plan.originals.items():
            self._owner.originals.keep(self._tenant, handle, text, now)
        changed = replaced(self._message, self._spots, [one.text for one in plan.sent])
        whole = agent_pb2.InvokeRequest.FromString(changed)
        reply = sidecar_pb2.CompressReply(
            messages=whole.messages,
            context=whole.context,
            tokens_before=plan.tokens_before,
            tokens_after=plan.tokens_after,
            exact=bool(self._vocabulary),
            notes=plan.notes if may_compress else [*plan.notes, _NO_WORKER],
        )
        for one in plan.sent:
            decision = one.decision
            result = decision.result
            if result is not None or one.text is None:
                reply.blocks.add(
                    path=one.part.path,
                    kind=result.kind if result is not None else one.part.block.role,
                    compressor=result.compressor if result is not None else decision.action,
                    tokens_before=decision.tokens_before,
                    tokens_after=decision.tokens_after,
                    reversible=result is not None and result.reversible,
                    handle=result.handle if result is not None else "",
                )
        answer(self._call, reply.SerializeToString())
