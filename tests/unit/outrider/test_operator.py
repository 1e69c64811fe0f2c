"""The operator's clients against a real server: one method per RPC, failures, failover, credentials."""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message_factory import GetMessageClass

from outrider.control_channel import Access, dial_target, parse_control
from outrider.operator import AsyncOperator, Operator, OperatorError, configuration_of
from outrider.operator_requests import CHANGES
from outrider.policy import PolicyError
from outrider.v1 import experiment_pb2, feedback_pb2, policy_pb2
from outrider.v1 import operator_pb2 as pb
from tests.certificates import Authority
from tests.unit.outrider_control.commands.operator_server import SERVICE, OperatorServer, Refusal

NOBODY = "127.0.0.1:1"
RENAMED = {"token_id": "id", "example_id": "id", "question": "input"}  # `id` is a word of Python's own
NOT_SAID = {(name, "full") for name in ("PauseRollout", "ResumeRollout", "AbortRollout")}  # of promoting alone
NUMBERS = (
    "limit", "traffic", "baseline", "minimum_effect", "standard_deviation", "alpha", "power", "units_per_day",
    "after_id", "example_id", "train", "validation", "holdout",
)  # fmt: skip
UNARY = [method for method in SERVICE.methods if not method.server_streaming]
CLIENTS = pytest.mark.parametrize("client", [Operator, AsyncOperator])


def snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def server() -> Iterator[OperatorServer]:
    with OperatorServer() as running:
        yield running


def parameters(method: Any) -> list[str]:
    return [name for name in inspect.signature(method).parameters if name != "self"]


@CLIENTS
@pytest.mark.parametrize("method", list(SERVICE.methods), ids=lambda method: method.name)
def test_every_rpc_is_a_method_with_the_requests_fields(client: Any, method: Any) -> None:
    given = [RENAMED.get(name, name) for name in parameters(getattr(client, snake(method.name)))]
    fields = [field.name for field in method.input_type.fields if (method.name, field.name) not in NOT_SAID]
    assert sorted(given) == sorted(fields)


def test_both_clients_are_called_alike() -> None:
    def public(client: type) -> dict[str, list[str]]:
        methods = inspect.getmembers(client, inspect.isfunction)
        return {name: parameters(method) for name, method in methods if not name.startswith("_")}

    assert public(Operator) == public(AsyncOperator)


def value_of(method: str, name: str, at: int) -> Any:
    """Another value for every argument."""
    match name:
        case "spec":
            kind = experiment_pb2.ExperimentSpec if method == "CreateExperiment" else experiment_pb2.RolloutSpec
            return kind(name="n", agent_id="a")
        case "feedback":
            return [feedback_pb2.Feedback(call_id="0" * 15 + "1", rating=4.0)]
        case "shares":
            return [0.25, 0.75]
        case "agents":
            return [pb.AgentConfiguration(policy=policy_pb2.AgentPolicy(agent_id="a"), expected_version=3)]
        case "agent_ids":
            return ["a", "b"]
        case "scaling":
            return policy_pb2.ScalingPolicy(min_instances=2)
        case "dry_run" | "errors" | "everything" | "start" | "abort" | "full" | "unknown_only":
            return True
    is_number = name.endswith(("_ms", "version")) or name in NUMBERS
    return at if is_number else f"text {at}"


@pytest.mark.parametrize("method", UNARY, ids=lambda method: method.name)
async def test_what_is_given_is_sent(server: OperatorServer, method: Any) -> None:
    server.stand_in.replies[method.name] = GetMessageClass(method.output_type)()
    name = snake(method.name)
    given = {one: value_of(method.name, one, at) for at, one in enumerate(parameters(getattr(Operator, name)), 1)}
    wanted = GetMessageClass(method.input_type)(**{RENAMED.get(one, one): value for one, value in given.items()})
    with Operator(server.address) as operator:
        getattr(operator, name)(**given)
    async with AsyncOperator(server.address) as aio:
        await getattr(aio, name)(**given)
    assert server.stand_in.requests(method.name) == [wanted, wanted]


def test_changes_are_the_rpcs_that_change() -> None:
    reads = re.compile(r"Get|List|Diff|Explain|Stream|WhoAmI|Plan|Export")
    idempotent = {"CollectFeedback"}
    changes = {method.name for method in SERVICE.methods if not reads.match(method.name)}
    assert changes - idempotent == CHANGES


async def test_a_stream(server: OperatorServer) -> None:
    overviews = [pb.Overview(sidecars=at) for at in range(3)]
    server.stand_in.replies["StreamMetrics"] = [*overviews, Refusal(grpc.StatusCode.UNAVAILABLE, "going")]
    with Operator(server.address) as operator:
        stream = operator.stream_metrics(250, 30_000, "a")
        assert [next(stream) for _ in range(3)] == overviews
        with pytest.raises(OperatorError, match="UNAVAILABLE: going"):
            next(stream)
    async with AsyncOperator(server.address) as aio:
        seen: list[pb.Overview] = []
        with pytest.raises(OperatorError, match="UNAVAILABLE: going"):
            await _gather(aio, seen)
        assert seen == overviews
    wanted = pb.StreamMetricsRequest(interval_ms=250, since_ms=30_000, agent_id="a")
    assert server.stand_in.requests("StreamMetrics") == [wanted, wanted]


