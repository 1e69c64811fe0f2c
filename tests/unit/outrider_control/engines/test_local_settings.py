"""What a configuration of local engines may say, and what is told of a wrong one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from outrider.policy import PolicyError
from outrider_control.engines.local_settings import PLACEHOLDERS, LocalAgent, fill, settings

COMMAND = ["serve", "--port", "{port}"]
PATH = "scaling.engines.local"


def read(folder: Path, tax: Any, **fields: Any) -> LocalAgent:
    return settings({"kind": "local", "agents": {"tax": tax}, **fields}, PATH, folder).agents["tax"]


def test_defaults(tmp_path: Path) -> None:
    found = settings({"kind": "local", "agents": {"tax": {"command": COMMAND}}}, PATH, tmp_path)
    assert found.state_dir == tmp_path / "outrider-engines" / "local"
    assert found.log_dir == found.state_dir / "logs"
    assert not found.stop_on_exit
    assert found.boots >= 1
    tax = found.agents["tax"]
    assert (tax.ready, tax.start_s, tax.drain_s, tax.host, tax.cwd) == ("registered", 60, 30, "127.0.0.1", tmp_path)


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    found = settings(
        {"agents": {"tax": {"command": COMMAND, "cwd": "work"}}, "log_dir": "logs", "state_dir": "/var/state"},
        PATH,
        tmp_path,
    )
    assert (found.log_dir, found.state_dir) == (tmp_path / "logs", Path("/var/state"))
    assert found.agents["tax"].cwd == tmp_path / "work"


def test_every_placeholder_is_filled_in(tmp_path: Path) -> None:
    words = ["a", *(f"x{{{name}}}y{{{{{name}}}}}" for name in PLACEHOLDERS), 4]
    tax = read(tmp_path, {"command": words, "capacity": 3})
    filled = tax.words({name: f"<{name}>" for name in PLACEHOLDERS})
    assert filled == ["a", *(f"x<{name}>y{{{name}}}" for name in PLACEHOLDERS), "4"]


def test_what_is_filled_in_is_not_read_again() -> None:
    assert fill("{name} {port}", {"name": "{port}", "port": "7"}) == "{port} 7"


@pytest.mark.parametrize(
    ("tax", "told"),
    [
        ({"command": ["a", "{ports_file}"]}, True),
        ({"command": ["a"], "env": {"PORTS": "{ports_file}"}}, True),
        ({"command": ["a", "{ports_file}"], "ports": "9000-9099"}, False),
        ({"command": ["a", "{port}"]}, False),
        ({"command": ["a", "{{ports_file}}"]}, False),
    ],
)
def test_who_chooses_the_port(tmp_path: Path, tax: Any, told: bool) -> None:
    assert read(tmp_path, tax).tells_port is told


@pytest.mark.parametrize(
    ("tax", "path", "reason"),
    [
        ({}, "command", "is not a list"),
        ({"command": "python agent.py"}, "command", "no shell is involved"),
        ({"command": []}, "command", "has 0 words"),
        ({"command": ["x"] * 1_001}, "command", "has 1001 words"),
        ({"command": [""]}, "command[0]", "is empty"),
        ({"command": ["a", None]}, "command[1]", "nothing"),
        ({"command": ["a", True]}, "command[1]", "is not text"),
        ({"command": ["a", "b\nc"]}, "command[1]", "cannot be printed"),
        ({"command": ["a", "b\0c"]}, "command[1]", "cannot be printed"),
        ({"command": ["a", "{prot}"]}, "command[1]", "did you mean 'port'?"),
        ({"command": ["a", "{}"]}, "command[1]", "{} is no placeholder"),
        ({"command": ["a", "{0}"]}, "command[1]", "{0} is no placeholder"),
        ({"command": ["a", '{"json": 1}']}, "command[1]", "a brace that is meant is written twice"),
        ({"command": ["a", "{port"]}, "command[1]", "a brace that is meant is written twice"),
        ({"command": ["a", "port}"]}, "command[1]", "a brace that is meant is written twice"),
        ({"command": ["a", "{port.real}"]}, "command[1]", "{port.real} is no placeholder"),
        ({"command": ["a", "{port:>9999999999}"]}, "command[1]", "without a format"),
        ({"command": ["a", "{port!r}"]}, "command[1]", "without a format"),
        ({"command": ["a", "{port:{name}}"]}, "command[1]", "without a format"),
        ({"command": ["a", "{capacity}"]}, "command[1]", "needs `capacity`"),
        ({"command": ["a"], "env": ["A=1"]}, "env", "is not a mapping"),
        ({"command": ["a"], "env": {"A B": "1"}}, "env", "no name of a variable"),
        ({"command": ["a"], "env": {"A": {}}}, "env.A", "is not text"),
        ({"command": ["a"], "env": {"A": "{prot}"}}, "env.A", "did you mean 'port'?"),
        ({"command": ["a"], "env": {"OUTRIDER_PORT": "1"}}, "env", "are set by the engine"),
        ({"command": ["a"], "inherit": ["A=B"]}, "inherit[0]", "no name of a variable"),
        ({"command": ["a"], "inherit": "HOME"}, "inherit", "is not a list"),
        ({"command": ["a"], "cwd": "nowhere"}, "cwd", "is not a folder"),
        ({"command": ["a"], "capacity": 0}, "capacity", "is not between 1 and"),
        ({"command": ["a"], "ready": "healthy"}, "ready", "did you mean 'health'?"),
        ({"command": ["a"], "start_s": 0}, "start_s", "is not between 0.1 and"),
        ({"command": ["a"], "start_s": float("nan")}, "start_s", "is not a number"),
        ({"command": ["a"], "drain_s": -1}, "drain_s", "is not between 0.0 and"),
        ({"command": ["a"], "check_s": 0.01}, "check_s", "is not between 0.05 and"),
        ({"command": ["a"], "unhealthy_after": 0}, "unhealthy_after", "is not between 1 and"),
        ({"command": ["a"], "ports": "9000"}, "ports", "no range of ports"),
        ({"command": ["a"], "ports": "9000-8000"}, "ports", "no range of ports"),
        ({"command": ["a"], "ports": "0-65536"}, "ports", "no range of ports"),
        ({"command": ["a"], "ports": 9000}, "ports", "put it in quotes"),
        ({"command": ["a"], "host": "a b"}, "host", "neither a host name"),
        ({"command": ["a"], "shell": True}, "shell", "is not a field"),
        ("python agent.py", "", "is not a mapping"),
    ],
)
def test_a_wrong_agent(tmp_path: Path, tax: Any, path: str, reason: str) -> None:
    with pytest.raises(PolicyError) as caught:
        read(tmp_path, tax)
    assert caught.value.path == f"{PATH}.agents.tax.{path}".rstrip(".")
    assert reason in caught.value.reason


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"agents": {}}, "agents"),
        ({"agents": ["tax"]}, "agents"),
        ({"agents": {"../tax": {"command": ["a"]}}}, "agents.../tax"),
        ({"agents": {1: {"command": ["a"]}}}, "agents"),
        ({"booting": -1}, "booting"),
        ({"booting": 1.5}, "booting"),
        ({"log_bytes": 10}, "log_bytes"),
        ({"log_dir": ""}, "log_dir"),
        ({"state_dir": 4}, "state_dir"),
        ({"stop_on_exit": "yes"}, "stop_on_exit"),
        ({"url": "x"}, "url"),
    ],
)
def test_a_wrong_engine(tmp_path: Path, fields: dict[str, Any], path: str) -> None:
    with pytest.raises(PolicyError) as caught:
        settings({"kind": "local", "agents": {"tax": {"command": COMMAND}}, **fields}, PATH, tmp_path)
    assert caught.value.path == f"{PATH}.{path}"
