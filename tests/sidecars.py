"""The real sidecar program and its peers as child processes, for black-box tests.

Always holds: what is started through a `Mesh` is gone when it closes; no socket of a peer or a sidecar belongs to the
process of the tests, so fixtures of any scope pass the leak check; whoever waits does it by `eventually`, which polls
and gives up with a reason.

Deliberately not here: what a test expects of a sidecar.
"""

from __future__ import annotations

import http.client
import itertools
import json
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
import yaml
from grpc_health.v1 import health_pb2

from bench.process import Child, Children
from tests.grpc_peer import AGENT, CONTROL, MESSAGE_BYTES, SPANS, plain

WAIT_S = 15.0  # how long a condition may take on a busy machine
POLL_S = 0.01
CHANNEL_OPTIONS = (
    ("grpc.enable_retries", 0),  # the sidecar's retries are under test, not grpcio's
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    ("grpc.max_send_message_length", MESSAGE_BYTES),
)
KINDS = {
    "Unary": "unary_unary",
    "Other": "unary_unary",
    "Download": "unary_stream",
    "Upload": "stream_unary",
    "Chat": "stream_stream",
}
_keys = itertools.count(1)


def eventually(condition: Callable[[], Any], what: str, wait_s: float = WAIT_S) -> Any:
    """The first true value of `condition()`; AssertionError saying `what` did not happen."""
    give_up_at = time.monotonic() + wait_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > give_up_at:
            raise AssertionError(f"not within {wait_s:g} s: {what}")
        time.sleep(POLL_S)


def new_key() -> str:
    """A name no other call of this run has."""
    return f"k{next(_keys)}"


def channel_to(target: str, credentials: grpc.ChannelCredentials | None = None, options: Any = ()) -> grpc.Channel:
    """A channel of its own connection, without client-side retries."""
    if credentials is None:
        return grpc.insecure_channel(target, (*CHANNEL_OPTIONS, *options))
    return grpc.secure_channel(target, credentials, (*CHANNEL_OPTIONS, *options))


class Calls:
    """The peer's methods over one channel. `do` is the plan of the call, `key` finds it at the peer."""

    def __init__(self, channel: grpc.Channel, metadata: Sequence[tuple[str, str | bytes]] = (), timeout_s: float = 20):
        self.channel = channel
        self._metadata = tuple(metadata)
        self._timeout_s = timeout_s

    def start(
        self,
        method: str,
        request: Any = b"",
        *,
        key: str = "",
        metadata: Sequence[tuple[str, str | bytes]] = (),
        timeout_s: float | None = None,
        compression: Any = None,
        **do: Any,
    ) -> Any:
        """The call as a future or stream; an iterator as `request` where the method streams its requests."""
        sent = [*self._metadata, *metadata]
        if key:
            sent.append(("x-key", key))
        if do:
            sent.append(("x-do", json.dumps(do)))
        kind = KINDS.get(method, "unary_unary")
        path = method if method.startswith("/") else AGENT + method
        call = getattr(self.channel, kind)(path)
        call = call.future if kind.endswith("unary") else call
        timeout = self._timeout_s if timeout_s is None else timeout_s
        return call(request, timeout=timeout, metadata=sent, compression=compression)

    def unary(self, request: bytes = b"", method: str = "Unary", **more: Any) -> Any:
        """The ended call: `result()`, `code()`, `details()`, metadata."""
        call = self.start(method, request, **more)
        call.exception()
        return call


def code_of(call: Any) -> grpc.StatusCode:
    return call.code()


def trailers(call: Any) -> dict[str, Any]:
    """The last value of each trailing field."""
    return dict(call.trailing_metadata() or ())


def read_all(stream: Any) -> tuple[list[bytes], Any]:
    """(messages, the ended call) of a stream, however it ended."""
    messages: list[bytes] = []
    try:
        messages.extend(stream)
    except grpc.RpcError:
        pass
    return messages, stream


