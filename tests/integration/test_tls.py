"""TLS and mTLS on both sides, certificates renewed under load, unix sockets, and what is refused in the clear."""

from __future__ import annotations

import ssl
from pathlib import Path

import grpc
import pytest

from tests.certificates import Authority, serial_of
from tests.sidecars import Calls, Mesh, Peer, Sidecar, agent, channel_to, eventually, standalone


@pytest.fixture(scope="module")
def folder(mesh: Mesh) -> Path:
    return mesh.children.directory


@pytest.fixture(scope="module")
def authority(folder: Path) -> Authority:
    signer = Authority(folder)
    for name in ("server", "listener", "client"):
        signer.pair(name)
    return signer


@pytest.fixture(scope="module")
def stranger(folder: Path) -> Authority:
    other = Authority(folder, "other-ca")
    other.pair("stranger")
    return other


@pytest.fixture(scope="module")
def secret_peer(mesh: Mesh, authority: Authority) -> Peer:
    return mesh.peer("secret", "--tls", str(authority.folder), "--mutual")


def listens(folder: Path, **more: object) -> dict[str, object]:
    return {"cert": str(folder / "listener.pem"), "key": str(folder / "listener.key"), **more}


@pytest.fixture(scope="module")
def sidecar(mesh: Mesh, authority: Authority, folder: Path, peer: Peer) -> Sidecar:
    return mesh.sidecar({**standalone(peer), "tls": listens(folder)}, "tls")


@pytest.fixture(scope="module")
def mutual(mesh: Mesh, authority: Authority, folder: Path, peer: Peer) -> Sidecar:
    return mesh.sidecar({**standalone(peer), "tls": listens(folder, client_ca=str(authority.file))}, "mutual")


def credentials(authority: Authority, name: str = "") -> grpc.ChannelCredentials:
    root = authority.file.read_bytes()
    if not name:
        return grpc.ssl_channel_credentials(root)
    folder = authority.folder
    return grpc.ssl_channel_credentials(
        root, (folder / f"{name}.key").read_bytes(), (folder / f"{name}.pem").read_bytes()
    )


def served_serial(sidecar: Sidecar) -> int:
    """The serial number of the certificate a new connection is shown."""
    return serial_of(ssl.get_server_certificate(("127.0.0.1", sidecar.ports["egress"])).encode())


def test_calls_over_tls(sidecar: Sidecar, authority: Authority) -> None:
    with channel_to(sidecar.target, credentials(authority)) as channel:
        calls = Calls(channel)
        assert calls.unary(b"x").result() == b"x"
        message = bytes(i % 251 for i in range(3_000_000))
        assert calls.unary(message).result() == message
        assert [len(one) for one in calls.start("Download", sizes=[5, 100_000])] == [5, 100_000]
    sidecar.settled()


def test_clear_text_to_a_tls_port_hurts_nobody(sidecar: Sidecar, authority: Authority) -> None:
    with channel_to(sidecar.target) as channel:
        assert Calls(channel).unary(timeout_s=2).code() in (
            grpc.StatusCode.UNAVAILABLE,
            grpc.StatusCode.DEADLINE_EXCEEDED,
        )
    with channel_to(sidecar.target, credentials(authority)) as channel:
        assert Calls(channel).unary(b"x").result() == b"x"


def test_a_client_certificate_is_asked_for_and_checked(
    mutual: Sidecar, authority: Authority, stranger: Authority
) -> None:
    with channel_to(mutual.target, credentials(authority, "client")) as channel:
        assert Calls(channel).unary(b"x").result() == b"x"
    root = authority.file.read_bytes()
    foreign = grpc.ssl_channel_credentials(
        root, (stranger.folder / "stranger.key").read_bytes(), (stranger.folder / "stranger.pem").read_bytes()
    )
    for refused in (credentials(authority), foreign):
        with channel_to(mutual.target, refused) as channel:
            assert Calls(channel).unary(timeout_s=2).code() in (
                grpc.StatusCode.UNAVAILABLE,
                grpc.StatusCode.DEADLINE_EXCEEDED,
            )


