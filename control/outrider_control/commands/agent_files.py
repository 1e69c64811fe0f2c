"""Agents in files: the YAML that `agents apply` takes and `agents get` prints, and the rows that `agents import` takes.

Always holds: what is wrong is named by file and field; what `get` prints, `apply` accepts and leaves unchanged.

Deliberately not here: the rules for values (`outrider.policy_parse`), the calls to the control plane (`agents`).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from outrider import policy_message, tree, yaml_file
from outrider.policy import PolicyError
from outrider.v1 import operator_pb2 as pb
from outrider_control.commands.output import clock_time, shown
from outrider_control.commands.session import CommandError

STDIN = "-"
MAX_AGENTS = 1_000  # in one request


@dataclass(frozen=True, slots=True)
class AgentFile:
    """The agents of one file, checked as far as that can be done without the control plane."""

    name: str  # for messages
    agents: tuple[Mapping[str, Any], ...]  # as in the file, less `version`
    versions: tuple[int | None, ...]  # the expected ones
    is_single: bool  # one agent at the top, no list

    def configurations(self) -> list[pb.AgentConfiguration]:
        """What to send."""
        return [
            pb.AgentConfiguration(policy=policy_message.message_of(agent), expected_version=version)
            for agent, version in zip(self.agents, self.versions, strict=True)
        ]

    def located(self, text: str) -> str:
        """An error of the control plane about a field, with the file's name and the file's own path."""
        if self.is_single:
            text = text.removeprefix("agents[0].")
        return f"{self.name}: {text}"


def read_bytes(path: str) -> tuple[str, bytes]:
    """A file's name for messages and its content; "-" is standard input."""
    if path == STDIN:
        name, content = "standard input", sys.stdin.buffer.read(yaml_file.MAX_FILE_BYTES + 1)
    else:
        name = path
        try:
            with Path(path).open("rb") as file:
                content = file.read(yaml_file.MAX_FILE_BYTES + 1)
        except OSError as error:
            raise CommandError(f"{path}: cannot be read: {error.strerror or error}") from None
    if len(content) > yaml_file.MAX_FILE_BYTES:
        raise CommandError(f"{name}: has more than {yaml_file.MAX_FILE_BYTES} bytes; give the agents in several files")
    return name, content


def read_agents(path: str) -> AgentFile:
    """The agents of a YAML file (or JSON, which is YAML): `agents: [...]`, a list, or one agent."""
    name, content = read_bytes(path)
    try:
        data = yaml_file.parse(content)
    except yaml_file.YamlError as error:
        raise CommandError(f"{name}: {error}") from None
    try:
        return agent_file(name, data)
    except PolicyError as error:
        raise CommandError(f"{name}: {error}") from None


def agent_file(name: str, data: Any) -> AgentFile:
    """The agents in a document; PolicyError with the path of the first wrong field."""
    is_single = isinstance(data, Mapping) and "agents" not in data
    if isinstance(data, Mapping) and not is_single:
        if "default_agent" in data:
            raise PolicyError("default_agent", "is not applied from a file: use outrider agents default AGENT")
        data = tree.section(data, "", ("agents",))["agents"]
    if not data:
        raise PolicyError("", "holds no agent")
    given = [data] if is_single else list(tree.items(data, "agents"))
    if len(given) > MAX_AGENTS:
        raise PolicyError("agents", f"has {len(given)} items; at most {MAX_AGENTS} are applied at once")
    agents: list[Mapping[str, Any]] = []
    versions: list[int | None] = []
    first_of: dict[Any, int] = {}
    for at, item in enumerate(given):
        path = "" if is_single else f"agents[{at}]"
        agent, version = _agent(item, path)
        first = first_of.setdefault(agent["agent_id"], at)
        if first != at:
            raise PolicyError(f"{path}.agent_id", f"{tree.show(agent['agent_id'])} is already agents[{first}]")
        agents.append(agent)
        versions.append(version)
    return AgentFile(name, tuple(agents), tuple(versions), is_single)


def _agent(item: Any, path: str) -> tuple[Mapping[str, Any], int | None]:
    if not isinstance(item, Mapping):
        raise PolicyError(path, f"{tree.show(item)} is not an agent: a mapping with agent_id")
    fields = dict(item)
    version = fields.pop("version", None)
    if version is not None:
        tree.scalar(int, version, tree.join(path, "version"))
        if not 0 <= version < 2**63:
            raise PolicyError(tree.join(path, "version"), f"{version} is no version: 0 (a new agent) or more")
    policy_message.check(fields, path)
    return fields, version


def record_yaml(record: pb.AgentRecord, with_defaults: bool) -> str:
    """The YAML of an agent that `apply` takes: its version included, so that nobody else's change is undone."""
    data = policy_message.plain_of(record.policy)
    if not with_defaults:
        data = policy_message.without_defaults(data)
    agent_id = data.pop("agent_id", "")
    version = record.version
    told = f"# version {version.version} by {version.author}, {clock_time(version.at_unix_ms, True)}: {version.reason}"
    comment = shown(" ".join(told.split()))
    if not with_defaults:
        comment += "\n# What is not here has its default; --all shows it."
    document = {"agent_id": agent_id, "version": version.version, **data}
    return f"{comment}\n{_dump(document)}"


def _dump(document: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(document), sort_keys=False, allow_unicode=True, width=100).rstrip("\n")


def batches(configurations: Sequence[pb.AgentConfiguration]) -> list[list[pb.AgentConfiguration]]:
    """Configurations in requests of allowed size."""
    return [list(configurations[at : at + MAX_AGENTS]) for at in range(0, len(configurations), MAX_AGENTS)]
