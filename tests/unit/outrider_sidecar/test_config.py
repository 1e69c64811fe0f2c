"""Settings: the documented file loads, the environment gives defaults, and errors name file, field and reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from outrider.address import Address
from outrider_sidecar.config import ConfigError, Limits, Settings, load, masked

DOCUMENTED = """
listen: 127.0.0.1:7600
admin: 127.0.0.1:7602
control: [127.0.0.1:7700]          # one or several; absent: standalone, policy from this file
telemetry: {otlp: 127.0.0.1:4317}
ingress: {listen: 127.0.0.1:7601, agent_id: tax-eu-001, target: 127.0.0.1:9001}
tls: {cert: f, key: f, client_ca: f, upstream: {ca: f, cert: f, key: f}}
ports_file: ports.json
default_agent: tax-eu-001
agents:
  - agent_id: tax-eu-001
    endpoints: ["127.0.0.1:9001", {address: "127.0.0.1:9002", weight: 2, labels: {version: v2}}]
    balancing: {strategy: peak_ewma}
    optimization: {cache_enabled: true, cache_ttl: 3600, cache_strategy: lru, cache_methods: ["/pkg.Svc/Method"],
                   streaming: true, compression: true}
    scaling: {min_instances: 3, max_instances: 20, target_utilization: 0.75}
