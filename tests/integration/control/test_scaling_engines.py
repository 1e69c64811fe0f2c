"""What is asked of an engine: each number once, by who leads, within the bounds; and what if it does not do it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from outrider.operator import Operator
from outrider.v1.operator_pb2 import ScaleRecord
from tests.controls import Control, holds, watching
from tests.fleets import INTERVAL_MS, QUICK
from tests.scale_hook import Hook
from tests.sidecars import Calls, Mesh, Peer, Sidecar, channel_to, eventually, new_key

CAPACITY = 2  # calls at once of one instance, as the policy says
# Exactly what the demand needs, whatever the numbers on the way there.
EXACT = {**QUICK, "cooldown_s": 300, "scale_up": 0.7, "tolerance": 0.0, "capacity": CAPACITY}
Hold = Callable[[int], None]


@pytest.fixture(scope="module")
def hook(mesh: Mesh) -> Hook:
    return Hook(mesh)


@pytest.fixture(scope="module")
def control(mesh: Mesh, hook: Hook) -> Control:
    return Control(mesh, "alone", scaling=scaling(hook, "alone"))


@pytest.fixture(scope="module")
def caller(mesh: Mesh, control: Control, peer: Peer) -> Sidecar:
    apply(control, peer, "first")
    return mesh.sidecar({"control": [control.target]}, "caller")


def scaling(hook: Hook, name: str) -> dict[str, Any]:
    return {"interval_ms": INTERVAL_MS, "engines": {"hook": hook.engine(name)}}


def apply(control: Control, peer: Peer, agent_id: str, **more: Any) -> None:
    policy = {"agent_id": agent_id, "endpoints": [peer.address], "scaling": {**EXACT, **more}}
    with Operator(control.target) as operator:
        operator.apply_agents([policy], "test")


def scale(control: Control, agent_id: str) -> ScaleRecord:
    with Operator(control.target) as operator:
        return operator.explain_scale(agent_id).scale


def leads(control: Control) -> bool:
    with Operator(control.target) as operator:
        return operator.get_status().leader


def come_to(control: Control, agent_id: str, ready: int, desired: int) -> ScaleRecord:
    def there() -> ScaleRecord | None:
        now = scale(control, agent_id)
        return now if (now.ready, now.desired) == (ready, desired) else None

    try:
        return eventually(there, f"{ready} of {desired} instances of {agent_id} serve", 30)
    except AssertionError as error:
        raise AssertionError(f"{error}; now:\n{scale(control, agent_id)}") from None


@contextlib.contextmanager
def holding(sidecar: Sidecar, peer: Peer, agent_id: str) -> Iterator[Hold]:
    """Starts so many more calls that run until the block ends; then all must succeed."""
    key, started = new_key(), []
    eventually(lambda: holds(sidecar, agent_id), f"{agent_id} reaches the sidecar")
    with channel_to(sidecar.target) as channel:
        calls = Calls(channel, [("x-agent-id", agent_id)], 90)

        def hold(count: int) -> None:
            started.extend([calls.start("Unary", b"x", key=key, hold=True) for _ in range(count)])

        try:
            yield hold
        finally:
            peer.control("release", key=key)
        assert [call.result() for call in started] == [b"x"] * len(started)


def changes(control: Control, agent_id: str) -> list[dict[str, Any]]:
    """What the journal has of changed numbers, oldest first."""
    told = control.json("decisions", "--kind", "scale", "--agent", agent_id)["decisions"]
    return [one for one in reversed(told) if one["outcome"]["action"] != "hold"]


def moves(control: Control, agent_id: str) -> list[int]:
    return [one["outcome"]["to"] for one in changes(control, agent_id)]


def notes(control: Control, agent_id: str) -> str:
    """What it has of reasons not to change a number."""
    told = control.json("decisions", "--kind", "scale", "--agent", agent_id)["decisions"]
    return "\n".join(one["reason"] for one in told if one["outcome"]["action"] == "hold")


def asked(posts: Sequence[dict[str, Any]]) -> list[tuple[str, int]]:
    return [(one["by"], one["desired"]) for one in posts]


def test_the_bounds_and_the_cost_cap_hold_with_a_reason(
    control: Control, caller: Sidecar, peer: Peer, hook: Hook
) -> None:
    apply(control, peer, "bounded", max_instances=2)
    apply(control, peer, "poor", instance_usd_per_h=2.0, max_usd_per_h=7.0)
    with holding(caller, peer, "bounded") as bounded, holding(caller, peer, "poor") as poor:
        bounded(4 * CAPACITY)
        poor(4 * CAPACITY)
        for agent_id, most, why in (
            ("bounded", 2, "; max_instances is 2"),
            ("poor", 3, "; 7 USD per hour pay for 3"),
        ):
            come_to(control, agent_id, most, most)
            decided = f"8 calls (over {QUICK['stable_window_s']} s) need 6 at 70% of 2 each (policy)"
            record = eventually(
                lambda agent_id=agent_id, decided=decided: (
                    (now := scale(control, agent_id)).reason.startswith(f"hold {now.desired}: ")
                    and decided in now.reason
                    and now
                ),
                "the whole demand is decided on",
            )
            assert record.reason.endswith(why)
            assert (record.state, record.max_instances) == ("scaling", most)
            told = [(one["outcome"]["to"], one["reason"]) for one in changes(control, agent_id)]
            assert [(one["desired"], one["reason"]) for one in hook.posts(agent_id)] == told


def test_an_engine_that_does_not_do_what_it_takes_on_is_asked_for_no_more(
    control: Control, caller: Sidecar, peer: Peer, hook: Hook
) -> None:
    apply(control, peer, "lied")
    come_to(control, "lied", 1, 1)
    hook.mode("lied", "lie")
    with holding(caller, peer, "lied") as hold:
        hold(2 * CAPACITY)
        come_to(control, "lied", 1, 3)
        what = "what is taken on is not taken for what is there"
        eventually(lambda: ((now := scale(control, "lied")).ready, now.starting) == (1, 2), what)
        record = eventually(
            lambda: (now := scale(control, "lied")).reason.startswith("hold 3: ") and now, "it is decided again"
        )
        assert "with 1 serving" in record.reason
        by_key = {one["idempotency_key"]: one["desired"] for one in hook.posts("lied")}
        assert list(by_key.values()) == moves(control, "lied"), "it is not asked for more"
        hook.mode("lied", "take")
        come_to(control, "lied", 3, 3)
        again = hook.posts("lied")[-1]
        assert (again["desired"], again["mode"], again["idempotency_key"] in by_key) == (3, "take", True)


@pytest.mark.parametrize(
    ("mode", "why"),
    [("fail", "it cannot just now (503: no machine is free)"), ("nonsense", "ready is no number from 0 to 10000")],
)
def test_an_engine_that_fails_is_said_and_nothing_less_is_asked_of_it(
    control: Control, caller: Sidecar, peer: Peer, hook: Hook, mode: str, why: str
) -> None:
    name = f"is-{mode}"
    apply(control, peer, name, min_instances=2)
    come_to(control, name, 2, 2)
    with holding(caller, peer, name) as hold:
        hook.mode(name, mode)
        hold(3 * CAPACITY)
        record = eventually(
            lambda: (now := scale(control, name)).state == "failing" and now, "it is said that the engine fails", 30
        )
        assert why in record.problem
        assert record.ready == 2
        hold(1)
        assert control.json("status")["warnings"][-1].startswith(f"scaling of {name}: engine hook: ")
        assert why in notes(control, name)
        assert all(one["desired"] >= 2 for one in hook.posts(name))
        hook.mode(name, "take")
        eventually(lambda: scale(control, name).state == "scaling", "the engine works again", 60)
        come_to(control, name, 5, 5)


@pytest.fixture
def pair(mesh: Mesh, hook: Hook, postgres_url: str) -> Iterator[tuple[Control, Control]]:
    first, second = [Control(mesh, name, database=postgres_url, scaling=scaling(hook, name)) for name in ("one", "two")]
    yield first, second
    for control in (first, second):
        if control.child.process.poll() is None:
            control.stop()  # else it holds on to the database


def test_only_who_leads_asks_and_who_is_next_goes_on(
    mesh: Mesh, hook: Hook, pair: tuple[Control, Control], peer: Peer
) -> None:
    first, second = pair
    apply(second, peer, "shared", max_instances=20)
    sidecar = mesh.sidecar({"control": [second.target, first.target]}, "of-both")  # its reports come to who follows
    with holding(sidecar, peer, "shared") as hold:
        hold(2 * CAPACITY)
        come_to(first, "shared", 3, 3)
        come_to(second, "shared", 3, 3)  # as the leader says
        assert (leads(first), leads(second)) == (True, False)
        before = moves(second, "shared")
        assert before[-1] == 3
        assert asked(hook.posts("shared")) == [("one", to) for to in before]
        assert len({one["idempotency_key"] for one in hook.posts("shared")}) == len(before)

        # Killed while it asks: whoever is next finds the number, sees that it is not there, and asks for it.
        hook.mode("shared", "stall")
        hold(2 * CAPACITY)
        eventually(lambda: hook.posts("shared")[-1]["mode"] == "stall", "the leader asks for more", 30)
        first.kill()
        eventually(lambda: leads(second), "the other one leads")
        hook.mode("shared", "take")
        come_to(second, "shared", 6, 6)
        hold(2 * CAPACITY)
        come_to(second, "shared", 9, 9)
        assert watching(sidecar)
        taken = [one for one in hook.posts("shared")[len(before) :] if one["mode"] == "take"]
        assert {one["by"] for one in taken} == {"two"}
        numbers = [one["desired"] for one in taken]
        assert numbers == sorted(set(numbers)), "each number is taken on once"
        decided = moves(second, "shared")
        assert set(numbers) <= set(decided)
        assert decided == sorted(set(decided)), "and decided on once"
