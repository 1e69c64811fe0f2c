"""What runs: the modules pyproject lists are compiled all or none, and a sidecar says which it is."""

from __future__ import annotations

import importlib
import os
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

from bench.process import ROOT
from outrider_sidecar.edge.view import COMPILED
from tests.sidecars import Mesh, standalone

HOOK = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["hooks"]["custom"]


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    with Mesh() as mesh:
        yield mesh


def listed() -> list[str]:
    """Paths, as in the wheel, of the modules that are compiled where anything is."""
    roots = [ROOT / source for source in HOOK["sources"]]
    paths = [path.relative_to(root.parent).as_posix() for root in roots for path in sorted(root.rglob("*.py"))]
    named = [path for path in paths if any(fnmatch(path, one) for one in HOOK["modules"])]
    return [path for path in named if not any(fnmatch(path, one) for one in HOOK["interpreted"])]


def test_the_list_is_the_data_path() -> None:
    for pattern in (*HOOK["modules"], *HOOK["interpreted"]):
        found = [path for source in HOOK["sources"] for path in (ROOT / source).rglob("*.py")]
        assert any(fnmatch(str(path), f"*/{pattern}") for path in found), f"{pattern} matches nothing"
    assert "outrider_sidecar/core/call.py" in listed()
    # Of the edge what every call passes: where its span goes.
    assert [path for path in listed() if "/edge/" in path] == ["outrider_sidecar/edge/export.py"]
    assert not [path for path in listed() if path.endswith(("app.py", "config.py"))]


@pytest.mark.parametrize("path", listed())
def test_compiled_all_or_none(path: str) -> None:
    module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    assert module.__file__ is not None
    assert module.__file__.endswith(".py") is not COMPILED


def test_what_is_asked_for_is_what_runs() -> None:
    """With compiled modules in front of the path nothing else is loaded."""
    in_front = Path(os.environ.get("PYTHONPATH", "").split(os.pathsep)[0] or "nowhere")
    assert COMPILED is any(in_front.glob("outrider__mypyc*"))


def test_a_sidecar_says_what_it_is(mesh: Mesh) -> None:
    sidecar = mesh.sidecar(standalone(mesh.peer()), "says")
    assert sidecar.metric("outrider_build_info", compiled=str(COMPILED).lower()) == 1
    assert f"data path {'compiled' if COMPILED else 'interpreted'}" in sidecar.log()


def test_nothing_compiled_lies_beside_the_sources() -> None:
    assert not [path for source in HOOK["sources"] for path in (ROOT / source).rglob("*.so")]
