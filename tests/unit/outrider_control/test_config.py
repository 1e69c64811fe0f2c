"""Settings of the control plane: the contract's file, defaults, and what is refused with which words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from outrider.address import Address
from outrider_control.config import ConfigError, Settings, load

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str) -> Path:
        path = tmp_path / "control.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_the_contract(write: Write, tmp_path: Path) -> None:
    settings = load(
        write(
            "grpc: 127.0.0.1:7700\nhttp: 127.0.0.1:7701\ndatabase: sqlite:///outrider.db\nagents_file: agents.yaml\n"
            "prices: {house-model: {input_usd_per_mtok: 3, output_usd_per_mtok: 15.5}}\n"
            "auth: {loopback: false, certificates: {ops.example: operator}}\n"
        ),
        {},
    )
    assert settings.grpc == Address("127.0.0.1", 7700)
    assert settings.http == Address("127.0.0.1", 7701)
    assert settings.database == f"sqlite:///{tmp_path}/outrider.db"
    assert settings.agents_file == tmp_path / "agents.yaml"
    assert settings.prices["house-model"] == {"input_usd_per_mtok": 3.0, "output_usd_per_mtok": 15.5}
    assert settings.auth.loopback is False
    assert settings.auth.certificates == {"ops.example": "operator"}


def test_nothing_given_is_the_default() -> None:
    assert load(None, {}) == Settings()


def test_the_environment_gives_agents_their_defaults(write: Write) -> None:
    settings = load(write("{}"), {"CACHE_ENABLED": "true", "DEFAULT_MAX_INSTANCES": "7"})
    assert settings.defaults.optimization.cache_enabled
    assert settings.defaults.scaling.max_instances == 7


@pytest.mark.parametrize(
    ("database", "wanted"),
    [
        ("sqlite:////var/lib/o.db", "sqlite:////var/lib/o.db"),
        ("postgresql://outrider@db/outrider", "postgresql://outrider@db/outrider"),
    ],
)
def test_databases(write: Write, database: str, wanted: str) -> None:
    assert load(write(f"database: {database}"), {}).database == wanted


@pytest.mark.parametrize(
    ("text", "field", "reason"),
    [
        ("grcp: 127.0.0.1:1", "grcp", "did you mean 'grpc'?"),
        ("grpc: 0.0.0.0:7700", "grpc", "is open to other machines without TLS"),
        ("http: 0.0.0.0:7701", "http", "listen on 127.0.0.1"),
        ("http: 127.0.0.1:7700", "http", "is already grpc"),
        ("http: unix:/tmp/x", "http", "listens on host:port"),
        ("database: mysql://x:secret@y/z", "database", "is neither sqlite"),
        ("database: 'sqlite://'", "database", "needs a file"),
        ("tls: {cert: control.yaml}", "tls.key", "is missing"),
        ("tls: {client_ca: control.yaml}", "tls.client_ca", "needs tls.cert"),
        ("tls: {cert: gone, key: control.yaml}", "tls.cert", "is not a file"),
        ("auth: {certificates: {a: root}}", "auth.certificates.a", "is no role"),
        ("prices: {m: {input: 3}}", "prices.m.input", "is not a field"),
        ("prices: {m: {input_usd_per_mtok: -1}}", "prices.m.input_usd_per_mtok", "is not between"),
        ("prices: {m: {input_usd_per_mtok: .nan}}", "prices.m.input_usd_per_mtok", "is not a number"),
        ("spans: {share: 2}", "spans.share", "is not between 0 and 1"),
        ("retention: {spans_s: 1}", "retention.spans_s", "is not between"),
        ("drain_grace_s: -1", "drain_grace_s", "is not between"),
        ("a: [", "line ", ""),
    ],
)
def test_what_is_wrong_names_file_field_and_reason(write: Write, text: str, field: str, reason: str) -> None:
    path = write(text)
    with pytest.raises(ConfigError) as caught:
        load(path, {})
    assert caught.value.file == str(path)
    assert caught.value.field.startswith(field)
    assert reason in caught.value.reason
    assert "secret" not in str(caught.value), "a password in a URL is not repeated"


def test_a_wrong_variable_is_named() -> None:
    with pytest.raises(ConfigError, match="environment: CACHE_TTL"):
        load(None, {"CACHE_TTL": "soon"})


def test_scaling(write: Write, tmp_path: Path) -> None:
    settings = load(
        write(
            "scaling:\n  interval_ms: 500\n  engine: prod\n  drain_s: 20\n  engines:\n"
            "    keda: {kind: keda, agents: [tax]}\n    prod: {kind: keda}\n"
        ),
        {"AUTO_SCALING_ENABLED": "false"},
    )
    scaling = settings.scaling
    assert (scaling.enabled, scaling.interval_ms, scaling.engine, scaling.drain_s) == (False, 500, "prod", 20.0)
    assert {name: section.kind for name, section in scaling.engines.items()} == {"keda": "keda", "prod": "keda"}
    assert scaling.engines["keda"].settings.agents == ("tax",)
    assert load(write("scaling: {enabled: true}"), {"AUTO_SCALING_ENABLED": "false"}).scaling.enabled


@pytest.mark.parametrize(
    ("text", "field", "reason"),
    [
        ("scaling: {interval_ms: 1}", "scaling.interval_ms", "is not between"),
        ("rollouts: {interval_ms: 1}", "rollouts.interval_ms", "is not between"),
        ("rollouts: {webhook_secret_file: none}", "rollouts.webhook_secret_file", "is not a file"),
        ("scaling: {drain_s: -1}", "scaling.drain_s", "is not between"),
        ("scaling: {drains: 1}", "scaling.drains", "is not a field"),
        ("scaling: {engines: [1]}", "scaling.engines", "is not a mapping of engines"),
        ("scaling: {engines: {a: 1}}", "scaling.engines.a", "is not a mapping of fields"),
        ("scaling: {engines: {a: {}}}", "scaling.engines.a.kind", "is missing; known: local, kubernetes"),
        ("scaling: {engines: {a: {kind: kedo}}}", "scaling.engines.a.kind", "did you mean 'keda'?"),
        ("scaling: {engines: {a: {kind: keda, agent: x}}}", "scaling.engines.a.agent", "did you mean 'agents'?"),
        ("scaling: {engine: b, engines: {a: {kind: keda}}}", "scaling.engine", "is not in scaling.engines"),
    ],
)
def test_scaling_that_cannot_be(write: Write, text: str, field: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(write(text), {})
    assert caught.value.field == field
    assert reason in caught.value.reason
