"""Real PostgreSQL for the tests of several control planes."""

from __future__ import annotations

from tests.stores import *  # noqa: F403  (fixtures are found by their names here)
