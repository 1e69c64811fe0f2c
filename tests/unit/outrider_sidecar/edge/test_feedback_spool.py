"""Feedback on disk: what was confirmed is there after a kill, in order; a damaged file loses what is damaged alone."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from outrider_sidecar.edge import feedback_spool
from outrider_sidecar.edge.feedback_spool import FileSpool, MemorySpool, NotKept, Spool

BYTES = 1024 * 1024


def opened(folder: Path, max_bytes: int = BYTES) -> FileSpool:
    spool = FileSpool(folder, max_bytes)
    spool.open()
    return spool


def killed(spool: FileSpool) -> None:
    """The process is gone: its lock with it, nothing is written any more."""
    spool.close()


def everything(spool: Spool) -> list[bytes]:
    return spool.first(100_000, 2**30)


def kept(spool: Spool, *items: bytes) -> None:
    spool.append(items)
    spool.sync()


def test_what_was_confirmed_is_there_again_in_order(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    kept(spool, b"a", b"b")
    kept(spool, b"c")
    killed(spool)
    again = opened(tmp_path)
    assert (again.count, everything(again)) == (3, [b"a", b"b", b"c"])
    assert oct((tmp_path / "feedback.spool").stat().st_mode & 0o777) == "0o600"
    again.close()


def test_what_is_done_with_does_not_come_again(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    kept(spool, *[b"%d" % at for at in range(10)])
    spool.done(4)
    kept(spool, b"x")
    killed(spool)
    again = opened(tmp_path)
    assert everything(again) == [b"4", b"5", b"6", b"7", b"8", b"9", b"x"]
    again.done(7)
    assert again.count == 0
    assert everything(again) == []
    again.close()
    assert (tmp_path / "feedback.spool").stat().st_size < 64


def test_the_first_ones_are_bounded_and_one_is_always_there(tmp_path: Path) -> None:
    for spool in (opened(tmp_path), MemorySpool(BYTES)):
        kept(spool, b"x" * 100, b"y" * 100, b"z")
        assert spool.first(2, BYTES) == [b"x" * 100, b"y" * 100]
        assert spool.first(9, 150) == [b"x" * 100]
        assert spool.first(9, 1) == [b"x" * 100]
        spool.close()


@pytest.mark.parametrize("durable", [True, False])
def test_a_full_one_takes_nothing_of_what_does_not_fit(tmp_path: Path, durable: bool) -> None:
    spool: Spool = opened(tmp_path, 1_000) if durable else MemorySpool(1_000)
    kept(spool, b"x" * 700)
    with pytest.raises(NotKept) as caught:
        spool.append([b"small", b"y" * 700])
    assert caught.value.is_full
    assert everything(spool) == [b"x" * 700]
    kept(spool, b"small")
    assert spool.count == 2
    spool.close()


def test_room_comes_back_when_the_oldest_are_done_with(tmp_path: Path) -> None:
    spool = opened(tmp_path, 1_000)
    for at in range(50):
        kept(spool, b"%d" % at + b"x" * 300)
        if spool.count == 2:
            spool.done(1)
    assert [item[:2] for item in everything(spool)] == [b"49"]
    assert (tmp_path / "feedback.spool").stat().st_size <= 1_000
    killed(spool)
    again = opened(tmp_path)
    assert [item[:2] for item in everything(again)] == [b"49"]
    again.close()


@pytest.mark.parametrize("cut", range(1, 14))
def test_a_torn_end_costs_the_last_record_alone(tmp_path: Path, cut: int) -> None:
    spool = opened(tmp_path)
    kept(spool, b"first", b"last!")
    killed(spool)
    path = tmp_path / "feedback.spool"
    os.truncate(path, path.stat().st_size - cut)
    again = opened(tmp_path)
    assert everything(again) == [b"first"]
    kept(again, b"more")
    killed(again)
    third = opened(tmp_path)
    assert everything(third) == [b"first", b"more"]
    third.close()


def test_a_record_that_rotted_is_passed_over_and_counted(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    kept(spool, b"first", b"second", b"third")
    killed(spool)
    path = tmp_path / "feedback.spool"
    path.write_bytes(path.read_bytes().replace(b"second", b"sEcond"))
    again = opened(tmp_path)
    assert (everything(again), again.lost, again.count) == ([b"first", b"third"], 1, 2)
    again.done(1)
    killed(again)
    third = opened(tmp_path)
    assert everything(third) == [b"third"]
    third.close()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.binary(max_size=400))
def test_any_file_can_be_opened_and_written(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "feedback.spool"
    tmp_path.mkdir(exist_ok=True)
    path.write_bytes(data if len(data) % 2 else feedback_spool._MARK + data)
    spool = opened(tmp_path)
    before = spool.count
    kept(spool, b"item")
    assert everything(spool)[-1] == b"item"
    assert spool.count == before + 1
    spool.done(spool.count)
    spool.close()


def test_one_process_has_it_and_the_next_gets_it(tmp_path: Path) -> None:
    first, second = opened(tmp_path), FileSpool(tmp_path, BYTES)
    with pytest.raises(NotKept, match="another sidecar process"):
        second.open()
    with pytest.raises(NotKept):
        second.append([b"x"])
    kept(first, b"left")
    first.close()
    second.append([b"x"])
    second.sync()
    assert everything(second) == [b"left", b"x"]
    second.close()


def test_a_full_disk_leaves_nothing_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = opened(tmp_path)
    kept(spool, b"before")
    write = os.pwrite
    with monkeypatch.context() as patch:
        patch.setattr(feedback_spool.os, "pwrite", lambda file, data, at: write(file, data[:7], at))
        with pytest.raises(NotKept):
            spool.append([b"one", b"two"])
    spool.append([b"three"])
    with monkeypatch.context() as patch:
        patch.setattr(feedback_spool.os, "fdatasync", _no_space)
        with pytest.raises(NotKept, match="No space"):
            spool.sync()
    assert everything(spool) == [b"before"]
    kept(spool, b"after")
    killed(spool)
    again = opened(tmp_path)
    assert everything(again) == [b"before", b"after"]
    again.close()


def _no_space(_: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("keep"), st.lists(st.binary(max_size=40), min_size=1, max_size=4)),
        st.tuples(st.just("done"), st.integers(1, 4)),
        st.tuples(st.just("kill"), st.just(0)),
    ),
    max_size=30,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(steps=STEPS)
def test_whatever_happens_it_holds_what_a_list_would(tmp_path: Path, steps: list) -> None:
    (tmp_path / "feedback.spool").unlink(missing_ok=True)
    spool = opened(tmp_path, 700)
    model: list[bytes] = []
    for step, value in steps:
        if step == "keep":
            try:
                kept(spool, *value)
                model += value
            except NotKept:
                assert sum(len(item) + 9 for item in [*model, *value]) > 500
        elif step == "done":
            count = min(value, len(model))
            spool.done(count)
            model = model[count:]
        else:
            killed(spool)
            spool = opened(tmp_path, 700)
        assert (everything(spool), spool.count) == (model, len(model))
    spool.close()
