"""Kinds of engines: made of their own settings, and given what they name."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from outrider_control.engines import registry

OFFERS: dict[str, Any] = {
    "clock_ms": lambda: 5,
    "endpoints": lambda _: (),
    "registered": lambda _, __: False,
    "control": lambda: "127.0.0.1:7700",
    "rng": random.Random(1),
}


@pytest.mark.parametrize(
    "data",
    [
        {"kind": "local", "agents": {"tax": {"command": ["agent", "--port", "{port}"]}}},
        {"kind": "keda", "agents": ["tax"]},
        {"kind": "webhook", "url": "https://hooks.example/scale"},
    ],
    ids=lambda data: data["kind"],
)
def test_each_kind_is_made_anew_at_each_call(data: Any, tmp_path: Path) -> None:
    section = registry.read(data, "scaling.engines.x", tmp_path)
    make = registry.maker("x", section, OFFERS)
    one, another = make(), make()
    assert one is not another
    assert (one.name, one.kind) == ("x", data["kind"])


def test_what_is_not_on_offer_is_said(tmp_path: Path) -> None:
    section = registry.read({"kind": "keda"}, "x", tmp_path)
    with pytest.raises(TypeError, match="KedaEngine needs endpoints"):
        registry.maker("x", section, {"clock_ms": lambda: 5})
