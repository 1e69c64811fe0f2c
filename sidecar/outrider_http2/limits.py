"""Bounds of one HTTP/2 connection: what we announce, and what we accept before a peer is cut off."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes in bytes, times in seconds. Rates are token buckets: a burst, then so many a second."""

    max_streams: int = 1_000  # streams the peer may have open
    stream_window_bytes: int = 256 * 1024
    connection_window_bytes: int = 1024 * 1024
    header_list_bytes: int = 64 * 1024  # larger lists are refused per stream
    header_block_bytes: int = 128 * 1024  # larger encoded blocks end the connection
    max_continuations: int = 32
    max_settings: int = 32  # values in one SETTINGS frame
    control_burst: int = 10_000  # SETTINGS, PING, PRIORITY, empty DATA, WINDOW_UPDATE for more, unknown, useless frames
    control_per_s: float = 1_000.0
    control_per_stream: float = 4.0  # more for each stream that ended well: head, data, tail, credit may come late
    reset_burst: int = 2_000  # streams the peer resets: a fan-out may cancel many at once
    reset_per_s: float = 1_000.0
    reset_per_stream: float = 1.0  # more for each stream that ended well: half of a busy peer's calls may be cancelled
    stalled_control_frames: int = 5_000  # answers owed to a peer that does not read
    preface_timeout_s: float = 10.0
    settings_timeout_s: float = 10.0
    idle_timeout_s: float = 0.0  # without streams; 0: never
    stall_timeout_s: float = 300.0  # a half-sent frame or header block
    ping_interval_s: float = 0.0  # keepalive when nothing was received; 0: never
    ping_timeout_s: float = 10.0
    max_age_s: float = 0.0  # then the connection drains, jittered by whoever opens it; 0: never
    turn_units: int = 256  # work per turn: a frame is one unit, a header block four
    turn_out_bytes: int = 512 * 1024  # bytes moved out of queues per turn


class Bucket:
    """A token bucket; `take` is False when the peer has used up its burst.

    It fills by time and by what the peer did well: `done` is how much of that there was, ever.
    """

    __slots__ = ("_at", "_burst", "_done", "_left", "_per_done", "_per_s")

    def __init__(self, burst: int, per_s: float, now: float, per_done: float = 0.0):
        self._burst = float(burst)
        self._per_s = per_s
        self._per_done = per_done
        self._left = float(burst)
        self._at = now
        self._done = 0

    def take(self, now: float, count: int = 1, done: int = 0) -> bool:
        left = self._left - count
        if left < 0.0:
            earned = (now - self._at) * self._per_s
            if done > self._done:
                earned += (done - self._done) * self._per_done
                self._done = done
            self._left = min(self._burst, self._left + earned)
            self._at = now
            left = self._left - count
            if left < 0.0:
                return False
        self._left = left
        return True