def test_a_renewed_certificate_serves_new_connections_and_old_ones_stay(sidecar: Sidecar, authority: Authority) -> None:
    with channel_to(sidecar.target, credentials(authority)) as channel:
        calls = Calls(channel)
        calls.unary(b"x").result()
        before = served_serial(sidecar)
        authority.pair("listener")
        eventually(lambda: served_serial(sidecar) != before, "the new certificate is served")
        assert calls.unary(b"x").result() == b"x"
        with channel_to(sidecar.target, credentials(authority)) as fresh:
            assert Calls(fresh).unary(b"x").result() == b"x"


def test_a_half_written_pair_keeps_the_old_one(sidecar: Sidecar, authority: Authority, folder: Path) -> None:
    before = served_serial(sidecar)
    whole = (folder / "listener.pem").read_bytes()
    (folder / "listener.pem").write_bytes(whole[: len(whole) // 2])
    eventually(lambda: "stays" in sidecar.log(), "the half-written file is noticed")
    assert served_serial(sidecar) == before
    (folder / "listener.pem").write_bytes(whole)
    with channel_to(sidecar.target, credentials(authority)) as channel:
        assert Calls(channel).unary(b"x").result() == b"x"


def test_endpoints_are_dialled_by_mutual_tls(
    mesh: Mesh, authority: Authority, stranger: Authority, folder: Path, secret_peer: Peer, peer: Peer
) -> None:
    upstream = {"ca": str(authority.file), "cert": str(folder / "client.pem"), "key": str(folder / "client.key")}
    agents = [
        agent("secret", secret_peer),
        agent("named", secret_peer, server_name="localhost"),
        agent("misnamed", secret_peer, server_name="elsewhere.example"),
        agent("clear", peer, tls=False),
    ]
    sidecar = mesh.sidecar({"agents": agents, "tls": {"upstream": upstream}}, "dials")
    with channel_to(sidecar.target) as channel:
        for agent_id in ("secret", "named", "clear"):
            assert Calls(channel, [("x-agent-id", agent_id)]).unary(b"x").result() == b"x"
        wrong = Calls(channel, [("x-agent-id", "misnamed")]).unary()
        assert wrong.code() is grpc.StatusCode.UNAVAILABLE
        assert "elsewhere.example" in wrong.details()
    distrusting = {"ca": str(stranger.file)}
    agents = [agent("secret", secret_peer)]
    other = mesh.sidecar({"default_agent": "secret", "agents": agents, "tls": {"upstream": distrusting}}, "distrusts")
    with channel_to(other.target) as channel:
        call = Calls(channel).unary()
        assert call.code() is grpc.StatusCode.UNAVAILABLE
        assert "certificate" in call.details().lower()


def test_unix_sockets_on_both_sides(mesh: Mesh, folder: Path) -> None:
    agent_path, own_path = folder / "agent.sock", folder / "sidecar.sock"
    mesh.peer("local", "--unix", f"unix:{agent_path}")
    sidecar = mesh.sidecar(
        {"listen": f"unix:{own_path}", "default_agent": "x", "agents": [agent("x", f"unix:{agent_path}")]}, "unix"
    )
    with channel_to(f"unix:{own_path}") as channel:
        assert Calls(channel).unary(b"x").result() == b"x"
    sidecar.terminate()
    assert sidecar.wait_exit() == 0


def test_a_stale_socket_file_is_no_obstacle(mesh: Mesh, folder: Path, peer: Peer) -> None:
    path = folder / "stale.sock"
    sidecar = mesh.sidecar({**standalone(peer), "listen": f"unix:{path}"}, "stale")
    sidecar.child.process.kill()
    sidecar.wait_exit()
    assert path.exists()
    sidecar.start()
    with channel_to(f"unix:{path}") as channel:
        assert Calls(channel).unary(b"x").result() == b"x"


def test_names_are_resolved(mesh: Mesh, peer: Peer) -> None:
    address = f"dns:localhost:{peer.port}"
    sidecar = mesh.sidecar({"default_agent": "x", "agents": [agent("x", address)]}, "names")
    with channel_to(sidecar.target) as channel:
        assert Calls(channel).unary(b"x").result() == b"x"
