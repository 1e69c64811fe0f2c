"""Retry and hedge: further attempts of one call, within its deadline and the agent's budget.

Always holds: nothing is retried once reply headers have gone to the caller, nor when the request can no longer be
replayed whole; what the endpoint vouches it did not process (REFUSED_STREAM, GOAWAY, no connection) is tried again at
once and costs no budget; everything else costs budget and waits a jittered backoff or the endpoint's pushback. Only
methods the policy calls idempotent are hedged, and none while `hedge_off` is taken.
"""

from __future__ import annotations

from typing import Any, Final

from outrider.policy import Agent
from outrider_http2.head import Rest
from outrider_sidecar.core import errors
from outrider_sidecar.core.attempt import Attempt, pushback_s
from outrider_sidecar.core.call import Call, Step
from outrider_sidecar.core.degraded import HEDGE_OFF, mark
from outrider_sidecar.core.runtime import AgentState, Runtime
from outrider_sidecar.engines.backoff import retry_delay_s
from outrider_sidecar.engines.budget import RetryBudget

_TRANSPARENT_TRIES: Final = 3  # beyond one per endpoint
_MAX_TRIES: Final = 32  # however many endpoints there are: a try refused at once makes the next from within


class Retrier:
    """What one agent's policy says about failures; one for all its calls."""

    def __init__(self, agent: Agent, state: AgentState, runtime: Runtime):
        self._policy = agent.retry
        self._hedge = agent.hedge
        self._state = state
        self._runtime = runtime
        self._statuses = frozenset(errors.NUMBERS[name] for name in agent.retry.statuses)
        if state.retry is None:
            state.retry = RetryBudget(agent.retry)
        else:
            state.retry.configure(agent.retry)
        self._budget: RetryBudget = state.retry

    def __call__(self, call: Call, attempt: Attempt, status: int, rest: Rest | None, processed: bool) -> bool:
        """Whether another attempt of the call is (or will be) under way."""
        if call.body is None or call.replied or call.over:
            return False
        now = self._runtime.clock()
        if not processed:
            if len(call.tried) >= min(len(self._state.pool.endpoints) + _TRANSPARENT_TRIES, _MAX_TRIES):
                return False
            return self._again(call)
        policy = self._policy
        tries = len(call.tried)
        if status not in self._statuses or tries >= policy.max_attempts:
            return False
        delay_s = retry_delay_s(policy, tries, self._runtime.rng)
        pushback = pushback_s(rest) if rest is not None else None
        if pushback is not None:
            if pushback < 0:
                return False
            delay_s = pushback
        if (call.deadline and now + delay_s >= call.deadline) or not self._budget.withdraw(now):
            return False
        call.attempt = None
        timer = self._runtime.wheel.at(now + delay_s, lambda: self._later(call))
        call.done.append(lambda _: timer.cancel())
        return True

    def _later(self, call: Call) -> None:
        if not call.over and call.attempt is None:
            self._again(call)

    def _again(self, call: Call) -> bool:
        call.attempt = None
        call.steps[-1](call)
        return True

    def begin(self, call: Call) -> None:
        call.retrier = self
        self._budget.deposit(self._runtime.clock())

    def begin_hedged(self, call: Call) -> None:
        """As `begin`; a further attempt follows if the first is still silent after the delay."""
        self.begin(call)
        delay_s = self._hedge.delay_ms / 1e3
        timer = self._runtime.wheel.at(self._runtime.clock() + delay_s, lambda: self._hedge_now(call, 1))
        call.done.append(lambda _: timer.cancel())

    def _hedge_now(self, call: Call, number: int) -> None:
        if call.over or call.replied or call.body is None or not call.request_ended or call.attempt is None:
            return
        first = call.attempt
        if not self._state.pool.has_room(call.labels):
            return  # a hedge takes a free slot or none
        if self._state.ladder.takes(HEDGE_OFF):
            mark(call, HEDGE_OFF)
            return
        hedge = self._state.pool.make(call)
        if hedge is None:
            return
        under_way = [attempt.endpoint for attempt in call.hedges or [first]]
        if hedge.endpoint in under_way or not self._budget.withdraw(self._runtime.clock()):
            self._state.pool.discard(hedge)
            return  # a second try at the same endpoint would only add load
        call.tried.append(hedge.endpoint)
        call.hedges = [*(call.hedges or [first]), hedge]
        hedge.start()
        if number < self._hedge.max_hedges and not call.over:
            again = self._runtime.clock() + self._hedge.delay_ms / 1e3
            timer = self._runtime.wheel.at(again, lambda: self._hedge_now(call, number + 1))
            call.done.append(lambda _: timer.cancel())


def build(agent: Agent, state: AgentState, runtime: Runtime) -> Step:
    """The step for one agent."""
    retrier = Retrier(agent, state, runtime)
    if not agent.hedge.enabled:
        deposit = state.retry.deposit

        def retry(call: Call) -> None:
            call.retrier = retrier
            deposit(call.started_at)

        return retry
    names = agent.hedge.idempotent_methods
    known: dict[bytes, bool] = {}

    def retry_or_hedge(call: Call) -> None:
        path = call.head.path
        idempotent = known.get(path)
        if idempotent is None:
            idempotent = matches(path, names)
            if len(known) < 1_024:
                known[path] = idempotent
        if idempotent:
            retrier.begin_hedged(call)
        else:
            retrier.begin(call)

    return retry_or_hedge


def matches(path: bytes, names: Any) -> bool:
    """Whether a method path is one of `names` ("/pkg.Svc/Method" or "/pkg.Svc/*")."""
    text = path.decode("ascii", "replace")
    return text in names or text[: text.rfind("/") + 1] + "*" in names
