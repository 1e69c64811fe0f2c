"""Pure parts get time, randomness and I/O as arguments: they neither import nor call what would give them these."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.arch.source import Module, inside, modules

# The parts of outrider_http2 that speak to a loop, sockets or files; everything else of it is sans-io.
WITH_LOOP = tuple(f"outrider_http2.{name}" for name in ("dial", "listener", "shell", "tls", "turn"))
PURE = (
    "outrider.fanout",
    "outrider.policy",
    "outrider_control.api.agent_health",
    "outrider_control.api.explain",
    "outrider_control.api.roles",
    "outrider_control.core",
    *(f"outrider_control.loops.experiment.{name}" for name in ("compare", "conclude", "decide", "simulate", "types")),
    *(f"outrider_control.loops.scale.{name}" for name in ("capacity", "decide", "forecast", "types")),
    *(f"outrider_control.loops.rollout.{name}" for name in ("advance", "by_hand", "measure", "types", "verdict")),
    "outrider_control.publish.resources",
    "outrider_control.publish.watch",
    "outrider_http2",
    "outrider_sidecar.compress",
    "outrider_sidecar.engines",
    "outrider_sidecar.payloads",
)
BANNED_MODULES = frozenset(
    {
        "asyncio",
        "datetime",
        "io",
        "os",
        "secrets",
        "select",
        "socket",
        "subprocess",
        "threading",
        "time",
        "uuid",
        "uvloop",
    }
)
BANNED_CALLS = frozenset({"open", "print", "input"})
RANDOM_TYPES = frozenset({"Random"})


def pure_modules() -> list[Module]:
    return [
        module
        for module in modules()
        if any(inside(module.name, part) for part in PURE) and not any(inside(module.name, part) for part in WITH_LOOP)
    ]


def impurities(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, what) of everything a pure module must not do."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] in BANNED_MODULES:
                    yield node.lineno, f"imports {alias.name}"
        elif isinstance(node, ast.ImportFrom):
            top = (node.module or "").partition(".")[0]
            names = {alias.name for alias in node.names}
            if top in BANNED_MODULES or (top == "random" and names - RANDOM_TYPES):
                yield node.lineno, f"imports {', '.join(sorted(names))} from {node.module}"
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id == "random" and node.attr not in RANDOM_TYPES:
                yield node.lineno, f"uses random.{node.attr}"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in BANNED_CALLS:
            yield node.lineno, f"calls {node.func.id}"


@pytest.mark.parametrize("module", pure_modules(), ids=str)
def test_pure(module: Module) -> None:
    assert [f"{module}:{line} {what}" for line, what in impurities(module.tree)] == []


@pytest.mark.parametrize(
    "code",
    [
        "import time",
        "def f():\n    from asyncio import sleep",
        "from random import choice",
        "import random\nx = random.random()",
        "open('x')",
        "import os.path",
    ],
)
def test_impurities_are_seen(code: str) -> None:
    assert list(impurities(ast.parse(code)))


def test_a_generator_as_argument_is_pure() -> None:
    code = "import random\nfrom random import Random\ndef f(rng: random.Random) -> float:\n    return rng.random()"
    assert not list(impurities(ast.parse(code)))