async def _gather(aio: AsyncOperator, seen: list[pb.Overview]) -> None:
    async for overview in aio.stream_metrics(250, 30_000, "a"):
        seen.append(overview)  # noqa: PERF401 - the error comes after the last


async def test_leaving_a_stream_cancels_it(server: OperatorServer) -> None:
    server.stand_in.replies["StreamMetrics"] = [pb.Overview()] * 100_000
    with Operator(server.address) as operator:
        for _ in operator.stream_metrics():
            break
    async with AsyncOperator(server.address) as aio:
        stream = aio.stream_metrics()
        await anext(stream)
        await stream.aclose()


async def test_a_refusal(server: OperatorServer) -> None:
    server.stand_in.replies["GetAgent"] = Refusal(grpc.StatusCode.NOT_FOUND, "agent 'x':\n there is none")
    with Operator(server.address) as operator, pytest.raises(OperatorError) as caught:
        operator.get_agent("x")
    assert (caught.value.status, caught.value.text) == (grpc.StatusCode.NOT_FOUND, "agent 'x': there is none")
    assert caught.value.address == server.address
    assert not caught.value.is_unreachable
    async with AsyncOperator(server.address) as aio:
        with pytest.raises(OperatorError) as caught:
            await aio.get_agent("x")
    assert (caught.value.status, caught.value.address) == (grpc.StatusCode.NOT_FOUND, server.address)


async def test_a_read_goes_to_who_answers_and_stays(server: OperatorServer) -> None:
    server.stand_in.replies["GetStatus"] = pb.Status(version="v")
    with Operator([NOBODY, server.address]) as operator:
        assert operator.get_status().version == "v"
        assert operator.address == server.address
    async with AsyncOperator(f"{NOBODY},{server.address}") as aio:
        assert (await aio.get_status()).version == "v"
        assert aio.address == server.address


async def test_a_change_is_sent_once(server: OperatorServer) -> None:
    """What fails half-way may have been done: only its caller can know whether to try again."""
    server.stand_in.replies |= {
        "WhoAmI": pb.Identity(),
        "RevokeToken": Refusal(grpc.StatusCode.UNAVAILABLE, "lost"),
    }
    with OperatorServer() as other, Operator([NOBODY, server.address, other.address]) as operator:
        with pytest.raises(OperatorError, match="lost"):
            operator.revoke_token("t", "r")
        assert other.stand_in.asked == []
        async with AsyncOperator([NOBODY, server.address, other.address]) as aio:
            with pytest.raises(OperatorError, match="lost"):
                await aio.revoke_token("t", "r")
        assert other.stand_in.asked == []
    assert len(server.stand_in.requests("RevokeToken")) == 2


async def test_calls_that_fail_together_all_find_who_answers(server: OperatorServer) -> None:
    server.stand_in.replies["GetStatus"] = pb.Status(version="v")
    async with AsyncOperator([NOBODY, server.address]) as aio:
        found = await asyncio.gather(*(aio.get_status() for _ in range(9)))
    assert [status.version for status in found] == ["v"] * 9


async def test_nobody_answers() -> None:
    with Operator([NOBODY, "127.0.0.1:2"]) as operator, pytest.raises(OperatorError) as caught:
        operator.get_status()
    assert caught.value.is_unreachable
    assert caught.value.address == "127.0.0.1:1, 127.0.0.1:2"
    async with AsyncOperator([NOBODY, "127.0.0.1:2"]) as aio:
        with pytest.raises(OperatorError) as caught:
            await aio.get_status()
    assert caught.value.is_unreachable
    assert caught.value.address == "127.0.0.1:1, 127.0.0.1:2"


async def test_configure_response_optimization(server: OperatorServer) -> None:
    policy = policy_pb2.AgentPolicy(agent_id="tax", timeout_ms=5)
    policy.optimization.cache_ttl = 60
    record = pb.AgentRecord(policy=policy, version=pb.AgentVersion(version=4))
    server.stand_in.replies |= {"GetAgent": record, "ApplyAgents": pb.ApplyAgentsReply()}
    with Operator(server.address) as operator:
        operator.configure_response_optimization("tax", "faster", cache_enabled=True, streaming=False)
        with pytest.raises(PolicyError, match=r"optimization\.cash"):
            operator.configure_response_optimization("tax", "faster", cash=True)
    async with AsyncOperator(server.address) as aio:
        await aio.configure_response_optimization("tax", "faster", cache_enabled=True, streaming=False)
    policy.optimization.cache_enabled = True
    policy.optimization.streaming = False
    wanted = pb.ApplyAgentsRequest(agents=[pb.AgentConfiguration(policy=policy, expected_version=4)], reason="faster")
    assert server.stand_in.requests("ApplyAgents") == [wanted, wanted]


