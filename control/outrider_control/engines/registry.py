"""The kinds of engines by their names: how the configuration of one is read, and how one is made.

Always holds: a kind is imported when it is configured, and not before: nobody pays for what is not used.

An engine's module has `settings(data, path, folder)`, which raises PolicyError with the path of the wrong field, and a
class whose first two arguments are its name and its settings; of what else there is (`offers`) it takes what it names.

Deliberately not here: what engines do (`loops.scale.types.Engine`), when they are asked (`loops.scale`).
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from outrider import tree
from outrider.policy import PolicyError
from outrider_control.loops.scale.types import Engine

KINDS: Final[Mapping[str, str]] = {  # its module's name -> the class in it
    "local": "LocalEngine",
    "kubernetes": "KubernetesEngine",
    "keda": "KedaEngine",
    "webhook": "WebhookEngine",
}


@dataclass(frozen=True, slots=True)
class Section:
    """One entry of `scaling.engines`, read and checked."""

    kind: str
    settings: Any  # of that kind


def read(data: Any, path: str, folder: Path) -> Section:
    """One engine's settings; PolicyError with the path of the wrong field."""
    if not isinstance(data, Mapping):
        raise PolicyError(path, f"{tree.show(data)} is not a mapping of fields")
    if "kind" not in data:
        raise PolicyError(f"{path}.kind", f"is missing; known: {', '.join(KINDS)}")
    kind = tree.scalar(str, data["kind"], f"{path}.kind")
    if kind not in KINDS:
        raise PolicyError(f"{path}.kind", f"{tree.show(kind)} is no engine; {tree.nearest(kind, list(KINDS))}")
    return Section(kind, _module(kind).settings(data, path, folder))


def maker(name: str, section: Section, offers: Mapping[str, Any]) -> Callable[[], Engine]:
    """Makes this engine, anew at each call. TypeError: it names something that is not on offer."""
    cls = getattr(_module(section.kind), KINDS[section.kind])
    taken = list(inspect.signature(cls).parameters.values())[2:]
    given = {one.name: offers[one.name] for one in taken if one.name in offers}
    missing = [one.name for one in taken if one.name not in given and one.default is inspect.Parameter.empty]
    if missing:
        raise TypeError(f"{cls.__name__} needs {', '.join(missing)}, which engines are not given")
    return lambda: cls(name, section.settings, **given)


def _module(kind: str) -> Any:
    return importlib.import_module(f"outrider_control.engines.{kind}")
