"""Tokens, certificates and roles at the port of the real program, for operators and for sidecars."""

from __future__ import annotations

import json
import random
import subprocess
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from outrider.registration import Registration
from tests.certificates import Authority
from tests.controls import Control, cli, holds, watching
from tests.integration.control.exports import TRACES, request, send, span
from tests.sidecars import WAIT_S, Calls, Mesh, Peer, Sidecar, agent, channel_to, eventually

ROLES = ("viewer", "operator", "admin", "sidecar")


class Guarded:
    """A control plane that nobody gets into without credentials, and a token of each role."""

    def __init__(self, mesh: Mesh):
        self.control = Control(mesh, "guarded")
        self.ids: dict[str, str] = {}
        self.tokens = {role: self.create(role) for role in ROLES}
        self.control.stop()
        self.control.config["auth"] = {"loopback": False}
        self.control.start()

    def create(self, role: str, *more: str, name: str = "") -> str:
        made = self.control.json("tokens", "create", name or f"the-{role}", "--role", role, "--reason", "test", *more)
        self.ids[name or role] = made["record"]["id"]
        return made["token"]

    def run(self, role: str, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return self.control.cli(*arguments, "--token", self.tokens[role], stdin=stdin)

    def json(self, role: str, *arguments: str, stdin: str = "") -> Any:
        done = self.run(role, *arguments, "--json", stdin=stdin)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def apply(self, *agents: Any) -> Any:
        applied = json.dumps({"agents": agents})
        return self.json("operator", "agents", "apply", "-f", "-", "--reason", "test", stdin=applied)


@pytest.fixture(scope="module")
def guarded(mesh: Mesh) -> Guarded:
    return Guarded(mesh)


@pytest.fixture(scope="module")
def token_file(guarded: Guarded, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("secrets") / "token"
    file.write_text(guarded.tokens["sidecar"] + "\n")
    return file


@pytest.fixture(scope="module")
def sidecar(mesh: Mesh, guarded: Guarded, peer: Peer, token_file: Path) -> Sidecar:
    guarded.apply(agent("one", peer))
    config = {"control": [guarded.control.target], "control_token_file": str(token_file)}
    started = mesh.sidecar(config, "by-token")
    eventually(lambda: holds(started, "one"), "a token lets a sidecar watch")
    return started


def is_one_line(done: subprocess.CompletedProcess[str], code: int, *says: str) -> None:
    assert done.returncode == code, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    for text in says:
        assert text in done.stderr


def test_nobody_gets_in_without_a_token(guarded: Guarded) -> None:
    control = guarded.control
    is_one_line(control.cli("overview"), 1, "auth.loopback is off", "OUTRIDER_TOKEN")
    is_one_line(control.cli("overview", "--token", "guessed"), 1, "wrong, expired or revoked", "OUTRIDER_TOKEN")
    with channel_to(control.target) as channel, pytest.raises(grpc.RpcError) as caught:
        send(channel, request([span(random.Random(1), "one")]))
    error: Any = caught.value
    assert error.code() is grpc.StatusCode.UNAUTHENTICATED
    assert control.get("/healthz")[0] == 200, "probes need none"


@pytest.mark.parametrize(
    ("arguments", "roles"),
    [
        (("overview",), ("viewer", "operator", "admin")),
        (("cache", "purge", "--agent", "one", "--reason", "test"), ("operator", "admin")),
        (("tokens", "list"), ("admin",)),
    ],
)
def test_roles(guarded: Guarded, sidecar: Sidecar, arguments: tuple[str, ...], roles: tuple[str, ...]) -> None:
    for role in ROLES:
        done = guarded.run(role, *arguments)
        if role in roles:
            assert done.returncode == 0, (role, done.stderr)
        else:
            is_one_line(done, 1, "needs the role", f"'the-{role}' is {role}", "outrider status")
    assert watching(sidecar)


def test_roles_of_telemetry(guarded: Guarded) -> None:
    codes = {}
    with channel_to(guarded.control.target) as channel:
        for role in ROLES:
            call = channel.unary_unary(TRACES).future(
                b"", timeout=WAIT_S, metadata=(("authorization", f"Bearer {guarded.tokens[role]}"),)
            )
            call.exception()
            codes[role] = call.code().name
    assert codes == {"viewer": "PERMISSION_DENIED", "operator": "OK", "admin": "OK", "sidecar": "OK"}


def test_a_sidecar_with_a_token_is_told_and_counted(guarded: Guarded, sidecar: Sidecar) -> None:
    with channel_to(sidecar.target) as channel:
        calls = Calls(channel, [("x-agent-id", "one")])
        for number in range(20):
            assert calls.unary(b"%d" % number).result() == b"%d" % number

    def counted() -> int:
        return sum(one["requests"] for one in guarded.json("viewer", "overview")["agents"] if one["agent_id"] == "one")

    eventually(lambda: counted() == 20, "its spans come in by the same token")
    assert guarded.json("viewer", "sidecars")["sidecars"][0]["connected"]


def test_a_sidecar_without_a_token_serves_and_says_why_it_is_alone(mesh: Mesh, guarded: Guarded, peer: Peer) -> None:
    alone = mesh.sidecar({"control": [guarded.control.target], "agents": [agent("own", peer)]}, "no-token")
    error = eventually(lambda: alone.json("/config")["control_link"]["last_error"], "it says what is wrong")
    assert "UNAUTHENTICATED" in error
    assert not watching(alone)
    with channel_to(alone.target) as channel:
        assert Calls(channel, [("x-agent-id", "own")]).unary(b"x").result() == b"x"


def test_a_token_that_is_revoked_or_expired_is_void(guarded: Guarded) -> None:
    made = {}
    for name, more in (("short", ("--ttl", "1s")), ("gone", ())):
        given = ("tokens", "create", name, "--role", "viewer", "--reason", "test", *more)
        made[name] = guarded.json("admin", *given)
        assert "ended" not in made[name]["record"]
    revoked = guarded.run("admin", "tokens", "revoke", made["gone"]["record"]["id"], "--reason", "lost")
    assert revoked.returncode == 0, revoked.stderr
    for name in ("gone", "short"):
        token = made[name]["token"]

        def is_void(token: str = token) -> bool:
            return guarded.control.cli("status", "--token", token).returncode == 1

        eventually(is_void, f"{name} is void")
        is_one_line(guarded.control.cli("status", "--token", token), 1, "wrong, expired or revoked")
    decisions = guarded.json("viewer", "decisions")["decisions"]
    assert {"lost"} <= {one["reason"] for one in decisions}, "it is journalled"


def test_registration_by_token(guarded: Guarded, peer: Peer) -> None:
    control, tokens = guarded.control, guarded.tokens

    def addresses() -> list[str]:
        return [one["address"] for one in guarded.json("viewer", "endpoints", "leased")["endpoints"]]

    guarded.apply({"agent_id": "leased"})
    with Registration(control.target, "leased", "127.0.0.1:1", token=tokens["viewer"]) as refused:
        with Registration(control.target, "leased", peer.address, token=tokens["sidecar"]) as taken:
            eventually(lambda: taken.registered, "a sidecar's token registers")
            assert addresses() == [peer.address]
        assert not refused.registered
    assert addresses() == []


def test_secrets_are_told_to_nobody(guarded: Guarded, sidecar: Sidecar, token_file: Path) -> None:
    told = [
        guarded.control.log(),
        sidecar.log(),
        sidecar.get("/config")[1].decode(),
        sidecar.get("/metrics")[1].decode(),
        guarded.control.get("/metrics")[1].decode(),
        *(
            guarded.run("admin", *arguments, *form).stdout
            for form in ((), ("--json",))
            for arguments in (("agents", "get", "one"), ("tokens", "list"), ("decisions",), ("status",))
        ),
    ]
    assert all(told)
    for secret in guarded.tokens.values():
        assert not any(secret in text for text in told)
    store = b"".join(file.read_bytes() for file in guarded.control.folder.glob("outrider.db*"))
    assert b"the-admin" in store
    assert not any(secret.encode() in store for secret in guarded.tokens.values()), "they are hashed at rest"


# -- certificates ------------------------------------------------------------------------------------------------------


class Issuer(Authority):
    """Also signs certificates that name something else than this machine."""

    def client(self, name: str) -> tuple[Path, Path]:
        """(certificate, key) files of a peer with this DNS name."""
        cert, key = self.pair(name)
        private = serialization.load_pem_private_key(key.read_bytes(), None)
        assert isinstance(private, ec.EllipticCurvePrivateKey)
        plain = x509.load_pem_x509_certificate(cert.read_bytes())
        built = (
            x509.CertificateBuilder()
            .subject_name(plain.subject)
            .issuer_name(plain.issuer)
            .public_key(private.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(plain.not_valid_before_utc)
            .not_valid_after(plain.not_valid_after_utc)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        )
        cert.write_bytes(built.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        return cert, key


class Certified:
    """A control plane by TLS that knows peers by their certificates, and files of each kind."""

    def __init__(self, mesh: Mesh, folder: Path):
        self.authority = Issuer(folder)
        self.other = Issuer(folder, "other")
        cert, key = self.authority.pair("server")
        tls = {"cert": str(cert), "key": str(key), "client_ca": str(self.authority.file)}
        auth = {"loopback": False, "certificates": {"ops-*": "admin", "view-*": "viewer"}}
        self.control = Control(mesh, "certified", tls=tls, auth=auth)

    def options(self, name: str, authority: Issuer | None = None) -> tuple[str, ...]:
        cert, key = (authority or self.authority).client(name)
        return ("--ca", str(self.authority.file), "--cert", str(cert), "--key", str(key))

    def run(self, name: str, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return cli(*arguments, *self.options(name), control=self.control.target, stdin=stdin)


@pytest.fixture(scope="module")
def certified(mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> Certified:
    return Certified(mesh, tmp_path_factory.mktemp("certificates"))


def test_a_certificate_maps_to_a_role(certified: Certified) -> None:
    said = certified.run("ops-ada", "status", "--json")
    assert said.returncode == 0, said.stderr
    assert json.loads(said.stdout)["caller"]["role"] == "admin"
    assert json.loads(said.stdout)["caller"]["name"] == "ops-ada"
    is_one_line(certified.run("view-bob", "tokens", "list"), 1, "needs the role admin", "'view-bob' is viewer")
    is_one_line(certified.run("pod-7", "overview"), 1, "'pod-7' is sidecar")


def test_wrong_certificates_are_refused(certified: Certified) -> None:
    target, ca = certified.control.target, str(certified.authority.file)
    is_one_line(cli("overview", "--ca", ca, control=target), 1, "auth.loopback is off", "give a valid token")
    clear, stranger, unknown = (
        cli("overview", *options, control=target)
        for options in ((), ("--ca", str(certified.other.file)), certified.options("ops-eve", certified.other))
    )
    for done, says in (
        (clear, "does it ask for TLS (--ca)"),
        (stranger, "is not trusted (self signed certificate in certificate chain): name its authority by --ca"),
        (unknown, "or for a certificate it knows (--cert, --key)?"),
    ):
        assert done.returncode == 3
        assert says in done.stderr.splitlines()[-1]  # grpcio may say something before
    assert certified.run("view-bob", "overview").returncode == 0


def test_a_sidecar_by_certificate(mesh: Mesh, certified: Certified, peer: Peer) -> None:
    agents = json.dumps({"agents": [agent("one", peer)]})
    applied = certified.run("ops-ada", "agents", "apply", "-f", "-", "--reason", "test", stdin=agents)
    assert applied.returncode == 0, applied.stderr
    sidecars = {}
    for name, authority in (("pod-1", certified.authority), ("pod-2", certified.other)):
        cert, key = authority.client(name)
        upstream = {"ca": str(certified.authority.file), "cert": str(cert), "key": str(key)}
        config = {"control": [certified.control.target], "control_tls": True, "tls": {"upstream": upstream}}
        sidecars[name] = mesh.sidecar({**config, "agents": [agent("own", peer)]}, name)
    eventually(lambda: holds(sidecars["pod-1"], "one"), "its certificate lets it watch")
    eventually(lambda: sidecars["pod-2"].json("/config")["control_link"]["last_error"], "the other is refused")
    assert not watching(sidecars["pod-2"])
    assert not holds(sidecars["pod-2"], "one")
