"""Both stores for every test of the control plane."""

from __future__ import annotations

from tests.stores import *  # noqa: F403  (fixtures are found by their names here)