def health_of(channel: grpc.Channel, service: str = "", metadata: Sequence[tuple[str, str]] = ()) -> str:
    """What grpc.health.v1 says: SERVING, NOT_SERVING; grpc.RpcError where it says no."""
    asked = health_pb2.HealthCheckRequest(service=service).SerializeToString()
    check = channel.unary_unary("/grpc.health.v1.Health/Check")
    reply = check(asked, timeout=WAIT_S, metadata=tuple(metadata))
    return health_pb2.HealthCheckResponse.ServingStatus.Name(health_pb2.HealthCheckResponse.FromString(reply).status)


class Peer:
    """A `tests.grpc_peer` process."""

    def __init__(self, mesh: Mesh, name: str, arguments: Sequence[str]):
        self._mesh = mesh
        self.name = name
        self._arguments = tuple(arguments)
        self.child: Child
        self.port = 0
        self.start()

    def start(self) -> None:
        """Start the process, on the port it had before if there was one."""
        arguments = ["--name", self.name, "--port", str(self.port), *self._arguments]
        self.child, ports = self._mesh.module(self.name, "tests.grpc_peer", *arguments)
        self.port, self._control_port = ports["port"], ports["control"]

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def control(self, op: str, **asked: Any) -> Any:
        with channel_to(f"127.0.0.1:{self._control_port}") as channel:
            return json.loads(channel.unary_unary(CONTROL)(json.dumps({"op": op, **asked}).encode(), timeout=WAIT_S))

    def records(self, key: str = "") -> list[dict[str, Any]]:
        return self.control("records", key=key)

    def record(self, key: str) -> dict[str, Any]:
        """The one call with this key, once it has come."""
        return eventually(lambda: self.records(key), f"a call {key!r} reaches {self.name}")[-1]

    def wait_outcome(self, key: str, outcome: str) -> None:
        eventually(
            lambda: any(record["outcome"] == outcome for record in self.records(key)),
            f"call {key!r} is {outcome} at {self.name}",
        )

    def exported(self) -> bytes:
        with channel_to(f"127.0.0.1:{self._control_port}") as channel:
            return channel.unary_unary(SPANS)(b"", timeout=WAIT_S)

    def kill(self) -> None:
        self.child.signal_group(signal.SIGKILL)
        self.child.process.wait(WAIT_S)

    def stop(self) -> None:
        self._mesh.children.stop(self.child)


