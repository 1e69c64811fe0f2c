"""`outrider agents`: the configurations of the agents, their versions, and changes of them."""

from __future__ import annotations

from typing import Any

from outrider.v1 import operator_pb2 as pb
from outrider_control.commands.agent_changes import (
    apply_file,
    default_agent,
    delete,
    import_rows,
    rollback,
    show_changes,
)
from outrider_control.commands.agent_files import record_yaml
from outrider_control.commands.arguments import add_common, add_reason, command_parser, count, version
from outrider_control.commands.output import NONE, clock_time, plain, shown, table
from outrider_control.commands.session import Session, add_actions, run


def main(arguments: list[str]) -> int:
    """agent configurations: list, get, apply, delete, history, rollback, diff, import, default"""
    parser = command_parser("agents", main.__doc__)
    actions = add_actions(parser)
    add_common(actions.add_parser("list", help="all agents"))
    _add_reads(actions)
    _add_changes(actions)
    return run(parser, arguments, lambda session: _ACTIONS[session.options.action](session))


def _add_reads(actions: Any) -> None:
    get = actions.add_parser("get", help="one agent, as a file that `apply` takes")
    get.add_argument("agent", metavar="AGENT")
    get.add_argument("--version", metavar="N", type=version, default=0, help="an older version (default: in force)")
    get.add_argument("-o", "--output", choices=("yaml", "json"), default="yaml", help="default: yaml")
    get.add_argument("--all", action="store_true", help="with what has its default")
    add_common(get)
    history = actions.add_parser("history", help="the versions of an agent, newest first")
    history.add_argument("agent", metavar="AGENT")
    history.add_argument("--limit", metavar="N", type=count, default=100, help="default: 100")
    add_common(history)
    diff = actions.add_parser("diff", help="what differs between two versions")
    diff.add_argument("agent", metavar="AGENT")
    diff.add_argument("--from", dest="from_version", metavar="N", type=version, default=0, help="default: before --to")
    diff.add_argument("--to", dest="to_version", metavar="N", type=version, default=0, help="default: the newest")
    add_common(diff)


def _add_changes(actions: Any) -> None:
    apply = actions.add_parser("apply", help="make agents be what a file says; others stay as they are")
    apply.add_argument("-f", "--file", metavar="FILE", required=True, help="YAML; - is standard input")
    apply.add_argument("--dry-run", action="store_true", help="only show what would change")
    remove = actions.add_parser("delete", help="take agents away")
    remove.add_argument("agents", metavar="AGENT", nargs="+")
    remove.add_argument("--dry-run", action="store_true", help="only show what would change")
    back = actions.add_parser("rollback", help="make an older version the newest again")
    back.add_argument("agent", metavar="AGENT")
    back.add_argument("--to", dest="to_version", metavar="N", type=version, default=0, help="default: the one before")
    back.add_argument("--expected", metavar="N", type=version, help="refuse if another version is in force by now")
    rows = actions.add_parser("import", help="put rows of agent_configurations over the agents there are")
    rows.add_argument("file", metavar="FILE", help="JSON or CSV; - is standard input")
    rows.add_argument("--format", choices=("json", "csv"), help="default: by the file's name, else JSON")
    rows.add_argument("--dry-run", action="store_true", help="only show what would change")
    usual = actions.add_parser("default", help="the agent of calls that name none: show it or set it")
    usual.add_argument("agent", metavar="AGENT", nargs="?", default="")
    usual.add_argument("--none", action="store_true", help="as each sidecar's file says")
    for parser in (apply, remove, back, rows, usual):
        add_reason(parser)
        add_common(parser)


def _list(session: Session) -> None:
    reply = session.operator.list_agents()
    out = session.out
    if out.is_json:
        agents = [_listed(record) for record in reply.agents]
        out.json({"agents": agents, "default_agent": reply.default_agent})
        return
    if not reply.agents:
        out.line("no agent yet: outrider agents apply -f FILE --reason TEXT", "yellow")
        return
    columns = ("AGENT", ">VERSION", ">ENDPOINTS", "BALANCING", "CACHE", "INSTANCES", "CHANGED", "BY")
    out.show(table(columns, (_row(record, reply.default_agent) for record in reply.agents)))


def _listed(record: pb.AgentRecord) -> dict[str, Any]:
    """One agent as JSON: who made it what it is, and what it is."""
    made = plain(record.version)
    made.pop("changes")
    made.pop("deleted")
    return {**made, "agent_id": record.policy.agent_id, "policy": plain(record.policy)}


def _row(record: pb.AgentRecord, default_agent: str) -> list[Any]:
    policy, made = record.policy, record.version
    optimization = policy.optimization
    cache = f"{optimization.cache_strategy} {optimization.cache_ttl}s" if optimization.cache_enabled else "off"
    return [
        policy.agent_id + (" (default)" if policy.agent_id == default_agent else ""),
        made.version,
        len(policy.endpoints),
        policy.balancing.strategy or NONE,
        cache,
        f"{policy.scaling.min_instances} to {policy.scaling.max_instances}",
        clock_time(made.at_unix_ms),
        made.author,
    ]


def _get(session: Session) -> None:
    options, out = session.options, session.out
    record = session.operator.get_agent(options.agent, options.version)
    if out.is_json or options.output == "json":
        out.json(plain(record))
    else:
        out.text(record_yaml(record, options.all))


def _history(session: Session) -> None:
    options, out = session.options, session.out
    reply = session.operator.list_versions(options.agent, options.limit)
    if out.is_json:
        out.json({"agent_id": options.agent, "versions": [plain(one) for one in reply.versions]})
        return
    rows = ((one.version, clock_time(one.at_unix_ms), one.author, one.reason, _summary(one)) for one in reply.versions)
    out.show(table((">VERSION", "TIME", "BY", "WHY", "CHANGES"), rows))


def _summary(version: pb.AgentVersion) -> str:
    if version.deleted:
        return "deleted"
    names = [change.path for change in version.changes]
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "") or NONE


def _diff(session: Session) -> None:
    options, out = session.options, session.out
    reply = session.operator.diff_agent(options.agent, options.from_version, options.to_version)
    if out.is_json:
        out.json({"agent_id": options.agent, **plain(reply)})
        return
    out.line(f"{shown(options.agent)}: version {reply.from_version} -> {reply.to_version}", "bold")
    if not reply.changes:
        out.line("  nothing differs")
    show_changes(session.out, reply.changes)


_ACTIONS = {
    "list": _list,
    "get": _get,
    "apply": apply_file,
    "delete": delete,
    "history": _history,
    "rollback": rollback,
    "diff": _diff,
    "import": import_rows,
    "default": default_agent,
}