async def test_get_dashboard_metrics(server: OperatorServer) -> None:
    server.stand_in.replies["GetOverview"] = pb.Overview(sidecars=3)
    with Operator(server.address) as operator:
        assert operator.get_dashboard_metrics(5).sidecars == 3
    async with AsyncOperator(server.address) as aio:
        assert (await aio.get_dashboard_metrics(5)).sidecars == 3


async def test_monitor_and_scale(server: OperatorServer) -> None:
    server.stand_in.replies["ExplainScale"] = pb.ExplainScaleReply(scale=pb.ScaleRecord(desired=4))
    with Operator(server.address) as operator:
        assert operator.monitor_and_scale("tax").scale.desired == 4
    async with AsyncOperator(server.address) as aio:
        assert (await aio.monitor_and_scale("tax")).scale.desired == 4
    assert server.stand_in.requests("ExplainScale") == [pb.ExplainScaleRequest(agent_id="tax")] * 2


async def test_configure_auto_scaling_by_the_names_of_the_file(server: OperatorServer) -> None:
    server.stand_in.replies["ConfigureAutoScaling"] = pb.AgentRecord()
    with Operator(server.address) as operator:
        operator.configure_auto_scaling("tax", {"min_instances": 0, "target_utilization": 1}, "nights", 4)
        with pytest.raises(PolicyError, match=r"scaling\.min_instance: is not a field; did you mean 'min_instances'"):
            operator.configure_auto_scaling("tax", {"min_instance": 3}, "nights")
        with pytest.raises(PolicyError, match=r"scaling\.max_instances: 2\.5 is not a whole number"):
            operator.configure_auto_scaling("tax", {"max_instances": 2.5}, "nights")
    async with AsyncOperator(server.address) as aio:
        # Whether a bound holds depends on the other one, which the control plane has.
        await aio.configure_auto_scaling("tax", {"min_instances": 10_000, "max_usd_per_h": 5}, "nights")
    first, second = server.stand_in.requests("ConfigureAutoScaling")
    scaling = policy_pb2.ScalingPolicy(min_instances=0, target_utilization=1.0)
    wanted = pb.ConfigureAutoScalingRequest(agent_id="tax", scaling=scaling, reason="nights", expected_version=4)
    assert first == wanted
    assert second.scaling == policy_pb2.ScalingPolicy(min_instances=10_000, max_usd_per_h=5.0)
    assert not second.HasField("expected_version")


def test_configurations_are_checked() -> None:
    made = configuration_of({"agent_id": "a", "version": 0, "optimization": {"cache_ttl": 5}})
    assert (made.expected_version, made.HasField("expected_version")) == (0, True)
    assert not configuration_of({"agent_id": "a"}).HasField("expected_version")
    with pytest.raises(PolicyError, match=r"optimization\.cache_ttl: -1"):
        configuration_of({"agent_id": "a", "optimization": {"cache_ttl": -1}})


async def test_certificates_and_token(authority: Authority) -> None:
    cert, key = (file.read_bytes() for file in authority.pair("control"))
    our_cert, our_key = (file.read_bytes() for file in authority.pair("ops", "ops"))
    ca = authority.file.read_bytes()
    credentials = grpc.ssl_server_credentials([(key, cert)], ca, require_client_auth=True)
    access = Access(token="geheim", ca=ca, cert=our_cert, key=our_key)
    with OperatorServer(credentials) as server:
        server.stand_in.replies["WhoAmI"] = pb.Identity(name="ops")
        address = f"localhost:{server.port}"
        with Operator(address, access=access) as operator:
            assert operator.who_am_i().name == "ops"
        async with AsyncOperator(address, access=access) as aio:
            assert (await aio.who_am_i()).name == "ops"
        with Operator(address, access=Access(ca=ca)) as operator, pytest.raises(OperatorError):
            operator.who_am_i()
        assert [metadata["authorization"] for metadata in server.stand_in.metadata] == ["Bearer geheim"] * 2
    assert "geheim" not in repr(access)


@pytest.mark.parametrize(
    ("text", "targets"),
    [
        ("127.0.0.1:7700", ["127.0.0.1:7700"]),
        (" a:1 , [::1]:2,", ["a:1", "[::1]:2"]),
        ("dns:control:7700", ["dns:///control:7700"]),
        ("unix:/run/c.sock", ["unix:/run/c.sock"]),
    ],
)
def test_addresses(text: str, targets: list[str]) -> None:
    assert [dial_target(address) for address in parse_control(text)] == targets


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "names no address"), (" ,", "names no address"), ("a:1,b", "'b' is not an"), ("a:0", "'a:0'")],
)
def test_no_addresses(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_control(text)
