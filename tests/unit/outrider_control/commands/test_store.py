"""store backup and restore: the command line over `state.backup`."""

from __future__ import annotations

from pathlib import Path

from outrider.policy import Agent
from outrider_control.commands import store
from outrider_control.state import agents
from outrider_control.state.database import Database
from tests.unit.outrider_control.commands.conftest import Run


def test_there_and_back(run_alone: Run, tmp_path: Path) -> None:
    url, other = (f"sqlite:///{tmp_path / name}" for name in ("a.db", "b.db"))
    database = Database.open(url)
    try:
        wanted = [agents.Wanted(Agent(agent_id="tax"))]
        database.write_now(agents.apply, wanted, "ann", "first", 1)
    finally:
        database.close_now()
    file = tmp_path / "backup"
    ran = run_alone("store", "backup", "--database", url, "--file", str(file), "--json")
    assert (ran.code, ran.err) == (0, "")
    assert ran.data["rows"]["agents"] == 1
    again = run_alone("store", "backup", "--database", url, "--file", str(file))
    assert again.code == 1
    assert "is there already" in again.err
    assert "agents 1" in run_alone("store", "check", "--file", str(file)).out
    ran = run_alone("store", "restore", "--database", other, "--file", str(file))
    assert (ran.code, ran.err) == (0, "")
    database = Database.open(other)
    try:
        assert [record.agent.agent_id for record in database.read_now(agents.current)] == ["tax"]
    finally:
        database.close_now()


def test_a_damaged_backup(run_alone: Run, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"no backup")
    for command in (("check",), ("restore", "--database", f"sqlite:///{tmp_path / 'c.db'}")):
        ran = run_alone("store", *command, "--file", str(tmp_path / "f"))
        assert (ran.code, ran.out) == (1, "")
        assert "is no backup" in ran.err
        assert ran.err.count("\n") == 1


def test_a_backup_that_is_not_there(run_alone: Run) -> None:
    ran = run_alone("store", "restore", "--database", "sqlite:///x.db", "--file", "/nothing/there")
    assert ran.code == 1
    assert "'/nothing/there' is not a file" in ran.err


def test_passwords_are_not_printed(run_alone: Run, tmp_path: Path) -> None:
    url = "postgresql://me:geheim@127.0.0.1:1/outrider"
    ran = run_alone("store", "backup", "--database", url, "--file", str(tmp_path / "f"))
    assert ran.code == 1
    assert ran.err.count("\n") == 1
    assert "geheim" not in ran.err
    assert store.without_password(url) == "postgresql://me:***@127.0.0.1:1/outrider"
