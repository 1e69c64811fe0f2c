"""What is to be done about an experiment, and what may be concluded, from what is seen of it at one look.

How it decides, first match first:
1. Harm: a variant breaches a guardrail (also under a sample ratio mismatch: an abort errs on the safe side) or is worse
   by the main metric. It is taken out, and its share goes to the others; with none left beside the first one it stops.
2. Units did not come as they were to be divided: no verdict, and at the end "srm".
3. fixed: nothing of the main metric is concluded, or shown, before its end; there once and for all.
4. A variant is better, and no other may still be as good: stop, win, if that is wanted and its guardrails are kept.
   At the end it wins without the latter, which the conclusion says.
5. No variant differs by as much as would matter: stop, no difference, if an early end is wanted.
6. Sample size or longest duration reached: stop, inconclusive.
7. bandit: shares follow the chances, at most every `RESHARE_MS`.

Always holds: pure; no verdict while a variant has fewer than `min_units` units, or from no data; a verdict comes with
"stop" and never otherwise; an alarm of the ratio stays; a variant that was taken out stays out; a clock that jumps back
changes nothing, one that jumps ahead counts for `MAX_STEP_MS` at most.

Deliberately not here: intervals (`compare`), words (`conclude`), what is done then (`act`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf
from random import Random
from typing import Any

from outrider_control.core.stats import bandit, srm
from outrider_control.loops.experiment import compare, conclude
from outrider_control.loops.experiment.types import (
    BANDIT,
    FIXED,
    HARM,
    HOLD,
    INCONCLUSIVE,
    NO_DIFFERENCE,
    RESHARE,
    SRM,
    STOP,
    WIN,
    ComparisonResult,
    Decision,
    GuardrailResult,
    Seen,
    Spec,
    SrmSeen,
    State,
)

MAX_STEP_MS = 600_000  # looks are seconds apart: more is a clock that was set, or a time when nobody looked
RESHARE_MS = 60_000
RESHARE_LEAST = 0.01  # a smaller change of every share is not worth telling every sidecar
MAX_LOG_EVIDENCE = 700.0  # exp of it is a number still


def decide(seen: Seen, state: State, spec: Spec, now_ms: int, rng: Random) -> tuple[Decision, State]:
    """One look. ValueError: what is seen is not of the variants of the spec."""
    if tuple([one.name for one in seen.variants]) != spec.variants or len(spec.variants) < 2:
        raise ValueError(f"experiment {spec.name}: seen of {[one.name for one in seen.variants]}, not {spec.variants}")
    ratio, after = _looked(seen, state, spec, now_ms)
    end = _end(seen, spec, after)
    hidden = spec.method == FIXED and not end
    results: tuple[ComparisonResult, ...]
    if hidden:
        results = tuple([ComparisonResult(name) for name in spec.variants[1:]])
    else:
        results, running = compare.comparisons(spec, seen, after.running)
        after = replace(after, running=running)
    rails = compare.guardrails(spec, seen) if spec.guardrails else ()
    look = _Look(spec, seen, after, results, rails, ratio, end, hidden)
    decision = look.decided()
    best: tuple[float, ...] = ()
    if decision.action == RESHARE:
        after = replace(after, shares=decision.shares, out=(*after.out, *decision.harmful))
    elif spec.method == BANDIT:
        decision, after, best = _reshared(decision, spec, seen, after, rng, ratio)
    decision = replace(
        decision,
        at_ms=now_ms,
        comparisons=results,
        guardrails=tuple([_without_figures(spec, one) for one in rails]) if hidden else rails,
        srm=ratio,
        best=best,
        hidden=hidden,
        inputs=_inputs(spec, seen, after, end),
    )
    return replace(decision, conclusion=conclude.sentence(spec, seen, decision)), after


def _looked(seen: Seen, state: State, spec: Spec, now_ms: int) -> tuple[SrmSeen, State]:
    """The ratio at this look, and the state with its clock and its evidence taken on."""
    step = min(MAX_STEP_MS, max(0, now_ms - state.last_ms)) if state.last_ms else 0
    evidence, p_value = state.srm_log_evidence, None
    # A bandit's units come by shares that change: they are held against what was planned only while that holds.
    if not (state.shares and spec.method == BANDIT):
        # Between those that are not taken out the ratio is as it was planned.
        held = [at for at, name in enumerate(spec.variants) if name not in state.out]
        units = [seen.variants[at].units for at in held]
        total = sum([spec.shares[at] for at in held])
        shares = [spec.shares[at] / total for at in held]
        evidence = min(MAX_LOG_EVIDENCE, max(evidence, srm.log_bayes_factor(units, shares)))
        p_value = srm.chi2_p(units, shares)
    after = replace(
        state,
        looks=state.looks + 1,
        last_ms=now_ms,
        elapsed_ms=state.elapsed_ms + step,
        srm_log_evidence=evidence,
    )
    return SrmSeen(p_value, evidence, srm.is_mismatch(evidence)), after


def _end(seen: Seen, spec: Spec, state: State) -> str:
    """Why there is no further look. Empty: there is."""
    if spec.sample_size and sum([one.units for one in seen.variants]) >= spec.sample_size:
        return "sample size"
    if spec.max_duration_s and state.elapsed_ms >= spec.max_duration_s * 1_000:
        return "longest duration"
    return ""


@dataclass(frozen=True, slots=True)
class _Look:
    """One look: rules 1 to 6."""

    spec: Spec
    seen: Seen
    state: State
    results: Sequence[ComparisonResult]
    rails: Sequence[GuardrailResult]
    ratio: SrmSeen
    end: str
    hidden: bool

    def decided(self) -> Decision:
        spec, end = self.spec, self.end
        breached = [one for one in self.rails if one.state == "breached" and one.variant not in self.state.out]
        if breached:
            labels = ", ".join([f"{one.metric} of {one.variant}" for one in breached])
            return self._harmed([one.variant for one in breached], f"guardrail breached: {labels}")
        if self.ratio.mismatch:
            why = "sample ratio mismatch"
            return _stop(SRM, f"{end} reached, {why}") if end else _hold(f"{why}: no verdict")
        if self.hidden:
            return _hold("hidden until its end")
        few = [one.name for one in self.seen.variants if one.units < spec.min_units and one.name not in self.state.out]
        if few:
            why = f"fewer than {spec.min_units} units of {', '.join(few)}"
            return _stop(INCONCLUSIVE, f"{end} reached, {why}") if end else _hold(why)
        return self._compared([one for one in self.results if one.variant not in self.state.out])

    def _harmed(self, variants: Sequence[str], reason: str) -> Decision:
        """Those are taken out; it stops where none is left to be compared."""
        harmful = tuple(dict.fromkeys(variants))
        out = {*harmful, *self.state.out}
        left = [name for name in self.spec.variants[1:] if name not in out]
        if not left or self.end:
            return _stop(HARM, reason, harmful=harmful)
        held = self.state.shares or self.spec.shares
        kept = [0.0 if name in out else share for name, share in zip(self.spec.variants, held, strict=True)]
        shares = tuple([share / sum(kept) for share in kept])
        return replace(_hold(f"{reason}; taken out"), action=RESHARE, harmful=harmful, shares=shares)

    def _compared(self, results: Sequence[ComparisonResult]) -> Decision:
        """Of the variants that are in: the main metric's part of rule 1, and rules 4 to 6."""
        spec, end = self.spec, self.end
        worse = tuple([one.variant for one in results if one.verdict == "worse"])
        if worse and (not end or len(worse) == len(results)):
            return self._harmed(worse, f"worse: {', '.join(worse)}")
        better = [one for one in results if one.verdict == "better"]
        if better:
            winner = max(better, key=lambda one: _ends(spec, one)[0])
            return self._better(winner, [one for one in results if one is not winner], worse)
        if (end or spec.stop_for_win) and all([one.verdict == "no_difference" for one in results]):
            return _stop(NO_DIFFERENCE, f"no difference of {spec.minimum_effect:g} or more")
        if end:
            return _stop(INCONCLUSIVE, f"{end} reached without a verdict", harmful=worse)
        return _hold("not decided yet")

    def _better(self, winner: ComparisonResult, others: Sequence[ComparisonResult], worse: tuple[str, ...]) -> Decision:
        """Rule 4."""
        name = winner.variant
        if self.end:
            return _stop(WIN, f"{self.end} reached, {name} is better", name, worse)
        if not self.spec.stop_for_win:
            return _hold(f"{name} is better; it goes on to its end")
        least = _ends(self.spec, winner)[0]
        rivals = [one.variant for one in others if _ends(self.spec, one)[1] > least]
        if rivals:
            return _hold(f"{name} is better, but {', '.join(rivals)} may be as good")
        unsure = [one.metric for one in self.rails if one.variant == name and one.state != "kept"]
        if unsure:
            return _hold(f"{name} is better, but not yet shown to keep: {', '.join(unsure)}")
        return _stop(WIN, f"{name} is better", name)


