"""A case: bytes sent after the preface, and what must come of them. Case by case in the manner of h2spec.

Always holds: a connection error shows as GOAWAY of an allowed code and a closed socket; a stream error as RST_STREAM of
an allowed code (or, where the RFC leaves the choice, the former) on a connection that goes on; a harmless case as
neither. A connection that goes on answers the PING behind the bytes and a further request.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest

from outrider_http2.limits import Limits
from tests.conformance.http2.peer import Outcome, RawPeer, connected, serving
from tests.conformance.http2.wire import Wire

AFTER = 101  # the stream that shows that a connection goes on


@dataclass(frozen=True)
class Case:
    section: str
    what: str
    send: Callable[[Wire], bytes]
    goaway: tuple[int, ...] = ()  # codes of a connection error
    resets: tuple[int, ...] = ()  # codes of a stream error
    stream: int = 1  # whose error it is
    answers: tuple[int, ...] = ()  # streams that are answered with 200
    preface: bytes | None = None
    limits: Limits = field(default_factory=Limits)

    def __str__(self) -> str:
        return f"{self.section}-{self.what}".replace(" ", "_")


def refused(section: str, what: str, send: Callable[[Wire], bytes], *codes: int, **more: object) -> Case:
    """A connection error of one of these codes."""
    return replace(Case(section, what, send, goaway=codes), **more)


def reset(section: str, what: str, send: Callable[[Wire], bytes], *codes: int, **more: object) -> Case:
    """A stream error of one of these codes."""
    return replace(Case(section, what, send, resets=codes), **more)


def fine(section: str, what: str, send: Callable[[Wire], bytes], *answers: int, **more: object) -> Case:
    """No error at all; these streams are answered."""
    return replace(Case(section, what, send, answers=answers), **more)


async def run(case: Case) -> None:
    """Play one case against a server of its own."""
    async with serving(case.limits) as (server, port), connected(port, case.preface) as peer:
        peer.send(case.send(peer.wire))
        seen = await peer.probe()
        if case.goaway:
            await peer.until(lambda _: False)  # to the end
            check_refused(case, seen)
            assert server.conns[0].failed is not None
            assert not server.conns[0].streams
        else:
            await goes_on(case, peer)
            for stream_id in case.answers:
                assert seen.status(stream_id) == "200"
                assert stream_id in seen.ended
                assert stream_id not in seen.resets


def check_refused(case: Case, seen: Outcome) -> None:
    assert seen.goaway in case.goaway, f"GOAWAY {seen.goaway}, wanted one of {case.goaway}; frames {seen.frames}"
    assert seen.closed


async def goes_on(case: Case, peer: RawPeer) -> None:
    """The connection stands, the right streams are reset and no others, and a further request is answered."""
    seen = peer.seen
    assert not seen.closed, f"closed with GOAWAY {seen.goaway}"
    assert seen.goaway is None
    if case.resets:
        assert seen.resets.keys() == {case.stream}, f"resets {seen.resets}"
        assert seen.resets[case.stream] in case.resets
    else:
        assert not seen.resets
    peer.send(peer.wire.open(AFTER, end=True))
    await peer.until(lambda seen: AFTER in seen.ended or AFTER in seen.resets)
    assert AFTER in seen.ended, "the connection serves nobody any more"


def table(cases: list[Case]) -> pytest.MarkDecorator:
    """Parametrize over cases; their names must be different."""
    names = [str(case) for case in cases]
    assert len(set(names)) == len(names), sorted(name for name in names if names.count(name) > 1)
    return pytest.mark.parametrize("case", cases, ids=names)
