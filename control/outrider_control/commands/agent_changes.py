"""The changes that `outrider agents` makes: apply, delete, rollback, import, default.

Always holds: nothing is sent that is known to be wrong; a refusal for a stale version says what to do; a request is
done whole or not at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
from rich.text import Text

from outrider import policy_message
from outrider.control_channel import OperatorError
from outrider.policy import PolicyError
from outrider.v1 import operator_pb2 as pb
from outrider_control.commands.agent_files import AgentFile, batches, read_agents, read_bytes
from outrider_control.commands.agent_rows import Rows, read_rows
from outrider_control.commands.output import Output, plain, shown, state
from outrider_control.commands.session import WRONG, CommandError, Session

_REFUSALS = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION)


def apply_file(session: Session) -> None:
    """`agents apply`."""
    options = session.options
    file = read_agents(options.file)
    reason = session.reason()
    reply = _apply(session, file, file.configurations(), reason)
    show_applied(session, reply.agents)


def _apply(
    session: Session, file: AgentFile | None, agents: Sequence[pb.AgentConfiguration], reason: str
) -> pb.ApplyAgentsReply:
    try:
        return session.operator.apply_agents(agents, reason, session.options.dry_run)
    except OperatorError as error:
        if error.status is grpc.StatusCode.ABORTED:
            raise CommandError(_stale(file, error.text)) from error
        if error.status in _REFUSALS and file is not None:
            raise CommandError(file.located(error.text)) from error
        raise


def _stale(file: AgentFile | None, text: str) -> str:
    if file is None:
        return f"{text}; somebody changed it meanwhile: run the command again"
    return f"{file.name}: {text} (outrider agents get AGENT prints the newest)"


def show_applied(session: Session, applied: Iterable[pb.Applied]) -> None:
    """What came of each agent, or would come."""
    out, is_dry = session.out, session.options.dry_run
    if out.is_json:
        out.json({"agents": [plain(one) for one in applied], "dry_run": is_dry})
        return
    for one in applied:
        version = f"version {one.version}" if one.version else ""
        would = "would be " if is_dry and one.outcome != "unchanged" else ""
        out.line(Text.assemble((shown(one.agent_id), "bold"), f": {would}", state(one.outcome), f" {version}".rstrip()))
        show_changes(out, one.changes)
    if is_dry:
        out.line("dry run: nothing is changed", "dim")


def show_changes(out: Output, changes: Iterable[pb.FieldChange]) -> None:
    """Fields that differ, one a line."""
    for change in changes:
        line = Text(f"  {shown(change.path)}: ")
        if change.before and change.after:
            line.append(shown(change.before), style="red").append(" -> ").append(shown(change.after), style="green")
        elif change.after:
            line.append(f"+ {shown(change.after)}", style="green")
        else:
            line.append(f"- {shown(change.before)}", style="red")
        out.line(line)


def delete(session: Session) -> None:
    """`agents delete`."""
    options = session.options
    reply = session.operator.delete_agents(options.agents, session.reason(), options.dry_run)
    show_applied(session, reply.agents)


def rollback(session: Session) -> None:
    """`agents rollback`."""
    options, out = session.options, session.out
    reason = session.reason()
    try:
        record = session.operator.rollback_agent(options.agent, reason, options.to_version, options.expected)
    except OperatorError as error:
        if error.status is grpc.StatusCode.ABORTED:
            raise CommandError(f"{error.text}: look at outrider agents history {options.agent} first") from error
        raise
    if out.is_json:
        out.json(plain(record))
        return
    out.line(f"{shown(options.agent)}: version {record.version.version} is in force")
    show_changes(out, record.version.changes)


def default_agent(session: Session) -> None:
    """`agents default`: shows it, or sets it."""
    options, out = session.options, session.out
    if options.agent and options.none:
        raise CommandError("give AGENT or --none, not both", WRONG)
    if options.agent or options.none:
        session.operator.set_default_agent(options.agent, session.reason())
        name = options.agent
    else:
        name = session.operator.list_agents().default_agent
    if out.is_json:
        out.json({"default_agent": name})
    else:
        out.line(shown(name) if name else "none: as each sidecar's file says")


def import_rows(session: Session) -> None:
    """`agents import`: rows over the agents there are, as they are now."""
    options, out = session.options, session.out
    name, content = read_bytes(options.file)
    is_csv = options.format == "csv" or (options.format is None and Path(options.file).suffix.lower() == ".csv")
    try:
        rows = read_rows(content, is_csv)
        reason = session.reason()
        known = {record.policy.agent_id: record for record in session.operator.list_agents().agents}
        configurations = [_merged(change, known) for change in rows.changes]
    except PolicyError as error:
        raise CommandError(f"{name}: {error}") from None
    applied: list[pb.Applied] = []
    for batch in batches(configurations):
        try:
            applied += _apply(session, None, batch, reason).agents
        except (CommandError, OperatorError) as error:
            done = f" (the first {len(applied)} rows are done)" if applied else ""
            if isinstance(error, OperatorError) and error.status not in _REFUSALS:
                raise
            raise CommandError(f"{name}: {error}{done}") from error
    show_applied(session, applied)
    if not out.is_json:
        _show_passed_over(out, rows)


def _merged(change: Mapping[str, Any], known: Mapping[str, pb.AgentRecord]) -> pb.AgentConfiguration:
    """A row over its agent; the version keeps another one's change from being undone."""
    record = known.get(change["agent_id"])
    data = dict(change)
    if record is not None:
        data = policy_message.merged(policy_message.plain_of(record.policy), change)
    try:
        policy_message.check(data, "")
    except PolicyError as error:
        raise PolicyError(f"agent {change['agent_id']}: {error.path}", error.reason) from None
    expected_version = record.version.version if record is not None else 0
    return pb.AgentConfiguration(policy=policy_message.message_of(data), expected_version=expected_version)


def _show_passed_over(out: Output, rows: Rows) -> None:
    if rows.passed_over:
        names = ", ".join(shown(name) for name in rows.passed_over[:20])
        out.line(f"columns that are no policy were passed over: {names}", "dim")
