"""What a killed or an older control plane leaves behind: its sidecars, a policy that this program cannot enforce."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing

from tests.controls import Control, watching
from tests.sidecars import Mesh, eventually


def test_a_dead_control_planes_sidecars_are_not_shown_as_connected(mesh: Mesh) -> None:
    control = Control(mesh, "killed")
    sidecar = mesh.sidecar({"control": [control.target]}, "of-killed")
    eventually(lambda: watching(sidecar), "the sidecar is connected")

    def stored() -> list[int]:
        with closing(sqlite3.connect(control.folder / "outrider.db", timeout=10)) as link:
            return [connected for (connected,) in link.execute("select connected from sidecars")]

    eventually(lambda: stored() == [1], "it is in the store as connected")
    control.kill()
    mesh.children.stop(sidecar.child)
    control.start()
    (record,) = control.json("sidecars")["sidecars"]
    assert (record["connected"], record["load"]) == (False, None)
    assert stored() == [1], "it is the control plane that knows better, not the store"


def test_a_policy_that_cannot_be_enforced_is_a_warning(mesh: Mesh) -> None:
    control = Control(mesh, "behind")
    for seconds in (60, 90):
        control.apply({"agent_id": "odd", "optimization": {"cache_ttl": seconds}})
    control.stop()
    document = json.dumps({"agent_id": "odd", "balancing": {"strategy": "clairvoyant"}})
    with closing(sqlite3.connect(control.folder / "outrider.db")) as link:
        link.execute("update agent_versions set document = ? where version = 2", (document,))
        link.commit()
    control.start()
    (warning,) = control.json("status")["warnings"]
    assert warning.startswith("agent odd: version 2 cannot be enforced by this program: balancing.strategy:")
    assert "version 1 is in force" in warning
    control.apply({"agent_id": "odd"})
    eventually(lambda: not control.json("status")["warnings"], "a policy that can be enforced ends the warning")
