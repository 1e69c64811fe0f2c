"""What may be concluded, in one sentence."""

from __future__ import annotations

from dataclasses import replace

import pytest

from outrider_control.loops.experiment.types import FIXED, Guardrail, Spec
from tests.unit.outrider_control.loops.experiment.made import ACCURACY, ERRORS, GUARDED, SPEC, THREE, look, variant

EARLY = "Nothing may be concluded yet: "


@pytest.mark.parametrize(
    ("spec", "sides", "wanted"),
    [
        (SPEC, (variant("A", 60, 10), variant("B", 0)), EARLY + "no unit of B was counted."),
        (SPEC, (variant("A", 0), variant("B", 0)), EARLY + "no unit of A and B was counted."),
        (
            THREE,
            (variant("A", 99, 10), variant("B", 50, 9), variant("C", 120, 9)),
            EARLY + "100 units of every variant are needed, A has 99 and B has 50.",
        ),
        (
            SPEC,
            (variant("A", 5_000, 1_500), variant("B", 5_000, 1_510)),
            EARLY + "B may be better or worse than A: accuracy 0.3 to 0.302, a difference between -0.02672 and 0.03072 "
            "at 95 % confidence.",
        ),
        (
            SPEC,
            (variant("A", 10_000, 3_000), variant("B", 10_000, 3_010)),
            (
                "Nothing may be concluded: B may be better or worse than A: accuracy 0.3 to 0.301, a difference "
                "between -0.0189 and 0.0209 at 95 % confidence."
            ),
        ),
        (
            SPEC,
            (variant("A", 5_000, 1_500), variant("B", 5_000, 1_800)),
            "B is better than A: accuracy 0.3 to 0.36, a difference between 0.0308 and 0.0892 at 95 % confidence.",
        ),
        (
            replace(SPEC, minimum_effect=0.05),
            (variant("A", 5_000, 1_500), variant("B", 5_000, 1_510)),
            "B and A differ in accuracy by less than 0.05 at 95 % confidence.",
        ),
        (
            GUARDED,
            (variant("A", 2_000, 600, 20), variant("B", 2_000, 900, 200)),
            "B is worse than A in error_rate by at least 0.06676, where 0.01 is allowed.",
        ),
        (
            replace(SPEC, method=FIXED),
            (variant("A", 5_000, 1_500), variant("B", 5_000, 1_800)),
            "Nothing may be concluded, or is shown, before 20,000 units are there: 10,000 units are there.",
        ),
        (
            replace(SPEC, stop_for_win=False),
            (variant("A", 5_000, 1_500), variant("B", 5_000, 1_800)),
            (
                "B is better than A: accuracy 0.3 to 0.36, a difference between 0.0308 and 0.0892 at 95 % confidence; "
                "B is better; it goes on to its end."
            ),
        ),
    ],
)
def test_sentences(spec: Spec, sides: tuple, wanted: str) -> None:
    said = look(spec, *sides)[0].conclusion
    assert skeleton(said) == skeleton(wanted)
    assert numbers_of(said) == pytest.approx(numbers_of(wanted), rel=0.15, abs=0.002)


def skeleton(text: str) -> list[str]:
    return [word for word in text.split() if not any([letter.isdigit() for letter in word])]


def numbers_of(text: str) -> list[float]:
    words = [word.strip(".,:;%").replace(",", "") for word in text.split()]
    return [float(word) for word in words if any([letter.isdigit() for letter in word])]


def test_a_hidden_experiment_without_a_size_names_its_end() -> None:
    spec = replace(SPEC, method=FIXED, sample_size=0)
    said = look(spec, variant("A", 500, 100), variant("B", 500, 100))[0].conclusion
    assert said == "Nothing may be concluded, or is shown, before its end: 1,000 units are there."


def test_two_guardrails_are_both_named() -> None:
    spec = replace(SPEC, guardrails=(Guardrail(ERRORS, 0.01), Guardrail(ACCURACY, 0.01)))
    said = look(spec, variant("A", 2_000, 1_000, 20), variant("B", 2_000, 400, 200))[0].conclusion
    assert "error_rate by at least" in said
    assert "; B is worse than A in accuracy by at least" in said
