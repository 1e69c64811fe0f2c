"""The native Agent API (outrider.v1.Agent): what a request asks, what a reply cost, whether it may be kept.

Always holds: the digest is of the request in canonical form (known fields by number, maps by key), without identity,
priority, request id and attributes that are not answer attributes: two requests that ask the same differ neither by
serializer nor by who asks. Fields of a newer contract stay in it: they may decide the answer.

Parsing is protobuf's C library: 1 us for 1 KB, 3.5 MB resident once loaded. That is why nothing imports this module
before the first native call (`payloads`). Deliberately not here: rewriting messages (`rewrite`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from google.protobuf.message import DecodeError
from xxhash import xxh3_128_digest

from outrider.policy import Optimization
from outrider.v1 import agent_pb2 as pb
from outrider_sidecar.core.entry import MAX_TAG_CHARS, MAX_TAGS
from outrider_sidecar.core.payload import (
    FINISH,
    INCOMPLETE,
    MALFORMED,
    NOT_ONE_MESSAGE,
    SAMPLED,
    SIDE_EFFECTS,
    TOO_MANY_TAGS,
    TRUNCATED,
    UNDIGESTED_LINK,
    ReplyFacts,
    RequestFacts,
)
from outrider_sidecar.payloads.wire import Deframer, Unreadable, one_message

MAX_REQUEST_TAGS = MAX_TAGS - 4  # leaves room for tags the mesh adds

_NOT_ASKED = ("agent_id", "session_id", "user_id", "tenant_id", "priority", "request_id")
_FINISH_NAMES: dict[int, str] = {
    number: name.removeprefix("FINISH_REASON_").lower() if number else "" for name, number in pb.FinishReason.items()
}
# Looking at every part costs more than parsing did; this matches whenever there is reason to look.
_MAYBE_LINK = re.compile(rb"\x32(?:\x00|[\x80-\xff]*[\x01-\x7f][\x0a\x12\x1a\x22])")  # Part.link, a field of Link
_READ_ONLY: int = pb.SIDE_EFFECTS_READ_ONLY
_MAX_TOOL_NAMES = 64  # of one stream; the contract bounds a name to 64 characters
_MAX_NAME_CHARS = 64
_PART_INDEX = b"\x08"  # tag of InvokeChunk.part_index
_TEXT_TAG = 0x12  # InvokeChunk.text


class NativePayload:
    """The adapter of Invoke, or with `stream` of InvokeStream. `seed` is the process's secret (engines `cache_key`)."""

    __slots__ = ("_domain", "_seed", "_stream", "name")

    def __init__(self, stream: bool, seed: int = 0):
        self.name = "native"
        self._stream = stream
        self._seed = seed
        self._domain = b"stream" if stream else b"unary "  # their replies are different messages

    def request(self, path: bytes, encoding: bytes, body: bytes, policy: Optimization) -> RequestFacts:
        """Cacheable unless it is sampled, calls tools that write, or rests on links whose content may change."""
        try:
            message = one_message(body, encoding)
            request = pb.InvokeRequest.FromString(message)
        except Unreadable as error:
            return RequestFacts(False, error.reason)
        except DecodeError:
            return RequestFacts(False, MALFORMED)
        read_only = _read_only(request.tools)
        calls = _asked_for(request)
        tags = _tags(request.context)
        facts = RequestFacts(
            True,
            _why_not(request, message, tags, calls, read_only, policy),
            b"",
            "tool" if calls else "llm",
            tags,
            read_only,
            request.agent_id,
            request.session_id,
            request.user_id,
            request.tenant_id,
            request.priority,
            request.generation.model,
            self._stream,
            request.generation.max_output_tokens,
        )
        if facts.reason:
            facts.cacheable = False
        else:
            facts.digest = xxh3_128_digest(self._domain + _canonical(request), self._seed)
        return facts

    def reply(self, encoding: bytes, body: bytes) -> ReplyFacts:
        """Facts of the one reply message, or of all chunks."""
        reader = self.reader(encoding)
        reader.feed(body)
        return reader.facts()

    def reader(self, encoding: bytes) -> StreamReader | UnaryReader:
        """Holds at most one message of at most 1 MB."""
        return StreamReader(encoding) if self._stream else UnaryReader(encoding)


class UnaryReader:
    """Reads an InvokeReply."""

    __slots__ = ("_deframer", "_facts", "_messages")

    def __init__(self, encoding: bytes):
        self._deframer = Deframer(encoding)
        self._messages = 0
        self._facts = ReplyFacts(False, False, INCOMPLETE)

    def feed(self, data: bytes) -> None:
        """Any piece of the body."""
        for message in self._deframer.feed(data):
            self._messages += 1
            if self._messages > 1:
                self._facts = ReplyFacts(False, False, NOT_ONE_MESSAGE)
                continue
            try:
                reply = pb.InvokeReply.FromString(message)
            except DecodeError:
                self._facts = ReplyFacts(False, False, MALFORMED)
                continue
            self._facts = _ended(reply.finish_reason, reply.model, reply.usage, _called(reply.parts))

    def facts(self) -> ReplyFacts:
        """As of the bytes fed."""
        return _framed(self._facts, self._deframer)


