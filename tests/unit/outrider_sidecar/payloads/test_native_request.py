from __future__ import annotations

import gzip
import random
import subprocess
import sys
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.policy import Optimization
from outrider.v1 import agent_pb2 as pb
from outrider_sidecar.core.payload import (
    MALFORMED,
    NOT_ONE_MESSAGE,
    SAMPLED,
    SIDE_EFFECTS,
    TOO_LARGE,
    TOO_MANY_TAGS,
    TRUNCATED,
    UNDIGESTED_LINK,
    UNKNOWN_ENCODING,
    RequestFacts,
)
from outrider_sidecar.payloads import NATIVE_UNARY, request_agent_id
from outrider_sidecar.payloads.native import MAX_REQUEST_TAGS, NativePayload

POLICY = Optimization()
UNARY = NativePayload(stream=False)
STREAM = NativePayload(stream=True)


def frame(message: bytes, flag: int = 0) -> bytes:
    return bytes([flag]) + len(message).to_bytes(4, "big") + message


def question() -> pb.InvokeRequest:
    request = pb.InvokeRequest(
        agent_id="tax",
        session_id="s",
        user_id="u",
        tenant_id="t",
        priority=pb.PRIORITY_HIGH,
        request_id="r",
        attributes={"team": "blue", "feature": "search", "cost": "7"},
        answer_attributes=["feature", "team"],
    )
    request.messages.add(role=pb.ROLE_SYSTEM, cache_boundary=True).parts.add(text="be brief")
    request.messages.add(role=pb.ROLE_USER).parts.add(text="what is due?")
    block = request.context.add(block_id="b", tags=["law", "2026"])
    block.parts.add(text="the law")
    request.tools.add(name="look", side_effects=pb.SIDE_EFFECTS_READ_ONLY, input_schema_json="{}")
    request.tools.add(name="file", side_effects=pb.SIDE_EFFECTS_WRITES)
    request.generation.model = "m-1"
    request.generation.seed = 4
    request.generation.extras.update({"a": 1, "b": "x", "c": [True]})
    return request


def read(request: pb.InvokeRequest, policy: Optimization = POLICY, adapter: NativePayload = UNARY) -> RequestFacts:
    return adapter.request(NATIVE_UNARY, b"", frame(request.SerializeToString()), policy)


def changed(change: Callable[[pb.InvokeRequest], object]) -> pb.InvokeRequest:
    request = question()
    change(request)
    return request


def test_facts():
    facts = read(question())
    assert facts.cacheable
    assert facts.reason == ""
    assert len(facts.digest) == 16
    assert (facts.agent_id, facts.session_id, facts.user_id, facts.tenant_id) == ("tax", "s", "u", "t")
    assert (facts.priority, facts.model, facts.tier, facts.stream) == (pb.PRIORITY_HIGH, "m-1", "llm", False)
    assert facts.tags == ("2026", "law")
    assert facts.read_only_tools == {"look"}
    assert read(question(), adapter=STREAM).stream


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r.ClearField("agent_id"),
        lambda r: setattr(r, "session_id", "other"),
        lambda r: setattr(r, "user_id", "other"),
        lambda r: setattr(r, "tenant_id", "other"),
        lambda r: setattr(r, "priority", pb.PRIORITY_LOW),
        lambda r: setattr(r, "request_id", "other"),
        lambda r: r.attributes.update({"cost": "8", "more": "x"}),
        lambda r: r.answer_attributes.extend(["team", "absent"]),
        lambda r: r.answer_attributes.reverse(),
    ],
)
def test_what_does_not_decide_the_answer_is_not_in_the_digest(change: Callable):
    assert read(changed(change)).digest == read(question()).digest


