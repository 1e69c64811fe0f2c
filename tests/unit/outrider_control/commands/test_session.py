"""How every command finds the control plane, says what went wrong, and ends."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import signal
import socket
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

from outrider.v1 import operator_pb2 as pb
from outrider_control.commands import session
from outrider_control.commands.arguments import command_parser
from tests.unit.outrider_control.commands.conftest import Run
from tests.unit.outrider_control.commands.operator_server import OperatorServer, Refusal, StandIn

ROOT = Path(__file__).resolve().parents[4]
STATUS = grpc.StatusCode


def nobody() -> str:
    """An address at which nothing listens."""
    return "127.0.0.1:1"


def test_nobody_answers(run_alone: Run) -> None:
    ran = run_alone("overview", "--control", nobody())
    assert ran.code == 3
    assert ran.out == ""
    assert ran.err.startswith(f"outrider overview: no control plane answers at {nobody()} (Connection refused): is it")
    assert ran.err.count("\n") == 1


def test_nobody_answers_of_several(run_alone: Run) -> None:
    ran = run_alone("overview", "--control", f"{nobody()},127.0.0.1:2")
    assert ran.code == 3
    assert f"no control plane answers at {nobody()}, 127.0.0.1:2 (" in ran.err


def test_addresses_are_tried_in_order(run_alone: Run, server: OperatorServer) -> None:
    server.stand_in.replies["GetOverview"] = pb.Overview()
    ran = run_alone("overview", "--json", "--control", f"{nobody()},{server.address}")
    assert ran.code == 0
    assert ran.data["agents"] == []


def test_a_change_is_sent_once_and_to_who_answers(run_alone: Run, server: OperatorServer) -> None:
    server.stand_in.replies |= {"WhoAmI": pb.Identity(name="loopback"), "RevokeToken": pb.RevokeTokenReply()}
    given = ("tokens", "revoke", "abc", "--reason", "lost", "--control", f"{nobody()},{server.address}")
    assert run_alone(*given).code == 0
    assert [name for name, _ in server.stand_in.asked] == ["WhoAmI", "RevokeToken"]


@pytest.mark.parametrize("before", [True, False])
def test_common_options_stand_before_or_after_the_action(run_alone: Run, server: OperatorServer, before: bool) -> None:
    server.stand_in.replies["ListAgents"] = pb.ListAgentsReply(default_agent="a")
    common = ["--control", server.address, "--json"]
    ran = run_alone("agents", *common, "list") if before else run_alone("agents", "list", *common)
    assert ran.data == {"agents": [], "default_agent": "a"}


@pytest.mark.parametrize(
    ("refusal", "code", "said"),
    [
        (Refusal(STATUS.UNAUTHENTICATED, "the token is not known"), 1, "give a valid token by OUTRIDER_TOKEN"),
        (Refusal(STATUS.PERMISSION_DENIED, "needs the role viewer"), 1, "needs the role viewer: use a token of a role"),
        (Refusal(STATUS.UNIMPLEMENTED, "no"), 1, "does not know this call: it is of another version"),
        (Refusal(STATUS.UNAVAILABLE, "the disk is full"), 3, "the disk is full"),
        (Refusal(STATUS.DEADLINE_EXCEEDED, ""), 3, "did not answer in time"),
        (Refusal(STATUS.INTERNAL, "a\nb \x1b[31m"), 1, "failed: INTERNAL: a b \\x1b[31m"),
    ],
)
def test_a_refusal_is_one_line(run: Run, stand_in: StandIn, refusal: Refusal, code: int, said: str) -> None:
    stand_in.replies["GetOverview"] = refusal
    ran = run("overview")
    assert ran.code == code
    assert said in ran.err
    assert ran.err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["--since", "yesterday"],
        ["--since", "0s"],
        ["--since", "99999999w"],
        ["--nothing"],
        ["--control", "nowhere"],
        ["--control", ","],
        ["--cert", "/nothing/there"],
        ["--token", "sp\u00e4t"],
    ],
)
def test_a_wrong_command_line_is_one_line_and_2(run: Run, stand_in: StandIn, arguments: list[str]) -> None:
    stand_in.replies["GetOverview"] = pb.Overview()
    ran = run("overview", *arguments)
    assert ran.code == 2
    assert ran.err.startswith("outrider overview: ")
    assert ran.err.count("\n") == 1
    assert stand_in.asked == []


def test_help_is_no_failure(run_alone: Run) -> None:
    ran = run_alone("overview", "--help")
    assert ran.code == 0
    assert "--since TIME" in ran.out


def test_token_from_option_environment_and_file(
    run: Run, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stand_in.replies["GetOverview"] = pb.Overview()
    (tmp_path / "token").write_text("of-file\n")
    monkeypatch.setenv("OUTRIDER_TOKEN_FILE", str(tmp_path / "token"))
    run("overview")
    monkeypatch.setenv("OUTRIDER_TOKEN", "of-environment")
    run("overview")
    run("overview", "--token", "of-option")
    sent = [metadata.get("authorization") for metadata in stand_in.metadata]
    assert sent == ["Bearer of-file", "Bearer of-environment", "Bearer of-option"]


def test_a_token_file_that_is_not_there(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTRIDER_TOKEN_FILE", "/nothing/there")
    ran = run("overview")
    assert ran.code == 2
    assert "OUTRIDER_TOKEN_FILE: '/nothing/there' cannot be read: No such file" in ran.err


def test_a_token_in_the_clear_is_warned_of(run_alone: Run) -> None:
    ran = run_alone("overview", "--token", "t", "--timeout", "50ms", "--control", "control.invalid:7700")
    assert ran.err.splitlines()[0] == "outrider overview: the token crosses the network in the clear; add --tls"


def test_a_change_needs_a_reason(run: Run, stand_in: StandIn) -> None:
    ran = run("tokens", "revoke", "abc")
    assert ran.code == 2
    assert ran.err.startswith("outrider tokens revoke: a change needs --reason")
    assert stand_in.asked == []


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_reason_is_asked_for_on_a_terminal(
    server: OperatorServer, monkeypatch: pytest.MonkeyPatch, run_alone: Run
) -> None:
    server.stand_in.replies["RevokeToken"] = pb.RevokeTokenReply()
    monkeypatch.setattr(sys, "stdin", Terminal("it leaked\n"))
    monkeypatch.setattr(sys, "stderr", asked := Terminal())
    assert run_alone("tokens", "revoke", "abc", "--control", server.address).code == 0
    assert server.stand_in.requests("RevokeToken")[0].reason == "it leaked"
    assert asked.getvalue().startswith("Reason")


def test_ctrl_c_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    def act(_: session.Session) -> None:
        raise KeyboardInterrupt

    assert session.run(command_parser("x", ""), [], act) == 130
    assert capsys.readouterr() == ("", "")


def command_line(*arguments: str, **environment: str) -> tuple[list[str], dict[str, str]]:
    # Where the tests are a shell's background job Ctrl-C is ignored, and would be here too.
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code += f"from outrider_control.commands.{arguments[0]} import main; sys.exit(main(sys.argv[1:]))"
    path = os.pathsep.join(str(ROOT / name) for name in ("protos", "control", "sidecar"))
    return [sys.executable, "-c", code, *arguments[1:]], {**os.environ, "PYTHONPATH": path, **environment}


def test_ctrl_c_ends_watching_on_a_terminal(server: OperatorServer) -> None:
    server.stand_in.replies["StreamMetrics"] = [pb.Overview()] * 1_000_000
    line, environment = command_line("watch", "--control", server.address, TERM="xterm")
    ours, theirs = pty.openpty()
    try:
        with (
            subprocess.Popen(line, env=environment, stdin=theirs, stdout=theirs, stderr=subprocess.PIPE) as process,
            contextlib.ExitStack() as failed,
        ):
            failed.callback(process.kill)  # else it would be waited for
            assert process.stderr is not None
            os.close(theirs)
            shown = b""
            while b"CALLS" not in shown:
                shown += os.read(ours, 4096)
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(OSError):  # EIO: the other side is closed
                while os.read(ours, 65_536):
                    pass
            assert (process.wait(30), process.stderr.read()) == (0, b"")
    finally:
        os.close(ours)


def test_ctrl_c_while_nobody_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        line, environment = command_line("overview", "--control", f"127.0.0.1:{silent.getsockname()[1]}")
        with subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            link, _ = silent.accept()
            with link:
                link.recv(1)
                process.send_signal(signal.SIGINT)
                assert process.communicate(timeout=30) == (b"", b"")
            assert process.returncode == 130


def test_a_closed_pipe_is_quiet(server: OperatorServer) -> None:
    many = [pb.Decision(id=at, reason="r" * 200) for at in range(2_000)]  # more than a pipe holds
    server.stand_in.replies["ListDecisions"] = pb.ListDecisionsReply(decisions=many)
    for extra in ([], ["--json"]):
        line, environment = command_line("decisions", "--control", server.address, *extra)
        with subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.read(10)
            process.stdout.close()
            assert process.stderr.read() == b""
            assert process.wait(30) == 0


def test_a_terminal_without_the_characters(server: OperatorServer) -> None:
    decision = pb.Decision(reason="für alle \U0001f680")
    server.stand_in.replies["ListDecisions"] = pb.ListDecisionsReply(decisions=[decision])
    for extra in ([], ["--json"]):
        line, environment = command_line("decisions", *extra, PYTHONIOENCODING="ascii", OUTRIDER_CONTROL=server.address)
        done = subprocess.run(line, env=environment, capture_output=True, timeout=30, check=False)
        assert (done.returncode, done.stderr) == (0, b"")
        assert b"f\\xfcr" in done.stdout
