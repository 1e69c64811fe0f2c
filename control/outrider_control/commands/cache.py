"""`outrider cache`: what the sidecars' caches hold and do, and making stored replies void."""

from __future__ import annotations

from typing import Any

from outrider.v1 import operator_pb2 as pb
from outrider_control.commands.arguments import add_common, add_reason, command_parser
from outrider_control.commands.figures import optional
from outrider_control.commands.output import number, percent, plain, table
from outrider_control.commands.session import WRONG, CommandError, Session, add_actions, run

_VERDICTS = ("hit", "stale", "coalesced", "miss", "bypass")
_MIB = 1024 * 1024


def main(arguments: list[str]) -> int:
    """what the caches do, and making their replies void in every sidecar"""
    parser = command_parser("cache", main.__doc__)
    actions = add_actions(parser)
    stats = actions.add_parser("stats", help="what the caches of all sidecars hold and do")
    stats.add_argument("agent", metavar="AGENT", nargs="?", default="", help="which (default: all)")
    add_common(stats)
    purge = actions.add_parser("purge", help="make stored replies void, also in sidecars that are away now")
    purge.add_argument("--agent", metavar="AGENT", default="", help="of one agent")
    purge.add_argument("--tenant", metavar="TENANT", default="", help="of one tenant")
    purge.add_argument("--tag", metavar="TAG", default="", help="under one tag")
    purge.add_argument("--everything", action="store_true", help="all of it")
    add_reason(purge)
    add_common(purge)
    return run(parser, arguments, lambda session: _ACTIONS[session.options.action](session))


def _stats(session: Session) -> None:
    stats = session.operator.get_cache_stats(session.options.agent)
    out = session.out
    if out.is_json:
        out.json({"agents": [_data(agent) for agent in stats.agents], "sidecars": stats.sidecars})
        return
    columns = ("AGENT", ">HIT RATE", *(f">{name.upper()}" for name in _VERDICTS), ">REPLIES", ">SIZE", ">EVICTED")
    out.show(table(columns, (_row(agent) for agent in stats.agents)))
    out.line(f"since each sidecar started; {stats.sidecars} report", "dim")


def _data(agent: pb.AgentCache) -> dict[str, Any]:
    """One agent's caches as JSON, flat."""
    data = plain(agent)
    del data["cache"]
    return {**data, **plain(agent.cache)}


def _row(agent: pb.AgentCache) -> list[Any]:
    cache = agent.cache
    return [
        agent.agent_id,
        percent(optional(agent, "hit_rate")),
        *(number(cache.verdicts.get(name, 0)) for name in _VERDICTS),
        number(cache.entries),
        f"{cache.size_bytes / _MIB:.1f}M" + (f"/{cache.max_bytes / _MIB:.0f}M" if cache.max_bytes else ""),
        number(cache.evictions),
    ]


def _purge(session: Session) -> None:
    options, out = session.options, session.out
    scoped = options.agent or options.tenant or options.tag
    if not scoped and not options.everything:
        raise CommandError("say what: --agent, --tenant, --tag (together: what is all of it), or --everything", WRONG)
    if scoped and options.everything:
        raise CommandError("--everything leaves no room for --agent, --tenant or --tag", WRONG)
    reason = session.reason()
    reply = session.operator.purge_cache(reason, options.agent, options.tenant, options.tag, options.everything)
    if out.is_json:
        out.json(plain(reply))
        return
    out.line(f"purged: {reply.confirmed} of {reply.sidecars} connected sidecars have confirmed (epoch {reply.epoch})")
    if reply.confirmed < reply.sidecars:
        out.line("the others get it as soon as they can be reached: outrider sidecars shows them", "yellow")


_ACTIONS = {"stats": _stats, "purge": _purge}