@pytest.mark.parametrize(
    "change",
    [
        lambda r: setattr(r.messages[0], "role", pb.ROLE_DEVELOPER),
        lambda r: setattr(r.messages[0].parts[0], "text", "be long"),
        lambda r: setattr(r.messages[0].parts[0], "json", "be brief"),
        lambda r: r.messages.add(role=pb.ROLE_USER),
        lambda r: r.messages.reverse(),
        lambda r: setattr(r.messages[1], "name", "ann"),
        lambda r: setattr(r.context[0].parts[0], "text", "the new law"),
        lambda r: r.ClearField("context"),
        lambda r: setattr(r.tools[0], "description", "new"),
        lambda r: setattr(r.tools[0], "input_schema_json", "{ }"),
        lambda r: r.tools.reverse(),
        lambda r: setattr(r.generation, "model", "m-2"),
        lambda r: setattr(r.generation, "seed", 5),
        lambda r: r.generation.ClearField("seed"),
        lambda r: setattr(r.generation, "temperature", 0.0),
        lambda r: setattr(r.generation, "top_p", 0.5),
        lambda r: setattr(r.generation, "max_output_tokens", 5),
        lambda r: r.generation.stop.append("."),
        lambda r: r.generation.response_format.json.SetInParent(),
        lambda r: r.generation.extras.update({"a": 2}),
        lambda r: r.attributes.update({"team": "red"}),
        lambda r: r.attributes.pop("team"),
        lambda r: r.answer_attributes.pop(),
        lambda r: r.answer_attributes.append("cost"),
    ],
)
def test_what_decides_the_answer_is_in_the_digest(change: Callable):
    assert read(changed(change)).digest != read(question()).digest


def test_unary_and_stream_and_seed_keep_apart():
    digests = {
        read(question()).digest,
        read(question(), adapter=STREAM).digest,
        read(question(), adapter=NativePayload(stream=False, seed=1)).digest,
    }
    assert len(digests) == 3


def fields_of(message: bytes) -> list[bytes]:
    """The top-level fields of a message whose fields are all short and length-delimited or one-byte varints."""
    found = []
    at = 0
    while at < len(message):
        start = at
        while message[at] & 0x80:
            at += 1
        wire_type = message[start] & 7
        at += 1
        size = 1
        if wire_type == 2:
            size = message[at] + 1
            assert message[at] < 0x80
        at += size
        found.append(message[start:at])
    return found


@given(st.randoms(use_true_random=False))
def test_the_order_a_serializer_chooses_does_not_matter(rng: random.Random):
    singular_first = [*range(1, 7), 10, 16]
    fields = fields_of(question().SerializeToString())
    movable = [field for field in fields if field[0] >> 3 in singular_first or field[:1] == b"\x82"]
    fixed = [field for field in fields if field not in movable]
    rng.shuffle(movable)
    for field in movable:
        fixed.insert(rng.randint(0, len(fixed)), field) if field[0] >> 3 in (1, 2, 3, 4) else fixed.append(field)
    body = frame(b"".join(fixed))
    assert UNARY.request(NATIVE_UNARY, b"", body, POLICY).digest == read(question()).digest


def test_an_empty_generation_is_none():
    request = pb.InvokeRequest()
    bare = read(request).digest
    request.generation.SetInParent()
    assert read(request).digest == bare


def test_fields_of_a_newer_contract_count():
    message = question().SerializeToString()
    facts = UNARY.request(NATIVE_UNARY, b"", frame(message + b"\x98\x06\x01"), POLICY)
    assert facts.cacheable
    assert facts.digest != read(question()).digest


@pytest.mark.parametrize("temperature", [0.2, 1.0, float("nan"), float("inf")])
def test_sampled_answers_need_leave(temperature: float):
    request = changed(lambda r: setattr(r.generation, "temperature", temperature))
    facts = read(request)
    assert (facts.cacheable, facts.reason, facts.digest) == (False, SAMPLED, b"")
    assert facts.user_id == "u"
    assert read(request, Optimization(cache_sampled=True)).cacheable


def call(request: pb.InvokeRequest, *names: str) -> pb.InvokeRequest:
    message = request.messages.add(role=pb.ROLE_ASSISTANT)
    for name in names:
        message.parts.add().tool_call.name = name
    return request


def test_a_request_to_run_tools_is_of_the_tool_tier_and_must_only_read():
    facts = read(call(question(), "look", "look"))
    assert (facts.cacheable, facts.tier) == (True, "tool")
    for name in ("file", "unknown"):
        facts = read(call(question(), "look", name))
        assert (facts.cacheable, facts.reason) == (False, SIDE_EFFECTS)


