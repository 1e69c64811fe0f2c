"""No session ever changes variant: 100,000 of them through reloads, restarts, kills and changed shares."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from pathlib import Path

from outrider.split import PARTS, Range, Split, Variant, ranges_of, reallocated
from outrider_sidecar.edge.session_file import SessionFile
from outrider_sidecar.engines.assign import Assigner
from outrider_sidecar.engines.sessions import Sessions

SESSIONS = 100_000
CALLS_PER_ERA = 50_000
NAMES = ("A", "B", "C")
ERAS = (  # shares, and what happens before they are in force
    ((1.0, 0.0, 0.0), "start"),
    ((0.5, 0.5, 0.0), "reload"),
    ((0.2, 0.3, 0.5), "restart"),
    ((0.2, 0.3, 0.5), "reload"),
    ((0.9, 0.1, 0.0), "kill"),
    ((0.0, 0.0, 1.0), "reload"),
    ((0.3, 0.3, 0.4), "restart"),
    ((0.3, 0.3, 0.4), "kill"),
)


class Mesh:
    """One sidecar's part in it: the sticky store, its file, and the splits in force."""

    def __init__(self, folder: Path):
        self._folder = folder
        self.now = 1_000.0
        self.ranges: tuple[tuple[Range, ...], ...] = ((), (), ())
        self.start()

    def start(self) -> None:
        self.sessions = Sessions()
        self.sessions.knows([86_400.0])
        loop = asyncio.get_running_loop()
        self.file = SessionFile(self._folder, self.sessions, loop, lambda: self.now, lambda: 1.7e9 + self.now, "boot")
        self.file.restore()

    def apply(self, shares: tuple[float, ...]) -> None:
        """New shares, as the control plane gives them: flushed before, ranges moved as little as can be."""
        assert self.file.flush()
        self.ranges = reallocated(self.ranges, shares) if any(self.ranges) else ranges_of(shares)
        variants = [Variant(*one) for one in zip(NAMES, shares, self.ranges, strict=True)]
        experiment = Split("x", "a", tuple(variants), layer="l", layer_to=PARTS // 2)
        other = replace(experiment, name="y", layer_from=PARTS // 2, layer_to=PARTS)
        self.assigner = Assigner([experiment, other], [])

    def call(self, session: bytes) -> str:
        """As filter `experiment` does; what the session is served with."""
        unit = self.sessions.get(session)
        decision = self.assigner.decide(session, b"", b"", unit.held if unit is not None else ())
        self.sessions.put(session, decision.held, self.now)
        return decision.treatment.variant if decision.treatment is not None else ""


async def test_no_session_of_100_000_changes_variant(tmp_path: Path) -> None:
    rng = random.Random(5)
    mesh = Mesh(tmp_path)
    seen: dict[bytes, str] = {}
    flipped = calls = begun_with_last = 0
    for number, (shares, event) in enumerate(ERAS):
        if event == "restart":
            await mesh.file.close()
            mesh.start()
        elif event == "kill":
            await asyncio.sleep(0)  # the turn in which they were given ends; nothing is closed
            killed = mesh.file
            mesh.start()
            await killed.close()
        assert len(mesh.sessions) == len(seen)
        mesh.apply(shares)
        reach = SESSIONS * (number + 1) // len(ERAS)
        fresh = [b"session-%d" % at for at in range(len(seen), reach)]
        again = [b"session-%d" % rng.randrange(reach) for _ in range(CALLS_PER_ERA)]
        for session in [*fresh, *again]:
            mesh.now += 0.001
            found = mesh.call(session)
            flipped += seen.setdefault(session, found) != found
            calls += 1
        begun_with_last += sum(seen[one][-1] == "C" for one in fresh)
    for session, variant in seen.items():  # each of them once more
        flipped += mesh.call(session) != variant
    await asyncio.sleep(0)
    await mesh.file.close()
    assert (len(seen), flipped) == (SESSIONS, 0)
    assert calls == SESSIONS + CALLS_PER_ERA * len(ERAS)
    assert {variant[:2] for variant in seen.values()} == {"x=", "y="}
    # The shares did change what new sessions got: half of an eighth, no one, no one at first, ...
    expected = sum(shares[2] for shares, _ in ERAS) / len(ERAS)
    assert abs(begun_with_last / SESSIONS - expected) < 0.01
