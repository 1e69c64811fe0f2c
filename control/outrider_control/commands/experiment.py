"""`outrider experiment`: what is tried on whom, what may be concluded, and what an operator changes of it.

Always holds: a change says why; what a command line does not say has the control plane's default; a file and options go
together, and options win.

Deliberately not here: the statistics (the control plane decides; `simulate` plays that very code), pictures
(`experiment_view`).
"""

from __future__ import annotations

import argparse
from typing import Any

from outrider import tree, yaml_file
from outrider.experiment_spec import experiment_of
from outrider.experiment_text import METRIC_HELP
from outrider.policy import PolicyError
from outrider.v1 import experiment_pb2 as pb
from outrider_control.commands import experiment_plan, experiment_view
from outrider_control.commands.agent_files import read_bytes
from outrider_control.commands.arguments import (
    add_common,
    add_reason,
    command_parser,
    count,
    decimal,
    duration_ms,
    seconds,
)
from outrider_control.commands.experiment_plan import METHODS, share
from outrider_control.commands.output import plain, shown
from outrider_control.commands.polling import poll
from outrider_control.commands.session import WRONG, CommandError, Session, run

UNITS = ("session", "user", "request")
STATES = ("draft", "running", "paused", "stopped")


# Field of the experiment, option, how its value is read, what it is called, help.
_FIELDS: tuple[tuple[str, str, Any, str, str], ...] = (
    ("agent_id", "--agent", str, "AGENT", "whose calls"),
    ("traffic", "--traffic", share, "SHARE", "of all units, those that take part: 0.5, 50%% (default: all)"),
    ("sample_size", "--sample-size", count, "N", "units after which it ends, all variants together"),
    ("minimum_effect", "--minimum-effect", decimal, "X", "the smallest difference worth finding, in the metric's unit"),
    ("alpha", "--alpha", decimal, "X", "chance of a verdict where there is no difference (default: 0.05)"),
    ("hypothesis", "--hypothesis", str, "TEXT", "what is expected"),
    ("layer", "--layer", str, "NAME", "experiments of one layer share no unit"),
    ("min_units", "--min-units", count, "N", "per variant, before anything is concluded (default: 100)"),
    ("max_duration_s", "--max-duration", seconds, "TIME", "at most so long: 7d (default: until its sample size)"),
    ("idle_s", "--idle", seconds, "TIME", "how long a quiet session keeps its variant (default: 1d)"),
    ("seed", "--seed", str, "TEXT", "of the assignment (default: made at random)"),
    ("bandit_floor", "--bandit-floor", share, "SHARE", "the least share of any variant (default: 5%%)"),
    ("bandit_burn_in", "--bandit-burn-in", count, "N", "units per variant before shares move (default: 100)"),
)


def main(arguments: list[str]) -> int:
    """experiments: create, start, status, stop, traffic, plan, simulate, ..."""
    parser = command_parser("experiment", main.__doc__)
    actions = parser.add_subparsers(dest="action", metavar="ACTION", title="what to do (default: list)")
    _add_create(actions)
    _add_changes(actions)
    _add_reads(actions)
    experiment_plan.add_plan(actions)
    experiment_plan.add_simulate(actions)
    return run(parser, arguments, lambda session: _ACTIONS[session.options.action or "list"](session))


def _add_create(actions: Any) -> None:
    create = actions.add_parser("create", help="a new experiment, as a draft or, with --start, begun")
    create.add_argument("name", metavar="NAME", nargs="?", default="", help="unique in the mesh")
    create.add_argument("--file", "-f", metavar="FILE", default="", help="the experiment as YAML; - is standard input")
    form = "NAME[:version=v2,model=M,prompt_version=P,temperature=T,...][@SHARE]; the first is compared with"
    create.add_argument("--variant", metavar="FORM", action="append", default=[], help=form)
    create.add_argument("--metric", metavar="METRIC", default="", help=f"what is decided on: {METRIC_HELP}")
    create.add_argument("--direction", choices=("up", "down"), default="", help="which way is better")
    guard = "what must not get worse, and by how much it may: error_rate:+0.01, latency_quantile:0.95:+50, cost:+10%%"
    create.add_argument("--guardrail", metavar="FORM", action="append", default=[], help=guard)
    create.add_argument("--unit", choices=UNITS, default="", help="what is assigned (default: session)")
    create.add_argument("--method", choices=METHODS, default="", help="default: sequential, valid at any look")
    for field, option, kind, metavar, text in _FIELDS:
        create.add_argument(option, dest=field, type=kind, metavar=metavar, help=text)
    create.add_argument("--override", metavar="UNIT=VARIANT", action="append", default=[], help="a tester")
    create.add_argument("--history", action="store_true", help="use what units did before the start (CUPED)")
    create.add_argument(
        "--stop-for-win", action=argparse.BooleanOptionalAction, help="end as soon as there is a winner (default: yes)"
    )
    step = "rolls the winner out: 5%%:60s, 25%%:5m:confirm, 100%%"
    create.add_argument("--rollout-step", metavar="FORM", action="append", default=[], help=step)
    analysis = "of every step of that rollout: error_rate<=0.02, latency_quantile:0.95+50ms"
    create.add_argument("--rollout-analysis", metavar="FORM", action="append", default=[], help=analysis)
    create.add_argument("--start", action="store_true", help="begin it at once")
    add_reason(create)
    add_common(create)


