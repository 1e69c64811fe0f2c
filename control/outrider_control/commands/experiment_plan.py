"""`outrider experiment plan` and `simulate`: what an experiment would need, and how the code that decides behaves.

Always holds: `simulate` runs the control plane's own `decide`, on this machine, and asks nobody; the same seed gives
the same figures.

Deliberately not here: experiments that exist (`experiment`).
"""

from __future__ import annotations

import argparse
from typing import Any

from outrider.experiment_text import share_of
from outrider.policy import PolicyError
from outrider_control.commands.arguments import add_common, count, decimal
from outrider_control.commands.figures import optional
from outrider_control.commands.output import number, percent, plain
from outrider_control.commands.session import WRONG, CommandError, Session

METHODS = ("sequential", "fixed", "bandit")


def share(text: str) -> float:
    """0.25 or 25%."""
    try:
        return share_of(text, "")
    except PolicyError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_plan(actions: Any) -> None:
    """The parser of `plan`."""
    parser = actions.add_parser("plan", help="how many units an experiment needs, and how long that takes")
    parser.add_argument("--baseline", metavar="X", type=decimal, required=True, help="the first variant's value")
    parser.add_argument("--minimum-effect", metavar="X", type=decimal, required=True, help="the difference to be found")
    parser.add_argument("--sd", metavar="X", type=decimal, default=0.0, help="of one unit's value; without it: a rate")
    parser.add_argument("--alpha", metavar="X", type=decimal, default=0.0, help="default: 0.05")
    parser.add_argument("--power", metavar="X", type=decimal, default=0.0, help="default: 0.8")
    shares = "of a variant's traffic, one by one, the first variant's first (default: two halves)"
    parser.add_argument("--share", metavar="SHARE", type=share, action="append", default=[], help=shares)
    parser.add_argument("--units-per-day", metavar="N", type=decimal, default=0.0, help="that take part")
    parser.add_argument("--agent", metavar="AGENT", default="", help="whose traffic of the last day says it")
    parser.add_argument("--method", choices=METHODS[:2], default="", help="default: sequential")
    add_common(parser)


def plan(session: Session) -> None:
    """Ask the control plane what it would need."""
    options, out = session.options, session.out
    reply = session.operator.plan_experiment(
        "mean" if options.sd else "share",
        options.baseline,
        options.minimum_effect,
        options.sd,
        options.alpha,
        options.power,
        options.share,
        options.units_per_day,
        options.agent,
        options.method,
    )
    if out.is_json:
        out.json(plain(reply))
        return
    out.line(f"{number(reply.sample_size)} units in all variants: {percent(reply.power)} power")
    if reply.median_units:
        out.line(f"half of such experiments are over by {number(reply.median_units)} units")
    days = optional(reply, "days")
    if days is not None:
        out.line(f"that takes {days:.1f} days")
    else:
        out.line("how long that takes: say --units-per-day N, or --agent AGENT whose traffic is known", "dim")


def add_simulate(actions: Any) -> None:
    """The parser of `simulate`."""
    about = (
        "play the very code that decides: false positives where there is no difference, power and time where there is"
    )
    parser = actions.add_parser("simulate", help=about)
    parser.add_argument("--p-a", metavar="P", type=share, help="a rate: the first variant's")
    parser.add_argument("--p-b", metavar="P", type=share, help="the other's; the same: how often it errs")
    parser.add_argument("--mean-a", metavar="X", type=decimal, help="a numeric metric: the first variant's mean")
    parser.add_argument("--mean-b", metavar="X", type=decimal, help="the other's")
    parser.add_argument("--sd", metavar="X", type=decimal, help="of one value, lognormal; with --mean-a and --mean-b")
    parser.add_argument("--cluster", metavar="N", type=decimal, default=1.0, help="calls of a session, that are alike")
    parser.add_argument(
        "--share", metavar="SHARE", type=share, default=0.5, help="of the first variant (default: half)"
    )
    parser.add_argument("--units", metavar="N", type=count, default=20_000, help="in all (default: 20000)")
    parser.add_argument("--looks", metavar="N", type=count, default=100, help="evenly over the units (default: 100)")
    parser.add_argument("--runs", metavar="N", type=count, default=2_000, help="experiments (default: 2000)")
    parser.add_argument("--alpha", metavar="X", type=decimal, default=0.05, help="default: 0.05")
    parser.add_argument("--minimum-effect", metavar="X", type=decimal, default=0.0, help="as in create")
    parser.add_argument("--method", choices=METHODS, default="sequential", help="default: sequential")
    parser.add_argument("--seed", metavar="N", type=count, default=1, help="default: 1")
    add_common(parser, connects=False)


def simulate(session: Session) -> None:
    """Play it here."""
    options, out = session.options, session.out
    is_rate = options.p_a is not None and options.p_b is not None
    is_mean = options.mean_a is not None and options.mean_b is not None and bool(options.sd)
    if is_rate == is_mean:
        raise CommandError("say what is compared: --p-a and --p-b, or --mean-a, --mean-b and --sd", WRONG)
    try:
        from outrider_control.loops.experiment.simulate import Scenario
        from outrider_control.loops.experiment.simulate import simulate as play
    except ModuleNotFoundError as error:
        reason = f"{error.name} is not installed: pip install 'outrider[control]'"
        raise CommandError(reason, WRONG) from None
    try:
        report = play(
            Scenario(
                p_a=options.p_a,
                p_b=options.p_b,
                mean_a=options.mean_a,
                mean_b=options.mean_b,
                sd=options.sd or 0.0,
                cluster=options.cluster,
                share=options.share,
                units=options.units,
                looks=options.looks,
                runs=options.runs,
                alpha=options.alpha,
                minimum_effect=options.minimum_effect,
                method=options.method,
                seed=options.seed,
            )
        )
    except ValueError as error:
        raise CommandError(str(error), WRONG) from None
    if out.is_json:
        out.json(report.plain())
        return
    what = "power" if (options.p_a, options.mean_a) != (options.p_b, options.mean_b) else "false positives"
    bounds = f"{percent(report.reject_low)} to {percent(report.reject_high)}"
    out.line(f"{percent(report.reject_rate)} of {number(report.runs)} named a winner or a loser ({bounds}): {what}")
    out.line(f"half of them are over by {number(round(report.median_units))} of {number(report.units)} units")
    if report.median_units_rejected is not None:
        out.line(f"where one was named: by {number(round(report.median_units_rejected))} units")
    ends = (
        ("win", report.win_rate),
        ("harm", report.harm_rate),
        ("no difference", report.no_difference_rate),
        ("inconclusive", report.inconclusive_rate),
        ("sample ratio mismatch", report.srm_rate),
    )
    out.line(", ".join([f"{name} {percent(rate)}" for name, rate in ends]), "dim")
