"""Where the texts of a native request stand, and requests with other texts in their place."""

from __future__ import annotations

import json
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.v1 import agent_pb2 as pb
from outrider_sidecar.payloads.fields import Broken
from outrider_sidecar.payloads.native_blocks import identity, in_order, located, replaced

UNKNOWN = b"\xfa\x3f\x03new"  # field 1023, of a newer contract

TEXT = st.text(max_size=20)
PLAIN = st.one_of(
    st.builds(lambda text: pb.Part(text=text), TEXT),
    st.builds(lambda text: pb.Part(json=text), TEXT),
    st.builds(lambda data: pb.Part(blob=pb.Blob(media_type="image/png", data=data)), st.binary(max_size=20)),
    st.builds(lambda name: pb.Part(tool_call=pb.ToolCall(call_id="1", name=name, arguments_json="{}")), TEXT),
    st.just(pb.Part()),
)
RESULT = st.builds(
    lambda name, parts: pb.Part(tool_result=pb.ToolResult(call_id="1", name=name, parts=parts)),
    TEXT,
    st.lists(PLAIN, max_size=3),
)
MESSAGE = st.builds(
    lambda role, parts, boundary: pb.Message(role=role, parts=parts, cache_boundary=boundary),
    st.sampled_from(pb.Role.values()),
    st.lists(PLAIN | RESULT, max_size=3),
    st.booleans(),
)
CONTEXT = st.builds(
    lambda source, parts, verbatim: pb.ContextBlock(source=source, parts=parts, verbatim=verbatim, relevance=0.5),
    TEXT,
    st.lists(PLAIN, max_size=3),
    st.booleans(),
)
REQUEST = st.builds(
    lambda messages, context: pb.InvokeRequest(agent_id="a", messages=messages, context=context, request_id="r"),
    st.lists(MESSAGE, max_size=4),
    st.lists(CONTEXT, max_size=3),
)


def parts_of(request: pb.InvokeRequest) -> dict[str, pb.Part]:
    """Every part that says something, by path."""
    found: dict[str, pb.Part] = {}
    holders = [(f"messages[{at}]", one) for at, one in enumerate(request.messages)]
    for path, holder in [*holders, *((f"context[{at}]", one) for at, one in enumerate(request.context))]:
        for at, part in enumerate(holder.parts):
            if part.HasField("tool_result"):
                for inner, one in enumerate(part.tool_result.parts):
                    found[f"{path}.parts[{at}].tool_result.parts[{inner}]"] = one
            elif part.WhichOneof("content"):
                found[f"{path}.parts[{at}]"] = part
    return {path: part for path, part in found.items() if part.WhichOneof("content")}


@given(REQUEST)
def test_every_part_is_found_with_what_it_says(request_: pb.InvokeRequest) -> None:
    spots = {spot.path: spot for spot in located(request_.SerializeToString())}
    parts = parts_of(request_)
    assert set(spots) == set(parts)
    for path, part in parts.items():
        spot = spots[path]
        kind = part.WhichOneof("content")
        assert spot.replaceable is (kind in ("text", "json"))
        assert spot.is_json is (kind == "json")
        if spot.replaceable:
            assert spot.text == getattr(part, kind or "text")


@given(REQUEST, st.randoms(use_true_random=False))
def test_texts_are_replaced_where_they_stand_and_nothing_else(request_: pb.InvokeRequest, random: Random) -> None:
    message = request_.SerializeToString() + UNKNOWN
    spots = located(message)
    texts = [
        f"other {at} é" if spot.replaceable and random.random() < 0.5 else spot.text for at, spot in enumerate(spots)
    ]
    changed = pb.InvokeRequest.FromString(replaced(message, spots, texts))
    wanted = pb.InvokeRequest.FromString(message)
    parts = parts_of(wanted)
    for spot, text in zip(spots, texts, strict=True):
        if text != spot.text:
            parts[spot.path].text = text
    assert changed == wanted
    assert UNKNOWN in replaced(message, spots, texts)


@given(REQUEST)
def test_what_is_left_as_it_was_is_the_same_bytes(request_: pb.InvokeRequest) -> None:
    message = request_.SerializeToString()
    spots = located(message)
    assert replaced(message, spots, [spot.text for spot in spots]) is message


