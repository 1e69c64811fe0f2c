"""The sidecar's settings: one YAML file over the environment's defaults, read once per start or reload.

Always holds: what `load` returns is complete and checked, so that nothing later asks the environment or the file again;
what is wrong raises ConfigError with file, field and reason, and nothing has happened by then. Relative paths in the
file are relative to the file's own folder.

Deliberately not here: opening what is named (sockets, certificates), pushed policy, watching the file for changes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from outrider import tree, yaml_file
from outrider.address import Address
from outrider.defaults import MAX_MIN_BATCH, agent_defaults, min_feedback_batch
from outrider.policy import Agent, EndpointPolicy, Policy, PolicyError
from outrider.policy_parse import policy_from_mapping, validate
from outrider.settings import ConfigError, check_file, check_listener, check_pair, file_path, reader, within
from outrider_sidecar import environment
from outrider_sidecar.environment import Telemetry

MASK = "***"
STDOUT = "-"
_MAX_WAIT_S = 86_400.0
_EVERYWHERE = ("0.0.0.0", "::")
_SECRETS = ("headers", "control_token")
_NOT_IN_FILE = ("policy", "notes", "source", "control_token")


@dataclass(frozen=True, slots=True)
class Ingress:
    """The listener before the sidecar's own agent."""

    agent_id: str
    target: Address
    listen: Address = Address("127.0.0.1", 7601)
    advertise: Address | None = None  # what callers' sidecars dial; None: `listen`, with the real port
    capacity: int = 0  # calls at once, more are refused; 0: as `limits.max_in_flight` has it, and none is declared
    labels: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))  # what subsets select by


@dataclass(frozen=True, slots=True)
class UpstreamTls:
    """How endpoints are dialled: `ca` verifies them (None: the system's), `cert` and `key` are ours (mTLS)."""

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None


@dataclass(frozen=True, slots=True)
class Tls:
    """TLS of the listeners; `client_ca` asks callers for a certificate. `upstream`: None dials in the clear."""

    cert: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None
    upstream: UpstreamTls | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of the process."""

    max_connections: int = 10_000  # accepted, all listeners together
    max_streams: int = 1_000  # open streams of one accepted connection
    held_bytes: int = 64 * 1024 * 1024  # of all calls; past it the longest-stalled streams are reset
    idle_timeout_s: float = 0.0  # an accepted connection without streams; 0: never closed
    max_age_s: float = 0.0  # an accepted connection, jittered; 0: never closed


@dataclass(frozen=True, slots=True)
class FeedbackSettings:
    """What is kept of feedback while the control plane cannot be reached, and how it is sent."""

    min_batch: int = 10  # items that go together, unless they are a second old; default: MIN_FEEDBACK_BATCH
    spool_bytes: int = 64 * 1024 * 1024  # on disk, in state_dir
    memory_bytes: int = 8 * 1024 * 1024  # where there is no state_dir


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything the sidecar is told at its start. `policy` holds the file's agents, splits and default agent."""

    listen: Address = Address("127.0.0.1", 7600)
    admin: Address = Address("127.0.0.1", 7602)
    control: tuple[Address, ...] = ()  # empty: standalone, policy from this file
    control_tls: bool | None = None  # None: TLS to addresses that other machines reach, where tls.upstream is set
    control_token_file: Path | None = None  # what proves who we are to the control plane; before the environment's
    control_token: str = ""  # OUTRIDER_TOKEN
    telemetry: Telemetry = field(default_factory=Telemetry)
    ingress: Ingress | None = None
    tls: Tls = field(default_factory=Tls)
    ports_file: Path | None = None
    allow_insecure: bool = False  # listeners that other machines reach may go without TLS
    state_dir: Path | None = None  # cache snapshots and the last good pushed policy; None: kept in memory only
    drain_grace_s: float = 30.0
    access_log: str = ""  # empty: off; "-": standard output; else a file
    takeover: bool = False  # share the ports with the process that is to be replaced
    limits: Limits = field(default_factory=Limits)
    feedback: FeedbackSettings = field(default_factory=FeedbackSettings)
    policy: Policy = field(default_factory=Policy)
    notes: tuple[str, ...] = ()  # what was passed over, for the log
    source: Path | None = None  # the file, absolute


