import asyncio
import http.client
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from prometheus_client.parser import text_string_to_metric_families

from outrider_sidecar.core.metric import Family
from outrider_sidecar.edge.admin import Admin, host_name, is_address

JSON = {"content-type": "application/json"}


class Shown:
    """A View with everything settable."""

    def __init__(self) -> None:
        self.health: tuple[bool, str] = (True, "")
        self.readiness: tuple[bool, str] = (True, "")
        self.purged: list[tuple[str, str, str]] = []
        self.drained = 0
        self.score: Any = 1.5

    def healthy(self) -> tuple[bool, str]:
        return self.health

    def ready(self) -> tuple[bool, str]:
        return self.readiness

    def metrics_families(self) -> list[Family]:
        return [Family("outrider_up", "gauge", "Up.", (), [((), 1)])]

    def config(self) -> Any:
        return {"listen": "127.0.0.1:7600", "tls": {"key": "***"}}

    def cache(self) -> Any:
        return {"tax": {"hits": 3, "ghosts": {"half": 1}}}

    def agents(self) -> Any:
        return {"tax": [{"address": "h:1", "score": self.score, "labels": ("a", "b")}]}

    def purge(self, agent: str, tenant: str, tag: str) -> Any:
        if agent == "nobody":
            raise ValueError("agent 'nobody' is not known")
        self.purged.append((agent, tenant, tag))
        return {"epoch": len(self.purged)}

    def drain(self) -> Any:
        self.drained += 1
        return {"draining": True}


class Client:
    def __init__(self, port: int, view: Shown):
        self.port = port
        self.view = view

    async def __call__(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any, http.client.HTTPMessage]:
        return await asyncio.to_thread(self._ask, method, path, body, headers or {})

    def _ask(
        self, method: str, path: str, body: Any, headers: dict[str, str]
    ) -> tuple[int, Any, http.client.HTTPMessage]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            encoded = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
            connection.request(method, path, encoded, headers)
            answer = connection.getresponse()
            text = answer.read()
            is_json = answer.headers["content-type"] == "application/json"
            return answer.status, json.loads(text) if is_json and text else text, answer.headers
        finally:
            connection.close()


@pytest_asyncio.fixture
async def admin() -> AsyncIterator[Client]:
    view = Shown()
    server = Admin(view, allowed_hosts=["Mesh.Example."])
    port = await server.listen("127.0.0.1", 0)
    yield Client(port, view)
    await server.close()


async def test_probes(admin: Client):
    assert (await admin("GET", "/healthz"))[:2] == (200, {"status": "ok"})
    assert (await admin("GET", "/readyz"))[:2] == (200, {"status": "ok"})
    admin.view.readiness = (False, "draining")
    assert (await admin("GET", "/readyz"))[:2] == (503, {"status": "unavailable", "reason": "draining"})
    assert (await admin("GET", "/healthz"))[0] == 200
    admin.view.health = (False, "stuck")
    assert (await admin("HEAD", "/healthz"))[:2] == (503, b"")


async def test_reads_are_json(admin: Client):
    for path, value in (("/config", admin.view.config()), ("/cache", admin.view.cache())):
        status, body, headers = await admin("GET", path)
        assert (status, body, headers["content-type"]) == (200, value, "application/json")
        assert headers["cache-control"] == "no-store"
    assert (await admin("GET", "/agents?verbose=1"))[1] == {
        "tax": [{"address": "h:1", "score": 1.5, "labels": ["a", "b"]}]
    }


@pytest.mark.parametrize("score", [float("inf"), float("-inf"), float("nan")])
async def test_figures_json_does_not_know_become_null(admin: Client, score: float):
    admin.view.score = score
    assert (await admin("GET", "/agents"))[1]["tax"][0]["score"] is None


async def test_metrics_in_both_formats(admin: Client):
    status, text, headers = await admin("GET", "/metrics")
    assert status == 200
    assert headers["content-type"].startswith("text/plain")
    names = {family.name for family in text_string_to_metric_families(text.decode())}
    assert {"outrider_up", "process_cpu_seconds"} <= names
    status, text, headers = await admin(
        "GET", "/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"}
    )
    assert headers["content-type"].startswith("application/openmetrics-text")
    assert text.endswith(b"# EOF\n")
    status, text, headers = await admin("HEAD", "/metrics")
    assert (status, text) == (200, b"")
    assert int(headers["content-length"]) > 0


