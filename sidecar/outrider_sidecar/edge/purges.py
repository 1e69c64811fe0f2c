"""Invalidation of stored replies: asked for here, or by the control plane for the whole mesh.

Always holds: a raised epoch is on disk, where there is a disk, before anybody is told that it is raised; the memory of
what became unreachable is freed where that is known without a search.

Deliberately not here: the epochs' rules (`engines.epochs`).
"""

from __future__ import annotations

from typing import Any

from outrider_sidecar.core.runtime import Runtime
from outrider_sidecar.edge.cache_file import CacheFile


class Purges:
    """`purge` one scope, or `merge` what somebody else has raised. OSError: it could not be written to disk."""

    def __init__(self, runtime: Runtime, cache_file: CacheFile | None):
        self._runtime = runtime
        self._cache_file = cache_file

    def purge(self, agent: str, tenant: str, tag: str) -> int:
        """Invalidate what the scope covers; its new epoch."""
        epoch = self._runtime.epochs.bump(self._runtime.wall_clock(), agent, tenant, tag)
        self._save()
        self._forget(agent, tenant, tag)
        return epoch

    def merge(self, exported: dict[str, Any]) -> None:
        """Take over epochs that are larger than those at hand."""
        epochs = self._runtime.epochs
        before = epochs.export()
        if not epochs.merge(exported):
            return
        self._save()
        if exported["floor"] > before["floor"]:
            self._forget("", "", "")
            return
        known = {(agent, tenant, tag): value for agent, tenant, tag, value in before["counters"]}
        for agent, tenant, tag, value in exported["counters"]:
            if value > known.get((agent, tenant, tag), 0):
                self._forget(agent, tenant, tag)

    def _save(self) -> None:
        if self._cache_file is not None:
            self._cache_file.save_epochs()

    def _forget(self, agent: str, tenant: str, tag: str) -> None:
        for agent_id, state in self._runtime.agents.items():
            if state.cache is not None and agent in ("", agent_id) and not tenant:
                if tag:
                    state.cache.store.purge_tag(tag)
                else:
                    state.cache.store.clear()
