"""`outrider rollout`: how a new version goes out step by step, and what an operator changes of it.

Always holds: a change says why; what a command line does not say has the control plane's default; a file and options go
together, and options win.

Deliberately not here: the decisions (the control plane's rollout loop), pictures (`rollout_view`).
"""

from __future__ import annotations

import argparse
from typing import Any

from outrider import tree, yaml_file
from outrider.experiment_spec import rollout_of
from outrider.policy import PolicyError
from outrider.v1 import experiment_pb2 as pb
from outrider_control.commands import rollout_view
from outrider_control.commands.agent_files import read_bytes
from outrider_control.commands.arguments import add_common, add_reason, command_parser, duration_ms, seconds
from outrider_control.commands.output import plain, shown
from outrider_control.commands.polling import poll
from outrider_control.commands.session import WRONG, CommandError, Session, run

UNITS = ("session", "user", "request")


def main(arguments: list[str]) -> int:
    """rollouts: create, list, status, promote, pause, resume, abort"""
    parser = command_parser("rollout", main.__doc__)
    actions = parser.add_subparsers(dest="action", metavar="ACTION", title="what to do (default: list)")
    _add_create(actions)
    _add_changes(actions)
    listing = actions.add_parser("list", help="all rollouts")
    listing.add_argument("--agent", metavar="AGENT", default="", help="of this one")
    add_common(listing)
    status = actions.add_parser("status", help="where one stands, and why")
    status.add_argument("name", metavar="NAME")
    status.add_argument("--watch", action="store_true", help="again and again, until it has ended or Ctrl-C")
    status.add_argument("--interval", metavar="TIME", type=duration_ms, default=1_000, help="default: 1s")
    add_common(status)
    return run(parser, arguments, lambda session: _ACTIONS[session.options.action or "list"](session))


def _add_create(actions: Any) -> None:
    create = actions.add_parser("create", help="a new rollout; it begins at once")
    create.add_argument("name", metavar="NAME", nargs="?", default="", help="unique in the mesh")
    create.add_argument("--file", "-f", metavar="FILE", default="", help="the rollout as YAML; - is standard input")
    create.add_argument("--agent", metavar="AGENT", default="", help="whose calls")
    form = "what goes out: version=v2, model=M, prompt_version=P, ..., with commas between"
    create.add_argument("--candidate", metavar="FORM", default="", help=form)
    create.add_argument("--stable", metavar="FORM", default="", help="what is there (default: calls as they are)")
    step = "SHARE[:TIME][:confirm], in order: 5%%:60s, 25%%:5m:confirm, 100%%"
    create.add_argument("--step", metavar="FORM", action="append", default=[], help=step)
    analysis = "of every step: error_rate<=0.02, rating>=4, latency_quantile:0.95+50ms (against what is there)"
    create.add_argument("--analysis", metavar="FORM", action="append", default=[], help=analysis)
    create.add_argument("--unit", choices=UNITS, default="", help="what is assigned (default: session)")
    create.add_argument("--layer", metavar="NAME", default="", help="splits of one layer share no unit")
    create.add_argument("--webhook", metavar="URL", action="append", default=[], help="is told of every transition")
    create.add_argument("--idle", metavar="TIME", type=seconds, default=0, help="a quiet session keeps its variant")
    deadline = "longer in one step without a verdict: it pauses (default: never)"
    create.add_argument("--progress-deadline", metavar="TIME", type=seconds, default=0, help=deadline)
    add_reason(create)
    add_common(create)


def _add_changes(actions: Any) -> None:
    promote = actions.add_parser("promote", help="on to the next step, past a gate or a pause")
    promote.add_argument("--full", action="store_true", help="past all steps that are left, at once")
    pause = actions.add_parser("pause", help="stay at this weight")
    resume = actions.add_parser("resume", help="go on")
    abort = actions.add_parser("abort", help="everything back on the stable version, at once")
    for parser in (promote, pause, resume, abort):
        parser.add_argument("name", metavar="NAME")
        add_reason(parser)
        add_common(parser)


def _create(session: Session) -> None:
    options = session.options
    try:
        fields = _file(options.file) if options.file else {}
        spec = rollout_of({**fields, **_fields(options)})
    except PolicyError as error:
        raise CommandError(f"{options.file}: {error}" if options.file else str(error), WRONG) from None
    missing = [name for name, value in (("NAME", spec.name), ("--agent", spec.agent_id)) if not value]
    if missing:
        raise CommandError(f"say which: {missing[0]} is missing (outrider rollout create --help shows all)", WRONG)
    _show(session, session.operator.create_rollout(spec, session.reason()))


def _fields(options: argparse.Namespace) -> dict[str, Any]:
    """What the command line says."""
    said = {
        "name": options.name,
        "agent_id": options.agent,
        "candidate": options.candidate,
        "stable": options.stable,
        "steps": options.step,
        "analyses": options.analysis,
        "unit": options.unit,
        "layer": options.layer,
        "webhooks": options.webhook,
        "idle_s": options.idle,
        "progress_deadline_s": options.progress_deadline,
    }
    return {name: value for name, value in said.items() if value}


def _file(path: str) -> dict[str, Any]:
    name, content = read_bytes(path)
    try:
        data = yaml_file.parse(content)
    except yaml_file.YamlError as error:
        raise CommandError(f"{name}: {error}") from None
    return dict(tree.section(data, "", [field.name for field in pb.RolloutSpec.DESCRIPTOR.fields]))


def _promote(session: Session) -> None:
    options = session.options
    _show(session, session.operator.promote_rollout(options.name, session.reason(), options.full))


def _pause(session: Session) -> None:
    _show(session, session.operator.pause_rollout(session.options.name, session.reason()))


def _resume(session: Session) -> None:
    _show(session, session.operator.resume_rollout(session.options.name, session.reason()))


def _abort(session: Session) -> None:
    _show(session, session.operator.abort_rollout(session.options.name, session.reason()))


def _show(session: Session, record: pb.RolloutRecord) -> None:
    if session.out.is_json:
        session.out.json(plain(record))
    else:
        session.out.show(rollout_view.picture(record))


def _list(session: Session) -> None:
    out = session.out
    reply = session.operator.list_rollouts(getattr(session.options, "agent", ""))
    if out.is_json:
        out.json({"rollouts": [plain(record) for record in reply.rollouts]})
        return
    if not reply.rollouts:
        out.line("no rollout: outrider rollout create NAME --agent AGENT --candidate version=v2 --step ...", "yellow")
        return
    out.show(rollout_view.listing(reply.rollouts))
    for record in reply.rollouts:
        if record.problem:
            out.line(f"{shown(record.spec.name)}: {shown(record.problem)}", "red")


def _status(session: Session) -> None:
    options = session.options
    if not options.watch:
        _show(session, session.operator.get_rollout(options.name))
        return
    poll(
        session,
        lambda: session.operator.get_rollout(options.name),
        rollout_view.picture,
        rollout_view.is_over,
        options.interval / 1_000,
    )


_ACTIONS = {
    "create": _create,
    "promote": _promote,
    "pause": _pause,
    "resume": _resume,
    "abort": _abort,
    "list": _list,
    "status": _status,
}
