"""Size and names: files and functions stay readable, and no module is a drawer for odds and ends."""

from __future__ import annotations

import ast

import pytest

from tests.arch.source import ROOT, Module, everything, is_generated, modules

MAX_FILE_LINES = 450
MAX_FUNCTION_LINES = 75
VAGUE = frozenset({"common", "helper", "helpers", "manager", "managers", "misc", "util", "utils"})


def written() -> list[Module]:
    return [module for module in everything() if not is_generated(module.path)]


@pytest.mark.parametrize("module", written(), ids=str)
def test_size(module: Module) -> None:
    assert module.lines <= MAX_FILE_LINES
    functions = (node for node in ast.walk(module.tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    long = [
        f"{module}:{node.lineno} {node.name} has {node.end_lineno - node.lineno + 1} lines"
        for node in functions
        if node.end_lineno is not None and node.end_lineno - node.lineno >= MAX_FUNCTION_LINES
    ]
    assert long == []


def test_names() -> None:
    vague = [
        str(module)
        for module in written()
        if VAGUE & {word for part in module.path.relative_to(ROOT).with_suffix("").parts for word in part.split("_")}
    ]
    assert vague == []


@pytest.mark.parametrize("module", [module for module in modules() if not is_generated(module.path)], ids=str)
def test_every_module_says_what_it_is(module: Module) -> None:
    assert module.lines == 0 or ast.get_docstring(module.tree), f"{module} has no docstring"