@given(REQUEST)
def test_parts_that_are_left_out_take_what_they_leave_empty_with_them(request_: pb.InvokeRequest) -> None:
    message = request_.SerializeToString()
    spots = located(message)
    changed = pb.InvokeRequest.FromString(replaced(message, spots, [None] * len(spots)))
    assert not parts_of(changed)
    said = {spot.path.partition(".")[0] for spot in spots}
    kept = [one for at, one in enumerate(request_.messages) if f"messages[{at}]" not in said]
    assert list(changed.messages) == kept
    assert (changed.agent_id, changed.request_id) == ("a", "r")


def test_json_stays_json_while_it_is_json() -> None:
    message = pb.InvokeRequest(messages=[pb.Message(parts=[pb.Part(json='{"a": 1}')])]).SerializeToString()
    spots = located(message)
    (part,) = pb.InvokeRequest.FromString(replaced(message, spots, ['{"a":1}'])).messages[0].parts
    assert part.json == '{"a":1}'
    (part,) = pb.InvokeRequest.FromString(replaced(message, spots, ["#columns/1 a"])).messages[0].parts
    assert part.text == "#columns/1 a"


def test_turns_roles_and_sources() -> None:
    request = pb.InvokeRequest(
        context=[pb.ContextBlock(source="page", parts=[pb.Part(text="c")], relevance=0.25, verbatim=True)],
        messages=[
            pb.Message(role=pb.ROLE_SYSTEM, parts=[pb.Part(text="s")]),
            pb.Message(role=pb.ROLE_USER, parts=[pb.Part(text="u")]),
            pb.Message(role=pb.ROLE_TOOL, name="search", parts=[pb.Part(text="t")]),
            pb.Message(
                role=pb.ROLE_TOOL,
                parts=[pb.Part(tool_result=pb.ToolResult(name="find", parts=[pb.Part(text="r")]))],
            ),
            pb.Message(role=pb.ROLE_USER, parts=[pb.Part(text="v")]),
        ],
    )
    rows = [(one.role, one.source, one.text, one.turn) for one in located(request.SerializeToString())]
    assert rows == [
        ("system", "", "s", -1),
        ("user", "", "u", 0),
        ("tool", "search", "t", 0),
        ("tool", "find", "r", 0),
        ("user", "", "v", 1),
        ("context", "page", "c", -1),
    ]
    context = located(request.SerializeToString())[-1]
    assert (context.relevance, context.verbatim) == (0.25, True)


def test_identity() -> None:
    request = pb.InvokeRequest(session_id="s", tenant_id="t", user_id="u")
    assert identity(request.SerializeToString()) == ("s", "t")
    assert identity(b"") == ("", "")


@given(st.binary(max_size=60) | REQUEST.map(lambda one: one.SerializeToString()[:-1]))
def test_any_bytes_are_read_or_refused(message: bytes) -> None:
    try:
        spots = located(message)
    except Broken:
        return
    assert replaced(message, spots, [spot.text for spot in spots]) is message


def test_tools_and_schemas_in_order() -> None:
    schema = {"type": "object", "properties": {"b": {"type": "number", "minimum": 1.50}, "a": {"type": "string"}}}
    tools = [pb.Tool(name=name, input_schema_json=json.dumps(schema)) for name in ("zoo", "ant")]
    message = pb.InvokeRequest(agent_id="a", tools=tools, request_id="r").SerializeToString() + UNKNOWN
    sorted_tools = pb.InvokeRequest.FromString(in_order(message, True, False))
    assert [tool.name for tool in sorted_tools.tools] == ["ant", "zoo"]
    assert sorted_tools.tools[0].input_schema_json == json.dumps(schema)
    both = pb.InvokeRequest.FromString(in_order(message, True, True))
    assert json.loads(both.tools[0].input_schema_json) == schema
    assert both.tools[0].input_schema_json == json.dumps(schema, sort_keys=True, separators=(",", ":"))
    assert in_order(in_order(message, True, True), True, True) == in_order(message, True, True)
    assert in_order(message, True, True).endswith(UNKNOWN)


@pytest.mark.parametrize(
    "schema", ['{"b":1.50,"a":1}', '{"a":1,"a":2}', '{"b":', '{"b":1e2,"a":"\\u0041"}', "[" * 5000]
)
def test_schemas_that_would_not_come_out_the_same_stay(schema: str) -> None:
    message = pb.InvokeRequest(tools=[pb.Tool(name="t", input_schema_json=schema)]).SerializeToString()
    assert in_order(message, True, True) is message
