"""What a `local` engine is told: the agents' programs as command templates, and where it keeps logs and its state.

Always holds: every placeholder of a command can be filled in; no shell is involved, a word stays a word; what an
instance is named after (its agent) can stand in a file's name.

Deliberately not here: finding the programs (they may be installed later), filling templates in (`LocalAgent.words` is
given the values).
"""

from __future__ import annotations

import os
import re
import string
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from outrider import tree
from outrider.address import Address, is_host
from outrider.policy import PolicyError
from outrider.settings import file_path, whole_number, within

MAX_INSTANCES: Final = 1_000  # of one engine

REGISTERED: Final = "registered"
HEALTH: Final = "health"
PORT: Final = "port"
_READY: Final = (REGISTERED, HEALTH, PORT)

PLACEHOLDERS: Final = ("port", "name", "agent_id", "control", "ports_file", "capacity", "python")
# What every program may know of where it runs; the rest is given by `env`, or named by `inherit`.
INHERITED: Final = (
    *("PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR"),
)
RESERVED: Final = "OUTRIDER_"  # variables of these names are the engine's own

_FIELDS = ("kind", "agents", "log_dir", "state_dir", "stop_on_exit", "booting", "log_bytes")
_AGENT_FIELDS = (
    *("command", "env", "inherit", "cwd", "capacity", "ready", "start_s", "drain_s", "ports", "host"),
    *("check_s", "unhealthy_after"),
)
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")  # as policies name agents
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_PORTS = re.compile(r"([0-9]{1,5})-([0-9]{1,5})")
_MAX_WORDS = 1_000
_DAY_S = 86_400


@dataclass(frozen=True, slots=True)
class LocalAgent:
    """How one agent's instances are run."""

    command: tuple[str, ...]  # templates
    cwd: Path
    env: Mapping[str, str]  # templates
    inherit: tuple[str, ...] = ()  # names of variables, beside INHERITED
    capacity: int = 0  # calls at once, told to the program; 0: not said
    ready: str = REGISTERED
    start_s: float = 60.0  # to become ready
    drain_s: float = 30.0  # between SIGTERM and SIGKILL
    ports: tuple[int, int] | None = None  # lowest and highest; None: any free one
    host: str = "127.0.0.1"  # of the instances' addresses, as they register it
    check_s: float = 5.0  # between two looks at an instance that is ready; 0: none
    unhealthy_after: int = 3  # looks in a row

    @property
    def tells_port(self) -> bool:
        """Whether the program takes a port by itself and writes it down: where it is told a file and no range is."""
        return self.ports is None and self.has_ports_file

    @property
    def has_ports_file(self) -> bool:
        return any(["ports_file" in _names(word) for word in (*self.command, *self.env.values())])

    def words(self, values: Mapping[str, str]) -> list[str]:
        """The command with its placeholders filled in."""
        return [fill(word, values) for word in self.command]


@dataclass(frozen=True, slots=True)
class LocalSettings:
    """One section of `scaling.engines` of kind `local`."""

    agents: Mapping[str, LocalAgent]
    state_dir: Path  # of this engine alone
    log_dir: Path
    stop_on_exit: bool = False  # true: instances end with the control plane, where it is not killed
    booting: int = 0  # instances that start at a time; 0: as many as there are processors
    log_bytes: int = 1_000_000  # of an instance's log, and once more of what was before

    @property
    def boots(self) -> int:
        return self.booting or os.cpu_count() or 1


def settings(data: Any, path: str, folder: Path) -> LocalSettings:
    """The settings of one engine; PolicyError with the path of the first wrong field. `folder`: of the file."""
    fields = tree.section(data, path, _FIELDS)
    name = path.rpartition(".")[2] or "local"
    default = folder / "outrider-engines" / name
    state_dir = _folder(fields, "state_dir", path, folder, default)
    return LocalSettings(
        agents=_agents(fields.get("agents"), tree.join(path, "agents"), folder),
        state_dir=state_dir,
        log_dir=_folder(fields, "log_dir", path, folder, state_dir / "logs"),
        stop_on_exit=tree.scalar(bool, fields.get("stop_on_exit", False), tree.join(path, "stop_on_exit")),
        booting=whole_number(fields, "booting", path, 0, 0, MAX_INSTANCES),
        log_bytes=whole_number(fields, "log_bytes", path, 1_000_000, 4_096, 1_000_000_000),
    )


def fill(template: str, values: Mapping[str, str]) -> str:
    """A template that `settings` has let through, with its placeholders filled in."""
    parts = string.Formatter().parse(template)
    return "".join([before + (values[name] if name is not None else "") for before, name, _, _ in parts])


def _names(template: str) -> list[str]:
    return [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]


def _agents(data: Any, path: str, folder: Path) -> Mapping[str, LocalAgent]:
    if not isinstance(data, Mapping) or not data:
        raise PolicyError(path, f"{tree.show(data)} is not a mapping of agents, as in {{tax: {{command: [...]}}}}")
    agents = {}
    for key, one in data.items():
        agent_id = tree.scalar(str, key, path)
        if not _ID.fullmatch(agent_id):
            raise PolicyError(tree.join(path, agent_id), "is no agent_id: letters, digits, '.', '_' and '-'")
        agents[agent_id] = _agent(one, tree.join(path, agent_id), folder)
    return MappingProxyType(agents)


