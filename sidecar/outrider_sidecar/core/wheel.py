"""One timer structure for all deadlines: a wheel of ticks over one loop timer.

Always holds: setting and cancelling are O(1); a cancelled timer is forgotten at once; a timer fires at most two ticks
late and never early. Costs nothing while it is empty.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

TICK_S: Final = 0.005


class Timer:
    """A set timer; `cancel` may be called any number of times, also after it has fired."""

    __slots__ = ("_fire", "_slot", "_wheel")

    def __init__(self, wheel: Wheel, slot: int, fire: Callable[[], Any]):
        self._wheel = wheel
        self._slot = slot
        self._fire = fire

    def cancel(self) -> None:
        slots = self._wheel.slots
        waiting = slots.get(self._slot)
        if waiting is not None:
            waiting.discard(self)
            if not waiting:
                del slots[self._slot]

    def fire(self) -> None:
        self._fire()


class Wheel:
    """`advance(now)` fires what is due; `wake(delay_s)` is asked for when the wheel stops being empty."""

    __slots__ = ("_awake", "_done_slot", "_wake", "slots")

    def __init__(self, wake: Callable[[float], Any], now: float):
        self.slots: dict[int, set[Timer]] = {}
        self._wake = wake
        self._awake = False
        self._done_slot = int(now / TICK_S)

    def at(self, when: float, fire: Callable[[], Any]) -> Timer:
        """Call `fire()` at `when` (seconds of the clock given to `advance`)."""
        slot = int(when / TICK_S) + 1
        if slot <= self._done_slot:
            slot = self._done_slot + 1
        timer = Timer(self, slot, fire)
        waiting = self.slots.get(slot)
        if waiting is None:
            self.slots[slot] = {timer}
            if not self._awake:
                self._awake = True
                self._wake(TICK_S)
        else:
            waiting.add(timer)
        return timer

    def advance(self, now: float) -> None:
        """Fire all timers due by `now`, in the order of their ticks."""
        last = int(now / TICK_S)
        slots = self.slots
        if last - self._done_slot > len(slots):
            due = sorted(slot for slot in slots if slot <= last)
        else:
            due = [slot for slot in range(self._done_slot + 1, last + 1) if slot in slots]
        self._done_slot = max(last, self._done_slot)
        broken: Exception | None = None
        for slot in due:
            waiting = slots.get(slot)
            while waiting:
                try:
                    waiting.pop().fire()
                except Exception as error:  # noqa: BLE001 - one broken timer must not stop all others for good
                    broken = error
            slots.pop(slot, None)
        self._awake = bool(slots)
        if slots:
            self._wake(TICK_S)
        if broken is not None:
            raise broken

    def __len__(self) -> int:
        return sum(map(len, self.slots.values()))
