"""One open Watch stream: writes what its watch has to say, one message at a time.

Always holds: at most one message is under way; what changes meanwhile becomes one update, so that a slow reader costs
its transport's buffer and no more. `wake` never blocks and costs a task only where there is something to say.

Deliberately not here: what is said (`watch`), reading and statuses (`mesh_service`).
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable

from outrider_control.publish.resources import MAX_UPDATE_BYTES, Catalog
from outrider_control.publish.watch import Watch

MAX_SAID = 32  # messages beside updates that wait

_LOG = logging.getLogger("outrider.control.watch")


class Stream:
    """`write` sends one message; `stop(reason)` makes the reading side end the stream."""

    __slots__ = ("_beside", "_catalog", "_closed", "_stop", "_write", "_writer", "instance_id", "watch")

    def __init__(
        self,
        instance_id: str,
        watch: Watch,
        catalog: Catalog,
        write: Callable[[bytes], Awaitable[None]],
        stop: Callable[[str], None],
    ):
        self.instance_id = instance_id
        self.watch = watch
        self._catalog = catalog
        self._write = write
        self._stop = stop
        self._writer: asyncio.Task[None] | None = None
        self._closed = False
        self._beside: deque[bytes] = deque()  # messages that are no updates, to be sent once there is none

    def say(self, message: bytes) -> bool:
        """Send a message of one's own after all updates. False: too many wait, and it is not sent."""
        if self._closed or len(self._beside) >= MAX_SAID:
            return False
        self._beside.append(message)
        self.wake()
        return True

    def wake(self) -> None:
        """There may be something to say."""
        if self._writer is None and not self._closed:
            self._writer = asyncio.get_running_loop().create_task(self._say())

    async def _say(self) -> None:
        try:
            while (message := self.watch.next(self._catalog) or self._next_beside()) is not None:
                if len(message) > MAX_UPDATE_BYTES:
                    _LOG.error("an update of %d bytes is more than a sidecar takes: delete agents", len(message))
                await self._write(message)
        except Exception as error:  # noqa: BLE001 - the transport's errors have no common type
            # With the stream gone the sidecar comes again, and is told all.
            self._stop(f"an update could not be sent: {error}")
        finally:
            self._writer = None

    def _next_beside(self) -> bytes | None:
        return self._beside.popleft() if self._beside else None

    def end(self, reason: str) -> None:
        self._stop(reason)

    async def close(self) -> None:
        """Stops writing; to be called by the reading side when the stream is over."""
        self._closed = True
        writer = self._writer
        if writer is not None:
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)
