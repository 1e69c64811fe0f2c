"""`agents_file`: the agents an installation starts with, put in force when the file's content changed.

Always holds: the file is applied whole or not at all, as any other change: with versions and in the journal. What
operators change afterwards stays until the file changes again; agents the file does not name stay as they are.

Deliberately not here: what an agent may say (`outrider.policy_parse`).
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from sqlalchemy import Connection

from outrider import yaml_file
from outrider.policy import Agent, Policy, PolicyError
from outrider.policy_parse import policy_from_mapping
from outrider_control.config import ConfigError
from outrider_control.state import agents, meta

AUTHOR = "agents_file"
_DIGEST = "agents_file"


def read(path: Path, defaults: Agent) -> tuple[Policy, str]:
    """The policy in the file and its digest, which the defaults are part of; ConfigError where it cannot be used."""
    try:
        data = yaml_file.read(path)
        policy = policy_from_mapping(data if isinstance(data, dict) else {"agents": data}, defaults)
        content = path.read_bytes()
    except yaml_file.YamlError as error:
        raise ConfigError(str(path), error.place, error.reason) from None
    except PolicyError as error:
        raise ConfigError(str(path), error.path, error.reason) from None
    except OSError as error:
        raise ConfigError(str(path), "", f"cannot be read: {error.strerror or error}") from None
    return policy, hashlib.blake2b(content + repr(defaults).encode(), digest_size=16).hexdigest()


def apply(connection: Connection, policy: Policy, digest: str, path: str, now_ms: int) -> list[agents.Applied]:
    """Put the policy in force unless this very content was applied last; what was done."""
    if meta.text(connection, _DIGEST) == digest:
        return []
    reason = f"{path} changed"
    wanted = [agents.Wanted(agent, None) for agent in policy.agents.values()]
    applied = agents.apply(connection, wanted, AUTHOR, reason, now_ms) if wanted else []
    if policy.default_agent and agents.default_agent(connection)[0] != policy.default_agent:
        agents.set_default_agent(connection, policy.default_agent, AUTHOR, reason, now_ms)
    meta.put_text(connection, _DIGEST, digest)
    return applied
