"""What one sidecar was told and took: the state behind one Watch stream.

Always holds: the first update is full; after it the stream holds the newest of everything but for what is named in
`dirty` (changed, not sent yet), `unconfirmed` (sent, no answer yet) and `refused`; its memory is bounded by the number
of resources, however slow the sidecar is and even if it never answers. A refused version is not sent again on the
stream. Answers come in the order of updates, so that one answer confirms every update before it as well.

Deliberately not here: bytes of resources (`resources`), sockets (`mesh_service`), who the sidecar is (`fleet`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from outrider_control.publish import resources
from outrider_control.publish.resources import Catalog, ResourceId

MAX_REASON = 500


class Refused(NamedTuple):
    key: ResourceId
    version: int
    reason: str


class Sent(NamedTuple):
    version: int
    nonce: int


class Watch:
    """One stream. `claimed` is what the sidecar says it holds already."""

    __slots__ = ("_claimed", "_dirty", "_nonce", "_refused", "_unconfirmed")

    def __init__(self, claimed: Mapping[ResourceId, int]):
        self._claimed: Mapping[ResourceId, int] | None = claimed  # None: the full update was made
        self._dirty: set[ResourceId] = set()
        self._unconfirmed: dict[ResourceId, Sent] = {}
        self._refused: dict[ResourceId, Refused] = {}
        self._nonce = 0

    def mark(self, changed: Iterable[ResourceId]) -> None:
        """These have a new version, or are gone."""
        if self._claimed is None:
            self._dirty.update(changed)

    def next(self, catalog: Catalog) -> bytes | None:
        """The WatchResponse to send now; None: there is nothing to say."""
        if self._claimed is not None:
            ids, current = catalog.split(self._claimed)
            self._claimed = None
            return self._sent(ids, catalog, catalog.full(ids, current))
        if not self._dirty:
            return None
        ids = frozenset(self._dirty)
        self._dirty.clear()
        return self._sent(ids, catalog, catalog.delta(ids))

    def _sent(self, ids: frozenset[ResourceId], catalog: Catalog, body: bytes) -> bytes:
        self._nonce += 1
        for key in ids:
            self._unconfirmed[key] = Sent(catalog.version(key), self._nonce)
        return resources.message(self._nonce, body)

    def ack(self, nonce: int, refused: Iterable[Refused] = ()) -> bool:
        """The sidecar's answer. False: to nothing that was asked, and it changes nothing."""
        if not 0 < nonce <= self._nonce:
            return False
        answered = {key: sent for key, sent in self._unconfirmed.items() if sent.nonce <= nonce}
        for key in answered:
            del self._unconfirmed[key]
            self._refused.pop(key, None)
        for refusal in refused:
            sent = answered.get(refusal.key)
            if sent is not None and sent.version == refusal.version:
                self._refused[refusal.key] = refusal._replace(reason=refusal.reason[:MAX_REASON])
        return True

    def holds(self, key: ResourceId, version: int, catalog: Catalog) -> bool:
        """Whether the sidecar has said that it took this version, or a newer one."""
        if self._claimed is not None or catalog.version(key) < version:
            return False
        return key not in self._dirty and key not in self._unconfirmed and key not in self._refused

    def refuses(self, key: ResourceId) -> bool:
        return key in self._refused and key not in self._dirty and key not in self._unconfirmed

    @property
    def refused(self) -> list[Refused]:
        return [self._refused[key] for key in sorted(self._refused)]

    def behind(self, catalog: Catalog) -> int:
        """How many resources the sidecar does not hold at the newest version, as far as it has said."""
        if self._claimed is not None:
            return len(catalog.resources)
        if not (self._dirty or self._unconfirmed or self._refused):
            return 0
        return len(self._dirty | self._unconfirmed.keys() | self._refused.keys())
