"""A stand-in control plane, and commands run against it as from a shell."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.unit.outrider_control.commands.operator_server import OperatorServer, StandIn


@dataclass(frozen=True)
class Ran:
    """What a command left."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Ran]


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OUTRIDER_CONTROL", "OUTRIDER_TOKEN", "OUTRIDER_TOKEN_FILE", "FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TZ", "UTC")


@pytest.fixture
def server() -> Iterator[OperatorServer]:
    with OperatorServer() as running:
        yield running


@pytest.fixture
def stand_in(server: OperatorServer) -> StandIn:
    return server.stand_in


@pytest.fixture
def run_alone(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `outrider COMMAND arguments...` with no control plane given."""

    def run(command: str, *arguments: str) -> Ran:
        module = importlib.import_module(f"outrider_control.commands.{command}")
        capsys.readouterr()
        code = module.main(list(arguments))
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return run


@pytest.fixture
def run(server: OperatorServer, monkeypatch: pytest.MonkeyPatch, run_alone: Run) -> Run:
    """The same against the stand-in."""
    monkeypatch.setenv("OUTRIDER_CONTROL", server.address)
    return run_alone
