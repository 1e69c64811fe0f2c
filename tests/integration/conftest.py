"""What most integration tests start with; a module that needs another one defines its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.sidecars import Mesh, Peer


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    with Mesh() as started:
        yield started


@pytest.fixture(scope="module")
def peer(mesh: Mesh) -> Peer:
    return mesh.peer()