def _agent(data: Any, path: str, folder: Path) -> LocalAgent:
    fields = tree.section(data, path, _AGENT_FIELDS)
    capacity = whole_number(fields, "capacity", path, 0, 1, 1_000_000)
    cwd = _folder(fields, "cwd", path, folder, folder)
    if not cwd.is_dir():
        raise PolicyError(tree.join(path, "cwd"), f"{str(cwd)!r} is not a folder")
    return LocalAgent(
        command=_command(fields.get("command"), tree.join(path, "command"), capacity),
        cwd=cwd,
        env=_env(fields.get("env", {}), tree.join(path, "env"), capacity),
        inherit=_inherit(fields.get("inherit", ()), tree.join(path, "inherit")),
        capacity=capacity,
        ready=_ready(fields.get("ready", REGISTERED), tree.join(path, "ready")),
        start_s=_seconds(fields, "start_s", path, 60.0, 0.1),
        drain_s=_seconds(fields, "drain_s", path, 30.0, 0.0),
        ports=_ports(fields["ports"], tree.join(path, "ports")) if "ports" in fields else None,
        host=_host(fields.get("host", "127.0.0.1"), tree.join(path, "host")),
        check_s=_check_s(fields, path),
        unhealthy_after=whole_number(fields, "unhealthy_after", path, 3, 1, 100),
    )


def _command(data: Any, path: str, capacity: int) -> tuple[str, ...]:
    if isinstance(data, str):
        reason = "is one text; it is a list of words, as no shell is involved: [python, agent.py, --port, '{port}']"
        raise PolicyError(path, reason)
    words = tree.items(data, path)
    if not 0 < len(words) <= _MAX_WORDS:
        raise PolicyError(path, f"has {len(words)} words; it needs the program, and {_MAX_WORDS} at most")
    command = tuple([_template(word, f"{path}[{at}]", capacity) for at, word in enumerate(words)])
    if not command[0]:
        raise PolicyError(f"{path}[0]", "is empty; it names the program")
    return command


def _template(value: Any, path: str, capacity: int) -> str:
    if type(value) is int:  # [serve, --workers, 4] means what it says
        value = str(value)
    text = tree.scalar(str, value, path)
    try:
        parts = list(string.Formatter().parse(text))
    except ValueError as error:
        raise PolicyError(path, f"{tree.show(text)}: {error}; a brace that is meant is written twice") from None
    for _, name, form, conversion in parts:
        if name is None:
            continue
        if name not in PLACEHOLDERS:
            known = tree.nearest(name, PLACEHOLDERS)
            reason = f"{{{name[:60]}}} is no placeholder; {known}; a brace that is meant is written twice"
            raise PolicyError(path, reason)
        if form or conversion:
            raise PolicyError(path, f"{{{name}}} stands alone, without a format")
        if name == "capacity" and not capacity:
            raise PolicyError(path, "{capacity} needs `capacity` beside `command`")
    return text


def _env(data: Any, path: str, capacity: int) -> Mapping[str, str]:
    if not isinstance(data, Mapping) or len(data) > _MAX_WORDS:
        raise PolicyError(path, f"{tree.show(data)} is not a mapping of at most {_MAX_WORDS} variables")
    env = {}
    for key, value in data.items():
        name = _variable(key, path)
        env[name] = _template(value, tree.join(path, name), capacity)
    return MappingProxyType(env)


def _inherit(data: Any, path: str) -> tuple[str, ...]:
    return tuple([_variable(name, f"{path}[{at}]") for at, name in enumerate(tree.items(data, path))])


def _variable(value: Any, path: str) -> str:
    name = tree.scalar(str, value, path)
    if not _VARIABLE.fullmatch(name):
        raise PolicyError(path, f"{tree.show(name)} is no name of a variable")
    if name.startswith(RESERVED):
        raise PolicyError(path, f"{name}: variables that begin with {RESERVED} are set by the engine")
    return name


def _ready(value: Any, path: str) -> str:
    text = tree.scalar(str, value, path)
    if text not in _READY:
        raise PolicyError(path, f"{tree.show(text)}: {tree.nearest(text, _READY)}")
    return text


def _ports(value: Any, path: str) -> tuple[int, int]:
    text = tree.scalar(str, value, path)
    found = _PORTS.fullmatch(text)
    low, high = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= low <= high <= 65_535:
        raise PolicyError(path, f"{tree.show(text)} is no range of ports, as in 9000-9099")
    return low, high


def _host(value: Any, path: str) -> str:
    text = tree.scalar(str, value, path)
    if not is_host(text) and not (":" in text and Address(text).is_loopback):
        raise PolicyError(path, f"{tree.show(text)} is neither a host name nor an address of this machine")
    return text


def _check_s(fields: Mapping[str, Any], path: str) -> float:
    if fields.get("check_s") == 0:
        return 0.0
    return _seconds(fields, "check_s", path, 5.0, 0.05)


def _seconds(fields: Mapping[str, Any], name: str, path: str, default: float, low: float) -> float:
    at = tree.join(path, name)
    value = tree.scalar(float, fields.get(name, default), at)
    within(value, low, _DAY_S, at)
    return value


def _folder(fields: Mapping[str, Any], name: str, path: str, folder: Path, default: Path) -> Path:
    return file_path(fields[name], tree.join(path, name), folder) if name in fields else default


def python() -> str:
    """The interpreter that {python} stands for: the control plane's own."""
    return sys.executable
