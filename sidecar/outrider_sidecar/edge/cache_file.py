"""The cache on disk: saved now and then and at exit, read at start; epochs on their own before a purge is answered.

Always holds: a failed save leaves the old file; what cannot be read is counted and said, never fatal; epochs never go
back, so a purged reply does not return with an older snapshot.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

from outrider_http2.fields import FieldError
from outrider_http2.head import Fields, Head
from outrider_sidecar.core.entry import Entry
from outrider_sidecar.core.runtime import Runtime
from outrider_sidecar.edge import snapshot_file
from outrider_sidecar.engines import snapshot

log = logging.getLogger(__name__)
SAVE_EVERY_S = 60.0


class CacheFile:
    """`cache.snapshot` and `epochs.snapshot` in the state directory."""

    def __init__(self, directory: Path, runtime: Runtime):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path = directory / "cache.snapshot"
        self._epochs_path = directory / "epochs.snapshot"
        self._runtime = runtime
        self._saving: asyncio.Lock = asyncio.Lock()

    def read_header(self) -> snapshot.Header | None:
        """Secret and epochs of the last run: needed before any key is made."""
        newest = None
        for path in (self._path, self._epochs_path):
            header = self._header_of(path)
            if header is not None:
                self._runtime.epochs.merge(header.epochs)
                newest = newest or header
        return newest

    def _header_of(self, path: Path) -> snapshot.Header | None:
        decoder = self._decoder()
        try:
            for data in snapshot_file.load(path):
                decoder.feed(data)
                if decoder.header is not None:
                    return decoder.header
        except FileNotFoundError:
            return None
        except (OSError, ValueError, snapshot.SnapshotRefused) as error:
            log.warning("%s is not used: %s", path, error)
        return None

    def restore(self) -> int:
        """Put stored replies back into the caches of configured agents; how many."""
        decoder = self._decoder()
        found: list[tuple[str, Entry]] = []
        try:
            for data in snapshot_file.load(self._path):
                found += decoder.feed(data)
            found += decoder.finish()
        except FileNotFoundError:
            return 0
        except (OSError, snapshot.SnapshotRefused) as error:
            log.warning("%s is not used: %s", self._path, error)
            return 0
        if decoder.lost:
            log.warning("%s: %d replies could not be read", self._path, decoder.lost)
        now = self._runtime.wall_clock()
        kept = 0
        for agent_id, entry in reversed(found):
            state = self._runtime.agents.get(agent_id)
            if state is not None and state.cache is not None:
                kept += state.cache.store.restore(entry, now)
        return kept

    def _decoder(self) -> snapshot.Decoder:
        heads = self._runtime.reactor.heads

        def head(fields: Fields) -> Head:
            return _checked(lambda: heads.response(((b":status", b"200"), *fields)))

        def trailers(fields: Fields) -> Head:
            return _checked(lambda: heads.trailers(fields))

        return snapshot.Decoder(head, trailers)

    async def save(self) -> bool:
        """Write everything; False when it failed and the old file stays."""
        async with self._saving:
            entries = [
                (agent_id, entry)
                for agent_id, state in self._runtime.agents.items()
                if state.cache is not None
                for entry in state.cache.store.entries()
            ]
            header = self._header(len(entries))
            try:
                pieces = snapshot.encode(header, entries, _fields_of)
                await asyncio.to_thread(snapshot_file.save, self._path, pieces)
            except OSError as error:
                log.error("%s could not be saved, the old one stays: %s", self._path, error)
                return False
            return True

    def save_epochs(self) -> None:
        """Write the epochs alone; OSError when that fails."""
        snapshot_file.save(self._epochs_path, [snapshot.encode_header(self._header(0))])

    def _header(self, count: int) -> snapshot.Header:
        runtime = self._runtime
        return snapshot.Header(runtime.wall_clock(), runtime.seed, runtime.epochs.export(), count)


def _checked(make: Any) -> Head:
    try:
        return make()[0]
    except FieldError as error:
        raise ValueError(str(error)) from None


def _fields_of(head: Head) -> Fields:
    return head.fields