def test_calls_of_the_past_or_beside_text_do_not_make_the_tool_tier():
    request = call(question(), "file")
    request.messages.add(role=pb.ROLE_TOOL).parts.add().tool_result.name = "file"
    assert read(request).tier == "llm"
    mixed = call(question(), "file")
    mixed.messages[-1].parts.add(text="and?")
    assert (read(mixed).tier, read(mixed).cacheable) == ("llm", True)


def test_a_tool_declared_twice_has_to_be_read_only_twice():
    request = question()
    request.tools.add(name="look", side_effects=pb.SIDE_EFFECTS_IDEMPOTENT)
    request.tools.add(name="", side_effects=pb.SIDE_EFFECTS_READ_ONLY)
    assert read(request).read_only_tools == frozenset()


@pytest.mark.parametrize("where", ["message", "context", "result"])
def test_links_need_a_digest(where: str):
    request = question()
    if where == "message":
        part = request.messages[0].parts.add()
    elif where == "context":
        part = request.context[0].parts.add()
    else:
        part = request.messages[0].parts.add()
        part = part.tool_result.parts.add()
    part.link.SetInParent()
    assert read(request).reason == UNDIGESTED_LINK
    for uri in ("a", "https://example.com/" + "a" * 200, "https://example.com/" + "a" * 20_000):
        part.link.uri = uri
        assert read(request).reason == UNDIGESTED_LINK
    for field in ("name", "media_type"):
        part.link.Clear()
        setattr(part.link, field, "x")
        assert read(request).reason == UNDIGESTED_LINK
    part.link.sha256 = b"\x01" * 32
    assert read(request).cacheable


def test_more_tags_than_can_be_purged_are_not_cached():
    request = question()
    request.context[0].tags.extend([f"t{number}" for number in range(MAX_REQUEST_TAGS - 2)])
    assert read(request).cacheable
    request.context[0].tags.append("one more")
    assert read(request).reason == TOO_MANY_TAGS
    assert read(changed(lambda r: r.context[0].tags.append("x" * 257))).reason == TOO_MANY_TAGS


def test_compressed_requests_have_the_digest_of_what_they_say():
    body = frame(gzip.compress(question().SerializeToString()), 1)
    assert UNARY.request(NATIVE_UNARY, b"gzip", body, POLICY) == read(question())


@pytest.mark.parametrize(
    ("body", "encoding", "reason"),
    [
        (b"", b"", NOT_ONE_MESSAGE),
        (frame(b"") * 2, b"", NOT_ONE_MESSAGE),
        (b"\0\0\0\0\x09abc", b"", TRUNCATED),
        (frame(b"\xff\xff"), b"", MALFORMED),
        (frame(b"x", 1), b"snappy", UNKNOWN_ENCODING),
        (frame(b"\0" * (1 << 20 | 1)), b"", TOO_LARGE),
        (frame(gzip.compress(b"\0" * (1 << 24), mtime=0), 1), b"gzip", TOO_LARGE),
    ],
)
def test_what_cannot_be_read_steps_aside(body: bytes, encoding: bytes, reason: str):
    facts = UNARY.request(NATIVE_UNARY, encoding, body, POLICY)
    assert facts == RequestFacts(False, reason)
    assert request_agent_id(body, encoding) == ""


@given(st.binary(max_size=200))
def test_nothing_makes_it_fail(message: bytes):
    UNARY.request(NATIVE_UNARY, b"", message, POLICY)
    facts = UNARY.request(NATIVE_UNARY, b"", frame(message), POLICY)
    assert facts.cacheable is (facts.reason == "")
    assert bool(facts.digest) is facts.cacheable


def test_the_agent_a_request_names():
    assert request_agent_id(frame(question().SerializeToString())) == "tax"
    assert request_agent_id(frame(b"")) == ""


def test_protobuf_is_not_loaded_before_it_is_needed_and_grpc_never():
    program = (
        "import sys; from outrider_sidecar.payloads import Payloads, NATIVE_UNARY; payloads = Payloads();"
        "payloads.of(b'/a.B/C'); assert not any(name.startswith('google.protobuf') for name in sys.modules);"
        "payloads.of(NATIVE_UNARY); assert 'google.protobuf' in sys.modules; assert 'grpc' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], env={"PYTHONPATH": ":".join(sys.path)}, timeout=60)
    assert done.returncode == 0
