"""What may be concluded of an experiment by now, in one sentence for people.

Always holds: one sentence without a line break; no figure that is hidden, and none that is not known.

Deliberately not here: the decision (`decide`).
"""

from __future__ import annotations

from outrider_control.loops.experiment.types import (
    HARM,
    INCONCLUSIVE,
    NO_DIFFERENCE,
    WIN,
    ComparisonResult,
    Decision,
    GuardrailResult,
    Seen,
    Spec,
)


def sentence(spec: Spec, seen: Seen, decision: Decision) -> str:
    """Of one decision."""
    if decision.verdict == HARM or (decision.harmful and not decision.verdict):
        return _harm(spec, decision)
    if decision.srm.mismatch:
        return f"Nothing may be concluded: {_ratio(spec, seen)}, so that the variants' units cannot be compared."
    if decision.hidden:
        total = sum([one.units for one in seen.variants])
        end = f"{spec.sample_size:,} units are there" if spec.sample_size else "its end"
        return f"Nothing may be concluded, or is shown, before {end}: {total:,} units are there."
    if decision.verdict == WIN:
        return _win(spec, decision)
    if decision.verdict == NO_DIFFERENCE:
        others = _names(spec.variants[1:])
        return (
            f"{others} and {spec.variants[0]} differ in {spec.metric.label} by less than {spec.minimum_effect:g}"
            f"{_level(spec)}."
        )
    start = "Nothing may be concluded" if decision.verdict == INCONCLUSIVE else "Nothing may be concluded yet"
    return _open(spec, seen, decision, start)


def _harm(spec: Spec, decision: Decision) -> str:
    breached = [one for one in decision.guardrails if one.state == "breached" and one.variant in decision.harmful]
    if not breached:
        worse = [one for one in decision.comparisons if one.variant in decision.harmful]
        return "; ".join([_compared(spec, one) for one in worse]) + "."
    text = "; ".join([_breach(spec, one) for one in breached])
    if decision.srm.mismatch:
        text += " (units did not come as they were to be divided, which may be why)"
    return text + "."


def _breach(spec: Spec, rail: GuardrailResult) -> str:
    least = "" if rail.low is None else f" by at least {_number(rail.low)}"
    return f"{rail.variant} is worse than {spec.variants[0]} in {rail.metric}{least}, where {rail.margin:g} is allowed"


def _win(spec: Spec, decision: Decision) -> str:
    better = [one for one in decision.comparisons if one.verdict == "better"]
    text = "; ".join([_compared(spec, one) for one in better])
    if len(better) > 1:
        text += f"; {decision.winner} gained most"
    unsure = [one.metric for one in decision.guardrails if one.variant == decision.winner and one.state != "kept"]
    if unsure:
        text += f"; that it is not worse in {_names(unsure)} is not shown"
    return text + "."


def _open(spec: Spec, seen: Seen, decision: Decision, start: str) -> str:
    empty = [one.name for one in seen.variants if not one.units]
    if empty:
        return f"{start}: no unit of {_names(empty)} was counted."
    few = [f"{one.name} has {one.units:,}" for one in seen.variants if one.units < spec.min_units]
    if few:
        return f"{start}: {spec.min_units:,} units of every variant are needed, {_names(few)}."
    decided = [one for one in decision.comparisons if one.verdict != "open"]
    if decided and not decision.verdict:
        return "; ".join([_compared(spec, one) for one in decided]) + f"; {decision.reason}."
    unknown = [one.variant for one in decision.comparisons if one.effect is None]
    if unknown:
        label, names = spec.metric.label, _names([*unknown, spec.variants[0]])
        return f"{start}: {label} of {names} cannot be compared, too few units have it or a single one outweighs them."
    return f"{start}: " + "; ".join([_compared(spec, one) for one in decision.comparisons]) + "."


def _compared(spec: Spec, result: ComparisonResult) -> str:
    """One variant against the first."""
    said = {
        "better": "is better than",
        "worse": "is worse than",
        "no_difference": "does not differ noticeably from",
    }.get(result.verdict, "may be better or worse than")
    figures = f"{spec.metric.label} {_number(result.control)} to {_number(result.value)}"
    ends = f"between {_number(result.low)} and {_number(result.high)}{_level(spec)}"
    return f"{result.variant} {said} {spec.variants[0]}: {figures}, a difference {ends}"


def _ratio(spec: Spec, seen: Seen) -> str:
    total = max(1, sum([one.units for one in seen.variants]))
    came = " / ".join([f"{one.units / total:.1%}" for one in seen.variants])
    planned = " / ".join([f"{share:.1%}" for share in spec.shares])
    return f"units came {came} where {planned} were planned"


def _level(spec: Spec) -> str:
    return f" at {100.0 * (1.0 - spec.alpha):g} % confidence"


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4g}"


def _names(names: list[str] | tuple[str, ...]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)