def load(path: Path | None, environ: Mapping[str, str]) -> Settings:
    """The settings of a file (None: defaults alone) over the environment's; ConfigError where they cannot be used."""
    try:
        telemetry, notes = environment.telemetry(environ)
        token = environment.control_token(environ)
        defaults = agent_defaults(environ)
        min_batch = min_feedback_batch(environ)
    except PolicyError as error:
        raise ConfigError("environment", error.path, error.reason) from None
    source = path.absolute() if path is not None else None
    try:
        data = yaml_file.read(source) if source is not None else {}
        return _settings(data, source, defaults, min_batch, telemetry, notes, token)
    except yaml_file.YamlError as error:
        raise ConfigError(str(path), error.place, error.reason) from None
    except PolicyError as error:
        raise ConfigError(str(path) if path is not None else "defaults", error.path, error.reason) from None


def masked(settings: Settings) -> dict[str, Any]:
    """The settings as plain data for people (JSON), secrets masked."""
    return _plain(settings)


def _settings(
    data: Any,
    source: Path | None,
    defaults: Any,
    min_batch: int,
    telemetry: Telemetry,
    notes: tuple[str, ...],
    token: str,
) -> Settings:
    known = [name for name in tree.field_types(Settings) if name not in _NOT_IN_FILE]
    fields = dict(tree.section(data, "", [*known, "default_agent", "agents", "splits"]))
    listed = {name: fields.pop(name, []) for name in ("agents", "splits")}
    agents = policy_from_mapping(listed, defaults)
    default_agent = tree.scalar(str, fields.pop("default_agent", ""), "default_agent")
    ready: dict[str, Any] = {
        "policy": dataclasses.replace(agents, default_agent=default_agent),
        "notes": notes,
        "source": source,
        "control_token": token,
    }
    folder = source.parent if source is not None else Path.cwd()
    if "access_log" in fields:
        ready["access_log"] = _access_log(fields["access_log"], folder)
    if "telemetry" in fields:
        # The collector alone stands in the file; the rest is for OTEL_* to say.
        given = tree.section(fields["telemetry"], "telemetry", ["otlp"])
        if "otlp" in given:
            otlp, otlp_tls = _otlp(given["otlp"], "telemetry.otlp")
            telemetry = dataclasses.replace(telemetry, otlp=otlp, otlp_tls=otlp_tls)
    ready["telemetry"] = telemetry
    base = FeedbackSettings(min_batch=min_batch)
    ready["feedback"] = reader(folder).build(FeedbackSettings, fields.get("feedback", {}), "feedback", base, {})
    settings = reader(folder).build(Settings, fields, "", None, ready)
    _check(settings)
    return dataclasses.replace(settings, notes=(*notes, *_warnings(settings)))


def _otlp(value: Any, path: str) -> tuple[Address | None, bool]:
    if value is None or value is False:
        return None, False
    text = tree.scalar(str, value, path)
    try:
        return environment.otlp_endpoint(text)
    except ValueError as error:
        raise PolicyError(path, f"{tree.show(text)} {error}") from None


def _access_log(value: Any, folder: Path) -> str:
    if isinstance(value, bool):
        return STDOUT if value else ""
    return STDOUT if value == STDOUT else str(file_path(value, "access_log", folder))


