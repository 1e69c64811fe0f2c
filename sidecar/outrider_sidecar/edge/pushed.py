"""The control plane's resources in this sidecar: read, put in force over the file's policy, kept on disk.

Always holds: every resource of an update is taken or refused by itself, with a reason; what is refused, or cannot be
put in force, leaves what was there before; a purge is on disk before it is acknowledged; what is on disk is whole and
checksummed, and what cannot be read there is reported and passed over. Reading an update gives way to calls every few
agents; putting it in force is one step.

Deliberately not here: the stream (`edge.mesh`), what an update comes to (`engines.held`), the overlay's rules
(`engines.overlay`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from outrider_sidecar.core.resource import EPOCHS, KIND_NAMES, Key, Resource, Update
from outrider_sidecar.edge import mesh_codec, snapshot_file
from outrider_sidecar.engines import held as held_engine
from outrider_sidecar.engines.held import Held, HeldRefused, Plan

log = logging.getLogger(__name__)

FILE = "policy.snapshot"
SAVE_GAP_S = 0.5  # between two writes: what changes in between is written once
_SLICE = 2  # resources read in one loop turn: under a millisecond

PutInForce = Callable[[Mapping[Key, Resource]], None]  # raises where that cannot be done
MergeEpochs = Callable[[Any], None]  # OSError: they could not be written to disk


class Answer(NamedTuple):
    """What became of an update."""

    nonce: int
    refused: tuple[Resource, ...]
    applied_us: int


class Pushed:
    """`restore` at the start, `take` updates, `save` at the end. `put_in_force` compiles the policy of resources."""

    def __init__(self, directory: Path | None, put_in_force: PutInForce, merge_epochs: MergeEpochs):
        self._path = directory / FILE if directory is not None else None
        self._put_in_force = put_in_force
        self._merge_epochs = merge_epochs
        self._held = Held()
        self._dirty = asyncio.Event()
        self._saving: asyncio.Task[None] | None = None
        self.informed = False  # something is held, from disk or from the control plane
        self.counts = {"applied": 0, "refused": 0}  # resources

    @property
    def resources(self) -> Mapping[Key, Resource]:
        return self._held.resources

    @property
    def refused(self) -> Mapping[Key, Resource]:
        return self._held.refused

    @property
    def updates(self) -> int:
        return self._held.updates

    # -- updates ---------------------------------------------------------------------------------------------------

    async def take(self, message: mesh_codec.UpdateMessage) -> Answer:
        """Apply one update; never raises for what it holds."""
        began_at = time.perf_counter()
        offered: list[Resource] = []
        for at, one in enumerate(message.resources):
            if at % _SLICE == _SLICE - 1:
                await asyncio.sleep(0)
            resource = mesh_codec.read_resource(one)
            if resource is not None:
                offered.append(resource)
        removed = [mesh_codec.read_version(one) for one in message.removed]
        current = [mesh_codec.read_version(one) for one in message.current]
        plan = self._held.plan(Update(message.full, offered, removed, current))
        plan = self._apply(plan)
        self._held.commit(plan)
        self.informed = True
        self.counts["refused"] += len(plan.refused)
        self.counts["applied"] += len(offered) - len(plan.refused)
        for one in plan.refused:
            log.error("%s %s version %d is refused: %s", KIND_NAMES[one.kind], one.name, one.version, one.reason)
        if plan.seen:
            self._dirty.set()
        return Answer(message.nonce, plan.refused, int((time.perf_counter() - began_at) * 1e6))

    def _apply(self, plan: Plan) -> Plan:
        """Put a plan in force; what is left of it where parts of it cannot be."""
        before = self._held.resources
        epochs = plan.held.get((EPOCHS, ""))
        if epochs is not None and (EPOCHS, "") in plan.changed:
            try:
                self._merge_epochs(epochs.value)
            except OSError as error:
                reason = f"cannot be written to disk: {error.strerror or error}"
                plan = held_engine.refuse(plan, before, {(EPOCHS, ""): reason})
        policy = {key for key in plan.changed if key[0] != EPOCHS}
        if not policy:
            return plan
        try:
            self._put_in_force(plan.held)
        except Exception as error:
            # A defect of ours: the policy is valid. What was in force before is put back whole.
            log.exception("an update could not be put in force; what was there before stays")
            reason = f"cannot be put in force by this sidecar: {type(error).__name__}: {error}"
            plan = held_engine.refuse(plan, before, dict.fromkeys(policy, reason))
            self._put_in_force(before)
        return plan

    # -- disk ------------------------------------------------------------------------------------------------------

    def restore(self) -> None:
        """Hold what was held when the last process ended; the caller puts it in force. Blocks."""
        if self._path is None:
            return
        try:
            data = b"".join(snapshot_file.load(self._path, held_engine.MAX_BYTES))
            rows = held_engine.decode(data)
        except FileNotFoundError:
            return
        except (OSError, HeldRefused) as error:
            log.warning("%s is not used: %s", self._path, error)
            return
        resources = [mesh_codec.read_body(row) for row in rows]
        for one in resources:
            if one.reason:
                log.warning("%s: %s %s is passed over: %s", self._path, KIND_NAMES[one.kind], one.name, one.reason)
        self._held.commit(self._held.plan(Update(True, [one for one in resources if not one.reason])))
        epochs = self._held.resources.get((EPOCHS, ""))
        if epochs is not None:
            try:
                self._merge_epochs(epochs.value)
            except OSError as error:
                log.error("epochs cannot be written to disk: %s", error.strerror or error)
        self.informed = bool(self._held.resources)
        log.info("%d resources of the control plane are in force from disk", len(self._held.resources))

    def start(self) -> None:
        """Begin to write what changes."""
        if self._path is not None:
            self._saving = asyncio.get_running_loop().create_task(self._save_changes())

    async def close(self) -> None:
        """Write what has changed since the last time."""
        if self._saving is not None:
            self._saving.cancel()
            await asyncio.gather(self._saving, return_exceptions=True)
            if self._dirty.is_set():
                await self._save()

    async def _save_changes(self) -> None:
        while True:
            await self._dirty.wait()
            await self._save()
            await asyncio.sleep(SAVE_GAP_S)

    async def _save(self) -> None:
        assert self._path is not None
        self._dirty.clear()
        resources: Iterable[Resource] = list(self._held.resources.values())
        try:
            await asyncio.to_thread(_write, self._path, resources)
        except asyncio.CancelledError:
            self._dirty.set()
            raise
        except OSError as error:
            log.error("%s could not be saved, the old one stays: %s", self._path, error)


def _write(path: Path, resources: Iterable[Resource]) -> None:
    snapshot_file.save(path, [held_engine.encode(resources)])