class StreamReader:
    """Reads InvokeChunks: most carry text alone and are passed over without being parsed."""

    __slots__ = ("_deframer", "_facts", "_tools")

    def __init__(self, encoding: bytes):
        self._deframer = Deframer(encoding)
        self._tools: set[str] = set()
        self._facts = ReplyFacts(False, False, INCOMPLETE)

    def feed(self, data: bytes) -> None:
        """Any piece of the body."""
        for message in self._deframer.feed(data):
            facts = self._facts
            if facts.complete:  # a chunk after the last one
                self._facts = ReplyFacts(False, False, MALFORMED)
            elif facts.reason == INCOMPLETE and not _text_alone(message):
                self._read(message)

    def facts(self) -> ReplyFacts:
        """As of the bytes fed."""
        return _framed(self._facts, self._deframer)

    def _read(self, message: bytes) -> None:
        try:
            chunk = pb.InvokeChunk.FromString(message)
        except DecodeError:
            self._facts = ReplyFacts(False, False, MALFORMED)
            return
        if chunk.tool_call.name:
            self._call(chunk.tool_call.name)
        elif chunk.part.HasField("tool_call"):
            self._call(chunk.part.tool_call.name)
        if chunk.HasField("finish"):
            finish = chunk.finish
            self._facts = _ended(finish.reason, finish.model, finish.usage, tuple(sorted(self._tools)))

    def _call(self, name: str) -> None:
        # The empty name is nobody's: a stream that calls more than is remembered is never kept.
        room = len(self._tools) < _MAX_TOOL_NAMES and len(name) <= _MAX_NAME_CHARS
        self._tools.add(name if room else "")


def request_agent_id(encoding: bytes, body: bytes) -> str:
    """The agent a request names, empty where it names none or cannot be read."""
    try:
        return pb.InvokeRequest.FromString(one_message(body, encoding)).agent_id
    except (Unreadable, DecodeError):
        return ""


def request_identity(encoding: bytes, body: bytes) -> tuple[str, str]:
    """The session and the user a request names, empty where it names none or cannot be read."""
    try:
        request = pb.InvokeRequest.FromString(one_message(body, encoding))
    except (Unreadable, DecodeError):
        return "", ""
    return request.session_id, request.user_id


def _why_not(
    request: pb.InvokeRequest,
    message: bytes,
    tags: tuple[str, ...],
    calls: tuple[str, ...],
    read_only: frozenset[str],
    policy: Optimization,
) -> str:
    # "not <=" so that NaN counts as sampled.
    if not request.generation.temperature <= 0.0 and not policy.cache_sampled:
        return SAMPLED
    if len(tags) > MAX_REQUEST_TAGS or (tags and max(map(len, tags)) > MAX_TAG_CHARS):
        return TOO_MANY_TAGS
    if not read_only.issuperset(calls):
        return SIDE_EFFECTS
    if _MAYBE_LINK.search(message):
        for holder in (request.messages, request.context):
            for item in holder:
                if any(map(_undigested, item.parts)):
                    return UNDIGESTED_LINK
    return ""


def _asked_for(request: pb.InvokeRequest) -> tuple[str, ...]:
    """The tools a request wants run: its last message is nothing but calls. Empty: it wants an answer."""
    parts = request.messages[-1].parts if request.messages else ()
    if not parts or not parts[-1].HasField("tool_call"):
        return ()
    calls = _called(parts)
    return calls if len(calls) == len(parts) else ()


def _tags(context: Iterable[pb.ContextBlock]) -> tuple[str, ...]:
    found = [tag for block in context for tag in block.tags]
    return tuple(sorted(set(found))) if found else ()


def _undigested(part: pb.Part) -> bool:
    if part.HasField("link"):
        return not part.link.sha256
    if part.HasField("tool_result"):
        return any(_undigested(inner) for inner in part.tool_result.parts)
    return False


def _read_only(tools: Iterable[pb.Tool]) -> frozenset[str]:
    reading: set[str] = set()
    writing = {""}
    for tool in tools:
        (reading if tool.side_effects == _READ_ONLY else writing).add(tool.name)
    return frozenset(reading - writing)  # a name that is declared twice has to be read only twice


def _called(parts: Iterable[pb.Part]) -> tuple[str, ...]:
    """Names of the tools called by these parts."""
    return tuple([part.tool_call.name for part in parts if part.HasField("tool_call")])


def _canonical(request: pb.InvokeRequest) -> bytes:
    """The bytes of what is asked. Changes the request."""
    clear = request.ClearField
    for name in _NOT_ASKED:
        clear(name)
    if request.attributes:
        named = {name: request.attributes[name] for name in request.answer_attributes if name in request.attributes}
        request.attributes.clear()
        request.attributes.update(named)
    clear("answer_attributes")
    if request.HasField("generation") and not request.generation.ByteSize():
        clear("generation")
    return request.SerializePartialToString(deterministic=True)


def _text_alone(message: bytes) -> bool:
    """Whether a chunk is at most an index of one byte and a text of at most 127, as nearly all are."""
    at = 2 if message[:1] == _PART_INDEX and len(message) > 2 and message[1] < 0x80 else 0
    size = len(message) - at - 2
    return 0 <= size < 0x80 and message[at] == _TEXT_TAG and message[at + 1] == size


def _ended(reason: int, model: str, usage: pb.Usage, tools: tuple[str, ...]) -> ReplyFacts:
    keeps = reason == pb.FINISH_REASON_STOP or (reason == pb.FINISH_REASON_TOOL_CALLS and bool(tools))
    return ReplyFacts(
        reason != pb.FINISH_REASON_UNSPECIFIED,
        keeps,
        "" if keeps else FINISH,
        tools,
        usage.input_tokens,
        usage.output_tokens,
        usage.cache_read_tokens,
        usage.cache_write_tokens,
        model,
        _FINISH_NAMES.get(reason, "other"),
    )


def _framed(facts: ReplyFacts, deframer: Deframer) -> ReplyFacts:
    """The facts, unless the body broke off or could not be read."""
    if deframer.between_messages:
        return facts
    return facts.cut(deframer.reason or TRUNCATED)
