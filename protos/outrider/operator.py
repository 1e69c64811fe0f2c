"""Typed clients of the control plane's operator API, blocking (`Operator`) and asyncio (`AsyncOperator`).

One method per RPC in snake_case, with the request's fields as arguments (`operator_requests` has them), and the names
that agents' builders know: `configure_response_optimization`, `configure_auto_scaling`, `monitor_and_scale`,
`get_dashboard_metrics`, `get_agent_health`, `stream_metrics`, `create_ab_test`, `collect_feedback`.

Always holds: a failed call raises an OperatorError; a read that nobody answers is asked of the next address, while a
change is sent once, and only to a control plane that has just answered.

Deliberately not here: files and tables (`outrider_control.commands`), the calls agents make (`client`).
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Generator, Sequence
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import grpc

from outrider import experiment_requests as experiments
from outrider import operator_requests as requests
from outrider.control_channel import (
    DEFAULT_CONTROL,
    DEFAULT_TIMEOUT_S,
    OPTIONS,
    Access,
    OperatorError,
    dial_target,
    operator_error,
    parse_control,
)
from outrider.operator_async import AsyncOperator
from outrider.operator_requests import CHANGES, Configuration, Request, configuration_of
from outrider.v1 import experiment_pb2, operator_pb2_grpc
from outrider.v1 import operator_pb2 as pb

_OPEN = Access()
P = ParamSpec("P")
T = TypeVar("T")


def _method(build: Callable[P, Request[T]]) -> Callable[Concatenate[Operator, P], T]:
    """The method that sends what `build` makes of its arguments."""

    @functools.wraps(build)
    def call(self: Operator, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._call(build(*args, **kwargs))

    return call


class Operator:
    """Blocking client; safe to use from several threads. `control`: one address, several with commas, or a list."""

    def __init__(
        self,
        control: str | Sequence[str] = DEFAULT_CONTROL,
        *,
        access: Access = _OPEN,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ):
        self.addresses = parse_control(control)
        self._access = access
        self._timeout_s = timeout_s
        self._at = 0  # the address that answered last
        self._has_answered = False
        self._channels: dict[int, grpc.Channel] = {}
        self._dialling = threading.Lock()

    @property
    def address(self) -> str:
        """Of the control plane in use."""
        return str(self.addresses[self._at])

    apply_agents = _method(requests.apply_agents)
    get_agent = _method(requests.get_agent)
    list_agents = _method(requests.list_agents)
    delete_agents = _method(requests.delete_agents)
    list_versions = _method(requests.list_versions)
    rollback_agent = _method(requests.rollback_agent)
    diff_agent = _method(requests.diff_agent)
    set_default_agent = _method(requests.set_default_agent)
    list_endpoints = _method(requests.list_endpoints)
    list_sidecars = _method(requests.list_sidecars)
    get_overview = _method(requests.get_overview)
    get_agent_health = _method(requests.get_agent_health)
    get_metrics = _method(requests.get_metrics)
    list_traces = _method(requests.list_traces)
    get_trace = _method(requests.get_trace)
    explain_trace = _method(requests.explain_trace)
    list_decisions = _method(requests.list_decisions)
    list_scales = _method(requests.list_scales)
    explain_scale = _method(requests.explain_scale)
    configure_auto_scaling = _method(requests.configure_auto_scaling)
    pause_scaling = _method(requests.pause_scaling)
    resume_scaling = _method(requests.resume_scaling)
    create_experiment = _method(experiments.create_experiment)
    start_experiment = _method(experiments.start_experiment)
    pause_experiment = _method(experiments.pause_experiment)
    resume_experiment = _method(experiments.resume_experiment)
    stop_experiment = _method(experiments.stop_experiment)
    set_experiment_traffic = _method(experiments.set_experiment_traffic)
    get_experiment = _method(experiments.get_experiment)
    list_experiments = _method(experiments.list_experiments)
    plan_experiment = _method(experiments.plan_experiment)
    create_rollout = _method(experiments.create_rollout)
    promote_rollout = _method(experiments.promote_rollout)
    pause_rollout = _method(experiments.pause_rollout)
    resume_rollout = _method(experiments.resume_rollout)
    abort_rollout = _method(experiments.abort_rollout)
    get_rollout = _method(experiments.get_rollout)
    list_rollouts = _method(experiments.list_rollouts)
    collect_feedback = _method(experiments.collect_feedback)
    list_feedback = _method(experiments.list_feedback)
    get_satisfaction = _method(experiments.get_satisfaction)
    list_examples = _method(experiments.list_examples)
    review_example = _method(experiments.review_example)
    create_dataset = _method(experiments.create_dataset)
    list_datasets = _method(experiments.list_datasets)
    get_cache_stats = _method(requests.get_cache_stats)
    purge_cache = _method(requests.purge_cache)
    get_status = _method(requests.get_status)
    who_am_i = _method(requests.who_am_i)
    create_token = _method(requests.create_token)
    list_tokens = _method(requests.list_tokens)
    revoke_token = _method(requests.revoke_token)

    # The names that agents' builders know, where they are none of the above.
    get_dashboard_metrics = _method(requests.get_overview)
    monitor_and_scale = _method(requests.explain_scale)
    create_ab_test = _method(experiments.create_ab_test)

    def configure_response_optimization(self, agent_id: str, reason: str, **optimization: Any) -> pb.ApplyAgentsReply:
        """Change fields of an agent's `optimization` (`cache_enabled=True`, ...); all else stays as it is."""
        changed = requests.changed_section(self.get_agent(agent_id), "optimization", optimization)
        return self.apply_agents([changed], reason)

    def stream_metrics(
        self, interval_ms: int = 0, since_ms: int = 0, agent_id: str = ""
    ) -> Generator[pb.Overview, None, None]:
        """Overviews until the iterator is closed or the control plane goes away (OperatorError)."""
        return self._stream(requests.stream_metrics(interval_ms, since_ms, agent_id))

    def export_dataset(
        self, agent_id: str, version: int = 0, part: str = ""
    ) -> Generator[experiment_pb2.DatasetChunk, None, None]:
        """A dataset in pieces of whole JSON lines; the first one says which it is."""
        return self._stream(experiments.export_dataset(agent_id, version, part))

    def close(self) -> None:
        """Close the connections; calls that are under way are cancelled."""
        with self._dialling:
            while self._channels:
                self._channels.popitem()[1].close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _call(self, request: Request[T]) -> T:
        if request.method in CHANGES:
            self._find_answering()
            return self._try_one(self._at, request)
        return self._try_all(request)

    def _stream(self, request: Request[T]) -> Generator[T, None, None]:
        self._find_answering()
        at = self._at
        call = self._stub(at, request.method)(request.message, metadata=self._access.metadata)
        try:
            yield from call
        except grpc.RpcError as error:
            self._has_answered = False
            raise operator_error(error, self.addresses[at]) from error
        finally:
            call.cancel()

    def _find_answering(self) -> None:
        """What must not be sent twice goes to an address that has answered already."""
        if len(self.addresses) > 1 and not self._has_answered:
            self._try_all(requests.who_am_i())

    def _try_all(self, request: Request[T]) -> T:
        error: OperatorError | None = None
        at = self._at  # of this call: others that fail at the same time go their own way
        for _ in self.addresses:
            try:
                return self._try_one(at, request)
            except OperatorError as failed:
                if not failed.is_unreachable:
                    raise
                error = failed
                at = (at + 1) % len(self.addresses)
        assert error is not None, "there is at least one address"
        raise OperatorError(error.status, error.text, ", ".join(map(str, self.addresses))) from error

    def _try_one(self, at: int, request: Request[T]) -> T:
        try:
            stub = self._stub(at, request.method)
            reply = stub(request.message, timeout=self._timeout_s, metadata=self._access.metadata)
        except grpc.RpcError as error:
            failed = operator_error(error, self.addresses[at])
            self._has_answered = self._has_answered and not failed.is_unreachable
            raise failed from error
        self._at, self._has_answered = at, True
        return reply

    def _stub(self, at: int, method: str) -> Any:
        with self._dialling:
            channel = self._channels.get(at)
            if channel is None:
                target, credentials = dial_target(self.addresses[at]), self._access.credentials
                if credentials is None:
                    channel = grpc.insecure_channel(target, OPTIONS)
                else:
                    channel = grpc.secure_channel(target, credentials, OPTIONS)
                self._channels[at] = channel
        return getattr(operator_pb2_grpc.OperatorStub(channel), method)


__all__ = [
    "DEFAULT_CONTROL",
    "Access",
    "AsyncOperator",
    "Configuration",
    "Operator",
    "OperatorError",
    "configuration_of",
]
