"""Why a change of agents' policies, or a look at one, cannot be had: the errors of `agents`."""

from __future__ import annotations


class UnknownAgent(LookupError):
    """There is no agent of that name."""

    def __init__(self, agent_id: str):
        super().__init__(f"there is no agent {agent_id!r}")
        self.agent_id = agent_id


class UnknownVersion(LookupError):
    """An agent has no policy of that version."""

    def __init__(self, agent_id: str, version: int, reason: str = "is not kept"):
        super().__init__(f"version {version} of agent {agent_id!r} {reason}")
        self.agent_id = agent_id
        self.version = version


class StaleVersion(Exception):
    """Somebody else changed the agent in between. A version of 0 means that there is no such agent."""

    def __init__(self, agent_id: str, expected: int, actual: int):
        found = f"is at version {actual}" if actual else "does not exist"
        wanted = f"version {expected}" if expected else "a new agent"
        super().__init__(f"agent {agent_id!r} {found}, not {wanted}: read it again and repeat the change")
        self.agent_id = agent_id
        self.expected = expected
        self.actual = actual
