"""JSON as text: its whitespace taken away and put back, and trees whose every character survives.

Always holds: numbers stay digit for digit, keys in their order, duplicate keys and escapes as they stand, for nothing
is rewritten but the whitespace between tokens. What is not JSON by RFC 8259 (`NaN` among it), or nested deeper than
the interpreter reads, is not touched. A `Style` is whitespace that can be told in a few characters and put back
exactly; where a text has no such style its compact form means the same and is not called reversible.

Deliberately not here: tables (`columns`).
"""

from __future__ import annotations

import json
import json.encoder
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final, NoReturn

STRING: Final = re.compile(r'("[^"\\]*+(?:\\.[^"\\]*+)*+")', re.DOTALL)
_TOKEN: Final = re.compile(r"[{}\[\],:]|[^{}\[\],:]+")
_INDENT: Final = re.compile(r"[\[{]\n([ ]{1,8}|\t)")
_NUMBER: Final = re.compile(r'"\\u0004([^"]*)"')
_STAND_IN: Final = re.compile(r"\\u000([123])")
_MEANT: Final = {"1": '\\"', "2": "\\", "3": "\\\\"}
_NO_BRACKETS: Final = bytes([code for code in range(256) if chr(code) not in "{}[]"])
_DEEPER: Final = {ord("{"): 1, ord("["): 1, ord("}"): -1, ord("]"): -1}
_BREAK: Final = re.compile(r"(.)\n([ \t]*)(?=(.))")

DEFAULT: Final = "d"  # json.dumps of Python: a space after each comma and colon
COMPACT: Final = "c"  # no whitespace
LINES: Final = "l"  # before another: one value a line
# Stand-ins in a raw tree for what a JSON reader would translate. A valid document holds no control characters.
_QUOTE, _ESCAPE, _BACKSLASH, NUMBER = "\x01", "\x02", "\x03", "\x04"
MAX_DEPTH: Final = 200  # deeper nesting is left alone, well before the interpreter's own limit


class _DuplicateKey(ValueError):
    """An object has a key twice: no tree holds it."""


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _DuplicateKey
    return found


def _scanner(**options: Any) -> Callable[[str, int], tuple[Any, int]]:
    """What a decoder reads one value with: without its looks at whitespace, which are Python."""
    decoder: Any = json.JSONDecoder(parse_constant=_refuse_constant, **options)
    return decoder.scan_once


_scan = _scanner()
_scan_raw = _scanner(parse_float=NUMBER.__add__, parse_int=NUMBER.__add__, object_pairs_hook=_unique, strict=False)


def _encoder(ensure_ascii: bool, after: str) -> Callable[[Any], str]:
    """As `json.JSONEncoder(...).encode`, without what that does anew in every call."""
    slow = json.JSONEncoder(check_circular=False, ensure_ascii=ensure_ascii, separators=("," + after, ":" + after))
    make: Any = getattr(json.encoder, "c_make_encoder", None)
    if make is None:
        return slow.encode
    text_of = json.encoder.encode_basestring_ascii if ensure_ascii else json.encoder.encode_basestring
    chunks = make(None, slow.default, text_of, None, ":" + after, "," + after, False, False, False)

    def encode(tree: Any) -> str:
        return "".join(chunks(tree, 0))

    return encode


_ASCII_DEFAULT = _encoder(True, " ")
_ASCII_COMPACT = _encoder(True, "")
_WIDE_DEFAULT = _encoder(False, " ")
_WIDE_COMPACT = _encoder(False, "")


@dataclass(slots=True)
class Document:
    """A text that is JSON."""

    tree: Any  # dicts and lists, with stand-ins where `raw`
    style: str  # what `restyled` takes; empty: the whitespace follows no rule known here
    compact_size: int  # characters of its compact form
    ascii: bool
    raw: bool  # numbers and escapes of the tree are stand-ins
    faithful: bool  # `encode` of the tree gives the compact form, character for character
    compact: str = ""  # where it was made

    def encode(self, tree: Any) -> str:
        """Compact JSON of a tree made of this one's parts."""
        text = _ASCII_COMPACT(tree) if self.ascii and not self.raw else _WIDE_COMPACT(tree)
        return from_raw(text) if self.raw else text


def from_raw(text: str) -> str:
    """The JSON of an encoded raw tree: stand-ins become again what they stand for."""
    parts = _STAND_IN.split("".join(_NUMBER.split(text)))
    parts[1::2] = [_MEANT[digit] for digit in parts[1::2]]
    return "".join(parts)


def read(text: str) -> Document | None:
    """The document a text is, or None where it is none. Only objects and arrays count."""
    if not text.startswith(("{", "[")):
        return None
    try:
        tree, end = _scan(text, 0)
    except (ValueError, StopIteration, RecursionError):
        return None
    if (end != len(text) and text[end:].strip(" \t\r\n")) or _too_deep(text):
        return None
    plain = text.isascii()
    usual = "\\u000" not in text  # a stand-in of ours that is in the text as an escape would be taken for ours
    if usual and text[1:2] != "\n" and (_ASCII_DEFAULT if plain else _WIDE_DEFAULT)(tree) == text:
        return Document(tree, DEFAULT, len(text), plain, False, True)
    parts = STRING.split(text)
    between = parts[0::2]
    parts[0::2] = "".join("\0".join(between).split()).split("\0")
    compact = "".join(parts)
    style = _style_of(text, compact, between)
    if usual and (_ASCII_COMPACT if plain else _WIDE_COMPACT)(tree) == compact:
        return Document(tree, style, len(compact), plain, False, True, compact)
    return _read_raw(compact, style, plain)


