"""`outrider store`: the control plane's database into a file and back.

Always holds: a backup is one consistent state, also while the control plane runs; it fits either kind of database. A
password in the URL is not printed.

Deliberately not here: the format (`state.backup`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from outrider_control.commands.arguments import add_common, command_parser
from outrider_control.commands.output import clock_time
from outrider_control.commands.session import CommandError, Session, add_actions, run

if TYPE_CHECKING:  # the store's libraries are loaded when they are needed
    from outrider_control.state.backup import Backup

_PASSWORD = re.compile(r"(://[^:/@]*:)[^@]*(@)")


def main(arguments: list[str]) -> int:
    """back up the control plane's store, or restore it"""
    parser = command_parser("store", main.__doc__, connects=False)
    actions = add_actions(parser)
    backup = actions.add_parser("backup", help="write all of the store into one file; the control plane may run")
    restore = actions.add_parser("restore", help="put a backup into a store; no control plane may run on it")
    for action, file_help in ((backup, "to be written"), (restore, "as `backup` wrote it")):
        action.add_argument("--database", metavar="URL", required=True, help="sqlite:///FILE or postgresql://...")
        action.add_argument("--file", metavar="FILE", required=True, help=file_help)
        action.add_argument("--force", action="store_true", help="replace what is there")
        add_common(action, connects=False)
    check = actions.add_parser("check", help="whether a backup is whole")
    check.add_argument("--file", metavar="FILE", required=True)
    add_common(check, connects=False)
    return run(parser, arguments, lambda session: _ACTIONS[session.options.action](session))


def _backup(session: Session) -> None:
    from outrider_control.state import backup

    options = session.options
    if Path(options.file).exists() and not options.force:
        raise CommandError(f"{options.file!r} is there already: name another file, or say --force")
    _done(session, "written from", _guarded(lambda: backup.backup(options.database, options.file), options.database))


def _restore(session: Session) -> None:
    from outrider_control.state import backup

    options = session.options
    if not Path(options.file).is_file():
        raise CommandError(f"{options.file!r} is not a file: name one that outrider store backup wrote")
    restored = _guarded(lambda: backup.restore(options.database, options.file, options.force), options.database)
    _done(session, "restored into", restored)


def _check(session: Session) -> None:
    from outrider_control.state import backup

    _done(session, "whole", _guarded(lambda: backup.check(session.options.file), ""))


def _guarded(act: Callable[[], Backup], url: str) -> Backup:
    from outrider_control.state.database import DatabaseError

    try:
        return act()
    except (DatabaseError, OSError, ValueError) as error:
        text = " ".join(str(error).split())
        raise CommandError(text.replace(url, without_password(url)) if url else text) from error


def without_password(url: str) -> str:
    """A database's URL for people."""
    return _PASSWORD.sub(r"\1***\2", url)


def _done(session: Session, what: str, made: Backup) -> None:
    options, out = session.options, session.out
    url = without_password(getattr(options, "database", ""))
    if out.is_json:
        found = {"made_unix_ms": made.made_ms, "schema": made.schema, "size_bytes": made.size_bytes}
        out.json({"file": options.file, "database": url or None, **found, "rows": dict(made.rows)})
        return
    of = f"of {clock_time(made.made_ms, True)}, schema {made.schema}, {made.size_bytes / 1024:.1f} KB"
    out.line(f"{options.file}: {what} {url}".rstrip() + f" ({of})")
    counts = [f"{name} {count}" for name, count in sorted(made.rows.items()) if count]
    out.line(f"rows: {', '.join(counts) or 'none'}", "dim")


_ACTIONS = {"backup": _backup, "restore": _restore, "check": _check}
