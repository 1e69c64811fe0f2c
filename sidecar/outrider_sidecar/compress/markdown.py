"""HTML as Markdown: text, headings, lists, links, tables and code of a page, without the rest of its markup.

Always holds: one pass over the tags, no tag is searched for twice, so work grows with the length alone; text and
targets of links come through to the character but for entities and whitespace between words, preformatted text to the
character. Lossy: the original is kept under the handle."""

from __future__ import annotations

import re
from collections.abc import Callable
from html import unescape
from typing import Final

from outrider_sidecar.compress.block import MARKER, Context, Shrunk, handle_of

NAME: Final = "markdown/1"
STEPS_PER_BYTE: Final = 60
_NAME: Final = re.compile(r"/?[a-zA-Z][a-zA-Z0-9-]*")
_DROPPED: Final = frozenset({"script", "style", "svg", "noscript", "template", "iframe", "head"})
_BREAKS: Final = frozenset(
    [
        "address",
        "article",
        "aside",
        "blockquote",
        "body",
        "dd",
        "div",
        "dl",
        "dt",
        "fieldset",
        "figure",
        "footer",
        "form",
        "header",
        "hr",
        "html",
        "main",
        "nav",
        "ol",
        "p",
        "section",
        "table",
        "tbody",
        "tfoot",
        "thead",
        "ul",
    ]
)
_PAIRS: Final = {"b": "**", "strong": "**", "i": "*", "em": "*", "code": "`"}


def shrink(text: str, context: Context) -> Shrunk | None:
    """The page as Markdown."""
    if not context.budget.take(len(text) * STEPS_PER_BYTE):
        return None
    head = f"{MARKER}{NAME} {handle_of(text, context.node)}: HTML as Markdown\n"
    return Shrunk(NAME, head + Page(text).markdown(), exact=False, lossy=True)


def _attribute(tag: str, name: str) -> str:
    found = re.search(rf"\s{name}\s*=\s*(?:\"([^\"]*)\"|'([^']*)'|([^\s\"'>]+))", tag, re.IGNORECASE)
    return unescape(next((value for value in found.groups() if value is not None), "")) if found else ""


class Page:
    """A page on its way to Markdown."""

    __slots__ = ("_cells", "_depth", "_links", "_made", "_pre", "_text")

    def __init__(self, text: str) -> None:
        self._text = text
        self._made: list[str] = []
        self._links: list[str] = []
        self._pre = 0
        self._depth = 0  # of lists
        self._cells = 0  # in the row at hand

    def markdown(self) -> str:
        """The whole page."""
        text = self._text
        at = 0
        while at < len(text):
            start = text.find("<", at)
            if start < 0:
                self._words(text[at:])
                break
            if start > at:
                self._words(text[at:start])
            if text.startswith("<!--", start):
                end = text.find("-->", start + 4)
                at = len(text) if end < 0 else end + 3
                continue
            found = _NAME.match(text, start + 1)
            if found is None and not text.startswith(("<!", "<?"), start):
                self._words("<")
                at = start + 1
                continue
            end = text.find(">", start)
            if end < 0:
                self._words(text[start:])
                break
            at = end + 1
            if found is not None:
                at = self._tag(found[0].lower(), text[start:end], at)
        made = re.sub(r"[ \t]*\n[ \t]*\n\s*\n*", "\n\n", "".join(self._made))
        return made.strip() + "\n"

    def _words(self, raw: str) -> None:
        words = unescape(raw)
        if not self._pre:
            squeezed = re.sub(r"\s+", " ", words)
            if squeezed == " " and (not self._made or self._made[-1].endswith((" ", "\n"))):
                return
            words = squeezed.lstrip() if self._made and self._made[-1].endswith("\n") else squeezed
        if words:
            self._made.append(words)

    def _tag(self, name: str, tag: str, at: int) -> int:
        """Takes a tag; gives where to go on."""
        if name in _DROPPED:
            if tag.endswith("/"):
                return at
            end = self._lowered_find(f"</{name}", at)
            if end < 0:
                return len(self._text)
            close = self._text.find(">", end)
            return len(self._text) if close < 0 else close + 1
        plain = name.removeprefix("/")
        closing = name.startswith("/")
        take: Callable[[bool, str], None] | None = {"a": self._link, "pre": self._block, "li": self._item}.get(plain)
        if take is not None:
            take(closing, tag)
        elif plain in _PAIRS:
            if not (plain == "code" and self._pre):
                self._made.append(_PAIRS[plain])
        elif len(plain) == 2 and plain[0] == "h" and plain[1].isdigit():
            self._made.append("\n\n" if closing else f"\n\n{'#' * max(1, min(6, int(plain[1])))} ")
        elif plain in ("td", "th"):
            if not closing:
                self._made.append(" | " if self._cells else "")
                self._cells += 1
        elif plain in ("tr", "br"):
            self._cells = 0
            if plain == "br" or closing:
                self._made.append("\n")
        elif plain == "img" and (alternative := _attribute(tag, "alt")):
            self._made.append(f"![{alternative}]({_attribute(tag, 'src')})")
        elif plain in _BREAKS:
            if plain in ("ul", "ol"):
                self._depth = max(0, self._depth + (-1 if closing else 1))
            self._made.append("\n" if plain in ("ul", "ol") and self._depth else "\n\n")
        return at

    def _lowered_find(self, needle: str, at: int) -> int:
        found = re.compile(re.escape(needle), re.IGNORECASE).search(self._text, at)
        return found.start() if found else -1

    def _link(self, closing: bool, tag: str) -> None:
        if not closing:
            target = _attribute(tag, "href")
            self._links.append(target)
            if target:
                self._made.append("[")
        elif self._links and (target := self._links.pop()):
            self._made.append(f"]({target})")

    def _block(self, closing: bool, tag: str) -> None:
        self._pre = 0 if closing else 1
        self._made.append("\n```\n\n" if closing else "\n\n```\n")

    def _item(self, closing: bool, tag: str) -> None:
        self._made.append("" if closing else f"\n{'  ' * max(0, self._depth - 1)}- ")
