"""agents import: rows of agent_configurations over the agents there are."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider import policy_message
from outrider.policy import PolicyError
from outrider.v1 import operator_pb2 as pb
from outrider_control.commands.agent_rows import read_rows
from tests.unit.outrider_control.commands.conftest import Run
from tests.unit.outrider_control.commands.operator_server import StandIn

ROW = {
    "id": 1,
    "agent_id": "tax",
    "optimization": {"cache_enabled": True, "streaming": False, "compression": True},
    "scaling": {"min_instances": 3, "max_instances": 20, "target_utilization": 0.75},
    "created_at": "2025-01-01",
}


@pytest.mark.parametrize(
    "text",
    [
        json.dumps([ROW]),
        json.dumps({"agent_configurations": [ROW]}),
        json.dumps([{**ROW, "optimization": json.dumps(ROW["optimization"])}]),
        "\ufeff" + json.dumps([{**ROW, "limits": None}]),
    ],
)
def test_json_rows(text: str) -> None:
    rows = read_rows(text.encode(), is_csv=False)
    assert rows.changes == ({name: ROW[name] for name in ("agent_id", "optimization", "scaling")},)
    assert rows.passed_over == ("id", "created_at")


def test_csv_rows_with_columns_by_field() -> None:
    text = (
        "id,agent_id,optimization.cache_enabled,optimization.cache_methods,scaling.target_utilization,tls,endpoints\n"
        "1,tax,t,/a.B/C;/a.B/D,0.75,no,127.0.0.1:1;127.0.0.1:2\n"
        '2,vat,FALSE,"[""/x.Y/*""]",,,\n'
    )
    rows = read_rows(text.encode(), is_csv=True)
    assert rows.changes == (
        {
            "agent_id": "tax",
            "optimization": {"cache_enabled": True, "cache_methods": ["/a.B/C", "/a.B/D"]},
            "scaling": {"target_utilization": 0.75},
            "tls": False,
            "endpoints": ["127.0.0.1:1", "127.0.0.1:2"],
        },
        {"agent_id": "vat", "optimization": {"cache_enabled": False, "cache_methods": ["/x.Y/*"]}},
    )
    assert rows.passed_over == ("id",)


def test_fields_of_optimization_and_scaling_may_be_columns_of_their_own() -> None:
    rows = read_rows(b"agent_id,cache_enabled,max_instances\na,true,7\nb,,\n", True)
    assert rows.changes == (
        {"agent_id": "a", "optimization": {"cache_enabled": True}, "scaling": {"max_instances": 7}},
        {"agent_id": "b"},
    )
    assert rows.passed_over == ()
    with pytest.raises(PolicyError, match="cache_enabled"):
        read_rows(b"agent_id,cache_enabled\na,maybe\n", True)


def test_what_may_mean_something_else_in_a_table_needs_its_section() -> None:
    rows = read_rows(b"agent_id,enabled,engine,capacity\na,false,gpt-4,9\n", True)
    assert rows.changes == ({"agent_id": "a"},)
    assert rows.passed_over == ("enabled", "engine", "capacity")
    text = "agent_id,scaling.enabled,scaling.engine,queue.max_waiting,degradation.steps,rates,endpoints\n"
    text += 'a,false,prod,9,shed_low;hedge_off,"{""burst_s"": 2}","[{""address"": ""h:1"", ""capacity"": 8}]"\n'
    assert read_rows(text.encode(), True).changes == (
        {
            "agent_id": "a",
            "scaling": {"enabled": False, "engine": "prod"},
            "queue": {"max_waiting": 9},
            "degradation": {"steps": ["shed_low", "hedge_off"]},
            "rates": {"burst_s": 2},
            "endpoints": [{"address": "h:1", "capacity": 8}],
        },
    )


def test_csv_rows_with_columns_of_json() -> None:
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["agent_id", "optimization", "scaling"])
    writer.writerow(["tax", json.dumps(ROW["optimization"]), json.dumps(ROW["scaling"])])
    rows = read_rows(out.getvalue().encode(), is_csv=True)
    assert rows.changes == ({name: ROW[name] for name in ("agent_id", "optimization", "scaling")},)


@pytest.mark.parametrize(
    ("text", "is_csv", "said"),
    [
        ("[{]", False, "is not JSON"),
        ("[" * 200_000, False, "is not JSON"),
        ("{}", False, "neither a list of rows nor an object with agent_configurations"),
        ("[7]", False, "row 1: 7 is not an object"),
        ("[]", False, "holds no row"),
        ('[{"agent_id": 5}]', False, "row 1.agent_id: is missing, or is not text"),
        ('[{"agent_id": "a"}, {"agent_id": "a"}]', False, "row 2.agent_id: 'a' is already in row 1"),
        ('[{"agent_id": "a", "optimization": "x"}]', False, "row 1.optimization: 'x' is not a JSON object"),
        (
            "agent_id,optimization.cache_enable\na,1",
            True,
            "line 2.optimization.cache_enable: is not a field; did you mean",
        ),
        ("agent_id,optimization.cache_enabled\na,maybe", True, "cache_enabled: 'maybe' is not true or false"),
        ("agent_id,scaling.min_instances\na,few", True, "line 2.scaling.min_instances: 'few' is not a number"),
        ("agent_id,agent_id\na,b", True, "more than one column 'agent_id'"),
        ("agent_id,tls\na,1,2", True, "line 2: does not have as many cells"),
        ("agent_id,tls\na", True, "line 2: does not have as many cells"),
        ('agent_id\n"a"b', True, "line 2: is not CSV"),
        ("\xff", False, "is not UTF-8 text at byte 0"),
    ],
)
def test_wrong_rows_are_named(text: str, is_csv: bool, said: str) -> None:
    with pytest.raises(PolicyError) as caught:
        read_rows(text.encode("latin-1"), is_csv)
    assert said in str(caught.value)


@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_are_rows_or_an_error(content: bytes, is_csv: bool) -> None:
    try:
        rows = read_rows(content, is_csv)
    except PolicyError:
        return
    assert all(isinstance(change["agent_id"], str) for change in rows.changes)


def there(**sections: Any) -> pb.ListAgentsReply:
    policy = policy_message.message_of({"agent_id": "tax", **sections})
    return pb.ListAgentsReply(agents=[pb.AgentRecord(policy=policy, version=pb.AgentVersion(version=6))])


def test_rows_are_put_over_what_is_there(run: Run, stand_in: StandIn, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("agent_id,scaling.max_instances,note\ntax,50,x\nnew,5,y\n")
    stand_in.replies["ListAgents"] = there(
        endpoints=["127.0.0.1:9001"], scaling={"min_instances": 2, "max_instances": 4}, timeout_ms=100
    )
    outcomes = [pb.Applied(agent_id="tax", outcome="changed", version=7)]
    stand_in.replies["ApplyAgents"] = pb.ApplyAgentsReply(agents=outcomes)
    ran = run("agents", "import", str(path), "--reason", "moved in")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines()[-1] == "columns that are no policy were passed over: note"
    tax, new = stand_in.requests("ApplyAgents")[0].agents
    assert tax.expected_version == 6
    assert policy_message.plain_of(tax.policy) == {
        "agent_id": "tax",
        "endpoints": ["127.0.0.1:9001"],
        "timeout_ms": 100,
        "scaling": {"min_instances": 2, "max_instances": 50},
    }
    assert new.expected_version == 0
    assert policy_message.plain_of(new.policy) == {"agent_id": "new", "scaling": {"max_instances": 5}}


def test_a_wrong_value_names_file_agent_and_field(run: Run, stand_in: StandIn, tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"agent_id": "tax", "scaling": {"max_instances": 0}}]))
    stand_in.replies["ListAgents"] = there()
    ran = run("agents", "import", str(path), "--reason", "r")
    assert ran.code == 1
    assert f"{path}: agent tax: scaling.max_instances: 0 is not between 1 and 10000" in ran.err
    assert stand_in.requests("ApplyAgents") == []


def test_many_rows_go_in_requests_of_a_thousand(run: Run, stand_in: StandIn, tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"agent_id": f"a{at}"} for at in range(1_001)]))
    stand_in.replies |= {"ListAgents": pb.ListAgentsReply(), "ApplyAgents": pb.ApplyAgentsReply()}
    assert run("agents", "import", str(path), "--dry-run", "--json").data == {"agents": [], "dry_run": True}
    assert [len(request.agents) for request in stand_in.requests("ApplyAgents")] == [1_000, 1]
