"""What the environment says: the customer's variables as defaults of every agent, and of learning from feedback.

Always holds: a variable that is unset or empty means its default; a wrong value is a PolicyError that names the
variable.

Deliberately not here: variables of alerts, files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from outrider.policy import Agent, PolicyError
from outrider.policy_parse import agent_from_mapping
from outrider.tree import show

MAX_MIN_BATCH: Final = 1_000
_MIN_BATCH: Final = 10
_WORDS = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
_AGENT_VARIABLES = {  # variable -> (section, field, type)
    "CACHE_ENABLED": ("optimization", "cache_enabled", bool),
    "CACHE_TTL": ("optimization", "cache_ttl", int),
    "CACHE_STRATEGY": ("optimization", "cache_strategy", str),
    "AUTO_SCALING_ENABLED": ("scaling", "enabled", bool),
    "DEFAULT_MIN_INSTANCES": ("scaling", "min_instances", int),
    "DEFAULT_MAX_INSTANCES": ("scaling", "max_instances", int),
}


def agent_defaults(environ: Mapping[str, str]) -> Agent:
    """An agent without endpoints that carries the customer's variables; what YAML leaves out comes from it."""
    sections: dict[str, dict[str, object]] = {}
    variable_of = {}
    for variable, (section, name, kind) in _AGENT_VARIABLES.items():
        text = environ.get(variable, "").strip()
        if text:
            sections.setdefault(section, {})[name] = _typed(kind, text, variable)
            variable_of[f"{section}.{name}"] = variable
    try:
        return agent_from_mapping({"agent_id": "defaults", **sections}, "")
    except PolicyError as error:
        # A rule over two fields names the first; where only the second is set, that is the variable to name.
        section = error.path.partition(".")[0]
        nearest = [one for path, one in variable_of.items() if path.startswith(f"{section}.")]
        raise PolicyError(variable_of.get(error.path, nearest[0]), error.reason) from None


def learning_enabled(environ: Mapping[str, str]) -> bool:
    """LEARNING_ENABLED: whether corrections and complaints become candidates for examples. Default: true."""
    text = environ.get("LEARNING_ENABLED", "").strip()
    return bool(_typed(bool, text, "LEARNING_ENABLED")) if text else True


def min_feedback_batch(environ: Mapping[str, str]) -> int:
    """MIN_FEEDBACK_BATCH: so many pieces of feedback go together, unless they have waited. Default: 10."""
    text = environ.get("MIN_FEEDBACK_BATCH", "").strip()
    if not text:
        return _MIN_BATCH
    batch = _typed(int, text, "MIN_FEEDBACK_BATCH")
    if not isinstance(batch, int) or not 1 <= batch <= MAX_MIN_BATCH:
        raise PolicyError("MIN_FEEDBACK_BATCH", f"{batch} is not between 1 and {MAX_MIN_BATCH}")
    return batch


def _typed(kind: type, text: str, variable: str) -> object:
    if kind is bool:
        if text.lower() not in _WORDS:
            raise PolicyError(variable, f"{show(text)} is not true or false")
        return _WORDS[text.lower()]
    if kind is int:
        if not text.isascii() or not text.isdecimal() or len(text) > 15:
            raise PolicyError(variable, f"{show(text)} is not a whole number")
        return int(text)
    return text.lower()