def _too_deep(text: str) -> bool:
    """Brackets within strings are counted too: who hides depth behind them meets the interpreter's limit instead."""
    if text.count("{") + text.count("[") <= MAX_DEPTH:
        return False
    brackets = text.encode("utf-8", "surrogatepass").translate(None, _NO_BRACKETS)
    return max(accumulate(map(_DEEPER.__getitem__, brackets)), default=0) > MAX_DEPTH


def _read_raw(compact: str, style: str, plain: bool) -> Document:
    document = Document(None, style, len(compact), plain, True, False, compact)
    try:
        masked = compact.replace("\\\\", _BACKSLASH).replace('\\"', _QUOTE).replace("\\", _ESCAPE)
        document.tree, _ = _scan_raw(masked, 0)
        document.faithful = document.encode(document.tree) == compact
    except (ValueError, StopIteration, RecursionError):
        pass
    return document


def read_lines(text: str) -> Document | None:
    """The document that the lines of a text are, every line an object or array, taken as one array."""
    end = "\n" if text.endswith("\n") else ""
    lines = text.removesuffix("\n").split("\n")
    if len(lines) < 2 or not all([line[:1] in ("{", "[") for line in lines]):
        return None
    for glue, name in ((", ", DEFAULT), (",", COMPACT)):
        found = read(f"[{glue.join(lines)}]")
        if found is None:
            return None
        if found.style == name and len(found.tree or ()) == len(lines):
            found.style = LINES + name + ("n" if end else "")
            return found
    return None


def _style_of(text: str, compact: str, between: list[str]) -> str:
    """The style of a text whose compact form is known, and what stands between its strings; empty: it has none."""
    end = "n" if text.endswith("\n") else ""
    body = text.removesuffix("\n")
    if len(body) == len(compact):
        return COMPACT + end
    indent = _INDENT.match(body)
    if indent is None:
        style = DEFAULT
    else:
        style = "t" if indent[1] == "\t" else str(len(indent[1]))
        return style + end if _is_indented(body, compact, indent[1], between) else ""
    return style + end if restyled(compact, style) == body else ""


def _is_indented(text: str, compact: str, unit: str, between: list[str]) -> bool:
    """Whether `_indented` of the compact form would give the text, told by counting: every break and every colon has
    the whitespace it should, every place that should have some does, and no other whitespace is left."""
    depth = 0
    blanks = 0
    breaks = _BREAK.findall(text)
    for before, blank, after in breaks:
        if before in "{[":
            depth += 1
            if after in "}]":
                return False  # what is empty stays together
        elif after in "}]":
            depth -= 1
        elif before != ",":
            return False
        if len(blank) != depth * len(unit):
            return False
        blanks += len(blank)
    tokens = "".join("\0".join(between).split())
    full = tokens.count("{") + tokens.count("[") - tokens.count("{}") - tokens.count("[]")
    colons = tokens.count(":")
    return (
        len(breaks) == text.count("\n") == tokens.count(",") + 2 * full
        and colons == sum([part[:2] == ": " for part in between])
        and len(text) == len(compact) + len(breaks) + blanks + colons
        and (unit != "\t" or " " not in "".join([blank for _, blank, _ in breaks]))
        and (unit == "\t" or "\t" not in "".join([blank for _, blank, _ in breaks]))
    )


def restyled(compact: str, style: str) -> str:
    """Compact JSON with the whitespace of a style."""
    if style.endswith("n"):
        return restyled(compact, style[:-1]) + "\n"
    if style == COMPACT:
        return compact
    parts = STRING.split(compact)
    if style == DEFAULT:
        parts[0::2] = "\0".join(parts[0::2]).replace(",", ", ").replace(":", ": ").split("\0")
        return "".join(parts)
    return _indented(parts, "\t" if style == "t" else " " * int(style))


def _indented(parts: list[str], unit: str) -> str:
    made: list[str] = []
    depth = 0
    opened = False  # the last token opened an object or array: what follows it stands on a new line
    for index, part in enumerate(parts):
        for token in _TOKEN.findall(part) if index % 2 == 0 else (part,):
            if token in ("}", "]"):
                depth -= 1
                made.append(token if opened else f"\n{unit * depth}{token}")
                opened = False
                continue
            if opened:
                made.append("\n" + unit * depth)
                opened = False
            if token in ("{", "["):
                depth += 1
                opened = True
                made.append(token)
            elif token == ",":
                made.append(",\n" + unit * depth)
            else:
                made.append(": " if token == ":" else token)
    return "".join(made)


def split_lines(compact: str) -> list[str]:
    """The elements of a compact array, as texts."""
    elements: list[str] = []
    depth = 0
    start = 1
    at = 0
    for index, part in enumerate(STRING.split(compact)):
        if index % 2 == 0:
            for offset, char in enumerate(part):
                if char in "[{":
                    depth += 1
                elif char in "]}":
                    depth -= 1
                    if depth == 0 and at + offset > start:
                        elements.append(compact[start : at + offset])
                elif char == "," and depth == 1:
                    elements.append(compact[start : at + offset])
                    start = at + offset + 1
        at += len(part)
    return elements


def unstyled(compact: str, style: str) -> str:
    """What a document was, of its compact form and style."""
    if not style.startswith(LINES):
        return restyled(compact, style)
    ended = style.endswith("n")
    kind = style[1:].removesuffix("n")
    return "\n".join([restyled(line, kind) for line in split_lines(compact)]) + ("\n" if ended else "")
