"""`outrider` finds its subcommands by entry point and survives broken ones."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

import outrider
from outrider import cli


def greet(arguments: list[str]) -> int:
    """say hello

    More about it.
    """
    print("hello", *arguments)
    return 7


def point(name: str, value: str) -> EntryPoint:
    return EntryPoint(name, value, cli.GROUP)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> list[EntryPoint]:
    points = [point("version", "outrider.cli:version")]
    monkeypatch.setattr(cli, "entry_points", lambda group: points if group == cli.GROUP else [])
    return points


def test_runs_the_command_that_is_named(installed: list[EntryPoint], capsys: pytest.CaptureFixture[str]) -> None:
    installed.append(point("greet", f"{__name__}:greet"))
    assert cli.main(["greet", "--loud", "you"]) == 7
    assert capsys.readouterr().out == "hello --loud you\n"


@pytest.mark.parametrize("arguments", [["version"], ["--version"]])
def test_version(installed: list[EntryPoint], capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out == f"outrider {outrider.__version__}\n"


def test_version_takes_no_arguments(installed: list[EntryPoint], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["version", "x"]) == 2
    assert "'x'" in capsys.readouterr().err


def test_help(installed: list[EntryPoint], capsys: pytest.CaptureFixture[str]) -> None:
    installed += [point("greet", f"{__name__}:greet"), point("broken", "nowhere_at_all:main")]
    assert cli.main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:] == [
        "  broken   cannot be loaded: No module named 'nowhere_at_all'",
        "  greet    say hello",
        "  version  print the version",
    ]


def test_nothing_named_is_a_wrong_command_line(installed: list[EntryPoint], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "No other package that brings commands is installed" in capsys.readouterr().out


def test_unknown_command(installed: list[EntryPoint], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["versoin"]) == 2
    assert "'versoin' is no command; did you mean 'version'?" in capsys.readouterr().err


def test_broken_command(installed: list[EntryPoint], capsys: pytest.CaptureFixture[str]) -> None:
    installed.append(point("broken", "nowhere_at_all:main"))
    assert cli.main(["broken"]) == 1
    assert "broken cannot be loaded from nowhere_at_all:main" in capsys.readouterr().err
