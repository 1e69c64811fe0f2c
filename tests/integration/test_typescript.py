"""The examples across languages: @grpc/grpc-js and Python, caller and agent, with the real sidecar between them.

The programs are those of `examples/`, started as a person would start them; agents tell what they saw as JSON lines.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bench.process import ROOT, Child, python_environment
from outrider.client import Outrider
from outrider.reply import InvalidRequest
from tests.sidecars import WAIT_S, Mesh, Sidecar, agent, channel_to, eventually, new_key

MISSING = [program for program in ("node", "npm") if shutil.which(program) is None]

INSTALL_S = 60.0
WORD_MS = "20"
LONG = " ".join(["word"] * 1_000)  # 20 s of answer: nobody waits for its end
NO_WORDS = "nothing to answer – the last message has no words"
NO_NETWORK = ("ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ECONNRESET", "ETIMEDOUT", "ENETUNREACH", "EHOSTUNREACH")
PAIRS = [("typescript", "typescript"), ("python", "typescript"), ("typescript", "python")]


@dataclass
class Agent:
    """A started example agent."""

    child: Child
    port: int

    def events(self, session: str) -> list[dict[str, Any]]:
        return [event for event in _events(self.child) if event.get("session") == session]

    def wait(self, session: str, name: str) -> dict[str, Any]:
        """The event of this name in a session, once it is told."""

        def told() -> dict[str, Any] | None:
            return next((event for event in self.events(session) if event["event"] == name), None)

        return eventually(told, f"the agent tells {name!r} of {session}; its log: {self.child.log_tail()}")


def _events(child: Child) -> list[dict[str, Any]]:
    lines = child.log.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("\n")]


def npm(folder: Path, *arguments: str) -> None:
    """Run npm; skip the test where it cannot reach its registry."""
    try:
        run = subprocess.run(
            ["npm", *arguments], cwd=folder, capture_output=True, text=True, timeout=INSTALL_S, check=False
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"npm {arguments[0]} did not end within {INSTALL_S:g} s: no network?")
    output = run.stdout + run.stderr
    code = next((code for code in NO_NETWORK if code in output), None)
    if run.returncode and code:
        pytest.skip(f"npm {arguments[0]} reaches no package registry: {code}")
    assert run.returncode == 0, output


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, list[str]]]:
    """Language -> program -> command. The TypeScript ones are built aside, beside a copy of the contract."""
    if MISSING:
        pytest.skip(f"not on this machine: {', '.join(MISSING)}")
    top = tmp_path_factory.mktemp("typescript")
    folder = top / "examples" / "typescript"
    generated = shutil.ignore_patterns("node_modules", "dist")
    shutil.copytree(ROOT / "examples" / "typescript", folder, ignore=generated)
    shutil.copytree(ROOT / "protos" / "outrider" / "v1", top / "protos" / "outrider" / "v1")
    npm(folder, "ci", "--prefer-offline", "--fetch-retries=1", "--fetch-timeout=20000")
    npm(folder, "run", "build")
    python = ROOT / "examples" / "python"
    return {
        "typescript": {name: ["node", str(folder / "dist" / f"{name}.js")] for name in ("agent", "client")},
        "python": {name: [sys.executable, str(python / f"{name}.py")] for name in ("agent", "client")},
    }


def start_agent(mesh: Mesh, command: list[str], name: str) -> Agent:
    child = mesh.children.start(name, [*command, "--port", "0", "--word-ms", WORD_MS])

    def port() -> int:
        child.check()
        return next((event["port"] for event in _events(child) if event["event"] == "listening"), 0)

    return Agent(child, eventually(port, f"{name} listens"))


@pytest.fixture(scope="module")
def agents(mesh: Mesh, programs: dict[str, dict[str, list[str]]]) -> dict[str, Agent]:
    return {language: start_agent(mesh, programs[language]["agent"], f"{language}-agent") for language in programs}


@pytest.fixture(scope="module")
def sidecar(mesh: Mesh, agents: dict[str, Agent]) -> Sidecar:
    """Knows each agent by its language."""
    cached = {"optimization": {"cache_enabled": True}}
    listed = [agent(language, f"127.0.0.1:{one.port}", **cached) for language, one in agents.items()]
    return mesh.sidecar({"agents": listed})


@dataclass
class Bed:
    """A caller and an agent, each of its language, and a session of their own."""

    command: list[str]
    agent_id: str
    agent: Agent
    sidecar: Sidecar
    session: str

    def arguments(self, *arguments: str) -> list[str]:
        where = ["--target", self.sidecar.target, "--agent-id", self.agent_id, "--session-id", self.session]
        return [*self.command, *where, *arguments]

    def ask(self, *arguments: str, stdin: str = "") -> tuple[int, str, list[str]]:
        """(exit code, answer, what is told about the call) of one run of the client."""
        run = subprocess.run(
            self.arguments(*arguments),
            input=stdin,
            capture_output=True,
            encoding="utf-8",
            env=python_environment(),
            timeout=2 * WAIT_S,
            check=False,
        )
        return run.returncode, run.stdout.removesuffix("\n"), run.stderr.splitlines()

    @contextlib.contextmanager
    def asking(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """A client that runs."""
        # A shell starts background jobs with SIGINT ignored, which children inherit; a handler they do not.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            client = subprocess.Popen(
                self.arguments(*arguments),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                encoding="utf-8",
                env=python_environment(),
            )
        finally:
            signal.signal(signal.SIGINT, before)
        with client:
            try:
                yield client
            finally:
                client.kill()


@pytest.fixture(params=PAIRS, ids=[f"{caller}-to-{answerer}" for caller, answerer in PAIRS])
def bed(
    request: pytest.FixtureRequest,
    programs: dict[str, dict[str, list[str]]],
    agents: dict[str, Agent],
    sidecar: Sidecar,
) -> Iterator[Bed]:
    caller, answerer = request.param
    yield Bed(programs[caller]["client"], answerer, agents[answerer], sidecar, f"session-{new_key()}")
    sidecar.settled()


@pytest.mark.parametrize("shape", ["--unary", "stream"])
def test_an_answer_its_usage_and_what_the_mesh_did(bed: Bed, shape: str) -> None:
    flags = [shape] if shape == "--unary" else []
    code, answer, told = bed.ask(*flags, f"three words {bed.session}")
    assert (code, answer) == (0, f"three words {bed.session}"), told
    assert told == [
        "x-outrider-cache: miss",
        f"x-outrider-endpoint: 127.0.0.1:{bed.agent.port}",
        "finish: FINISH_REASON_STOP",
        "usage: 3 in, 3 out",
        "status: OK",
    ]
    code, again, told = bed.ask(*flags, f"three words {bed.session}")
    assert (code, again) == (0, answer)
    assert "x-outrider-cache: hit" in told
    assert "usage: 3 in, 3 out" in told
    assert [event["event"] for event in bed.agent.events(bed.session)] == ["call", "done"]


def test_identity_and_deadline_reach_the_agent(bed: Bed) -> None:
    bed.ask("--deadline-ms", "20000", f"who {bed.session}")
    seen = bed.agent.wait(bed.session, "call")
    assert (seen["agent"], seen["session"], seen["message_session"]) == (bed.agent_id, bed.session, bed.session)
    assert 0 < seen["left_ms"] <= 20_000


@pytest.mark.parametrize("shape", ["--unary", "stream"])
def test_a_failure_keeps_its_status_and_message(bed: Bed, shape: str) -> None:
    code, answer, told = bed.ask(*([shape] if shape == "--unary" else []), " ")
    assert (code, answer) == (1, "")
    assert f"status: INVALID_ARGUMENT: {NO_WORDS}" in told
    if bed.agent_id == "typescript" and bed.command[0] == "node":
        assert f"wrong: messages: {NO_WORDS}" in told


def test_error_details_of_grpc_js_reach_a_python_caller(sidecar: Sidecar, agents: dict[str, Agent]) -> None:
    with Outrider(sidecar.target, agent_id="typescript") as client, pytest.raises(InvalidRequest) as failed:
        client.invoke(" ")
    details = dict(failed.value.info.metadata)["grpc-status-details-bin"]
    assert isinstance(details, bytes)
    for text in ("type.googleapis.com/google.rpc.BadRequest", "messages", NO_WORDS):
        assert text.encode() in details


@pytest.mark.parametrize("shape", ["--unary", "stream"])
def test_cancellation_reaches_the_agent(bed: Bed, shape: str) -> None:
    with bed.asking(*([shape] if shape == "--unary" else []), f"{bed.session} {LONG}") as client:
        bed.agent.wait(bed.session, "call")
        if shape == "stream":
            assert client.stdout is not None
            assert client.stdout.read(len(bed.session)) == bed.session  # chunks come while the agent still works
        client.send_signal(signal.SIGINT)
        _, told = client.communicate(timeout=WAIT_S)
        assert client.returncode == 1
        assert "status: CANCELLED" in told
    bed.agent.wait(bed.session, "cancelled")


def test_a_deadline_ends_the_call_at_both_ends(bed: Bed) -> None:
    code, answer, told = bed.ask("--deadline-ms", "1500", f"{bed.session} {LONG}")
    assert code == 1
    assert any(line.startswith("status: DEADLINE_EXCEEDED") for line in told), told
    assert answer.startswith(bed.session)
    bed.agent.wait(bed.session, "cancelled")


@pytest.mark.parametrize("shape", ["--unary", "stream"])
def test_a_message_of_1_mib_comes_back_whole(bed: Bed, shape: str) -> None:
    word = f"{bed.session}-".ljust(1024 * 1024, "x")
    code, answer, told = bed.ask(*([shape] if shape == "--unary" else []), "-", stdin=word)
    assert code == 0, told
    assert answer == word
    assert "usage: 1 in, 1 out" in told


@pytest.mark.parametrize("language", ["typescript", "python"])
def test_a_stopped_agent_finishes_its_calls(
    mesh: Mesh, programs: dict[str, dict[str, list[str]]], language: str
) -> None:
    own = start_agent(mesh, programs[language]["agent"], f"stopping-{language}")
    with channel_to(f"127.0.0.1:{own.port}") as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        check = stub.Check(health_pb2.HealthCheckRequest(), timeout=WAIT_S)
        assert check.status == health_pb2.HealthCheckResponse.SERVING
    sidecar = mesh.sidecar({"agents": [agent(language, f"127.0.0.1:{own.port}")]}, f"before-{language}")
    bed = Bed(programs["typescript"]["client"], language, own, sidecar, f"session-{new_key()}")
    question = " ".join([bed.session, *["word"] * 40])
    with bed.asking(question) as client:
        own.wait(bed.session, "call")
        own.child.process.send_signal(signal.SIGTERM)
        answer, told = client.communicate(timeout=WAIT_S)
        assert (client.returncode, answer) == (0, f"{question}\n"), told
    assert own.child.process.wait(WAIT_S) == 0


def test_an_unknown_agent_is_not_found(bed: Bed) -> None:
    code, _, told = replace(bed, agent_id="nobody").ask("hello")
    assert code == 1
    assert any(line.startswith("status: NOT_FOUND") and "'nobody'" in line for line in told), told


def test_the_lock_file_names_no_registry() -> None:
    lock = json.loads((ROOT / "examples" / "typescript" / "package-lock.json").read_text(encoding="utf-8"))
    assert [name for name, package in lock["packages"].items() if "resolved" in package] == []


def test_a_call_that_reaches_nobody_is_unavailable(mesh: Mesh, programs: dict[str, dict[str, list[str]]]) -> None:
    sidecar = mesh.sidecar({"agents": [agent("gone", "127.0.0.1:1")]}, "nobody-behind")  # nothing listens there
    run = subprocess.run(
        [*programs["typescript"]["client"], "--target", sidecar.target, "--agent-id", "gone", "hello"],
        capture_output=True,
        encoding="utf-8",
        timeout=2 * WAIT_S,
        check=False,
    )
    assert run.returncode == 1
    assert "status: UNAVAILABLE" in run.stderr
