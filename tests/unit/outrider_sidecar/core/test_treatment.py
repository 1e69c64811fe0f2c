"""What the variants of a call come to."""

from __future__ import annotations

from outrider.split import Variant
from outrider_http2.hpack import Decoder, literal
from outrider_sidecar.core.treatment import Arm, Treatment


def treatment(*variants: Variant) -> Treatment:
    return Treatment([Arm(f"s{at}", variant) for at, variant in enumerate(variants)])


def test_what_is_said() -> None:
    one = treatment(Variant("A", prompt_version="p 1"), Variant("B"))
    assert one.variant == "s0=A,s1=B"
    assert one.trailer == literal(b"x-outrider-variant", b"s0=A,s1=B")
    fields = ((b"x-outrider-variant", b"s0=A,s1=B"), (b"x-outrider-prompt-version", b"p 1"))
    assert Decoder().decode(one.metadata) == fields
    assert (one.rewrite, one.compression, one.labels) == (None, None, ())


def test_the_later_split_wins_where_two_say_something() -> None:
    first = Variant("A", 1, (), {"v": "1", "z": "x"}, "p1", "m1", 0.5, 0.9, 10, True)
    one = treatment(first, Variant("B", labels={"v": "2"}, temperature=0.0, compression=False))
    assert one.labels == (("v", "2"),)
    assert one.compression is False
    assert one.rewrite is not None
    wanted = one.rewrite
    assert (wanted.model, wanted.temperature, wanted.top_p, wanted.max_output_tokens) == ("m1", 0.0, 0.9, 10)
    assert treatment(first, Variant("B")).labels == (("v", "1"), ("z", "x"))


def test_the_key_changes_with_the_name_and_with_the_meaning() -> None:
    kinds = [
        Variant("A"),
        Variant("B"),
        Variant("A", model="m"),
        Variant("A", temperature=0.0),
        Variant("A", top_p=0.0),
        Variant("A", max_output_tokens=1),
        Variant("A", prompt_version="p"),
        Variant("A", compression=True),
        Variant("A", labels={"v": "1"}),
    ]
    assert len({treatment(one).key for one in kinds}) == len(kinds)
    assert treatment(kinds[2]).key == treatment(Variant("A", 0.7, model="m")).key  # shares mean nothing to a reply
