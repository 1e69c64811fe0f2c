"""A PostgreSQL server of the tests' own: Debian's package, in a folder of its own, on a unix socket there.

Always holds: nothing of a server of the machine is touched; the server ends with the tests, its folder goes with it.
It forgets nothing when a process is killed, but does not wait for the disk (`fsync=off`): tests survive no power cut.

A test that needs it is skipped, and says so, where the programs are not installed.
"""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

_USER = "outrider"
_START_S = 60.0
_SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "100",
    "shared_buffers": "32MB",
    "autovacuum": "off",
    "log_min_messages": "fatal",
}


def programs() -> Path | None:
    """The folder of initdb and postgres; None where there is none. The newest version counts."""
    folders = sorted(
        Path("/usr/lib/postgresql").glob("*/bin"), key=lambda one: int("0" + one.parent.name.split(".")[0])
    )
    for folder in reversed(folders):
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    found = shutil.which("initdb")
    return Path(found).resolve().parent if found else None


class Postgres:
    """One server with its folder; `start` it, and `close` it in the end."""

    def __init__(self, binaries: Path):
        self._binaries = binaries
        # Short: the path of a unix socket has at most 107 characters.
        self.folder = Path(tempfile.mkdtemp(prefix="outrider-pg-"))
        self._identity = _identity()
        if self._identity:
            os.chown(self.folder, self._identity["user"], self._identity["group"])
        self._names = itertools.count(1)
        self._process: subprocess.Popen[bytes] | None = None
        options = ["-U", _USER, "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]
        self._run("initdb", "-D", str(self.folder / "data"), *options)

    def start(self) -> None:
        """Start it and wait until it takes connections."""
        settings = [part for name, value in _SETTINGS.items() for part in ("-c", f"{name}={value}")]
        command = [str(self._binaries / "postgres"), "-D", str(self.folder / "data"), "-k", str(self.folder), *settings]
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen[bytes](
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=self.folder, **self._identity
            )
        self._process = process
        give_up_at = time.monotonic() + _START_S
        while True:
            try:
                self._execute(sql.SQL("SELECT 1"))
                return
            except psycopg.OperationalError as error:
                if process.poll() is not None or time.monotonic() > give_up_at:
                    log_text = (self.folder / "log").read_text(errors="replace")[-2000:]
                    raise RuntimeError(f"PostgreSQL does not start: {error}\n{log_text}") from error
                time.sleep(0.02)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """End the server: SIGINT rolls open transactions back, SIGQUIT is as if it had crashed."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(30)
            self._process = None

    def close(self) -> None:
        """End the server and remove all it has."""
        self.stop(signal.SIGQUIT)  # nothing of it is needed any more
        shutil.rmtree(self.folder, ignore_errors=True)

    def create(self, template: str = "template0") -> str:
        """A new database, a copy of `template`; its name."""
        name = f"test_{next(self._names)}"
        self._execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template)))
        return name

    def drop(self, name: str) -> None:
        """Remove a database, and end its connections."""
        self._execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def url(self, name: str) -> str:
        """For `Database.open`."""
        return f"postgresql://{_USER}@/{name}?host={self.folder}"

    def _execute(self, statement: sql.SQL | sql.Composed) -> None:
        with psycopg.connect(host=str(self.folder), user=_USER, dbname="postgres", autocommit=True) as connection:
            connection.execute(statement)

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._binaries / program), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=self.folder, **self._identity, check=False)
        if done.returncode:
            raise RuntimeError(f"{program} fails: {done.stderr.strip() or done.stdout.strip()}")


def _identity() -> dict[str, Any]:
    """Arguments of subprocess that drop root, which PostgreSQL refuses."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    raise RuntimeError("PostgreSQL does not run as root, and there is neither a user postgres nor nobody")
