"""What outlives a process: stored replies and purges, on disk, and nothing that is broken."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.sidecars import Calls, Mesh, Peer, Sidecar, channel_to, new_key, standalone, trailers

CACHED = {"cache_enabled": True, "cache_methods": ["/test.Agent/Unary"]}


@pytest.fixture
def sidecar(mesh: Mesh, peer: Peer) -> Iterator[Sidecar]:
    """A sidecar with a state directory of its own."""
    name = f"warm-{new_key()}"
    (mesh.children.directory / name / "state").mkdir(parents=True)
    one = mesh.sidecar({**standalone(peer, optimization=CACHED), "state_dir": "state"}, name)
    yield one
    mesh.children.stop(one.child)


def verdict_of(sidecar: Sidecar, body: bytes, tenant: str = "t") -> str:
    with channel_to(sidecar.target) as channel:
        call = Calls(channel, [("x-tenant-id", tenant)]).unary(body, serial=True)
        assert call.result()
        return trailers(call)["x-outrider-cache"]


def restart(sidecar: Sidecar) -> None:
    """Stop as an operator does, and start again."""
    sidecar.terminate()
    assert sidecar.wait_exit() == 0
    sidecar.start()


def test_replies_survive_a_restart(sidecar: Sidecar) -> None:
    bodies = [new_key().encode() for _ in range(20)]
    assert {verdict_of(sidecar, body) for body in bodies} == {"miss"}
    restart(sidecar)
    assert {verdict_of(sidecar, body) for body in bodies} == {"hit"}


def test_a_state_directory_that_is_not_there_is_made(mesh: Mesh, peer: Peer) -> None:
    sidecar = mesh.sidecar({**standalone(peer, optimization=CACHED), "state_dir": "deep/er"}, "no-folder")
    body = new_key().encode()
    assert verdict_of(sidecar, body) == "miss"
    assert sidecar.post("/cache/purge", {"tenant": "somebody else"})[0] == 200
    restart(sidecar)
    assert verdict_of(sidecar, body) == "hit"


def test_a_purge_survives_a_crash(sidecar: Sidecar) -> None:
    """The snapshot still holds the reply; the purge alone was written before the process was killed."""
    body = new_key().encode()
    verdict_of(sidecar, body)
    verdict_of(sidecar, body, "other")
    restart(sidecar)
    assert sidecar.post("/cache/purge", {"tenant": "t"})[0] == 200
    sidecar.child.process.kill()
    sidecar.wait_exit()
    sidecar.start()
    assert verdict_of(sidecar, body) == "miss"
    assert verdict_of(sidecar, body, "other") == "hit"


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "noise"])
def test_a_damaged_snapshot_is_never_fatal(sidecar: Sidecar, damage: str) -> None:
    body = new_key().encode()
    verdict_of(sidecar, body)
    sidecar.terminate()
    assert sidecar.wait_exit() == 0
    file = sidecar.folder / "state" / "cache.snapshot"
    data = file.read_bytes()
    middle = len(data) // 2
    file.write_bytes(
        {
            "cut": data[:middle],
            "flip": data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :],
            "empty": b"",
            "noise": bytes(range(256)) * 20,
        }[damage]
    )
    sidecar.start()
    assert verdict_of(sidecar, body) in ("hit", "miss")
    assert "cache.snapshot" in sidecar.log()
    assert verdict_of(sidecar, body) == "hit"


def test_a_snapshot_that_cannot_be_written_loses_nothing_else(sidecar: Sidecar) -> None:
    """A folder stands where the file should be: the exit is clean all the same, and says so."""
    verdict_of(sidecar, new_key().encode())
    (sidecar.folder / "state" / "cache.snapshot").mkdir(parents=True)
    sidecar.terminate()
    assert sidecar.wait_exit() == 0
    assert "could not be saved" in sidecar.log()


def test_the_snapshot_is_for_its_owner_alone(sidecar: Sidecar) -> None:
    verdict_of(sidecar, new_key().encode())
    sidecar.terminate()
    assert sidecar.wait_exit() == 0
    assert (sidecar.folder / "state" / "cache.snapshot").stat().st_mode & 0o077 == 0