"""
AGENT = "agents: [{agent_id: a}]\n"

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def to_file(text: str) -> Path:
        path = tmp_path / "outrider.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return to_file


def refused(path: Path | None, environ: dict[str, str] | None = None) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(path, environ or {})
    return caught.value


def test_documented_file(write: Write, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("")
    settings = load(write(DOCUMENTED), {})
    assert settings.listen == Address("127.0.0.1", 7600)
    assert settings.control == (Address("127.0.0.1", 7700),)
    assert settings.telemetry.otlp == Address("127.0.0.1", 4317)
    assert settings.ingress is not None
    assert settings.ingress.target == Address("127.0.0.1", 9001)
    assert settings.ports_file == tmp_path / "ports.json"
    assert settings.tls.upstream is not None
    assert settings.tls.upstream.ca == settings.tls.cert == tmp_path / "f"
    assert settings.policy.default_agent == "tax-eu-001"
    assert settings.policy.agents["tax-eu-001"].scaling.max_instances == 20
    assert settings.source == tmp_path / "outrider.yaml"


def test_defaults() -> None:
    settings = load(None, {})
    assert settings == Settings()
    assert (str(settings.listen), str(settings.admin)) == ("127.0.0.1:7600", "127.0.0.1:7602")
    assert settings.drain_grace_s == 30.0
    assert settings.limits == Limits(held_bytes=64 * 1024 * 1024)


def test_empty_file_is_all_defaults(write: Write) -> None:
    assert load(write("# nothing\n"), {}).policy == Settings().policy


def test_everything_else(write: Write, tmp_path: Path) -> None:
    text = "listen: 0.0.0.0:0\nallow_insecure: true\nstate_dir: state\ndrain_grace_s: 5\ntakeover: true\n"
    settings = load(write(text + "limits: {max_streams: 9, held_bytes: 8388608}\n"), {})
    assert settings.state_dir == tmp_path / "state"
    assert (settings.drain_grace_s, settings.takeover) == (5.0, True)
    assert settings.limits == Limits(max_streams=9, held_bytes=8 * 1024 * 1024)


@pytest.mark.parametrize(("value", "read"), [("false", ""), ("true", "-"), ('"-"', "-"), ("/var/log/a", "/var/log/a")])
def test_access_log(write: Write, value: str, read: str) -> None:
    assert load(write(f"access_log: {value}\n"), {}).access_log == read


def test_environment_gives_defaults_and_yaml_overrides(write: Write) -> None:
    environ = {
        "CACHE_ENABLED": "true",
        "CACHE_TTL": "60",
        "CACHE_STRATEGY": "LFU",
        "DEFAULT_MIN_INSTANCES": "2",
        "DEFAULT_MAX_INSTANCES": "",
        "LEARNING_ENABLED": "whatever the control plane makes of it",
    }
    text = "agents: [{agent_id: a}, {agent_id: b, optimization: {cache_ttl: 5}, scaling: {min_instances: 1}}]\n"
    agents = load(write(text), environ).policy.agents
    first, second = agents["a"], agents["b"]
    assert (first.optimization.cache_enabled, first.optimization.cache_ttl) == (True, 60)
    assert (first.optimization.cache_strategy, first.scaling.min_instances) == ("lfu", 2)
    assert (second.optimization.cache_enabled, second.optimization.cache_ttl) == (True, 5)
    assert (second.scaling.min_instances, second.scaling.max_instances) == (1, 10)


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"CACHE_ENABLED": "maybe"}, "environment: CACHE_ENABLED: 'maybe' is not true or false"),
        ({"CACHE_TTL": "1h"}, "environment: CACHE_TTL: '1h' is not a whole number"),
        ({"CACHE_TTL": "99999999999"}, "environment: CACHE_TTL: 99999999999 is not between 0 and 31536000"),
        ({"CACHE_STRATEGY": "fifo"}, "environment: CACHE_STRATEGY: 'fifo' is not one of lru, lfu"),
        (
            {"DEFAULT_MIN_INSTANCES": "11"},
            "environment: DEFAULT_MIN_INSTANCES: 11 is more than max_instances, which is 10",
        ),
        (
            {"CACHE_TTL": "1", "DEFAULT_MAX_INSTANCES": "0"},
            "environment: DEFAULT_MAX_INSTANCES: 0 is not between 1 and 10000",
        ),
    ],
)
def test_wrong_variable_is_named(environ: dict[str, str], message: str) -> None:
    assert str(refused(None, environ)) == message


FAULTS = [
    ("lissten: a:1", "lissten", "did you mean 'listen'?"),
    ("policy: {}", "policy", "is not a field"),
    ("listen: 7600", "listen", "7600 is not text: put it in quotes"),
    ("listen: dns:localhost:1", "listen", "has dns: in front"),
    ("listen: 0.0.0.0:7600", "listen", "open to other machines without TLS: add tls.cert and tls.key"),
    ("admin: '[::]:7602'", "admin", "without TLS: listen on 127.0.0.1"),
    ("listen: 127.0.0.1:7602", "admin", "'127.0.0.1:7602' is already listen"),
    ("control: 127.0.0.1:7700", "control", "is not a list"),
    ("control: ['127.0.0.1:0']", "control[0]", "has port 0"),
    ("control: [x]", "control[0]", "'x' is not an address"),
    ("telemetry: {endpoint: 'a:1'}", "telemetry.endpoint", "known: otlp"),
    ("telemetry: {otlp: 'ftp://a:1'}", "telemetry.otlp", "neither http nor https"),
    ("ingress: {agent_id: a}", "ingress.target", "is missing"),
    ("ingress: {agent_id: a, target: 'a:0'}", "ingress.target", "has port 0"),
    ("ingress: {agent_id: '', target: 'a:1'}", "ingress.agent_id", "is empty"),
    ("ingress: {agent_id: a, target: 'a:1', listen: 'a:1'}", "ingress.listen", "open to other machines"),
    ("ingress: {agent_id: a, target: 'a:1', advertise: 'a:0'}", "ingress.advertise", "has port 0, which nobody can"),
    ("ingress: {agent_id: a, target: 'a:1', capacity: -1}", "ingress.capacity", "-1 is not between 0"),
    ("ingress: {agent_id: a, target: 'a:1', labels: {'a b': c}}", "ingress.labels", "'a b', which is not a name"),
    ("ingress: {agent_id: 'a b', target: 'a:1'}", "ingress.agent_id", "'a b' is not a name"),
    (
        "{control: ['a:1'], allow_insecure: true, ingress: {agent_id: a, target: 'a:1', listen: '0.0.0.0:1'}}",
        "ingress.advertise",
        "is missing: nobody can dial '0.0.0.0:1'",
    ),
    ("control_token_file: gone", "control_token_file", "gone' is not a file"),
    ("control_token: secret", "control_token", "is not a field"),
    ("control_tls: maybe", "control_tls", "'maybe' is not true or false"),
    ("tls: {cert: outrider.yaml}", "tls.key", "is missing: cert is given"),
    ("tls: {cert: gone, key: outrider.yaml}", "tls.cert", "gone' is not a file"),
    ("tls: {client_ca: outrider.yaml}", "tls.client_ca", "needs tls.cert"),
    ("tls: {upstream: {key: outrider.yaml}}", "tls.upstream.cert", "is missing: key is given"),
    ("tls: {upstream: {ca: gone}}", "tls.upstream.ca", "is not a file"),
    ("ports_file: ''", "ports_file", "is empty"),
    ("access_log: 3", "access_log", "3 is not text"),
    ("drain_grace_s: -1", "drain_grace_s", "-1.0 is not between 0 and 86400.0"),
    ("limits: {held_bytes: 1}", "limits.held_bytes", "1 is not between 1048576"),
    ("limits: {max_conections: 1}", "limits.max_conections", "did you mean 'max_connections'?"),
    (AGENT + "default_agent: b", "default_agent", "'b' is no agent of this file"),
    (AGENT + "default_agent: [a]", "default_agent", "is not text"),
    ("agents: [{agent_id: a, balancing: {strategy: p2c}}]", "agents[0].balancing.strategy", "'p2c' is not one of"),
    ("agents: [{agent_id: a}, {agent_id: a}]", "agents[1].agent_id", "'a' is already agents[0]"),
    ("- a", "", "['a'] is not a mapping of fields"),
]


@pytest.mark.parametrize(("text", "field", "reason"), FAULTS)
def test_wrong_field_is_named(write: Write, text: str, field: str, reason: str) -> None:
    path = write(text)
    error = refused(path)
    assert (error.file, error.field) == (str(path), field)
    assert reason in error.reason
    assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("text", "field", "reason"),
    [
        ("a: }", "line 1, column 4", "expected"),
        ("listen: a:1\nadmin: b:1\nlisten: c:1\n", "line 3, column 1", "'listen' stands here twice"),
        ("agents: [{agent_id: a, agent_id: b}]", "line 1, column 24", "'agent_id' stands here twice"),
        ("listen: !!python/object:os.system x", "line 1, column 9", "could not determine a constructor"),
        ("a: 1\n---\nb: 2", "line 2, column 1", "expected a single document"),
        ("a: \x07", "", "is not YAML"),
        ("a: 2024-13-45", "", "is not YAML that can be read"),
    ],
)
def test_what_is_not_plain_yaml_is_located(write: Write, text: str, field: str, reason: str) -> None:
    error = refused(write(text))
    assert error.field == field
    assert reason in error.reason


def test_merge_keys_may_be_overridden(write: Write) -> None:
    text = "agents: [&base {agent_id: a, timeout_ms: 5, tls: false}, {<<: *base, agent_id: b, timeout_ms: 7}]\n"
    agents = load(write(text), {}).policy.agents
    assert (agents["b"].timeout_ms, agents["b"].tls) == (7, False)


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    gone = tmp_path / "gone.yaml"
    assert str(refused(gone)) == f"{gone}: cannot be read: No such file or directory"
    assert "cannot be read" in refused(tmp_path).reason
    big = tmp_path / "big.yaml"
    big.write_bytes(b"#" * (4 * 1024 * 1024 + 1))
    assert "has more than 4194304 bytes" in refused(big).reason
    big.write_bytes(b"listen: \xff\xfe\n")
    assert "is not YAML" in refused(big).reason


def test_default_agent_may_come_from_the_control_plane(write: Write) -> None:
    assert load(write("control: ['127.0.0.1:7700']\ndefault_agent: later\n"), {}).policy.default_agent == "later"


def test_tls_listener_may_be_open(write: Write, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("")
    assert load(write("listen: 0.0.0.0:7600\ntls: {cert: f, key: f}\n"), {}).listen.host == "0.0.0.0"


def test_what_a_sidecar_announces(write: Write) -> None:
    text = "ingress: {agent_id: a, target: 'a:1', advertise: '10.0.0.1:7601', capacity: 8, labels: {zone: b}}"
    ingress = load(write(text), {}).ingress
    assert ingress is not None
    assert (ingress.advertise, ingress.capacity, dict(ingress.labels)) == (Address("10.0.0.1", 7601), 8, {"zone": "b"})


def test_the_token_is_the_environments_or_a_files_and_never_shown(write: Write, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("from the file")
    settings = load(write("control_token_file: token"), {"OUTRIDER_TOKEN": " s3cret "})
    assert (settings.control_token, settings.control_token_file) == ("s3cret", tmp_path / "token")
    shown = json.dumps(masked(settings))
    assert "s3cret" not in shown
    assert masked(settings)["control_token"] == "***"
    assert masked(load(None, {}))["control_token"] == ""
    error = refused(None, {"OUTRIDER_TOKEN": "two words"})
    assert error.field == "OUTRIDER_TOKEN"
    assert "words" not in error.reason


@pytest.mark.parametrize(
    ("text", "warned"),
    [
        ("control: ['10.0.0.1:7700']", True),
        ("control: ['127.0.0.1:7700']", False),
        ("{control: ['10.0.0.1:7700'], control_tls: true}", False),
        ("{control: ['10.0.0.1:7700'], tls: {upstream: {}}}", False),
        ("{control: ['10.0.0.1:7700'], control_tls: false, tls: {upstream: {}}}", True),
    ],
)
def test_a_token_in_the_clear_is_warned_of(write: Write, text: str, warned: bool) -> None:
    notes = load(write(text), {"OUTRIDER_TOKEN": "x"}).notes
    assert any("in the clear" in note for note in notes) is warned
    assert load(write(text), {}).notes == ()


def test_masked_is_json_without_secrets(write: Write, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("")
    environ = {"OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20s3cret"}
    shown = masked(load(write(DOCUMENTED), environ))
    text = json.dumps(shown)
    assert "s3cret" not in text
    assert shown["telemetry"]["headers"] == {"authorization": "***"}
    assert shown["listen"] == "127.0.0.1:7600"
    assert shown["policy"]["agents"]["tax-eu-001"]["endpoints"][1]["labels"] == {"version": "v2"}
