"""The control plane's settings: one YAML file over the environment, read once at the start.

Always holds: what `load` returns is complete and checked; what is wrong raises ConfigError with file, field and reason,
and nothing has happened by then. Relative paths in the file are relative to the file's own folder.

Deliberately not here: opening what is named (sockets, stores, certificates), the agents of `agents_file`.
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
from outrider.defaults import agent_defaults
from outrider.policy import Agent, PolicyError
from outrider.settings import ConfigError, check_file, check_listener, check_pair, reader, within
from outrider_control.api.roles import ROLES
from outrider_control.engines import registry
from outrider_control.state.retention import Retention

PRICES = ("input_usd_per_mtok", "output_usd_per_mtok", "cache_read_usd_per_mtok", "cache_write_usd_per_mtok")
DATABASE = "sqlite:///outrider.db"
_DAY_S = 86_400
_YEAR_S = 366 * _DAY_S
_MAX_PRICE = 1_000_000.0  # dollars per million tokens


@dataclass(frozen=True, slots=True)
class Tls:
    """TLS of the gRPC listener; `client_ca` asks peers for a certificate."""

    cert: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None


@dataclass(frozen=True, slots=True)
class Auth:
    """Who may do what without a token."""

    loopback: bool = True  # a peer on loopback without token and certificate is admin; false: refused
    certificates: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))  # name pattern -> role


@dataclass(frozen=True, slots=True)
class Spans:
    """Which spans are kept: all that failed or were slow, and a share."""

    share: float = 0.01  # of the traces that nothing else speaks for
    slow_ms: int = 2_000  # slow at least from here on
    max_per_s: int = 200  # kept at most, on average


@dataclass(frozen=True, slots=True)
class Series:
    """Bounds on what figures are kept apart by; past them there is one series for the rest."""

    max_agents: int = 1_000
    max_per_agent: int = 200


@dataclass(frozen=True, slots=True)
class Scaling:
    """The scale loop and its engines; what an agent's own scaling is, is its policy."""

    enabled: bool = True  # default: AUTO_SCALING_ENABLED
    interval_ms: int = 1_000
    drain_s: float = 60.0  # how long calls may take to end at an instance that is to go
    engine: str = ""  # of agents that name none; empty: the only one there is
    engines: Mapping[str, registry.Section] = field(default_factory=lambda: MappingProxyType({}))  # by name


@dataclass(frozen=True, slots=True)
class Rollouts:
    """The rollout loop; what a rollout is, operators say."""

    interval_ms: int = 1_000
    webhook_secret_file: Path | None = None  # what webhooks are told is signed with it; None: it is not signed


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything the control plane is told at its start."""

    grpc: Address = Address("127.0.0.1", 7700)
    http: Address = Address("127.0.0.1", 7701)
    database: str = DATABASE
    agents_file: Path | None = None  # applied at the start when its content changed
    tls: Tls = field(default_factory=Tls)
    auth: Auth = field(default_factory=Auth)
    allow_insecure: bool = False  # listeners that other machines reach may go without TLS
    ports_file: Path | None = None
    drain_grace_s: float = 5.0
    spans: Spans = field(default_factory=Spans)
    series: Series = field(default_factory=Series)
    retention: Retention = field(default_factory=Retention)
    prices: Mapping[str, Mapping[str, float]] = field(default_factory=lambda: MappingProxyType({}))  # by model
    scaling: Scaling = field(default_factory=Scaling)
    rollouts: Rollouts = field(default_factory=Rollouts)
    defaults: Agent = field(default_factory=lambda: Agent("defaults"))  # of what an applied policy leaves out
    source: Path | None = None  # the file, absolute


def load(path: Path | None, environ: Mapping[str, str]) -> Settings:
    """The settings of a file (None: defaults alone); ConfigError where they cannot be used."""
    try:
        defaults = agent_defaults(environ)
    except PolicyError as error:
        raise ConfigError("environment", error.path, error.reason) from None
    source = path.absolute() if path is not None else None
    try:
        data = yaml_file.read(source) if source is not None else {}
        return _settings(data, source, defaults)
    except yaml_file.YamlError as error:
        raise ConfigError(str(path), error.place, error.reason) from None
    except PolicyError as error:
        raise ConfigError(str(path) if path is not None else "defaults", error.path, error.reason) from None


def _settings(data: Any, source: Path | None, defaults: Agent) -> Settings:
    known = [name for name in tree.field_types(Settings) if name not in ("defaults", "source")]
    fields = dict(tree.section(data, "", known))
    folder = source.parent if source is not None else Path.cwd()
    ready: dict[str, Any] = {"defaults": defaults, "source": source}
    ready["scaling"] = _scaling(fields.get("scaling", {}), folder, defaults)
    if "prices" in fields:
        ready["prices"] = _prices(fields["prices"])
    if "database" in fields:
        ready["database"] = _database(fields["database"], folder)
    elif source is not None:
        ready["database"] = _database(DATABASE, folder)
    settings = reader(folder).build(Settings, fields, "", None, ready)
    _check(settings)
    return settings


def _scaling(value: Any, folder: Path, defaults: Agent) -> Scaling:
    """The section `scaling`; each engine's part is read by its kind."""
    fields = dict(tree.section(value, "scaling", tree.field_types(Scaling)))
    given = fields.get("engines", {})
    if not isinstance(given, Mapping):
        raise PolicyError("scaling.engines", f"{tree.show(given)} is not a mapping of engines")
    engines = {
        tree.scalar(str, name, "scaling.engines"): registry.read(one, f"scaling.engines.{name}", folder)
        for name, one in given.items()
    }
    base = Scaling(enabled=defaults.scaling.enabled)
    scaling = reader(folder).build(Scaling, fields, "scaling", base, {"engines": MappingProxyType(engines)})
    if scaling.engine and scaling.engine not in engines:
        reason = f"{tree.show(scaling.engine)} is not in scaling.engines; {tree.nearest(scaling.engine, list(engines))}"
        raise PolicyError("scaling.engine", reason)
    within(scaling.interval_ms, 100, 60_000, "scaling.interval_ms")
    within(scaling.drain_s, 0, _DAY_S, "scaling.drain_s")
    return scaling