async def test_unknown_paths_and_methods_say_what_there_is(admin: Client):
    status, body, _ = await admin("GET", "/nope")
    assert status == 404
    assert all(path in body["error"] for path in ("/nope", "/healthz", "/metrics", "/agents", "/cache/purge", "/drain"))
    status, body, headers = await admin("POST", "/config", {}, JSON)
    assert (status, headers["allow"]) == (405, "GET, HEAD")
    assert "POST" in body["error"]
    status, _, headers = await admin("GET", "/cache/purge")
    assert (status, headers["allow"]) == (405, "POST")
    assert (await admin("DELETE", "/drain"))[0] == 405


@pytest.mark.parametrize(
    ("body", "purged"),
    [
        ({"agent": "tax"}, ("tax", "", "")),
        ({"tag": "rates", "tenant": "eu"}, ("", "eu", "rates")),
        ({"agent": "tax", "tenant": "eu", "tag": "é"}, ("tax", "eu", "é")),
        ({"all": True}, ("", "", "")),
    ],
)
async def test_purge(admin: Client, body: dict[str, Any], purged: tuple[str, str, str]):
    assert (await admin("POST", "/cache/purge", body, JSON))[:2] == (200, {"epoch": 1})
    assert admin.view.purged == [purged]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[" * 60_000, "not JSON"),
        ([], "at least one of agent, tenant, tag"),
        ({}, "at least one of"),
        ("tax", "at least one of"),
        ({"agent": 5}, "agent must be a text"),
        ({"agent": ""}, "agent must be a text"),
        ({"tag": "x" * 1_025}, "tag must be a text"),
        ({"user": "u"}, "'user' is not known"),
        ({"all": False}, "'all' is not known"),
        ({"all": True, "agent": "tax"}, "'all' is not known"),
        ({"agent": "nobody"}, "agent 'nobody' is not known"),
    ],
)
async def test_a_wrong_purge_says_what_is_wrong_and_purges_nothing(admin: Client, body: Any, says: str):
    status, answer, _ = await admin("POST", "/cache/purge", body, JSON)
    assert status == 400
    assert says in answer["error"]
    assert admin.view.purged == []


async def test_drain(admin: Client):
    assert (await admin("POST", "/drain", {}, JSON))[:2] == (202, {"draining": True})
    assert admin.view.drained == 1


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-type": "application/json; charset=utf-8"}, 202),
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "application/x-www-form-urlencoded"}, 415),
        ({}, 415),
        (JSON | {"host": "evil.example"}, 403),
        (JSON | {"host": "127.0.0.1.evil.example:7602"}, 403),
        (JSON | {"host": ""}, 403),
        (JSON | {"host": "localhost:7602"}, 202),
        (JSON | {"host": "[::1]:7602"}, 202),
        (JSON | {"host": "MESH.example:7602"}, 202),
        (JSON | {"origin": "https://evil.example"}, 403),
        (JSON | {"origin": "null"}, 403),
        (JSON | {"host": "localhost:7602", "origin": "http://localhost:7602"}, 202),
    ],
)
async def test_a_web_page_cannot_change_anything(admin: Client, headers: dict[str, str], status: int):
    assert (await admin("POST", "/drain", {}, headers))[0] == status
    assert admin.view.drained == (status == 202)


async def test_a_rebound_name_reads_nothing_but_health_and_metrics(admin: Client):
    evil = {"host": "evil.example"}
    for path, status in (("/config", 403), ("/agents", 403), ("/cache", 403), ("/healthz", 200), ("/metrics", 200)):
        assert (await admin("GET", path, headers=evil))[0] == status
    status, body, _ = await admin("GET", "/config", headers=evil)
    assert "evil.example" in body["error"]


@pytest.mark.parametrize(
    ("host", "name", "address"),
    [
        ("127.0.0.1:80", "127.0.0.1", True),
        ("[::1]:80", "::1", True),
        ("[::1]", "::1", True),
        ("LocalHost.:80", "localhost", False),
        ("10.1.2.3", "10.1.2.3", True),
        ("1.2.3", "1.2.3", False),
        ("", "", False),
        ("[evil", "evil", False),
    ],
)
def test_host_names(host: str, name: str, address: bool):
    assert host_name(host) == name
    assert is_address(name) is address
