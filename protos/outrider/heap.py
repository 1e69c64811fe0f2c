"""How a program that serves for weeks treats its memory.

Always holds: what was there at the start is never looked at again by the garbage collector; what comes after is
collected as ever, only less often: nearly all of it is freed by its reference count, and a collection that finds
nothing is a pause. What a burst has left free goes back to the system, at a cost of one part in a thousand of the time.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

_EVERY_S = 1.0
_TIMES = 1_000  # as long as it took it rests
_THRESHOLDS = (50_000, 20, 50)  # the defaults collect after 700 objects: a fifth of the intake's time


def settle() -> None:
    """To be called once, when a program has started."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)


class Trimmer:
    """Gives free memory back to the system: glibc keeps what lies between blocks that are in use, and a burst of large
    messages leaves megabytes of it. `trim` does it; None: nothing is done."""

    def __init__(self, trim: Callable[[int], Any] | None, clock: Callable[[], float] = time.monotonic):
        self._trim = trim
        self._clock = clock
        self._due = 0.0

    def tick(self) -> None:
        """To be called about once a second."""
        began = self._clock()
        if self._trim is None or began < self._due:
            return
        self._trim(0)
        self._due = began + max(_EVERY_S, (self._clock() - began) * _TIMES)


def malloc_trim() -> Callable[[int], Any] | None:
    """The function of the C library; None where it has none (musl, macOS, Windows)."""
    try:
        import ctypes  # only here: a third of a megabyte, where it is of use

        trim = ctypes.CDLL(None).malloc_trim
    except (ImportError, OSError, AttributeError, TypeError):
        return None
    trim.argtypes, trim.restype = (ctypes.c_size_t,), ctypes.c_int
    return trim
