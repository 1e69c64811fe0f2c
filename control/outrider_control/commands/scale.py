"""`outrider scale`: how many instances agents have and why, and what an operator changes of it.

Always holds: a change says what it is based on and why; what is not named on the command line stays as it is.

Deliberately not here: the decisions (the control plane's scale loop), agents' other settings (`agents`).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import grpc
from rich.text import Text

from outrider.control_channel import OperatorError
from outrider.operator_requests import changed_section
from outrider.policy import PolicyError
from outrider.v1 import operator_pb2 as pb
from outrider_control.commands.agent_changes import show_applied, show_changes
from outrider_control.commands.arguments import (
    add_common,
    add_reason,
    command_parser,
    count,
    decimal,
    seconds,
    version,
    whole,
)
from outrider_control.commands.decisions import brief, change_of
from outrider_control.commands.figures import optional
from outrider_control.commands.output import NONE, ago, clock_time, number, percent, plain, shown, state, table
from outrider_control.commands.session import WRONG, CommandError, Session, run

_WIDE_COLUMNS = 110
# Field of the scaling policy, option, how its value is read (bool: --X and --no-X), what it is called, help.
_FIELDS: tuple[tuple[str, str, Any, str, str], ...] = (
    ("min_instances", "--min", whole, "N", "at least so many; 0: none while nobody calls"),
    ("max_instances", "--max", count, "N", "at most so many"),
    ("target_utilization", "--target", decimal, "X", "the utilization that instances are sized for, as 0.7"),
    ("capacity", "--capacity", whole, "N", "calls at once of one instance; 0: as endpoints declare, else learnt"),
    ("engine", "--engine", str, "NAME", 'of the control plane\'s configuration; "": its default one'),
    ("enabled", "--enabled", bool, "", "whether the number of instances is changed at all"),
    ("scale_up", "--scale-up", decimal, "X", "utilization above which instances are added"),
    ("scale_down", "--scale-down", decimal, "X", "utilization below which instances are taken away"),
    ("cooldown_s", "--cooldown", seconds, "TIME", "between a change and a scale-down: 300, 5m"),
    ("stable_window_s", "--stable-window", seconds, "TIME", "what the demand is averaged over"),
    ("panic_window_s", "--panic-window", seconds, "TIME", "what a sudden rise is seen in"),
    ("panic_threshold", "--panic-threshold", decimal, "X", "times what is ready, from which on only upwards"),
    ("tolerance", "--tolerance", decimal, "X", "a change by a smaller share is not made"),
    ("max_up", "--max-up", decimal, "X", "times what is ready, per decision"),
    ("max_down", "--max-down", decimal, "X", "what is ready is divided by it at most, per decision"),
    ("idle_s", "--idle", seconds, "TIME", "without demand before an agent goes to zero"),
    ("activation_wait_ms", "--activation-wait", seconds, "TIME", "how long calls wait for a first instance"),
    ("predictive", "--predictive", bool, "", "also by a forecast of the demand"),
    ("horizon_s", "--horizon", seconds, "TIME", "how far the forecast looks"),
    ("instance_usd_per_h", "--instance-usd-per-h", decimal, "USD", "what one instance costs; 0: not known"),
    ("max_usd_per_h", "--max-usd-per-h", decimal, "USD", "what all instances may cost; 0: no cap"),
)


def main(arguments: list[str]) -> int:
    """how many instances agents have, and why: list, explain, set, pause, resume"""
    parser = command_parser("scale", main.__doc__)
    actions = parser.add_subparsers(dest="action", metavar="ACTION", title="what to do (default: list)")
    add_common(actions.add_parser("list", help="all agents"))
    explain = actions.add_parser("explain", help="why an agent has as many instances as it has")
    explain.add_argument("agent", metavar="AGENT")
    explain.add_argument("--limit", metavar="N", type=count, default=10, help="of the last decisions (default: 10)")
    add_common(explain)
    _add_changes(actions)
    return run(parser, arguments, lambda session: _ACTIONS[session.options.action or "list"](session))


def _add_changes(actions: Any) -> None:
    change = actions.add_parser("set", help="change an agent's scaling policy; what is not named stays as it is")
    pause = actions.add_parser("pause", help="leave the number of instances as it is until `resume`")
    resume = actions.add_parser("resume", help="decide again")
    for parser in (change, pause, resume):
        parser.add_argument("agent", metavar="AGENT")
    group = change.add_argument_group("the scaling policy")
    for field, option, kind, metavar, text in _FIELDS:
        if kind is bool:
            group.add_argument(option, dest=field, action=argparse.BooleanOptionalAction, help=text)
        else:
            group.add_argument(option, dest=field, type=kind, metavar=metavar, help=text)
    change.add_argument("--expected", metavar="N", type=version, help="refuse if another version is in force by now")
    change.add_argument("--dry-run", action="store_true", help="only show what would change")
    for parser in (change, pause, resume):
        add_reason(parser)
        add_common(parser)


def _list(session: Session) -> None:
    reply = session.operator.list_scales()
    out = session.out
    if out.is_json:
        out.json({"scales": [plain(record) for record in reply.scales]})
        return
    if not reply.scales:
        out.line("no agent yet: outrider agents apply -f FILE --reason TEXT", "yellow")
        return
    columns = ["AGENT", "STATE", ">READY", ">WANTED", "BOUNDS", ">DEMAND", ">CAPACITY", ">LOAD", "CHANGED"]
    if out.console.width >= _WIDE_COLUMNS:
        columns += ["ENGINE", "WHY"]
    out.show(table(columns, (_row(record)[: len(columns)] for record in reply.scales)))
    for record in reply.scales:
        for line, style in _remarks(record):
            out.line(f"{shown(record.agent_id)}: {line}", style)


def _row(record: pb.ScaleRecord) -> list[Any]:
    return [
        record.agent_id,
        state(record.state),
        _instances(record),
        record.desired,
        _bounds(record),
        number(optional(record, "demand")),
        number(optional(record, "capacity")),
        _load(record),
        ago(record.changed_unix_ms),
        record.engine or NONE,
        record.reason or NONE,
    ]


def _instances(record: pb.ScaleRecord) -> str:
    """What serves, what comes and what goes: "3 +2 -1"."""
    coming = f" +{record.starting}" if record.starting else ""
    return f"{record.ready}{coming}" + (f" -{record.draining}" if record.draining else "")


def _bounds(record: pb.ScaleRecord) -> str:
    return f"{record.min_instances} to {record.max_instances}" if record.max_instances else NONE


def _load(record: pb.ScaleRecord) -> str:
    """How busy it is; more than it can do is more than 100 %."""
    load = optional(record, "utilization")
    return f"{load * 100:.0f}%" if load is not None and load > 1 else percent(load)


def _remarks(record: pb.ScaleRecord) -> Iterator[tuple[str, str]]:
    """What there is to say besides, and how."""
    if record.problem:
        yield shown(record.problem), "red"
    if record.paused_by:
        yield shown(f"paused by {record.paused_by}: {record.paused_reason}"), "yellow"
    if record.panic:
        yield "demand rises fast: for now the number only grows", "yellow"


def _explain(session: Session) -> None:
    options, out = session.options, session.out
    reply = session.operator.explain_scale(options.agent, options.limit)
    if out.is_json:
        out.json(plain(reply))
        return
    record = reply.scale
    by = f" by {record.engine}" if record.engine else ""
    bounds = f", {_bounds(record)} allowed" if record.max_instances else ""
    wanted = f"{by}: {_instances(record)} ready, {record.desired} wanted{bounds}"
    out.line(Text.assemble((shown(record.agent_id), "bold"), ": ", state(record.state), shown(wanted)))
    out.line(f"  {_seen(record)}")
    for line, style in _remarks(record):
        out.line(f"  {line}", style)
    if reply.HasField("last"):
        _show_last(session, reply.last)
    else:
        out.line("  no decision was taken since the control plane's start", "yellow")
    if reply.instances:
        out.show(table(("|INSTANCE", "STATE", "|ADDRESS", "STARTED", "NOTE"), map(_instance_row, reply.instances)))
    if reply.decisions:
        rows = ((clock_time(one.at_unix_ms), change_of(one), one.author, one.reason) for one in reply.decisions)
        out.show(table(("TIME", "|CHANGE", "BY", "WHY"), rows))


def _seen(record: pb.ScaleRecord) -> str:
    """What the number of instances is made of."""
    demand, queued = optional(record, "demand"), optional(record, "queued")
    if demand is None:
        calls = "demand is not known: no sidecar reports it"
    else:
        calls = f"{number(demand)} calls" + (f", {number(queued)} of them waiting" if queued else "")
    capacity = optional(record, "capacity")
    if capacity is None:
        each = "what one instance can do is not known yet: outrider scale set AGENT --capacity N says it"
    else:
        each = f"{number(capacity)} at once per instance (from {record.capacity_source or 'the policy'})"
    return "; ".join([calls, each] + ([f"utilization {_load(record)}"] if record.HasField("utilization") else []))


def _show_last(session: Session, last: pb.Decision) -> None:
    """The last decision of all, with what it was taken from; what the policy says is in the policy."""
    out = session.out
    inputs = plain(last)["inputs"] or {}
    seen = {name: inputs[name] for name in sorted(inputs) if not name.startswith("policy.")}
    out.line(f"  {clock_time(last.at_unix_ms)} {shown(last.reason)}")
    out.line(f"    from {shown(brief(seen, True))}", "dim")


def _instance_row(instance: pb.ScaleInstance) -> list[Any]:
    return [
        instance.name,
        state(instance.state),
        instance.address or NONE,
        ago(instance.started_unix_ms),
        instance.note or NONE,
    ]


def _set(session: Session) -> None:
    options, out = session.options, session.out
    fields = {field: value for field, *_ in _FIELDS if (value := getattr(options, field)) is not None}
    if not fields:
        names = " ".join(option for _, option, *_ in _FIELDS[:5])
        raise CommandError(f"say what to set: {names} ... (outrider scale set --help shows all)", WRONG)
    if "activation_wait_ms" in fields:
        fields["activation_wait_ms"] *= 1_000
    reason = session.reason()
    try:
        if options.dry_run:
            _show_dry(session, fields, reason)
            return
        record = session.operator.configure_auto_scaling(options.agent, fields, reason, options.expected)
    except PolicyError as error:
        raise CommandError(str(error)) from None
    except OperatorError as error:
        if error.status is grpc.StatusCode.ABORTED:
            raise CommandError(f"{error.text}: look at outrider agents history {options.agent} first") from error
        raise
    if out.is_json:
        out.json(plain(record))
        return
    out.line(f"{shown(options.agent)}: version {record.version.version} is in force")
    show_changes(out, record.version.changes)


def _show_dry(session: Session, fields: dict[str, Any], reason: str) -> None:
    """What `set` would change, by an apply that is not made."""
    options = session.options
    standing = session.operator.get_agent(options.agent)
    configuration = changed_section(standing, "scaling", fields)
    if options.expected is not None:
        configuration.expected_version = options.expected
    show_applied(session, session.operator.apply_agents([configuration], reason, True).agents)


def _pause(session: Session) -> None:
    record = session.operator.pause_scaling(session.options.agent, session.reason())
    _show_changed(session, record, f"stays at {record.desired} until `outrider scale resume`")


def _resume(session: Session) -> None:
    record = session.operator.resume_scaling(session.options.agent, session.reason())
    _show_changed(session, record, f"is decided again, from {record.desired} on")


def _show_changed(session: Session, record: pb.ScaleRecord, text: str) -> None:
    if session.out.is_json:
        session.out.json(plain(record))
    else:
        session.out.line(f"{shown(record.agent_id)}: the number of instances {text}")


_ACTIONS = {"list": _list, "explain": _explain, "set": _set, "pause": _pause, "resume": _resume}
