"""One run of a command: its options, the control plane it talks to, its output, and how it ends.

Always holds: a failure is one line on standard error that says what, where and what to do, never a traceback. Exit
codes: 0 done, 1 failed, 2 the command line is wrong, 3 the control plane cannot be reached. A closed pipe and Ctrl-C
are quiet.

Deliberately not here: what the commands do.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import grpc

from outrider.control_channel import DEFAULT_CONTROL, DEFAULT_TIMEOUT_S, Access, OperatorError, parse_control
from outrider.operator import Operator
from outrider_control.commands.output import Output, shown

DONE, FAILED, WRONG, UNREACHABLE, INTERRUPTED = 0, 1, 2, 3, 130
_MAX_SECRET_BYTES = 1024 * 1024


class CommandError(Exception):
    """Why a command cannot do what it is told: one line for people."""

    def __init__(self, text: str, code: int = FAILED):
        super().__init__(text)
        self.code = code


class Session:
    """What a command works with; to be closed."""

    def __init__(self, options: argparse.Namespace, environ: Mapping[str, str]):
        self.options = options
        self.out = Output(getattr(options, "json", False))
        self._environ = environ
        self._operator: Operator | None = None

    @property
    def control(self) -> str:
        """Where the control plane is, as given."""
        return getattr(self.options, "control", "") or self._environ.get("OUTRIDER_CONTROL", "") or DEFAULT_CONTROL

    @property
    def operator(self) -> Operator:
        """The control plane; made when it is first asked for."""
        if self._operator is None:
            self._operator = self.dial(self.control)
        return self._operator

    def dial(self, control: str, timeout_s: float | None = None) -> Operator:
        """A client of one or more addresses; the caller closes it."""
        access = self.access()
        try:
            addresses = parse_control(control)
            client = Operator(
                [str(address) for address in addresses], access=access, timeout_s=timeout_s or self.timeout_s
            )
        except ValueError as error:
            where = "--control" if getattr(self.options, "control", "") else "OUTRIDER_CONTROL"
            raise CommandError(f"{where} {error}", WRONG) from None
        if access.token and not access.has_tls and not all(address.is_loopback for address in addresses):
            print(f"{self.prog}: the token crosses the network in the clear; add --tls", file=sys.stderr)
        return client

    @property
    def timeout_s(self) -> float:
        """How long one answer may take."""
        return getattr(self.options, "timeout", DEFAULT_TIMEOUT_S * 1_000) / 1_000

    @property
    def prog(self) -> str:
        return getattr(self.options, "prog", "outrider")

    def access(self) -> Access:
        """Credentials from the options and the environment."""
        options = self.options
        token = getattr(options, "token", "") or self._environ.get("OUTRIDER_TOKEN", "")
        token_file = self._environ.get("OUTRIDER_TOKEN_FILE", "")
        if not token and token_file:
            token = _content("OUTRIDER_TOKEN_FILE", token_file).decode("utf-8", "replace")
        token = token.strip()
        if not token.isascii() or not token.isprintable():
            raise CommandError("the token holds characters that no token has", WRONG)
        ca, cert, key = (
            _content(f"--{name}", file) if (file := getattr(options, name, "")) else None
            for name in ("ca", "cert", "key")
        )
        if (cert is None) != (key is None):
            raise CommandError("--cert and --key go together", WRONG)
        return Access(token=token, tls=getattr(options, "tls", False), ca=ca, cert=cert, key=key)

    def reason(self) -> str:
        """Why the change is made: as given, else asked for where somebody can answer."""
        given = self.options.reason.strip()
        if given or getattr(self.options, "dry_run", False):
            return given or "dry run"
        if sys.stdin.isatty() and sys.stderr.isatty():
            print("Reason (goes into the journal): ", end="", file=sys.stderr, flush=True)
            given = sys.stdin.readline().strip()
        if not given:
            raise CommandError("a change needs --reason: why it is made goes into the journal", WRONG)
        return given

    def close(self) -> None:
        if self._operator is not None:
            self._operator.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def run(
    parser: argparse.ArgumentParser,
    arguments: list[str],
    act: Callable[[Session], int | None],
    environ: Mapping[str, str] | None = None,
) -> int:
    """Parse the arguments, do it, and give the exit code."""
    try:
        options = parser.parse_args(arguments)
    except SystemExit as end:  # help was asked for, or the line is wrong and that has been said
        return end.code if isinstance(end.code, int) else DONE
    options.prog = parser.prog
    code = _guarded(options, act, os.environ if environ is None else environ)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _leave_pipe()
    return code


def _guarded(options: argparse.Namespace, act: Callable[[Session], int | None], environ: Mapping[str, str]) -> int:
    try:
        with Session(options, environ) as session:
            return act(session) or DONE
    except CommandError as error:
        return _fail(options, str(error), error.code)
    except OperatorError as error:
        return _fail(options, explained(error), UNREACHABLE if error.is_unreachable else FAILED)
    except BrokenPipeError:
        _leave_pipe()
        return DONE
    except KeyboardInterrupt:
        return INTERRUPTED


def explained(error: OperatorError) -> str:
    """One line: what the control plane said, and what to do about it."""
    text = error.text.rstrip(".") or error.status.name
    status = grpc.StatusCode
    match error.status:
        case status.UNAVAILABLE:
            return _unreachable(error.address, text)
        case status.DEADLINE_EXCEEDED:
            return f"the control plane at {error.address} did not answer in time: try again, or give --timeout"
        case status.UNAUTHENTICATED:
            how = "OUTRIDER_TOKEN, OUTRIDER_TOKEN_FILE or --token"
            return f"{text}: give a valid token by {how} (an admin makes one: outrider tokens create)"
        case status.PERMISSION_DENIED:
            return f"{text}: use a token of a role that may (outrider status shows who you are)"
        case status.UNIMPLEMENTED:
            return f"the control plane at {error.address} does not know this call: it is of another version"
        case status.ABORTED | status.NOT_FOUND | status.INVALID_ARGUMENT | status.FAILED_PRECONDITION:
            return text
    return f"the control plane at {error.address} failed: {error.status.name}: {text}"


def _unreachable(address: str, text: str) -> str:
    """Why nobody answers: from grpcio's words, in which the cause stands last."""
    if not text.startswith("failed to connect"):
        return f"no control plane answers at {address} ({text}): is it running, is --control right?"
    cause = text.removesuffix(": OK").rpartition(": ")[2]
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return f"the control plane's certificate at {address} is not trusted ({cause}): name its authority by --ca"
    if "handshake failed" in text:
        return f"no TLS with {address} ({cause}): does it speak TLS, are --ca, --cert and --key right?"
    if "Socket closed" in cause or "reset by peer" in cause:
        return (
            f"{address} closes the connection ({cause}): is it a control plane, "
            "does it ask for TLS (--ca) or for a certificate it knows (--cert, --key)?"
        )
    return f"no control plane answers at {address} ({cause}): is it running, is --control right?"


def add_actions(parser: Any, title: str = "what to do") -> Any:
    """The subparsers of a command that has subcommands; one of them must be named."""
    return parser.add_subparsers(dest="action", required=True, metavar="ACTION", title=title)


def _fail(options: argparse.Namespace, text: str, code: int) -> int:
    action = getattr(options, "action", "")
    print(f"{options.prog}{f' {action}' if action else ''}: {shown(text)}", file=sys.stderr)
    return code


def _content(name: str, path: str) -> bytes:
    try:
        with Path(path).expanduser().open("rb") as file:
            content = file.read(_MAX_SECRET_BYTES + 1)
    except OSError as error:
        raise CommandError(f"{name}: {path!r} cannot be read: {error.strerror or error}", WRONG) from None
    if len(content) > _MAX_SECRET_BYTES:
        raise CommandError(f"{name}: {path!r} has more than {_MAX_SECRET_BYTES} bytes", WRONG)
    return content


def _leave_pipe() -> None:
    """Nobody reads any more: what is still buffered must not fail when the interpreter flushes it at its end."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
