"""The cache and its epochs on disk: what comes back, what never does, and what is only said."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from outrider.policy import Optimization, Policy
from outrider_sidecar.edge import snapshot_file
from outrider_sidecar.edge.cache_file import CacheFile
from outrider_sidecar.engines import snapshot
from tests.wire import ECHO, Wire, agent, message

ASK, ANSWER = message(b"ask"), message(b"answer")
CACHED = agent(optimization=Optimization(cache_enabled=True, cache_methods=(ECHO,), cache_jitter=0.0))


def started(folder: Path) -> tuple[Wire, CacheFile]:
    """A sidecar that starts with what is on disk, as `app` does."""
    wire = Wire(Policy())
    file = CacheFile(folder, wire.runtime)
    header = file.read_header()
    if header is not None:
        wire.runtime.seed = header.seed
    wire.apply(CACHED)
    return wire, file


def verdict(wire: Wire, body: bytes = ASK) -> str:
    caller = wire.call(body=body)
    for served in [one for one in wire.served if one.alive]:
        served.begin(("x-initial", "1"))
        served.data(ANSWER)
        served.finish(0, ("x-trailing", "2"))
    assert (caller.status, caller.body, caller.trailer("x-trailing")) == (0, ANSWER, "2")
    assert caller.head is not None
    assert caller.head.values[b"x-initial"] == b"1"
    return caller.trailer("x-outrider-cache")


async def test_what_was_stored_is_answered_after_a_restart(tmp_path: Path) -> None:
    wire, file = started(tmp_path)
    wire.runtime.seed = 11
    for number in range(5):
        assert verdict(wire, message(b"%d" % number)) == "miss"
    assert await file.save()
    again, restored = started(tmp_path)
    assert again.runtime.seed == 11
    assert restored.restore() == 5
    assert [verdict(again, message(b"%d" % number)) for number in range(6)] == ["hit"] * 5 + ["miss"]


async def test_a_purged_reply_does_not_come_back_with_an_older_snapshot(tmp_path: Path) -> None:
    wire, file = started(tmp_path)
    verdict(wire)
    assert await file.save()
    wire.runtime.epochs.bump(wire.wall(), "a", "", "")
    file.save_epochs()
    again, restored = started(tmp_path)
    restored.restore()
    assert verdict(again) == "miss"
    assert again.runtime.epochs.version == wire.runtime.epochs.version


async def test_replies_of_agents_that_are_gone_are_not_restored(tmp_path: Path) -> None:
    wire, file = started(tmp_path)
    verdict(wire)
    assert await file.save()
    again, restored = started(tmp_path)
    again.apply(Policy())
    assert restored.restore() == 0


async def test_expired_replies_are_not_restored(tmp_path: Path) -> None:
    wire, file = started(tmp_path)
    verdict(wire)
    assert await file.save()
    again, restored = started(tmp_path)
    again.loop.now += 100_000
    assert restored.restore() == 0


def test_without_a_file_there_is_nothing_and_nothing_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    wire, file = started(tmp_path / "absent")
    assert (file.read_header(), file.restore()) == (None, 0)
    assert caplog.records == []
    assert wire.runtime.epochs.version == 0


@pytest.mark.parametrize("data", [b"", b"garbage" * 100, b"OUTRSNAP"])
def test_a_damaged_file_is_said_and_passed_over(data: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "cache.snapshot").write_bytes(data)
    with caplog.at_level(logging.WARNING):
        _, file = started(tmp_path)
        assert file.restore() == 0
    assert "cache.snapshot is not used" in caplog.text


async def test_a_cut_file_keeps_what_is_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    wire, file = started(tmp_path)
    for number in range(4):
        verdict(wire, message(b"%d" % number))
    assert await file.save()
    path = tmp_path / "cache.snapshot"
    path.write_bytes(path.read_bytes()[:-20])
    _, restored = started(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert restored.restore() == 3
    assert "1 replies could not be read" in caplog.text


async def test_heads_no_peer_may_send_are_not_restored(tmp_path: Path) -> None:
    wire, _ = started(tmp_path)
    verdict(wire)
    entries = [("a", entry) for entry in wire.state().cache.store.entries()]
    header = snapshot.Header(wire.wall(), wire.runtime.seed, wire.runtime.epochs.export(), 1)
    bad = ((b"Upper", b"x\r\ny"),)
    snapshot_file.save(tmp_path / "cache.snapshot", snapshot.encode(header, entries, lambda _: bad))
    again, restored = started(tmp_path)
    assert restored.restore() == 0
    assert verdict(again) == "miss"


async def test_a_save_that_fails_leaves_the_old_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    wire, file = started(folder)
    verdict(wire)
    assert await file.save()
    before = (folder / "cache.snapshot").read_bytes()
    folder.rename(tmp_path / "moved")
    folder.write_text("no directory")
    with caplog.at_level(logging.ERROR):
        assert not await file.save()
    assert "could not be saved" in caplog.text
    assert (tmp_path / "moved" / "cache.snapshot").read_bytes() == before
    with pytest.raises(OSError):
        file.save_epochs()
