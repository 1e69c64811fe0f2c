"""One suite for every filter of a route: what `build` gives, and what a step does to any call.

A filter that has nothing to do for an agent is left out, or its step changes nothing; a step never raises, parks or
answers as it says, and whatever it has taken is given back on any end.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from outrider.policy import (
    Agent,
    Breaker,
    Degradation,
    EndpointPolicy,
    Hedge,
    Limits,
    Optimization,
    Policy,
    Rates,
    Retry,
)
from outrider.split import Split, Variant
from outrider_sidecar import stack
from outrider_sidecar.core.call import Call
from outrider_sidecar.core.runtime import AgentState, Runtime
from outrider_sidecar.filters import (
    admit,
    cache,
    compress,
    deadline,
    degrade,
    dispatch,
    experiment,
    generation,
    limit,
    payload,
    retry,
    variant_metadata,
)
from tests.wire import ECHO, Caller, Wire, agent, message

LIVE = ("agent_id", "cache", "flights", "pool", "rates", "retry")  # of AgentState: what outlives a policy
FILTERS = [
    *(deadline, payload, experiment, cache, generation, limit, compress, degrade, admit, retry, dispatch),
    variant_metadata,
]
NATIVE = "/outrider.v1.Agent/InvokeStream"
ASK = message(b"ask")

PLAIN = agent("a:1", "b:1")
FULL = agent(
    "a:1",
    "b:1",
    timeout_ms=900,
    max_timeout_ms=5_000,
    limits=Limits(3),
    retry=Retry(max_attempts=2, per_try_timeout_ms=150, backoff_ms=20),
    hedge=Hedge(True, 30, 1, (ECHO,)),
    breaker=Breaker(True, 1, 100, 100),
    optimization=Optimization(cache_enabled=True, cache_methods=(ECHO,), cache_ttl=1, streaming=False),
    rates=Rates(agent_requests_per_min=60, agent_tokens_per_min=600_000),
    degradation=Degradation(True, enter=0.0001, leave=0.0, enter_ms=0),
)
EMPTY = Agent("a")
SPLIT = Split("x", "a", (Variant("one", 0.5), Variant("two", 0.5, model="m", max_output_tokens=9, compression=True)))
POLICIES = {
    "plain": Policy({"a": PLAIN}, "a"),
    "full": Policy({"a": FULL}, "a", splits={"a": (SPLIT,)}),
    "empty": Policy({"a": EMPTY}, "a"),
}

REQUESTS: dict[str, dict[str, Any]] = {
    "unary": {"body": ASK},
    "head only": {},
    "empty": {"body": b""},
    "unfinished": {"body": ASK[:3], "end": False},
    "cut": {"body": ASK[:3]},
    "large": {"body": message(b"x" * 1_100_000)},
    "native": {"body": ASK, "path": NATIVE},
    "native garbage": {"body": b"\xff" * 50, "path": NATIVE},
    "native context": {"body": message(b"\x42\x05\x2d\0\0\0\0"), "path": NATIVE},  # a block of no relevance
}
FIELDS = [
    (),
    (("grpc-timeout", "120m"),),
    (("grpc-timeout", "0n"),),
    (("grpc-timeout", "x"),),
    (("x-cache-control", "no-cache, max-age=x"), ("grpc-encoding", "br")),
]


def reply_ok(wire: Wire, caller: Caller) -> None:
    for served in [one for one in wire.served if one.alive]:
        served.reply(message(b"1"), message(b"2"))


def reply_error(wire: Wire, caller: Caller) -> None:
    for _ in range(5):
        for served in [one for one in wire.served if one.alive]:
            served.refuse(14)
        wire.pass_s(0.05)


def reply_half(wire: Wire, caller: Caller) -> None:
    for served in [one for one in wire.served if one.alive]:
        served.begin()
        served.data(message(b"1")[:4])
        served.cancel()


def lose_all(wire: Wire, caller: Caller) -> None:
    for link in wire.links:
        link.mode = "refuse"
        link.lose()


ENDS: dict[str, Callable[[Wire, Caller], Any]] = {
    "ok": reply_ok,
    "error": reply_error,
    "half": reply_half,
    "lost": lose_all,
    "cancel": lambda wire, caller: caller.cancel(),
    "time": lambda wire, caller: wire.pass_s(7.0),
    "policy": lambda wire, caller: wire.apply(Policy()),
}


def parts(policy: str) -> tuple[Wire, AgentState, Runtime]:
    wire = Wire(POLICIES[policy])
    return wire, wire.state(), wire.runtime


def test_the_suite_knows_every_filter() -> None:
    assert set(stack.EGRESS) | set(stack.INGRESS) == set(FILTERS)


@pytest.mark.parametrize("module", FILTERS, ids=lambda module: module.__name__.rpartition(".")[2])
class TestFilter:
    @pytest.mark.parametrize("policy", POLICIES)
    def test_it_is_built_again_for_each_policy_upon_the_same_state(self, module: ModuleType, policy: str) -> None:
        wire, state, runtime = parts(policy)
        before = {name: getattr(state, name) for name in LIVE}
        step = module.build(POLICIES[policy].agents["a"], state, runtime)
        assert step is None or callable(step)
        assert {name: getattr(state, name) for name in before} == before
        wire.assert_clean()

    def test_it_says_what_it_is_and_what_always_holds(self, module: ModuleType) -> None:
        # From the source, which lies beside the module also where that is compiled and has no docstring.
        source = Path(module.__file__ or "").with_name(module.__name__.rpartition(".")[2] + ".py")
        assert "Always holds" in (ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or "")

    @pytest.mark.parametrize("request_name", REQUESTS)
    def test_its_step_raises_on_no_call_and_gives_back_what_it_took(
        self, module: ModuleType, request_name: str
    ) -> None:
        """The step alone stands before dispatch."""
        wire, state, runtime = parts("full")
        step = module.build(FULL, state, runtime)
        assert step is not None
        while module is degrade and state.ladder.observe(1.0, 0.0):
            pass  # until every step is taken
        answers: list[Any] = []

        def watched(call: Call) -> Any:
            answer = step(call)
            answers.append(answer)
            return answer

        route = runtime.snapshot.routes["a"]
        route.steps = (watched,) if module is dispatch else (watched, state.pool.dispatch)
        for fields in FIELDS:
            for name, end in ENDS.items():
                if name == "policy":
                    continue  # it would take the route under test away
                caller = wire.call(*fields, **REQUESTS[request_name])
                wire.check()
                end(wire, caller)
                wire.check()
                caller.cancel()
                for link in wire.links:
                    link.mode = "up"
                reply_ok(wire, caller)
                wire.pass_s(0.3)
                wire.assert_clean()
        assert set(answers) <= {True, False, None}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("request_name", REQUESTS)
@pytest.mark.parametrize("policy", POLICIES)
def test_all_filters_together_give_back_what_they_took(policy: str, request_name: str, end: str) -> None:
    for fields in FIELDS:
        wire = Wire(POLICIES[policy])
        callers = [wire.call(*fields, **REQUESTS[request_name]) for _ in range(4)]
        wire.check()
        ENDS[end](wire, callers[0])
        wire.check()
        for caller in callers:
            caller.cancel()
        wire.pass_s(0.3)
        reply_ok(wire, callers[0])
        wire.assert_clean()
        assert len(wire.spans) >= len(callers)


@pytest.mark.parametrize(
    ("module", "policy", "left_out"),
    [
        (cache, "plain", True),
        (cache, "full", False),
        (limit, "plain", True),
        (limit, "full", False),
        (degrade, "plain", True),
        (degrade, "full", False),
        (experiment, "plain", True),
        (experiment, "full", False),
        (generation, "plain", True),
        (generation, "full", False),
        (compress, "plain", True),
        (compress, "full", False),
        (deadline, "plain", False),
        (dispatch, "empty", False),
    ],
)
def test_a_filter_with_nothing_to_do_is_left_out(module: ModuleType, policy: str, left_out: bool) -> None:
    _, state, runtime = parts(policy)
    assert (module.build(POLICIES[policy].agents["a"], state, runtime) is None) is left_out


def test_a_policy_without_any_feature_changes_nothing_of_a_call() -> None:
    wire = Wire(Agent("a", (EndpointPolicy("a:1"),)))
    caller = wire.call(("x-any", "1"), body=ASK)
    served = wire.link().served[0]
    assert served.head is not None
    assert dict(served.head.fields) == {b"content-type": b"application/grpc", b"x-any": b"1"}
    assert set(served.head_rest.values if served.head_rest else ()) == {b"traceparent"}
    served.reply(message(b"reply"))
    assert (caller.status, caller.body) == (0, message(b"reply"))
    assert wire.spans[0].notes == ()
    wire.assert_clean()