def _add_changes(actions: Any) -> None:
    start = actions.add_parser("start", help="begin a draft: units are assigned and counted")
    pause = actions.add_parser("pause", help="assign no new unit; who has a variant keeps it")
    resume = actions.add_parser("resume", help="go on")
    stop = actions.add_parser("stop", help="end it by hand")
    traffic = actions.add_parser("traffic", help="let more units take part")
    for parser in (start, pause, resume, stop, traffic):
        parser.add_argument("name", metavar="NAME")
    stop.add_argument("--winner", metavar="VARIANT", default="", help="the variant that is taken to have won")
    stop.add_argument("--abort", action="store_true", help="every session goes back to the first variant at once")
    traffic.add_argument("traffic", metavar="SHARE", type=share, help="of all units: 0.5, 50%%; it can only be raised")
    for parser in (start, pause, resume, stop, traffic):
        add_reason(parser)
        add_common(parser)


def _add_reads(actions: Any) -> None:
    listing = actions.add_parser("list", help="all experiments")
    listing.add_argument("--agent", metavar="AGENT", default="", help="of this one")
    listing.add_argument("--state", choices=STATES, default="", help="in this state")
    add_common(listing)
    status = actions.add_parser("status", help="what may be concluded by now")
    status.add_argument("name", metavar="NAME")
    status.add_argument("--watch", action="store_true", help="again and again, until it has ended or Ctrl-C")
    status.add_argument("--interval", metavar="TIME", type=duration_ms, default=2_000, help="default: 2s")
    add_common(status)


def _create(session: Session) -> None:
    options = session.options
    try:
        fields = _file(options.file) if options.file else {}
        spec = experiment_of({**fields, **_fields(options)})
    except PolicyError as error:
        raise CommandError(f"{options.file}: {error}" if options.file else str(error), WRONG) from None
    if not spec.name or not spec.agent_id:
        missing = "NAME" if not spec.name else "--agent"
        raise CommandError(f"say which: {missing} is missing (outrider experiment create --help shows all)", WRONG)
    _show_changed(session, session.operator.create_experiment(spec, session.reason(), options.start))


def _fields(options: argparse.Namespace) -> dict[str, Any]:
    """What the command line says."""
    fields = {field: value for field, *_ in _FIELDS if (value := getattr(options, field)) is not None}
    said = {"name": options.name, "variants": options.variant, "guardrails": options.guardrail}
    said |= {"unit": options.unit, "method": options.method, "history": options.history}
    fields |= {name: value for name, value in said.items() if value}
    if options.metric:
        fields["metric"] = options.metric
    if options.stop_for_win is not None:
        fields["stop_for_win"] = options.stop_for_win
    if options.override:
        pairs = [text.partition("=") for text in options.override]
        wrong = next((unit for unit, _, variant in pairs if not unit or not variant), None)
        if wrong is not None:
            raise PolicyError("--override", f"{wrong!r} is not UNIT=VARIANT")
        fields["overrides"] = {unit: variant for unit, _, variant in pairs}
    if options.rollout_step or options.rollout_analysis:
        fields["rollout"] = {
            "name": f"{options.name}-rollout",
            "agent_id": options.agent_id or "",
            "steps": options.rollout_step,
            "analyses": options.rollout_analysis,
        }
    if options.direction:
        fields["metric"] = _directed(fields.get("metric", ""), options.direction)
    return fields


def _directed(metric: str, direction: str) -> pb.Metric:
    if not metric:
        raise PolicyError("--direction", "needs --metric")
    made = experiment_of({"metric": metric}).metric
    made.direction = direction
    return made


def _file(path: str) -> dict[str, Any]:
    name, content = read_bytes(path)
    try:
        data = yaml_file.parse(content)
    except yaml_file.YamlError as error:
        raise CommandError(f"{name}: {error}") from None
    return dict(tree.section(data, "", [field.name for field in pb.ExperimentSpec.DESCRIPTOR.fields]))


def _start(session: Session) -> None:
    _show_changed(session, session.operator.start_experiment(session.options.name, session.reason()))


def _pause(session: Session) -> None:
    _show_changed(session, session.operator.pause_experiment(session.options.name, session.reason()))


def _resume(session: Session) -> None:
    _show_changed(session, session.operator.resume_experiment(session.options.name, session.reason()))


def _stop(session: Session) -> None:
    options = session.options
    record = session.operator.stop_experiment(options.name, session.reason(), options.winner, options.abort)
    _show_changed(session, record)


def _traffic(session: Session) -> None:
    options = session.options
    _show_changed(session, session.operator.set_experiment_traffic(options.name, session.reason(), options.traffic))


def _show_changed(session: Session, record: pb.ExperimentRecord) -> None:
    out = session.out
    if out.is_json:
        out.json(plain(record))
        return
    out.show(experiment_view.picture(record, out.console.width))


def _list(session: Session) -> None:
    options, out = session.options, session.out
    reply = session.operator.list_experiments(getattr(options, "agent", ""), getattr(options, "state", ""))
    if out.is_json:
        out.json({"experiments": [plain(record) for record in reply.experiments]})
        return
    if not reply.experiments:
        out.line("no experiment: outrider experiment create NAME --agent AGENT --variant ... --metric ...", "yellow")
        return
    out.show(experiment_view.listing(reply.experiments))
    for record in reply.experiments:
        if record.problem:
            out.line(f"{shown(record.spec.name)}: {shown(record.problem)}", "red")


def _status(session: Session) -> None:
    options, out = session.options, session.out
    if options.watch:
        poll(
            session,
            lambda: session.operator.get_experiment(options.name),
            lambda record: experiment_view.picture(record, out.console.width),
            experiment_view.is_over,
            options.interval / 1_000,
        )
        return
    _show_changed(session, session.operator.get_experiment(options.name))


_ACTIONS = {
    "create": _create,
    "start": _start,
    "pause": _pause,
    "resume": _resume,
    "stop": _stop,
    "traffic": _traffic,
    "list": _list,
    "status": _status,
    "plan": experiment_plan.plan,
    "simulate": experiment_plan.simulate,
}