def _ends(spec: Spec, result: ComparisonResult) -> tuple[float, float]:
    """The least and the most gain that the interval leaves."""
    low = -inf if result.low is None else result.low
    high = inf if result.high is None else result.high
    return (low, high) if spec.metric.up else (-high, -low)


def _stop(verdict: str, reason: str, winner: str = "", harmful: tuple[str, ...] = ()) -> Decision:
    return Decision(0, STOP, reason, "", verdict, winner, harmful)


def _hold(reason: str) -> Decision:
    return Decision(0, HOLD, reason, "")


def _without_figures(spec: Spec, rail: GuardrailResult) -> GuardrailResult:
    """A guardrail on the main metric would show what is hidden."""
    if rail.metric != spec.metric.label:
        return rail
    return replace(rail, harm=None, low=None, high=None)


def _reshared(
    decision: Decision, spec: Spec, seen: Seen, state: State, rng: Random, ratio: SrmSeen
) -> tuple[Decision, State, tuple[float, ...]]:
    """Rule 7, of the variants that are in. Quantiles have no posterior: their shares stay."""
    standing = [at for at, name in enumerate(spec.variants) if name not in state.out]
    known = [found for at in standing if (found := seen.variants[at].moments.get(spec.metric.key)) is not None]
    if spec.metric.is_quantile or len(known) < max(2, len(standing)):
        return decision, state, ()
    burn_in = max(spec.bandit_burn_in, spec.min_units)
    found = bandit.allocate(known, spec.metric.up, min(spec.bandit_floor, 1.0 / len(known)), burn_in, rng)
    if found.is_burning_in:
        return decision, state, ()
    shares, best = [0.0] * len(spec.variants), [0.0] * len(spec.variants)
    for at, share, chance in zip(standing, found.shares, found.best, strict=True):
        shares[at], best[at] = share, chance
    changed = max([abs(one - two) for one, two in zip(shares, state.shares or spec.shares, strict=True)])
    is_due = not state.reshared_ms or state.elapsed_ms - state.reshared_ms >= RESHARE_MS
    # Under a mismatch what is wrong with the division is not to be mixed up with another one.
    if decision.action != HOLD or ratio.mismatch or not is_due or changed < RESHARE_LEAST:
        return decision, state, tuple(best)
    after = replace(state, shares=tuple(shares), reshared_ms=state.elapsed_ms)
    moved = replace(decision, action=RESHARE, reason="shares follow the chances", shares=tuple(shares))
    return moved, after, tuple(best)


def _inputs(spec: Spec, seen: Seen, state: State, end: str) -> dict[str, Any]:
    """What the decision was made from, beside what it shows; nothing that a fixed horizon hides."""
    return {
        "method": spec.method,
        "alpha": spec.alpha,
        "units": {one.name: one.units for one in seen.variants},
        "calls": {one.name: one.calls for one in seen.variants},
        "looks": state.looks,
        "elapsed_ms": state.elapsed_ms,
        "flipped": seen.flipped,
        "left_out": seen.left_out,
        "out": list(state.out),
        "end": end,
    }