def _database(value: Any, folder: Path) -> str:
    """A store's URL; a relative SQLite file is made absolute."""
    text = tree.scalar(str, value, "database")
    scheme, separator, rest = text.partition("://")
    if separator and scheme == "sqlite":
        file = rest.removeprefix("/")
        if not file or file == ":memory:":
            raise PolicyError("database", "needs a file: sqlite:///outrider.db")
        return f"sqlite:///{folder / Path(file).expanduser()}"
    if separator and scheme in ("postgresql", "postgres"):
        return text
    # The text may hold a password: it is not repeated.
    raise PolicyError("database", "is neither sqlite:///FILE nor postgresql://USER@HOST/NAME")


def _prices(value: Any) -> Mapping[str, Mapping[str, float]]:
    """{model: {input_usd_per_mtok: 3, ...}}"""
    if not isinstance(value, Mapping):
        raise PolicyError("prices", f"{tree.show(value)} is not a mapping of models")
    prices: dict[str, Mapping[str, float]] = {}
    for model, given in value.items():
        path = f"prices.{model}"
        rates = {
            name: tree.scalar(float, rate, f"{path}.{name}") for name, rate in tree.section(given, path, PRICES).items()
        }
        for name, rate in rates.items():
            within(rate, 0, _MAX_PRICE, f"{path}.{name}")
        prices[tree.scalar(str, model, "prices")] = MappingProxyType(rates)
    return MappingProxyType(prices)


def _check(settings: Settings) -> None:
    tls, spans, series = settings.tls, settings.spans, settings.series
    check_pair(tls.cert, tls.key, "tls")
    if tls.client_ca is not None and tls.cert is None:
        raise PolicyError("tls.client_ca", "needs tls.cert and tls.key: peers are asked for theirs inside TLS")
    for name in ("cert", "key", "client_ca"):
        check_file(getattr(tls, name), f"tls.{name}")
    for pattern, role in settings.auth.certificates.items():
        if role not in ROLES:
            reason = f"{tree.show(role)} is no role; {tree.nearest(role, list(ROLES))}"
            raise PolicyError(f"auth.certificates.{pattern}", reason)
    within(settings.drain_grace_s, 0, _DAY_S, "drain_grace_s")
    within(spans.share, 0, 1, "spans.share")
    within(spans.slow_ms, 1, 86_400_000, "spans.slow_ms")
    within(spans.max_per_s, 1, 100_000, "spans.max_per_s")
    within(series.max_agents, 1, 100_000, "series.max_agents")
    within(series.max_per_agent, 1, 10_000, "series.max_per_agent")
    within(settings.rollouts.interval_ms, 100, 10_000, "rollouts.interval_ms")
    check_file(settings.rollouts.webhook_secret_file, "rollouts.webhook_secret_file")
    for one in dataclasses.fields(Retention):
        within(getattr(settings.retention, one.name), 60, 10 * _YEAR_S, f"retention.{one.name}")
    _check_listeners(settings)


def _check_listeners(settings: Settings) -> None:
    insecure = settings.allow_insecure
    check_listener(settings.grpc, "grpc", settings.tls.cert is not None, True, insecure)
    check_listener(settings.http, "http", False, False, insecure)
    if str(settings.grpc) == str(settings.http) and (settings.grpc.is_unix or settings.grpc.port):
        raise PolicyError("http", f"{str(settings.http)!r} is already grpc")
    if settings.http.is_unix:
        raise PolicyError("http", "is a unix socket; it listens on host:port")
