"""`outrider doctor`: looks at everything that can be wrong with a mesh, and says what to do.

Always holds: it only looks; one check that fails does not keep the others from being made; exit code 1 if anything is
wrong, 3 if that is that no control plane answers.

Deliberately not here: what is made of what was seen (`findings`), the ports (`ports`).
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
from rich.text import Text

from outrider import __version__, yaml_file
from outrider.control_channel import OperatorError, parse_control
from outrider.operator import Operator
from outrider_control.commands.arguments import command_parser
from outrider_control.commands.findings import (
    NOTE,
    OK,
    WRONG,
    Finding,
    judge_clock,
    judge_endpoints,
    judge_scales,
    judge_sidecars,
    judge_status,
    judge_traffic,
    judge_version,
)
from outrider_control.commands.output import shown, state
from outrider_control.commands.ports import PORTS, look
from outrider_control.commands.session import DONE, FAILED, UNREACHABLE, CommandError, Session, explained, run

_HOUR_MS = 3_600_000
_CHECK_S = 30.0
_CONTROL_KEYS = frozenset({"grpc", "http", "database", "agents_file", "auth", "retention", "prices", "scaling"})


def main(arguments: list[str]) -> int:
    """what is wrong with the mesh, and what to do about it"""
    parser = command_parser("doctor", main.__doc__)
    parser.add_argument("--config", metavar="FILE", nargs="+", default=[], help="files of sidecars and control planes")
    parser.add_argument("--no-ports", action="store_true", help="do not look at this machine's ports")
    return run(parser, arguments, _doctor)


def _doctor(session: Session) -> int:
    findings: list[Finding] = []
    out = session.out
    for finding in _all(session):
        findings.append(finding)
        if not out.is_json:
            _print(session, finding)
    wrong = [finding for finding in findings if finding.level == WRONG]
    if out.is_json:
        data = [
            {"check": one.check, "level": one.level, "text": one.text, "todo": one.todo or None} for one in findings
        ]
        out.json({"ok": not wrong, "findings": data})
    else:
        out.line(f"{len(wrong)} wrong" if wrong else "nothing is wrong", "red" if wrong else "green")
    if not wrong:
        return DONE
    has_answered = any(one.check == "control" and one.level == OK for one in findings)
    return FAILED if has_answered else UNREACHABLE


def _print(session: Session, finding: Finding) -> None:
    mark = state(finding.level)
    mark.pad_right(6 - len(finding.level))
    session.out.line(Text.assemble(mark, shown(finding.text)))
    if finding.todo:
        session.out.line(Text.assemble("      ", ("-> ", "bold"), shown(finding.todo)))


def _all(session: Session) -> Iterator[Finding]:
    for path in session.options.config:
        yield check_config(path)
    yield from _control(session)
    if not session.options.no_ports:
        for port in PORTS:
            yield look(port)


def _control(session: Session) -> Iterator[Finding]:
    """Every control plane of the list for itself, then the mesh as one of them sees it."""
    try:
        addresses = [str(address) for address in parse_control(session.control)]
    except ValueError as error:
        raise CommandError(f"--control {error}", 2) from None
    has_seen_mesh = False
    for address in addresses:
        with session.dial(address) as operator:
            try:
                yield from _one(operator, address)
                if not has_seen_mesh:
                    yield from _mesh(operator)
                    has_seen_mesh = True
            except OperatorError as error:
                yield Finding(
                    "control", WRONG, explained(error), "see its log; outrider-control --config FILE starts it"
                )


def _one(operator: Operator, address: str) -> Iterator[Finding]:
    operator.get_status()  # the connection is made, so that the next answer's time says how far away the clock is
    before_ms = time.time() * 1_000
    status = operator.get_status()
    doubt_ms = (time.time() * 1_000 - before_ms) / 2
    leads = "leads" if status.leader else "follows"
    yield Finding("control", OK, f"the control plane at {address} answers in {doubt_ms * 2:.1f} ms and {leads}")
    yield judge_version(f"the control plane at {address}", status.version, __version__, "this program")
    yield judge_clock("this machine", before_ms + doubt_ms - status.now_unix_ms, doubt_ms)
    yield from judge_status(status)


def _mesh(operator: Operator) -> Iterator[Finding]:
    status = operator.get_status()
    sidecars = operator.list_sidecars().sidecars
    yield from judge_sidecars(sidecars, status.version, status.now_unix_ms)
    yield from judge_endpoints(operator.list_agents().agents, operator.list_endpoints().endpoints)
    yield from judge_traffic(operator.get_overview(_HOUR_MS), sidecars, status.now_unix_ms)
    try:
        yield from judge_scales(operator.list_scales().scales)
    except OperatorError as error:
        if error.status is not grpc.StatusCode.UNIMPLEMENTED:  # of the version before
            raise


def check_config(path: str) -> Finding:
    """Whether the program a file is for accepts it."""
    try:
        data = yaml_file.read(Path(path))
    except yaml_file.YamlError as error:
        return Finding("config", WRONG, f"{path}: {error}", "mend the file")
    is_control = isinstance(data, dict) and not _CONTROL_KEYS.isdisjoint(data)
    package, program = (
        ("outrider_control", "outrider-control") if is_control else ("outrider_sidecar", "outrider-sidecar")
    )
    if importlib.util.find_spec(package) is None:
        return Finding("config", NOTE, f"{path}: {program} is not installed here", "check the file where it runs")
    return _checked(path, package, program)


def _checked(
    path: str,
    package: str,
    program: str,
) -> Finding:
    command = [sys.executable, "-m", package, "--config", path, "--check"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_CHECK_S, stdin=subprocess.DEVNULL, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("config", WRONG, f"{path}: {program} --check does not end: {error}", f"run {program} by hand")
    if done.returncode == 0:
        return Finding("config", OK, f"{path}: {program} accepts it")
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    text = lines[-1].removeprefix(f"{program}: ") if lines else f"{program} --check fails without a word"
    return Finding("config", WRONG, text if path in text else f"{path}: {text}", "mend the file")
