"""Command lines: the options every command has, and values that people write (durations, versions).

Always holds: a wrong command line is one line on standard error and exit code 2; the common options may stand before or
after a subcommand's name.

Deliberately not here: what the options lead to (`session`).
"""

from __future__ import annotations

import argparse
import re
import sys
from typing import NoReturn

from outrider.control_channel import DEFAULT_CONTROL

_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)(ms|s|m|h|d|w)")
_DECIMAL = re.compile(r"[0-9]{1,12}(?:\.[0-9]{1,12})?|\.[0-9]{1,12}")
_UNIT_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
_MAX_MS = 3_660 * 86_400_000
WINDOWS = ("10s", "1m", "1h")


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, and whose subparsers have the common options as well."""

    def __init__(self, *args: object, **kwargs: object):
        kwargs["allow_abbrev"] = False
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.act = ""  # the subcommand this parser is of

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}; see {self.prog} --help", file=sys.stderr)
        raise SystemExit(2)


def command_parser(name: str, about: str | None, connects: bool = True) -> Parser:
    """The parser of `outrider NAME`; a command that does not connect has `--json` alone of the common options."""
    parser = Parser(prog=f"outrider {name}", description=(about or "").strip())
    add_common(parser, connects)
    return parser


def add_common(parser: argparse.ArgumentParser, connects: bool = True) -> None:
    """The options that every command has."""
    group = parser.add_argument_group("output and connection" if connects else "output")

    def add(*names: str, **rest: object) -> None:
        # No default of its own: what stands before a subcommand's name must not be undone by the one after it.
        group.add_argument(*names, default=argparse.SUPPRESS, **rest)  # type: ignore[arg-type]

    add("--json", action="store_true", help="print JSON")
    if not connects:
        return
    add(
        "--control",
        metavar="HOST:PORT",
        help=f"the control plane; several with commas are tried in order (OUTRIDER_CONTROL; else {DEFAULT_CONTROL})",
    )
    add("--token", help="better kept in OUTRIDER_TOKEN or in the file that OUTRIDER_TOKEN_FILE names")
    add("--tls", action="store_true", help="dial by TLS; implied by --ca and --cert")
    add("--ca", metavar="FILE", help="verifies the control plane (default: the well-known authorities)")
    add("--cert", metavar="FILE", help="our certificate, with --key")
    add("--key", metavar="FILE", help="the certificate's private key")
    add("--timeout", metavar="TIME", type=duration_ms, help="how long an answer may take (default: 10s)")


def add_reason(parser: argparse.ArgumentParser) -> None:
    """The option of every change."""
    parser.add_argument("--reason", metavar="TEXT", default="", help="why; goes into the journal")


def add_since(parser: argparse.ArgumentParser, default: str) -> None:
    """How far back to look; "" as the default: as far as there is anything."""
    parser.add_argument(
        "--since",
        metavar="TIME",
        type=duration_ms,
        default=duration_ms(default) if default else 0,
        help=f"how far back, as 30s, 15m, 24h, 7d (default: {default or 'all there is'})",
    )


def duration_ms(text: str) -> int:
    """Milliseconds in `250ms`, `30s`, `15m`, `24h`, `7d`, `2w`."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration: write 30s, 15m, 24h or 7d")
    value_ms = round(float(match[1]) * _UNIT_MS[match[2]])
    if not 1 <= value_ms <= _MAX_MS:
        raise argparse.ArgumentTypeError(f"{text!r} is not between 1ms and ten years")
    return value_ms


def count(text: str) -> int:
    """A whole number from 1."""
    if not text.isascii() or not text.isdecimal() or not 1 <= len(text) <= 9 or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def whole(text: str) -> int:
    """A whole number from 0."""
    if not text.isascii() or not text.isdecimal() or len(text) > 9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0")
    return int(text)


def decimal(text: str) -> float:
    """A number from 0, as 0.75."""
    if not _DECIMAL.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0")
    return float(text)


def real(text: str) -> float:
    """A number that may be below 0, as -1.5."""
    sign, rest = (-1.0, text[1:]) if text.startswith("-") else (1.0, text)
    if not _DECIMAL.fullmatch(rest):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return sign * float(rest)


def seconds(text: str) -> int:
    """Whole seconds: `300`, or as a duration, `5m`."""
    value_ms = whole(text) * 1_000 if text.isdecimal() else duration_ms(text)
    if value_ms % 1_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of whole seconds")
    return value_ms // 1_000


def version(text: str) -> int:
    """The number of a version; `v7` means 7."""
    digits = text.removeprefix("v")
    if not digits.isascii() or not digits.isdecimal() or len(digits) > 18:
        raise argparse.ArgumentTypeError(f"{text!r} is not the number of a version")
    return int(digits)
