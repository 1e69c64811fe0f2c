"""Conversations as lists of messages in the manner of OpenAI's chat API: to blocks, and back.

Always holds: only texts are changed, in their places; every other field, and the order of all of them, is as it came.

Deliberately not here: what becomes of the blocks (`conversation`), reading files.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from outrider_sidecar.compress.block import ASSISTANT, SYSTEM, TOOL, USER, Block
from outrider_sidecar.compress.conversation import Part

_ROLES: Final = {
    "system": SYSTEM,
    "developer": SYSTEM,
    "user": USER,
    "assistant": ASSISTANT,
    "tool": TOOL,
    "function": TOOL,
}


class NotMessages(ValueError):
    """The data are no such list; says where and why."""


def messages_in(data: Any) -> list[Any]:
    """The list of messages in a document: the document itself, or its field `messages`. NotMessages."""
    found = data.get("messages") if isinstance(data, Mapping) else data
    if not isinstance(found, list):
        raise NotMessages('no list of messages: expected [...] or {"messages": [...]}')
    for at, message in enumerate(found):
        if not isinstance(message, Mapping):
            raise NotMessages(f"messages[{at}]: {type(message).__name__} is no message")
        if message.get("role") not in _ROLES:
            raise NotMessages(f"messages[{at}].role: {message.get('role')!r} is not one of {', '.join(_ROLES)}")
    return found


def parts_of(messages: Sequence[Mapping[str, Any]], deny_tools: Collection[str] = ()) -> list[Part]:
    """The blocks of messages: texts, and the arguments of tool calls, which are only counted."""
    names = _names(messages)
    parts: list[Part] = []
    group = -1
    for at, message in enumerate(messages):
        role = _ROLES[message["role"]]
        if role == USER:
            group += 1
        tool = str(message.get("name") or names.get(message.get("tool_call_id"), "")) if role == TOOL else ""
        fixed = role != TOOL or tool in deny_tools
        for path, text in _texts(message, f"messages[{at}]"):
            parts.append(Part(path, Block(text, role, tool), fixed, None, -1 if role == SYSTEM else group))
        for number, call in enumerate(message.get("tool_calls") or ()):
            function = call.get("function") if isinstance(call, Mapping) else None
            if isinstance(function, Mapping):
                said = f"{function.get('name', '')} {function.get('arguments', '')}"
                parts.append(Part(f"messages[{at}].tool_calls[{number}]", Block(said, ASSISTANT), True, None, group))
    return parts


def with_texts(messages: Sequence[Any], texts: Mapping[str, str]) -> list[Any]:
    """The messages with these texts, by path; others stay."""
    return [_with(message, f"messages[{at}]", texts) for at, message in enumerate(messages)]


def texts_of(messages: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """(path, text) of every text, in order."""
    return [pair for at, message in enumerate(messages) for pair in _texts(message, f"messages[{at}]")]


def _texts(message: Mapping[str, Any], path: str) -> list[tuple[str, str]]:
    content = message.get("content")
    if isinstance(content, str):
        return [(f"{path}.content", content)]
    if not isinstance(content, list):
        return []
    return [
        (f"{path}.content[{at}].text", item["text"])
        for at, item in enumerate(content)
        if isinstance(item, Mapping) and isinstance(item.get("text"), str)
    ]


def _with(message: Any, path: str, texts: Mapping[str, str]) -> Any:
    changed = dict(message)
    content = message.get("content")
    if isinstance(content, str):
        changed["content"] = texts.get(f"{path}.content", content)
    elif isinstance(content, list):
        changed["content"] = [
            {**item, "text": texts[where]} if (where := f"{path}.content[{at}].text") in texts else item
            for at, item in enumerate(content)
        ]
    return changed


def _names(messages: Sequence[Mapping[str, Any]]) -> dict[Any, str]:
    """Names of tools by the ids of their calls."""
    found: dict[Any, str] = {}
    for message in messages:
        for call in message.get("tool_calls") or ():
            if isinstance(call, Mapping) and isinstance(call.get("function"), Mapping):
                found[call.get("id")] = str(call["function"].get("name", ""))
    return found
