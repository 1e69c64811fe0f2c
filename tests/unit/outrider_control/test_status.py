"""What the control plane says is wrong with itself."""

from __future__ import annotations

from outrider_control.status import unreadable


def test_policies_that_cannot_be_enforced() -> None:
    assert list(unreadable({})) == []
    told = list(unreadable({f"agent-{at}": f"version {at} cannot be enforced" for at in range(7)}))
    assert (
        told[0] == "agent agent-0: version 0 cannot be enforced: bring this program up to date, or apply the agent anew"
    )
    assert len(told) == 6
    assert told[5].startswith("the newest policies of 2 more agents")
