"""A control plane and three sidecars share a limit: what passes in sum, what refusals say, who gets what is left."""

from __future__ import annotations

import threading
import time
from typing import Any

import grpc

from outrider_control.publish.quotas import WARM_MS
from tests.controls import Control, holds
from tests.sidecars import Calls, Mesh, Peer, Sidecar, agent, channel_to, code_of, eventually

PER_MIN, BURST_S = 600, 2.0
PER_S = PER_MIN / 60


class Hammer:
    """Calls one sidecar without a pause until `stop`."""

    def __init__(self, sidecar: Sidecar):
        self.passed: list[float] = []
        self.refused: list[Any] = []
        self.other: list[Any] = []
        self._target = sidecar.target
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with channel_to(self._target) as channel:
            calls = Calls(channel, metadata=[("x-agent-id", "one")])
            while not self._stopped.wait(0.01):
                call = calls.unary(b"x")
                if code_of(call) == grpc.StatusCode.OK:
                    self.passed.append(time.monotonic())
                elif code_of(call) == grpc.StatusCode.RESOURCE_EXHAUSTED:
                    self.refused.append(call)
                else:
                    self.other.append(call)

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()


def hammered(sidecars: list[Sidecar], seconds: float) -> tuple[list[Hammer], float]:
    """The hammers once they have stopped, and for how long they were at it."""
    began = time.monotonic()
    hammers = [Hammer(sidecar) for sidecar in sidecars]
    time.sleep(seconds)
    for hammer in hammers:
        hammer.stop()
    return hammers, time.monotonic() - began


def rates_of(sidecar: Sidecar) -> dict[str, Any]:
    return sidecar.json("/config")["control_link"]["rates"]


def test_three_sidecars_pass_one_limit_together(mesh: Mesh, peer: Peer) -> None:
    control = Control(mesh, "rates")
    started = time.monotonic()
    control.apply(agent("one", peer, rates={"agent_requests_per_min": PER_MIN, "burst_s": BURST_S}))
    sidecars = [mesh.sidecar({"control": [control.target]}, f"rates-{number}") for number in range(3)]
    for sidecar in sidecars:
        eventually(lambda sidecar=sidecar: holds(sidecar, "one"), "the agent reaches the sidecar")
        eventually(lambda sidecar=sidecar: rates_of(sidecar)["new_share"] == 1 / 3, "all three are counted")

    hammers, seconds = hammered(sidecars, 3.0)
    passed = sum(len(hammer.passed) for hammer in hammers)
    assert [hammer.other for hammer in hammers] == [[], [], []]
    # They begin with a third each: nobody is told of a share of it later than the others.
    assert PER_S * (seconds + BURST_S) * 0.75 <= passed <= PER_S * (seconds + BURST_S) + len(sidecars)
    for hammer, sidecar in zip(hammers, sidecars, strict=True):
        call = hammer.refused[-1]
        assert call.details().startswith(
            f"agent 'one' allows {PER_MIN} requests a minute of all its calls over all sidecars "
            "(rates.agent_requests_per_min): try again in "
        )
        assert 0 < int(dict(call.trailing_metadata())["grpc-retry-pushback-ms"]) <= 2_200
        limited = sidecar.metric("outrider_rate_limited_total", agent="one", limit="rates.agent_requests_per_min")
        assert limited == len(hammer.refused)
        assert sidecar.metric("outrider_shed_total", agent="one") == 0

    eventually(lambda: time.monotonic() - started > WARM_MS / 1e3, "the control plane gives shares")
    began = time.monotonic()
    (alone,), seconds = hammered(sidecars[:1], 6.0)
    late = [at for at in alone.passed if at > began + seconds - 2.0]
    assert len(late) >= 2.0 * PER_S * 0.75  # what the others do not need is its own
    assert len(alone.passed) <= PER_S * (seconds + BURST_S) + len(sidecars)

    control.kill()  # offline the last share holds
    eventually(lambda: sidecars[0].json("/config")["control_link"]["connected_to"] is None, "the link is lost")
    (offline,), seconds = hammered(sidecars[:1], 1.5)
    assert PER_S * seconds * 0.6 <= len(offline.passed) <= PER_S * (seconds + BURST_S) + 1
    for sidecar in sidecars:
        sidecar.terminate()
        assert sidecar.wait_exit() == 0
