"""What is sent for a conversation: block by block, decided once, never touched again but at an epoch.

Always holds: what stands for a block depends on the block, on what stands before it and on decisions that the ledger
keeps, and on nothing that comes after it; so a prompt that only grows keeps its prefix byte for byte. What is sent is
never larger than what came. Blocks of people, of the operator and of the agent itself are only counted; verbatim ones
and those of denied tools as well. Work is bounded by the budget: what is left then stays as it is, and says so.

An epoch clears old tool results, oldest first, all but the newest: only where the controller says that it pays. A
budget in tokens (`max_input_tokens`) leaves out in the policy's order and remembers what it has left out.

Deliberately not here: formats of messages (`openai_messages`, the sidecar's native adapter), whose ledger (`filters`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from outrider.policy import Compression
from outrider_sidecar.compress import catalog
from outrider_sidecar.compress.block import (
    COMPRESSIBLE,
    CONTEXT,
    MARKER,
    TOOL,
    USER,
    Block,
    Budget,
    Context,
    Result,
    digest_of,
    handle_of,
    label_of,
    marked,
    size,
)
from outrider_sidecar.compress.controller import PREFIX_SURE, Controller
from outrider_sidecar.compress.ledger import (
    CLEARED,
    COMPRESSED,
    DROPPED,
    SENT,
    Decision,
    Ledger,
    Made,
    Memo,
    chain_of,
)
from outrider_sidecar.compress.tokens import Count, estimate

_SEEN_CHARS: Final = 200  # shorter blocks are not pointed at
_QUESTION_CHARS: Final = 2_000
_CLEARED: Final = f"{MARKER}cleared/1 "
_SUMMARY: Final = f"{MARKER}summary/1 "
_SUMMARIZED_CHARS: Final = 2_000  # shorter results are cleared without a summary

Summaries = Callable[[str], str | None]  # by handle


@dataclass(frozen=True, slots=True)
class Part:
    """One block in its place."""

    path: str  # "messages[3].parts[0]"
    block: Block
    fixed: bool = False  # never touched: verbatim, of a denied tool, or of a kind that is not ours
    relevance: float | None = None  # of context
    group: int = -1  # parts that go together: a call and its results, a turn; -1: alone


@dataclass(slots=True)
class Sent:
    """What stands for one part."""

    part: Part
    text: str | None  # None: it is left out
    decision: Decision
    chain: bytes
    is_new: bool  # decided by this very plan


@dataclass(slots=True)
class Plan:
    """What is sent for a conversation."""

    sent: list[Sent] = field(default_factory=list)
    originals: dict[str, str] = field(default_factory=dict)  # handle -> text, to be kept
    notes: list[str] = field(default_factory=list)
    unsummarized: list[tuple[str, Block]] = field(default_factory=list)  # (handle, result) an epoch may soon clear
    bytes_before: int = 0
    bytes_after: int = 0
    epoch: bool = False  # history was edited

    @property
    def changed(self) -> bool:
        return any([one.decision.action != SENT for one in self.sent])

    @property
    def tokens_before(self) -> int:
        """Of what came."""
        return sum([one.decision.tokens_before for one in self.sent])

    @property
    def tokens_after(self) -> int:
        """Of what is sent."""
        return sum([one.decision.tokens_after for one in self.sent])


@dataclass(slots=True)
class Planner:
    """Everything a plan is made from but the conversation. `lossy` and `lossless` as the policy's mode says."""

    policy: Compression
    controller: Controller
    ledger: Ledger
    memo: Memo
    count: Count = estimate
    node: str = ""
    mode: str = ""  # empty: the policy's

    def plan(
        self,
        parts: Sequence[Part],
        now: float,
        scope: bytes = b"",
        treated: bool = True,
        turns: int = 0,
        max_tokens: int = 0,
        summaries: Summaries | None = None,
    ) -> Plan:
        """`scope` keeps conversations apart that must share nothing (tenant, session); `treated`: whether new blocks
        are compressed; `turns`: that the conversation has had; `max_tokens`: a budget in place of the policy's;
        `summaries`: those there are of old results, where some are wanted."""
        plan = Plan()
        mode = self.mode or self.policy.mode
        budget = Budget(self.policy.max_steps)
        seen: dict[bytes, str] = {}
        sure_tokens = round(PREFIX_SURE * self.controller.rules.min_prefix)
        question, chain, prefix_tokens, saved = "", scope, 0, 0
        for part in parts:
            block = part.block
            if block.role == USER:
                question = block.text[-_QUESTION_CHARS:]
            digest = block.digest()
            chain = chain_of(chain, block.role, digest)
            decision = self.ledger.get(chain, now)
            is_new = decision is None
            if decision is None:
                if not part.fixed and treated and mode != "off":
                    context = Context(budget, seen, question, self.policy.lossy_ratio, self.count, self.node)
                    decision = self._decide(block, digest, context, mode, min(prefix_tokens, sure_tokens), saved)
                else:
                    decision = _as_it_is(self.count(block.text))
                self.ledger.put(chain, decision, now)
            plan.sent.append(Sent(part, _text_of(block, decision), decision, chain, is_new))
            saved += decision.tokens_before - decision.tokens_after
            prefix_tokens += decision.tokens_after
            result = decision.result
            if result is not None and result.handle:
                plan.originals[result.handle] = block.text
            if len(block.text) >= _SEEN_CHARS and decision.action in (SENT, COMPRESSED):
                seen.setdefault(digest, block.source or block.role)
            plan.bytes_before += size(block.text)
            plan.bytes_after += size(plan.sent[-1].text or "")
        if budget.exhausted:
            plan.notes.append("the budget of work was used up: some blocks stay as they are")
        if mode == "lossy" and treated:
            self._epoch(plan, turns, now, summaries)
        self._fit(plan, max_tokens or self.policy.max_input_tokens, now)
        return plan

    def pending(self, parts: Sequence[Part], now: float, scope: bytes = b"") -> list[tuple[bytes, Block, str]]:
        """(key of the memo, block, question) of the blocks that a plan would have to compress."""
        mode = self.mode or self.policy.mode
        found: list[tuple[bytes, Block, str]] = []
        question, chain = "", scope
        for part in parts:
            block = part.block
            if block.role == USER:
                question = block.text[-_QUESTION_CHARS:]
            digest = block.digest()
            chain = chain_of(chain, block.role, digest)
            if part.fixed or block.role not in COMPRESSIBLE or self.ledger.get(chain, now) is not None:
                continue
            key = self._memo_key(block, digest, question, mode)
            if key not in self.memo:
                found.append((key, block, question))
        return found

    # -- one block ---------------------------------------------------------------------------------------------------

    def _decide(
        self, block: Block, digest: bytes, context: Context, mode: str, prefix_tokens: int, saved: int
    ) -> Decision:
        if marked(block.text) or size(block.text) < self.policy.min_tokens:
            return _as_it_is(self.count(block.text))
        result, before, after = self._made(block, digest, context, mode)
        if result is None or before < self.policy.min_tokens:
            return _as_it_is(before)
        if not self.controller.takes(prefix_tokens, before, after, saved):
            return Decision(SENT, None, before, before, "it would not pay")
        return Decision(COMPRESSED, result, before, after)

    def _made(self, block: Block, digest: bytes, context: Context, mode: str) -> Made:
        if digest in context.seen:  # depends on the conversation: never remembered by the block alone
            pointed = catalog.lossless(block, context)
            if pointed is not None:
                return Made(pointed, self.count(block.text), self.count(pointed.text))
        key = self._memo_key(block, digest, context.question, mode)
        known = self.memo.get(key)
        if known is not None:
            return known
        made = made_of(block, context, mode, self.policy, self.count)
        if not context.budget.exhausted:
            self.memo.put(key, made)
        return made

    def _memo_key(self, block: Block, digest: bytes, question: str, mode: str) -> bytes:
        """By everything that `made_of` looks at."""
        asked = f"{mode}\0{block.role}\0{block.source}\0{block.media_type}"
        if mode == "lossy":  # what is selected depends on the question
            asked += f"\0{self.policy.lossy_ratio}\0{self.node}\0{question}"
        return chain_of(digest_of(asked), "memo", digest)

    # -- the whole ---------------------------------------------------------------------------------------------------

    def _epoch(self, plan: Plan, turns: int, now: float, summaries: Summaries | None) -> None:
        """Clear old tool results, where the whole is past its bound and clearing pays. Summaries are wanted from half
        that bound on."""
        after = self.policy.clear_after_tokens
        if not after or plan.bytes_after < after:  # cannot have half as many
            return
        counts = [one.decision.tokens_after for one in plan.sent]
        total = sum(counts)
        tools = [at for at, one in enumerate(plan.sent) if self._may_clear(one)]
        old = tools[: max(0, len(tools) - self.policy.clear_keep)]
        if not old or 2 * total < after:
            return
        if summaries is not None:
            for at in old:
                block = plan.sent[at].part.block
                handle = handle_of(block.text, self.node)
                if len(block.text) >= _SUMMARIZED_CHARS and summaries(handle) is None:
                    plan.unsummarized.append((handle, block))
        if total <= after:
            return
        markers = {at: self._marker(plan.sent[at].part.block, summaries) for at in old}
        removed = sum([counts[at] - self.count(markers[at]) for at in old])
        if not self.controller.epoch_pays(sum(counts[old[0] :]) - removed, removed, turns):
            return
        for at in old:
            self._clear(plan, at, now, markers[at])
        plan.epoch = True
        plan.notes.append(f"an epoch: {len(old)} old tool results were cleared, {removed} tokens")

    def _marker(self, block: Block, summaries: Summaries | None = None) -> str:
        """What stands for a cleared result."""
        handle = handle_of(block.text, self.node)
        label = label_of(block.digest())
        source = block.source or "a tool"
        summary = summaries(handle) if summaries is not None else None
        if summary is None:
            return f"{_CLEARED}{label}: what {source} gave was cleared; fetch it by handle {handle}"
        return f"{_SUMMARY}{label}: what {source} gave, in short; fetch it by handle {handle}\n{summary}"

    def _may_clear(self, one: Sent) -> bool:
        return (
            one.part.block.role == TOOL
            and not one.part.fixed
            and one.decision.action in (SENT, COMPRESSED)
            and len(one.text or "") > 200
        )

    def _clear(self, plan: Plan, at: int, now: float, marker: str) -> None:
        one = plan.sent[at]
        text = one.part.block.text
        handle = handle_of(text, self.node)
        name = "summary/1" if marker.startswith(_SUMMARY) else "clear/1"
        result = Result(marker, "tool_result", name, size(text) - size(marker), False, handle)
        before = one.decision.tokens_before
        decision = Decision(CLEARED, result, before, self.count(marker), "old, and cleared at an epoch")
        plan.bytes_after += size(marker) - size(one.text or "")
        plan.originals[handle] = text
        self.ledger.put(one.chain, decision, now)
        plan.sent[at] = Sent(one.part, marker, decision, one.chain, True)

    def _fit(self, plan: Plan, max_tokens: int, now: float) -> None:
        """Leave out what may be, in the policy's order, until the whole fits."""
        if not max_tokens or plan.bytes_after < max_tokens:  # a token has a byte at least
            return
        counts = [one.decision.tokens_after for one in plan.sent]
        total = sum(counts)
        if total <= max_tokens:
            return
        for what in self.policy.drop_first:
            for several in self._droppable(plan, what):
                if total <= max_tokens:
                    return
                plan.epoch = True
                for at in several:
                    one = plan.sent[at]
                    if what == "tool_results":
                        self._clear(plan, at, now, self._marker(one.part.block))
                        total += plan.sent[at].decision.tokens_after - counts[at]
                        continue
                    decision = Decision(DROPPED, None, one.decision.tokens_before, 0, "left out for the token budget")
                    self.ledger.put(one.chain, decision, now)
                    plan.bytes_after -= size(one.text or "")
                    plan.sent[at] = Sent(one.part, None, decision, one.chain, True)
                    total -= counts[at]
        if total > max_tokens:
            plan.notes.append(f"{total} tokens are left, which is more than the budget of {max_tokens}")

    def _droppable(self, plan: Plan, what: str) -> list[list[int]]:
        """What may go, in the order in which it goes; what stands together goes together."""
        rows = [(at, one) for at, one in enumerate(plan.sent) if one.text is not None]
        if what == "context":
            found = [at for at, one in rows if one.part.block.role == CONTEXT and not one.part.fixed]
            return [[at] for at in sorted(found, key=lambda at: (_relevance(plan.sent[at].part), -at))]
        if what == "tool_results":
            tools = [at for at, one in rows if self._may_clear(one)]
            return [[at] for at in tools[: max(0, len(tools) - self.policy.clear_keep)]]
        # Whole turns with their calls and results, oldest first; never what the operator said, nor the last turn.
        last = max([one.part.group for _, one in rows], default=-1)
        groups: dict[int, list[int]] = {}
        for at, one in rows:
            if 0 <= one.part.group < last:
                groups.setdefault(one.part.group, []).append(at)
        return [groups[group] for group in sorted(groups)]


def made_of(block: Block, context: Context, mode: str, policy: Compression, count: Count) -> Made:
    """What compressors make of a block that nothing is known of. Where its original has to be kept it is small enough
    to be."""
    before = count(block.text)
    result = catalog.lossless(block, context)
    after = count(result.text) if result is not None else before
    if mode == "lossy" and after >= policy.lossy_min_tokens and size(block.text) <= policy.handle_max_bytes:
        lossy = catalog.lossy(block, context)
        if lossy is not None and (result is None or size(lossy.text) < size(result.text)):
            result, after = lossy, count(lossy.text)
    return Made(result, before, after)


def _as_it_is(tokens: int) -> Decision:
    return Decision(SENT, None, tokens, tokens)


def _text_of(block: Block, decision: Decision) -> str | None:
    if decision.action == DROPPED:
        return None
    return decision.result.text if decision.result is not None else block.text


def _relevance(part: Part) -> float:
    return part.relevance if part.relevance is not None else 1.0
