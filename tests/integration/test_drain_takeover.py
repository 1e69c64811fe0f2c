"""The end of a sidecar, and its replacement: SIGTERM drains, a second process takes the port over, no call is lost."""

from __future__ import annotations

import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from tests.sidecars import Calls, Mesh, Peer, Sidecar, agent, channel_to, eventually, health_of, new_key, standalone


@pytest.fixture
def sidecar(mesh: Mesh, peer: Peer) -> Sidecar:
    return mesh.sidecar({**standalone(peer), "drain_grace_s": 10.0}, f"drain-{new_key()}")


def test_an_idle_sidecar_ends_with_code_0(sidecar: Sidecar) -> None:
    sidecar.terminate()
    assert sidecar.wait_exit() == 0


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_calls_in_flight_are_finished(sidecar: Sidecar, peer: Peer, signum: signal.Signals) -> None:
    key = new_key()
    with channel_to(sidecar.target) as channel:
        calls = Calls(channel)
        unary = calls.start("Unary", b"x", key=key, hold=True)
        stream = calls.start("Download", b"", key=key + "s", sizes=[3, 4], hold_after=1)
        assert len(next(stream)) == 3
        peer.record(key)
        sidecar.child.process.send_signal(signum)
        eventually(lambda: sidecar.get("/readyz")[0] == 503, "it is not ready any more")
        assert sidecar.child.process.poll() is None, "calls are in flight"
        peer.control("release", key=key)
        peer.control("release", key=key + "s")
        assert unary.result() == b"x"
        assert [len(message) for message in stream] == [4]
    assert sidecar.wait_exit() == 0


def test_health_says_not_serving_while_it_drains(sidecar: Sidecar, peer: Peer) -> None:
    key = new_key()
    with channel_to(sidecar.target) as channel:
        held = Calls(channel).start("Unary", b"x", key=key, hold=True)
        peer.record(key)
        with channel_to(sidecar.target) as other:
            assert health_of(other) == "SERVING"
            sidecar.terminate()
            eventually(lambda: health_of(other) == "NOT_SERVING", "health says NOT_SERVING")
        peer.control("release", key=key)
        assert held.result() == b"x"
    assert sidecar.wait_exit() == 0


def test_the_grace_ends_what_does_not_end(mesh: Mesh, peer: Peer) -> None:
    sidecar = mesh.sidecar({**standalone(peer), "drain_grace_s": 0.3}, "short-grace")
    key = new_key()
    with channel_to(sidecar.target) as channel:
        call = Calls(channel).start("Unary", b"x", key=key, hold=True)
        peer.record(key)
        sidecar.terminate()
        assert call.exception().code() is grpc.StatusCode.UNAVAILABLE
        assert "shutting down" in call.details()
    assert sidecar.wait_exit() == 0
    peer.wait_outcome(key, "cancelled")


def test_a_second_signal_ends_it_at_once(mesh: Mesh, peer: Peer) -> None:
    sidecar = mesh.sidecar({**standalone(peer), "drain_grace_s": 600.0}, "impatient")
    key = new_key()
    with channel_to(sidecar.target) as channel:
        call = Calls(channel).start("Unary", b"x", key=key, hold=True)
        peer.record(key)
        sidecar.terminate()
        eventually(lambda: sidecar.get("/readyz")[0] == 503, "it drains")
        sidecar.terminate()
        assert sidecar.wait_exit() == 0
        assert call.exception().code() is grpc.StatusCode.UNAVAILABLE


def test_drain_through_the_admin_port(sidecar: Sidecar) -> None:
    assert sidecar.post("/drain")[0] == 202
    assert sidecar.wait_exit() == 0


# As grpcio does by default: a call whose stream a GOAWAY leaves out is sent again, nothing else is.
CALLER_OPTIONS = (("grpc.enable_retries", 1), ("grpc.initial_reconnect_backoff_ms", 100))


