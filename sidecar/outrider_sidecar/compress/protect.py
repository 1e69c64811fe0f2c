"""What must come through a selection whole, and where a text may be cut.

Always holds: no cut lies inside code, a quotation, a URL, a path, a number, an identifier or a bracketed expression; a
sentence that is kept is kept to the character, negations and all. Blocks of code, schemas and diffs inside a text are
never left out: `pinned`.
"""

from __future__ import annotations

import re
from typing import Final

_PINNED: Final = re.compile(
    r"^ {0,3}(```|~~~)[^\n]*\n.*?(?:^ {0,3}\1[^\n]*$|\Z)"  # fenced code
    r"|^(?:diff --git|@@ -\d)[^\n]*(?:\n[ +\-@\\di][^\n]*)*"  # diffs
    r"|^(?:    |\t)[^\n]*(?:\n(?:    |\t)[^\n]*)+"  # indented code
    r"|^[ \t]*+[{\[][^\n]*+\n(?:[ \t]++[^\n]*+\n){1,200}[ \t]*+[}\]]",  # JSON, schemas, of up to so many lines
    re.MULTILINE | re.DOTALL,
)
_WHOLE: Final = re.compile(
    r"`[^`\n]+`|\"[^\"\n]{1,300}\"|\u201c[^\u201d\n]{1,300}\u201d|\b[a-z][a-z0-9+.-]{0,30}://[^\s<>\"]+"
    r"|(?<![\w.~-])(?:[A-Za-z]:)?(?:[\w.~-]*+[/\\]){2,}[\w.-]*|\([^()\n]{1,300}\)"
)
# A sentence ends at a stop, or at a line's end. Not at an initial, an abbreviation or a decimal point.
_END: Final = re.compile(
    r"(?:(?<=[.!?\u3002\uff01\uff1f])|(?<=[.!?][\"')\]\u201d]))\s+(?=[\"'(\[\u201c]?[A-Z0-9])|\n+|(?<=[\u3002\uff01\uff1f])"
)
_ABBREVIATED: Final = re.compile(
    r"(?:\b(?:[A-Z]|Mr|Mrs|Ms|Dr|St|Jr|Sr|vs|etc|No|Inc|Ltd|Co|Corp|Prof|Gen|Col|Sgt|Lt|Rev|Hon|approx|ca|cf|Fig|al|e\.g|i\.e"
    r"|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec)\.)\s*\Z"
)


def pinned(text: str) -> list[tuple[int, int]]:
    """Spans (start, end) of a text that are never left out."""
    return [found.span() for found in _PINNED.finditer(text)]


def sentences(text: str) -> list[str]:
    """The text cut into sentences; joined they are the text."""
    if not text:
        return []
    whole = [found.span() for found in _WHOLE.finditer(text)]
    whole += pinned(text)
    whole.sort()
    made: list[str] = []
    start = 0
    span = 0
    for found in _END.finditer(text):
        at = found.end()
        if at <= start or at >= len(text):
            continue
        while span < len(whole) and whole[span][1] <= found.start():
            span += 1
        inside = span < len(whole) and whole[span][0] < at and found.start() < whole[span][1]
        if inside or ("\n" not in found[0] and _ABBREVIATED.search(text, max(start, at - 12), at)):
            continue
        made.append(text[start:at])
        start = at
    made.append(text[start:])
    return made