class Sidecar:
    """A sidecar process and its admin port. `config` may be changed and written again."""

    def __init__(self, mesh: Mesh, name: str, config: dict[str, Any], environment: Mapping[str, str] | None = None):
        self._mesh = mesh
        self.name = name
        self.folder = mesh.children.directory / name
        self.folder.mkdir(exist_ok=True)
        self.file = self.folder / "sidecar.yaml"
        self.config = {"listen": "127.0.0.1:0", "admin": "127.0.0.1:0", "ports_file": "ports.json", **config}
        self._environment = environment
        self.child: Child
        self.ports: dict[str, int] = {}
        self.start()

    def start(self) -> None:
        """Start the program and wait until it is ready."""
        ports_file = self.folder / "ports.json"
        ports_file.unlink(missing_ok=True)
        self.write()
        self.child = self._mesh.program(self.name, self.file, self._environment)
        self.ports = self._mesh.children.ports(self.child, ports_file)
        eventually(lambda: self.get("/readyz")[0] == 200, f"{self.name} is ready")

    def write(self) -> None:
        """Put the configuration in place, whole at once."""
        aside = self.file.with_suffix(".new")
        aside.write_text(yaml.safe_dump(self.config), encoding="utf-8")
        aside.replace(self.file)

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.ports['egress']}"

    def get(self, path: str) -> tuple[int, bytes]:
        return self._http("GET", path)

    def json(self, path: str) -> Any:
        status, body = self.get(path)
        assert status == 200, (path, status, body)
        return json.loads(body)

    def post(self, path: str, value: Any = None) -> tuple[int, Any]:
        status, body = self._http("POST", path, json.dumps(value).encode())
        return status, json.loads(body)

    def _http(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        link = http.client.HTTPConnection("127.0.0.1", self.ports["admin"], timeout=WAIT_S)
        try:
            link.request(method, path, body, {"content-type": "application/json"} if body is not None else {})
            reply = link.getresponse()
            return reply.status, reply.read()
        finally:
            link.close()

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that carry these labels."""
        return sum(
            value for found, has, value in self.samples() if found == name and labels.items() <= dict(has).items()
        )

    def samples(self) -> list[tuple[str, dict[str, str], float]]:
        from prometheus_client.parser import text_string_to_metric_families

        status, body = self.get("/metrics")
        assert status == 200, body
        families = text_string_to_metric_families(body.decode())
        return [(sample.name, dict(sample.labels), sample.value) for one in families for sample in one.samples]

    def agent(self, agent_id: str) -> dict[str, Any]:
        return next(agent for agent in self.json("/agents")["agents"] if agent["agent_id"] == agent_id)

    def states(self, agent_id: str) -> dict[str, str]:
        """Address -> one word about the endpoint."""
        return {one["address"]: one["state"].split(" ")[0] for one in self.agent(agent_id)["endpoints"]}

    def reload(self) -> str:
        """Write the configuration, wait until it is read; what became of it."""
        before = self.metric("outrider_reloads_total")
        self.write()
        self.child.process.send_signal(signal.SIGHUP)
        eventually(lambda: self.metric("outrider_reloads_total") > before, f"{self.name} reloads")
        return str(self.json("/config")["last_reload"])

    def settled(self) -> None:
        """Nothing is in flight and nothing is held: what a sidecar owes when its callers are gone."""
        names = ("outrider_calls_in_flight", "outrider_held_bytes", "outrider_endpoint_pending")

        def left() -> dict[str, float]:
            return {name: value for name, _, value in self.samples() if name in names and value}

        try:
            eventually(lambda: not left(), f"{self.name} lets go of everything")
        except AssertionError as error:
            raise AssertionError(f"{error}: {left()}") from None

    def rss_bytes(self) -> int:
        return int(Path(f"/proc/{self.child.pid}/statm").read_text().split()[1]) * 4096

    def terminate(self) -> None:
        self.child.process.send_signal(signal.SIGTERM)

    def wait_exit(self) -> int:
        return self.child.process.wait(WAIT_S)

    def log(self) -> str:
        return self.child.log.read_text(encoding="utf-8", errors="replace")


class Mesh:
    """Owns the processes of some tests; a context manager."""

    def __init__(self) -> None:
        self.children = Children(grace_s=2.0)
        self._serial = itertools.count()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.children.close()

    def module(self, name: str, module: str, *arguments: str) -> tuple[Child, dict[str, int]]:
        return self.children.start_module(f"{name}-{next(self._serial)}", module, *arguments)

    def program(self, name: str, file: Path, environment: Mapping[str, str] | None = None) -> Child:
        """The sidecar program on a configuration file; it may well end at once."""
        command = [sys.executable, "-m", "outrider_sidecar", "--config", str(file)]
        return self.children.start(f"{name}-{next(self._serial)}", command, environment=environment)

    def peer(self, name: str = "one", *arguments: str) -> Peer:
        return Peer(self, name, arguments)

    def h2_peer(self, name: str = "odd", *arguments: str) -> str:
        """Start a `tests.h2_peer`; its address."""
        return f"127.0.0.1:{self.module(name, 'tests.h2_peer', *arguments)[1]['port']}"

    def sidecar(self, config: dict[str, Any], name: str = "sidecar", **environment: str) -> Sidecar:
        return Sidecar(self, name, config, environment or None)


def agent(agent_id: str, *endpoints: Any, **policy: Any) -> dict[str, Any]:
    """One agent of a configuration; endpoints are peers, addresses or mappings."""
    listed = [one.address if isinstance(one, Peer) else one for one in endpoints]
    return {"agent_id": agent_id, "endpoints": listed, **policy}


def standalone(peer: Peer, **policy: Any) -> dict[str, Any]:
    """A configuration of one agent `solo`, which is the default."""
    return {"default_agent": "solo", "agents": [agent("solo", peer, **policy)]}


def metadata_of(call: Any) -> list[tuple[str, str]]:
    """Initial metadata as JSON-like pairs, in order."""
    return [(name, value) for name, value in plain(call.initial_metadata())]