class Load:
    """Callers in threads that ask without a pause; `failed` holds what went wrong."""

    def __init__(self, target: str, callers: int = 4):
        self.target = target
        self._done = [0] * callers
        self.failed: list[tuple[str, str]] = []
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(callers)
        self._running = [self._pool.submit(self._call, number) for number in range(callers)]

    @property
    def done(self) -> int:
        return sum(self._done)

    def _call(self, number: int) -> None:
        with channel_to(self.target, options=CALLER_OPTIONS) as channel:
            calls = Calls(channel)
            while not self._stop.is_set():
                call = calls.unary(b"x")
                if call.code() is grpc.StatusCode.OK:
                    self._done[number] += 1
                else:
                    self.failed.append((call.code().name, call.details()))
                    return  # a caller without a sidecar would fail for ever

    def wait(self, more: int) -> None:
        wanted = self.done + more
        eventually(lambda: self.done >= wanted or self.failed, f"{more} more calls")

    def stop(self) -> None:
        self._stop.set()
        for one in self._running:
            one.result()
        self._pool.shutdown()


def test_sigterm_under_load_loses_no_call_that_was_taken(mesh: Mesh, peer: Peer) -> None:
    """Callers find the port closed in the end; until then every call that the sidecar took is answered."""
    sidecar = mesh.sidecar({**standalone(peer), "drain_grace_s": 2.0}, "under-load")
    peer.control("forget")
    load = Load(sidecar.target)
    load.wait(200)
    sidecar.terminate()
    assert sidecar.wait_exit() == 0
    load.stop()
    outcomes = {record["outcome"] for record in peer.records()}
    assert outcomes == {"done"}
    assert len(peer.records()) == load.done, "every call that came to the agent was answered"
    # What fails was never taken: the port is closed, or the GOAWAY leaves the stream out.
    assert {code for code, _ in load.failed} <= {"UNAVAILABLE"}
    assert [details for _, details in load.failed if "shutting down" in details] == []


def test_a_second_process_takes_the_port_over_under_load(mesh: Mesh, peer: Peer) -> None:
    config = {**standalone(peer), "takeover": True, "drain_grace_s": 10.0}
    first = mesh.sidecar(config, "old")
    load = Load(first.target)
    load.wait(200)
    second = mesh.sidecar({**config, "listen": first.target}, "new")
    load.wait(200)
    first.terminate()
    assert first.wait_exit() == 0
    load.wait(200)
    load.stop()
    assert load.failed == []
    assert second.metric("outrider_connections", listener="egress") >= 0
    with channel_to(second.target) as channel:
        assert Calls(channel).unary(b"x").result() == b"x"
    second.settled()


def test_ingress_drains_first(mesh: Mesh, peer: Peer) -> None:
    """The agent behind ingress may still call out through egress while ingress takes nothing new."""
    sidecar = mesh.sidecar(
        {
            "default_agent": "out",
            "agents": [agent("out", peer)],
            "ingress": {"listen": "127.0.0.1:0", "agent_id": "me", "target": peer.address},
            "drain_grace_s": 10.0,
        },
        "both",
    )
    key = new_key()
    ingress = f"127.0.0.1:{sidecar.ports['ingress']}"
    with channel_to(ingress) as inward, channel_to(sidecar.target) as outward:
        held = Calls(inward).start("Unary", b"x", key=key, hold=True)
        peer.record(key)
        sidecar.terminate()
        eventually(lambda: sidecar.get("/readyz")[0] == 503, "it drains")
        with channel_to(ingress) as late:
            assert Calls(late).unary(timeout_s=2).code() in (
                grpc.StatusCode.UNAVAILABLE,
                grpc.StatusCode.DEADLINE_EXCEEDED,
            )
        assert Calls(outward).unary(b"out").result() == b"out"
        peer.control("release", key=key)
        assert held.result() == b"x"
    assert sidecar.wait_exit() == 0
