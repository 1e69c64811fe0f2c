"""The source tree as the architecture tests see it: modules, what they import, their functions."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCE_ROOTS = ("protos", "sidecar", "control")
OURS = ("outrider", "outrider_control", "outrider_http2", "outrider_sidecar")


@dataclass(frozen=True)
class Module:
    """One file; `name` is its dotted name."""

    name: str
    path: Path
    tree: ast.Module
    lines: int

    def __str__(self) -> str:
        return str(self.path.relative_to(ROOT))

    def imports(self) -> Iterator[tuple[int, str]]:
        """(line, dotted name) of everything imported anywhere in the file, also lazily or for types alone."""
        package = self.name if self.path.name == "__init__.py" else self.name.rpartition(".")[0]
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from ((node.lineno, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                above = package.rsplit(".", node.level - 1)[0] if node.level else ""
                base = ".".join(filter(None, (above, node.module)))
                for alias in node.names:
                    full = f"{base}.{alias.name}"
                    yield node.lineno, full if full in module_names() else base


@functools.cache
def modules() -> tuple[Module, ...]:
    """Every hand-written module of the source roots."""
    return tuple(_read(path, ROOT / root) for root in SOURCE_ROOTS for path in sorted((ROOT / root).rglob("*.py")))


@functools.cache
def everything() -> tuple[Module, ...]:
    """Every hand-written module, tests and benches among them."""
    return modules() + tuple(
        _read(path, ROOT) for top in ("tests", "bench") for path in sorted((ROOT / top).rglob("*.py"))
    )


@functools.cache
def module_names() -> frozenset[str]:
    paths = ((path, ROOT / root) for root in SOURCE_ROOTS for path in (ROOT / root).rglob("*.py"))
    return frozenset(_name(path, root) for path, root in paths)


def is_generated(path: Path) -> bool:
    return path.stem.endswith(("_pb2", "_pb2_grpc"))


def inside(name: str, package: str) -> bool:
    """Whether a dotted name is a package or something in it."""
    return name == package or name.startswith(f"{package}.")


def _read(path: Path, root: Path) -> Module:
    text = path.read_text(encoding="utf-8")
    return Module(_name(path, root), path, ast.parse("" if is_generated(path) else text), text.count("\n"))


def _name(path: Path, root: Path) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
