"""An outage under load: the control plane is killed, comes back, and the sidecars find it.

Always holds: it runs in a thread beside the load and touches no call; what goes wrong in it is raised by `ended`.
"""

from __future__ import annotations

import signal
import threading
import time

from bench.mesh import fleet
from bench.process import BenchError, Children
from outrider.operator import Operator, OperatorError

AWAY_S = 2.0
_GIVE_UP_S = 30.0


class Outage:
    """Begins `after_s` after `start`. `back_s` is how long after its return the last sidecar watched it again."""

    def __init__(self, children: Children, running: fleet.Fleet, after_s: float):
        self.back_s = 0.0
        self._children = children
        self._running = running
        self._after_s = after_s
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="outage", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def ended(self) -> float:
        """`back_s`, once the sidecars are back; BenchError where they do not come back."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self.back_s

    def _run(self) -> None:
        try:
            time.sleep(self._after_s)
            control = self._running.control
            assert control is not None
            control.signal_group(signal.SIGKILL)
            control.process.wait()
            time.sleep(AWAY_S)
            fleet.restart_control(self._children, self._running)
            self._wait_for_sidecars()
        except BaseException as error:  # noqa: BLE001 - told where somebody waits for it
            self._error = error

    def _wait_for_sidecars(self) -> None:
        returned_at = time.monotonic()
        wanted = len(self._running.sidecars)
        with Operator(self._running.control_address) as operator:
            while True:
                try:
                    served_by = operator.get_status().instance_id  # not what the one that was killed left in the store
                    found = operator.list_sidecars().sidecars
                    connected = sum(one.connected and one.control_id == served_by for one in found)
                except OperatorError:
                    connected = 0
                self.back_s = time.monotonic() - returned_at
                if connected >= wanted:
                    return
                if self.back_s > _GIVE_UP_S:
                    raise BenchError(f"{connected} of {wanted} sidecars watch again after {_GIVE_UP_S:g} s")
                time.sleep(0.02)
