"""`outrider`: one program whose subcommands are brought by whatever is installed.

A package adds a subcommand by an entry point of the group `outrider.commands`, whose name is the subcommand's and whose
object is called with the arguments after that name and gives the exit code: `def main(arguments: list[str]) -> int`.
The first line of its docstring is its help.

Always holds: a command that cannot be loaded breaks only itself. Exit code 2: the command line is wrong.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint, entry_points

from outrider import __version__
from outrider.tree import nearest

GROUP = "outrider.commands"

Command = Callable[[list[str]], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the subcommand that the first argument names."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # else grpcio's own lines come before a command's one
    commands = {point.name: point for point in sorted(entry_points(group=GROUP), key=lambda point: point.name)}
    if not given or given[0] in ("-h", "--help", "help"):
        print(_help(commands))
        return 0 if given else 2
    if given[0] == "--version":
        return version([])
    point = commands.get(given[0])
    if point is None:
        print(f"outrider: {given[0]!r} is no command; {nearest(given[0], list(commands))}", file=sys.stderr)
        if not commands.keys() - {"version"}:
            print(_NOTHING_INSTALLED, file=sys.stderr)
        return 2
    try:
        command: Command = point.load()
    except Exception as error:  # noqa: BLE001 - any fault of any package that is installed
        print(f"outrider: {point.name} cannot be loaded from {point.value}: {error}", file=sys.stderr)
        return 1
    return command(given[1:])


def version(arguments: list[str]) -> int:
    """print the version"""
    if arguments:
        print(f"outrider version: takes no arguments, not {arguments[0]!r}", file=sys.stderr)
        return 2
    print(f"outrider {__version__}")
    return 0


_NOTHING_INSTALLED = (
    "No other package that brings commands is installed.\n"
    "The sidecar itself is a program of its own: outrider-sidecar --config FILE"
)


def _help(commands: dict[str, EntryPoint]) -> str:
    lines = ["usage: outrider COMMAND [arguments]", ""]
    width = max((len(name) for name in commands), default=0)
    lines += [f"  {name:<{width}}  {_summary(point)}" for name, point in commands.items()]
    if not commands.keys() - {"version"}:
        lines += ["", _NOTHING_INSTALLED]
    return "\n".join(lines)


def _summary(point: EntryPoint) -> str:
    try:
        return (inspect.getdoc(point.load()) or "").partition("\n")[0]
    except Exception as error:  # noqa: BLE001 - help is given whatever is broken
        return f"cannot be loaded: {error}"


if __name__ == "__main__":
    sys.exit(main())
