"""What a text is: cheap looks at its beginning, never at more than a few kilobytes of it.

Always holds: pure and bounded; code is recognised before anything that would be folded. A kind is a guess that decides
which compressors try; every one of them makes sure by itself.
"""

from __future__ import annotations

import re
from typing import Final

JSON: Final = "json"
LINES: Final = "json_lines"
LOG: Final = "log"
TRACE: Final = "stack_trace"
HTML: Final = "html"
DIFF: Final = "diff"
CODE: Final = "code"
TABLE: Final = "table"
BINARY: Final = "binary"
TEXT: Final = "text"
KINDS: Final = (JSON, LINES, LOG, TRACE, HTML, DIFF, CODE, TABLE, BINARY, TEXT)

_SAMPLE: Final = 4_000  # characters that are looked at
_MAX_LINES: Final = 120  # of them
_MIN_BINARY: Final = 512
_LONG_LINE: Final = 200  # characters from which on a line is prose, if anything
_HTML: Final = re.compile(
    r"<(?:!doctype html|html|head|body|div|span|table|ul|ol|p|h[1-6]|article|section|main)\b", re.IGNORECASE
)
_DIFF: Final = re.compile(r"^(?:diff --git |Index: |--- [^\n]*\n\+\+\+ |@@ -\d+(?:,\d+)? \+\d+)", re.MULTILINE)
_TRACE: Final = re.compile(
    r"^(?:Traceback \(most recent call last\):|[ \t]+at [\w.$<>/ ]{1,200}\(|Exception in thread |goroutine \d+ \[|"
    r"[ \t]*File \"[^\"]+\", line \d+)",
    re.MULTILINE,
)
_LOG: Final = re.compile(
    r"(?:\[?\d{4}[-/]\d\d[-/]\d\d[T ]\d\d:\d\d|\w{3} [ \d]\d \d\d:\d\d:\d\d |\S+ \S+ \S+ \[\d\d/\w{3}/\d{4}:|"
    r"[IWEFD]\d{4} \d\d:\d\d|\d\d:\d\d:\d\d[.,\s]|\[?(?:TRACE|DEBUG|INFO|WARN|WARNING|ERROR|FATAL|CRITICAL)\b)"
)
_CODE_LINE: Final = re.compile(
    r"\s*(?:(?:async )?def \w+\(|class \w+[:({]|import \w|from [\w.]+ import |#include\b|package [\w.]+;?$|"
    r"(?:public|private|protected|static|export|const|let|var|func|fn|function|struct|enum|impl|use|return|if|for|while|"
    r"else|elif|try|except|catch|switch|case|select|insert|create|update|delete|alter|with)\b.*[:;{(,)]$|[})\]]+[;,)]*$|"
    r".*[;{}]$|//|/\*|\*/|\*(?: |$)|#!|#\s*(?:define|undef|if|ifdef|ifndef|else|endif|pragma|include)\b|@\w+|r?\"\"\"|"
    r"[\w.\[\]'\"]+(?:: [\w\[\], |.]+)? [-+*/|]?= \S|.*=> .*,$|<\?\w|\[[\w.-]+\]$|\w+\(.*\)$|.*\\$)",
    re.IGNORECASE,
)
_BASE64: Final = re.compile(r"(?:data:[\w/+.-]+;base64,)?[A-Za-z0-9+/_=\r\n-]+\Z")


def kind_of(text: str, media_type: str = "") -> str:
    """The kind a text seems to be."""
    head = text[:_SAMPLE]
    start = head.lstrip()[:1]
    if "html" in media_type:
        return HTML
    if _binary(text, head):
        return BINARY
    if start in ("{", "["):
        end = text[-64:].rstrip()[-1:]
        if end in ("}", "]"):
            first = head.partition("\n")[0].rstrip()
            whole = first[-1:] == ("}" if start == "{" else "]") and len(first) < len(text.rstrip())
            return LINES if whole and len(first) > 2 else JSON
    if start == "<" and _HTML.search(head):
        return HTML
    if _DIFF.search(head):
        return DIFF
    return _by_lines(head, len(text))


def _binary(text: str, head: str) -> bool:
    """Control characters, or one long word of base64."""
    if "\0" in head or head.count("\ufffd") * 10 > len(head):
        return True
    if len(text) < _MIN_BINARY or " " in head:
        return False
    return _BASE64.match(head.rstrip()) is not None and not head.rstrip().isdigit() and _mixed(head)


def _mixed(head: str) -> bool:
    """Whether letters of both cases and digits are about as frequent as in base64, on long lines."""
    first = head.removeprefix("data:").partition("\n")[0]
    if len(first) < 60:
        return False
    upper = sum([char.isupper() for char in head])
    digits = sum([char.isdigit() for char in head])
    return upper * 6 > len(head) and digits * 20 > len(head)


def _by_lines(head: str, length: int) -> str:
    lines = [line for line in head.split("\n", _MAX_LINES)[:_MAX_LINES] if line.strip()]
    if len(head) < length and len(lines) > 1:
        lines.pop()  # it may be cut
    if not lines:
        return TEXT
    logged = sum([_LOG.match(line) is not None for line in lines])
    if len(lines) >= 3 and logged * 3 >= len(lines):
        return LOG
    if _TRACE.search(head):
        return TRACE
    if "```" in head or _is_code(lines):
        return CODE
    if len(lines) >= 4 and _tabular(lines):
        return TABLE
    return TEXT


def _is_code(lines: list[str]) -> bool:
    return len(lines) > 1 and _code_lines(lines) * 4 >= len(lines)


def _code_lines(lines: list[str]) -> int:
    return sum([len(line) < _LONG_LINE and _CODE_LINE.match(line) is not None for line in lines])


def prose(text: str) -> bool:
    """Whether nothing in a text seems to be code, at its beginning, in its middle and at its end.

    Asked before a text is selected from: a licence or a long comment often stands before code.
    """
    for start in {0, max(0, len(text) // 3), max(0, 2 * len(text) // 3), max(0, len(text) - _SAMPLE // 2)}:
        lines = [
            line
            for line in text[start : start + _SAMPLE // 2].split("\n", _MAX_LINES)[1 if start else 0 : _MAX_LINES]
            if line.strip()
        ]
        if _is_code(lines) or (len(lines) > 4 and _code_lines(lines) * 6 >= len(lines)):
            return False
    head = text[:_SAMPLE]
    return "```" not in text and sum([char.isalpha() or char == " " for char in head]) * 4 >= 3 * len(head)


def _tabular(lines: list[str]) -> bool:
    """The same number of delimiters in every line."""
    for delimiter in ("|", "\t", ",", ";"):
        counts = [line.count(delimiter) for line in lines]
        if counts[0] >= 2 and counts.count(counts[0]) * 10 >= 9 * len(counts):
            return True
    cells = [len(re.split(r" {2,}", line.strip())) for line in lines]
    return cells[0] >= 3 and cells.count(cells[0]) * 10 >= 9 * len(cells)