def _check(settings: Settings) -> None:
    limits, tls = settings.limits, settings.tls
    for name, low, high in (
        ("max_connections", 1, 1_000_000),
        ("max_streams", 1, 1_000_000),
        ("held_bytes", 1024 * 1024, 2**40),
        ("idle_timeout_s", 0, _MAX_WAIT_S),
        ("max_age_s", 0, _MAX_WAIT_S),
    ):
        within(getattr(limits, name), low, high, f"limits.{name}")
    within(settings.drain_grace_s, 0, _MAX_WAIT_S, "drain_grace_s")
    within(settings.feedback.min_batch, 1, MAX_MIN_BATCH, "feedback.min_batch")
    within(settings.feedback.spool_bytes, 1024 * 1024, 2**40, "feedback.spool_bytes")
    within(settings.feedback.memory_bytes, 1024 * 1024, 2**40, "feedback.memory_bytes")
    check_pair(tls.cert, tls.key, "tls")
    if tls.client_ca is not None and tls.cert is None:
        raise PolicyError("tls.client_ca", "needs tls.cert and tls.key: callers are asked for theirs inside TLS")
    files = {"tls.cert": tls.cert, "tls.key": tls.key, "tls.client_ca": tls.client_ca}
    files["control_token_file"] = settings.control_token_file
    if tls.upstream is not None:
        upstream = tls.upstream
        check_pair(upstream.cert, upstream.key, "tls.upstream")
        files |= {f"tls.upstream.{name}": getattr(upstream, name) for name in ("ca", "cert", "key")}
    for field_path, file in files.items():
        check_file(file, field_path)
    _check_addresses(settings)
    default_agent, agents = settings.policy.default_agent, settings.policy.agents
    if default_agent and default_agent not in agents and not settings.control:
        reason = f"{tree.show(default_agent)} is no agent of this file; {tree.nearest(default_agent, list(agents))}"
        raise PolicyError("default_agent", reason)


def _check_addresses(settings: Settings) -> None:
    listeners = {"listen": settings.listen, "admin": settings.admin}
    dialled = {f"control[{at}]": address for at, address in enumerate(settings.control)}
    if settings.ingress is not None:
        listeners["ingress.listen"] = settings.ingress.listen
        dialled["ingress.target"] = settings.ingress.target
        _check_ingress(settings, settings.ingress)
    for path, address in dialled.items():
        if not address.is_unix and address.port == 0:
            raise PolicyError(path, "has port 0, which only a listener may have")
    seen: dict[str, str] = {}
    for path, address in listeners.items():
        may_have_tls = path != "admin"
        has_tls = settings.tls.cert is not None and may_have_tls
        check_listener(address, path, has_tls, may_have_tls, settings.allow_insecure)
        name = str(address)
        if name in seen and (address.is_unix or address.port):
            raise PolicyError(path, f"{name!r} is already {seen[name]}")
        seen[name] = path


def _check_ingress(settings: Settings, ingress: Ingress) -> None:
    if not ingress.agent_id:
        raise PolicyError("ingress.agent_id", "is empty")
    within(ingress.capacity, 0, 1_000_000, "ingress.capacity")
    advertise = ingress.advertise
    if advertise is not None and not advertise.is_unix and advertise.port == 0:
        raise PolicyError("ingress.advertise", "has port 0, which nobody can dial")
    if settings.control and advertise is None and ingress.listen.host in _EVERYWHERE:
        reason = f"is missing: nobody can dial {str(ingress.listen)!r}, so say which address of this host they can"
        raise PolicyError("ingress.advertise", reason)
    # As callers' sidecars will check it when they hear of it.
    seen = EndpointPolicy(str(advertise) if advertise is not None else "127.0.0.1:1", 1, ingress.labels)
    try:
        validate(Policy({ingress.agent_id: Agent(ingress.agent_id, (seen,))}))
    except PolicyError as error:
        name = error.path.rpartition(".")[2]
        raise PolicyError(f"ingress.{'advertise' if name == 'address' else name}", error.reason) from None


def _warnings(settings: Settings) -> tuple[str, ...]:
    """What works and is not wise."""
    has_token = settings.control_token or settings.control_token_file is not None
    clear = settings.control_tls is False or (settings.control_tls is None and settings.tls.upstream is None)
    exposed = [str(address) for address in settings.control if not address.is_loopback]
    if not (has_token and clear and exposed):
        return ()
    return (f"control: the token goes to {', '.join(exposed)} in the clear; say control_tls: true",)


def _plain(value: Any) -> Any:
    if isinstance(value, Address | Path):
        return str(value)
    if dataclasses.is_dataclass(value):
        return {
            one.name: _masked(getattr(value, one.name)) if one.name in _SECRETS else _plain(getattr(value, one.name))
            for one in dataclasses.fields(value)
        }
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def _masked(secret: str | tuple[tuple[str, str], ...]) -> str | dict[str, str]:
    if isinstance(secret, str):
        return MASK if secret else ""
    return {name: MASK for name, _ in secret}
