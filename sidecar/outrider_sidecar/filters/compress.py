"""Compress: native requests are made smaller, block by block, where the agent's policy or the call's variant says so.

Always holds: it stands below the cache, so keys are of what was asked; what is sent is never larger than what came, and
no call fails for it: what cannot be read, or takes too long, goes as it came, which the span says. A conversation's
prefix leaves byte for byte as it left before (`compress.ledger`). Blocks that would hold up the loop are compressed by
a worker process while their call is parked, for `WAIT_S` at most; where there is none yet, they stay as they are.

Deliberately not here: what is made of blocks and whether it pays (`compress`), where texts stand in a request
(`payloads.native_blocks`), the worker (`edge.compress_worker`), the same on demand (`edge.compress_service`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final

from outrider.digest import blake2b
from outrider.policy import Agent
from outrider_http2.hpack import literal
from outrider_sidecar.core.call import Call, Step
from outrider_sidecar.core.compressing import Ended, Prepared
from outrider_sidecar.core.payload import MALFORMED, TOO_LARGE
from outrider_sidecar.core.runtime import AgentState, Runtime
from outrider_sidecar.core.span import Compression
from outrider_sidecar.payloads import NATIVE_PATHS
from outrider_sidecar.payloads.fields import Broken
from outrider_sidecar.payloads.native_blocks import Spot, identity, in_order, located, replaced
from outrider_sidecar.payloads.wire import PREFIX_BYTES, Unreadable, one_message

MAX_REQUEST_BYTES: Final = 1024 * 1024
# Of blocks that a call may have compressed on the loop, so that no other call waits 2 ms for it (bench/compression).
LOOP_BYTES: Final = 9 * 1024  # of JSON; of other text a third, which takes three times as long
LOSSY_LOOP_BYTES: Final = 3 * 1024
SLICE_BYTES: Final = 128 * 1024  # a larger request is read in stages, between which others have their turn
_STAGES: Final = 3
EXACT_LOOP_BYTES: Final = 8 * 1024  # of texts that stay as they are, of which tokens are counted exactly on the loop
WAIT_S: Final = 0.25  # for the worker
FETCH: Final = "outrider_fetch_original"  # a tool result of this name asks for an original by its handle
_TRAILER: Final = b"x-outrider-tokens-saved"
_MAX_SUMMARIES_BYTES: Final = 4 * 1024 * 1024
_MAX_COMPRESSORS: Final = 32  # that are counted apart


class CompressFilter:
    """One agent's: its conversations, what pays, and what it did. `configure` with every policy."""

    __slots__ = (
        "_exact",
        "_exact_count",
        "_exact_left",
        "_runtime",
        "agent",
        "calls",
        "changed",
        "compressors",
        "controller",
        "fetched",
        "is_on",
        "ledger",
        "longest_us",
        "memo",
        "originals",
        "outcomes",
        "planner",
        "summaries",
        "tokens_after",
        "tokens_before",
        "us",
    )

    def __init__(self, agent: Agent, runtime: Runtime):
        from outrider_sidecar.compress.controller import Controller
        from outrider_sidecar.compress.conversation import Planner
        from outrider_sidecar.compress.ledger import Ledger, Memo
        from outrider_sidecar.compress.originals import Originals

        policy = agent.compression
        self._runtime = runtime
        self.agent = agent
        self.is_on = False
        self._exact = ""  # the vocabulary that counts exactly; empty: estimates
        self._exact_count: Any = None
        self._exact_left = 0  # bytes that this call may still have counted here
        self.ledger: Any = Ledger()
        self.memo: Any = Memo()
        self.originals: Any = Originals(policy.handle_max_bytes, policy.handle_ttl_s)
        self.summaries: Any = Originals(_MAX_SUMMARIES_BYTES, policy.handle_ttl_s)  # by the handles of originals
        self.controller: Any = Controller(_rules(agent))
        self.planner: Any = Planner(policy, self.controller, self.ledger, self.memo, node=runtime.node)
        self.calls = 0  # that were looked at
        self.changed = 0  # of them, those that left smaller
        self.tokens_before = 0
        self.tokens_after = 0
        self.us = 0  # of processor time on the loop
        self.longest_us = 0  # of it at a time: others wait as long
        self.fetched = 0  # originals that were asked for
        self.compressors: dict[str, list[int]] = {}  # name -> blocks, tokens saved
        self.outcomes: dict[str, int] = {}  # why a call left as it came
        self.configure(agent)

    def configure(self, agent: Agent) -> None:
        """Take a policy; what was sent stays as it was sent."""
        from outrider_sidecar.compress import tokens

        policy = agent.compression
        self.agent = agent
        self.is_on = agent.optimization.compression and policy.mode != "off"
        self.controller.rules = _rules(agent)
        self.originals.configure(policy.handle_max_bytes, policy.handle_ttl_s)
        self.planner.policy = policy
        self._exact = ""
        self.planner.count = tokens.estimate
        if policy.exact_tokens:
            vocabulary, _ = tokens.vocabulary_of(policy.model)
            try:
                self._exact_count = tokens.exact(vocabulary)
                self.planner.count = self._counted
                self._exact = vocabulary
            except LookupError:
                pass  # the estimate it is; `state` says so

    @property
    def is_exact(self) -> bool:
        return bool(self._exact)

    def _counted(self, text: str) -> int:
        """The planner's count: exact while that holds up nobody, else the estimate."""
        from outrider_sidecar.compress import tokens

        if len(text) > self._exact_left:
            return tokens.estimate(text)
        self._exact_left -= len(text)
        counted: int = self._exact_count(text)
        return counted

    # -- one call ----------------------------------------------------------------------------------------------------

    def step(self, call: Call) -> bool | None:
        """The step."""
        wanted = call.compress
        if not (self.is_on if wanted is None else wanted) or call.head.path not in NATIVE_PATHS:
            return None
        if call.want_body(MAX_REQUEST_BYTES, self.step):
            return True
        body = call.body
        if not call.request_ended or call.body_bytes > MAX_REQUEST_BYTES:
            self._aside(call, TOO_LARGE)
            return None
        if body is None:
            return None
        started = time.thread_time()
        self._exact_left = EXACT_LOOP_BYTES
        one: Prepared | None = call.prepared
        if one is None:
            one = call.prepared = Prepared()
        now = self._runtime.clock()
        try:
            while one.stage < _STAGES:
                self._prepare(call, one, body, now)
                one.stage += 1
                if call.body_bytes > SLICE_BYTES:
                    return self._pause(call, started)
        except Unreadable as error:
            self._aside(call, error.reason)
            return None
        except Broken:
            self._aside(call, MALFORMED)
            return None
        heavy = self._heavy(one, now)
        if heavy and not one.asked and self._hand_out(call, one, heavy):
            self._took(int((time.thread_time() - started) * 1e6))
            return True
        return self._send(call, one, now, started, not heavy)

    def _prepare(self, call: Call, one: Prepared, body: list[bytes], now: float) -> None:
        """One stage of reading a request: of a large one each is work for about a millisecond."""
        if one.stage == 0:
            one.message = self._message(call, body)
        elif one.stage == 1:
            one.spots = located(one.message)
            one.tenant, one.scope = self._scope(call, one.message)
        else:
            one.parts = self.parts(one.spots, one.tenant, now)
            self.planner.pending(one.parts, now, one.scope)  # which hashes the blocks, for good

    def _pause(self, call: Call, started: float) -> bool:
        """Other calls have their turn before this one goes on."""
        call.parked_here = True
        self._runtime.reactor.loop.call_soon(self._go_on, call)
        self._took(int((time.thread_time() - started) * 1e6))
        return True

    def _go_on(self, call: Call) -> None:
        if call.over or not call.parked_here:
            return
        call.parked_here = False
        call.at -= 1
        call.run()

    def _message(self, call: Call, body: list[bytes]) -> bytes:
        """The message of a request, in the order that the policy lets it be put in."""
        message = one_message(b"".join(body), call.head.values.get(b"grpc-encoding", b""))
        policy = self.agent.compression
        if policy.order_tools or policy.order_json_keys:
            message = in_order(message, policy.order_tools, policy.order_json_keys)
        return message

    def _aside(self, call: Call, reason: str) -> None:
        call.note(f"compress: {reason}")
        self.outcomes[reason] = self.outcomes.get(reason, 0) + 1

    def _scope(self, call: Call, message: bytes) -> tuple[str, bytes]:
        """The tenant, and what keeps this conversation apart from those it must share nothing with."""
        session = call.value(b"x-session-id").decode("utf-8", "replace")
        tenant = call.value(b"x-tenant-id").decode("utf-8", "replace")
        if not session or not tenant:
            said_session, said_tenant = identity(message)
            session, tenant = session or said_session, tenant or said_tenant
        return tenant, blake2b(f"{tenant}\0{session}".encode(), digest_size=16).digest()

    def parts(self, spots: Sequence[Spot], tenant: str, now: float) -> list[Any]:
        """The conversation as the planner sees it."""
        from outrider_sidecar.compress.block import Block
        from outrider_sidecar.compress.conversation import Part

        denied = self.agent.compression.deny_tools
        parts: list[Any] = []
        for spot in spots:
            fixed = not spot.replaceable or spot.verbatim or (spot.role == "tool" and spot.source in denied)
            text = spot.text
            if spot.source == FETCH and spot.role == "tool" and spot.replaceable:
                text, fixed = self._original(text, tenant, now), True
            media_type = "application/json" if spot.is_json else ""
            block = Block(text, spot.role, spot.source, media_type)
            parts.append(Part(spot.path, block, fixed, spot.relevance, spot.turn))
        return parts

    def _original(self, text: str, tenant: str, now: float) -> str:
        """What a handle stands for; where it is not known any more, the handle."""
        found: str | None = self.originals.get(tenant, text.strip(), now) if len(text) < 200 else None
        if found is None:
            return text
        self.fetched += 1
        return found

    # -- off the loop ------------------------------------------------------------------------------------------------

    def _heavy(self, one: Prepared, now: float) -> list[Any]:
        """The blocks that a worker has to be asked for; none where they are few enough for the loop."""
        pending: list[Any] = self.planner.pending(one.parts, now, one.scope)
        lossy = self.agent.compression.mode == "lossy" or self._exact
        return pending if is_heavy(pending, bool(lossy)) else []

    def _hand_out(self, call: Call, one: Prepared, pending: list[Any]) -> bool:
        """Whether a worker has taken them: then the call is parked, and runs this step again."""
        from outrider_sidecar.compress.work import Job

        worker: Any = self._runtime.compressor
        if worker is None:
            return False
        policy = self.agent.compression
        node = self._runtime.node
        jobs = [Job(block, question, policy.mode, policy, node, self._exact) for _, block, question in pending]
        keys: list[bytes] = [key for key, _, _ in pending]
        memo = self.memo

        def made(found: list[Any] | None) -> None:
            for key, result in zip(keys, found or (), strict=False):
                memo.put(key, result)
            self._go_on(call)

        one.asked = call.parked_here = True
        if not worker.offer(jobs, made, WAIT_S):
            call.parked_here = False
            return False
        return True

    # -- what is sent ------------------------------------------------------------------------------------------------

    def _send(self, call: Call, one: Prepared, now: float, started: float, may_compress: bool) -> bool | None:
        treated = self._treated(call, one.parts, one.scope, now)
        turns = max([spot.turn for spot in one.spots], default=-1) + 1
        if not may_compress:
            call.note("compress: too much at once, and no worker was there in time: new blocks stay as they are")
            self.outcomes["no_worker"] = self.outcomes.get("no_worker", 0) + 1
        policy = self.agent.compression
        found = (lambda handle: self.summaries.get(one.tenant, handle, now)) if policy.summary_agent else None
        plan: Any = self.planner.plan(one.parts, now, one.scope, treated and may_compress, turns, 0, found)
        self._summarize(plan, one.tenant)
        for handle, text in plan.originals.items():
            self.originals.keep(one.tenant, handle, text, now)
        changed = replaced(one.message, one.spots, [sent.text for sent in plan.sent])
        us = int((time.thread_time() - started) * 1e6)
        self._count(call, plan, us, treated)
        for note in plan.notes:
            call.note(f"compress: {note}")
        self.ledger.expire(now)
        self.originals.expire(now)
        if changed is one.message and not (policy.order_tools or policy.order_json_keys):
            return None
        return not call.replace_body(b"\0" + len(changed).to_bytes(PREFIX_BYTES - 1, "big") + changed)

    def _summarize(self, plan: Any, tenant: str) -> None:
        """Have old results summarized, for an epoch to come."""
        summarizer = self._runtime.summarizer
        if summarizer is None:
            return
        for handle, block in plan.unsummarized:

            def made(summary: str, handle: str = handle) -> None:
                self.summaries.keep(tenant, handle, summary, self._runtime.clock())

            summarizer.ask((self.agent.compression.summary_agent, tenant, handle), block.source, block.text, made)

    def _treated(self, call: Call, parts: list[Any], scope: bytes, now: float) -> bool:
        """Whether the conversation is compressed: asked once, and kept."""
        from outrider_sidecar.compress.ledger import SENT, Decision, chain_of

        if call.compress:
            return True  # its variant says so: a holdout would water the experiment down
        first = b""
        for part in parts:
            if part.block.role == "user":
                first = part.block.digest()
                break
        chain = chain_of(scope, "treated", first)
        known = self.ledger.get(chain, now)
        if known is None:
            treated: bool = self.controller.treats(int.from_bytes(chain[:8], "big"), now)
            self.ledger.put(chain, Decision(SENT, None, 0, 0, "treated" if treated else "held out"), now)
            return treated
        return bool(known.why == "treated")

    def _took(self, us: int) -> None:
        self.us += us
        self.longest_us = max(self.longest_us, us)

    def _count(self, call: Call, plan: Any, us: int, treated: bool) -> None:
        before: int = plan.tokens_before
        after: int = plan.tokens_after
        self.calls += 1
        self._took(us)
        self.tokens_before += before
        self.tokens_after += after
        names: list[str] = []
        for one in plan.sent:
            decision = one.decision
            name: str = decision.result.compressor if decision.result is not None else decision.action
            if name != "sent" and name not in names:
                names.append(name)
            if one.is_new and name != "sent":
                if name not in self.compressors and len(self.compressors) >= _MAX_COMPRESSORS:
                    name = "other"
                counts = self.compressors.setdefault(name, [0, 0])
                counts[0] += 1
                counts[1] += decision.tokens_before - decision.tokens_after
        if before > after:
            self.changed += 1
            call.tail_extra += literal(_TRAILER, b"%d" % (before - after))
        call.compressed = Compression(before, after, tuple(names), us)
        call.on_done(Ended(self.controller, treated).ended)


def is_heavy(pending: Sequence[tuple[bytes, Any, str]], lossy: bool) -> bool:
    """Whether to compress these blocks would hold up others."""
    size = 0
    for _, block, _ in pending:
        size += len(block.text) if block.text.startswith(("{", "[")) else 3 * len(block.text)
    return size > (LOSSY_LOOP_BYTES if lossy else LOOP_BYTES)


def _rules(agent: Agent) -> Any:
    from outrider_sidecar.compress.billing import rules_of

    return rules_of(agent.compression)


def build(agent: Agent, state: AgentState, runtime: Runtime) -> Step | None:
    """The step for one agent; None where neither its policy nor a variant ever asks for it."""
    asked = agent.optimization.compression and agent.compression.mode != "off"
    for split in state.splits:
        for variant in split.variants:
            asked = asked or bool(variant.compression)
    if not asked and state.compression is None:
        return None
    if state.compression is None:
        state.compression = CompressFilter(agent, runtime)
    else:
        state.compression.configure(agent)
    if not asked:
        return None
    if runtime.compressor is not None:
        runtime.compressor.start()  # what comes before it is ready stays as it is, for good
    return state.compression.step
