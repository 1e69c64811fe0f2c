"""`outrider decisions`: the journal of what somebody or a loop decided, and why."""

from __future__ import annotations

import json
from typing import Any

from outrider.v1 import operator_pb2 as pb
from outrider_control.commands.arguments import add_since, command_parser, count
from outrider_control.commands.output import NONE, clock_time, plain, table
from outrider_control.commands.session import Session, run

SCALE = "scale"  # the kind of what the scale loop decides


def main(arguments: list[str]) -> int:
    """the journal: who or what decided what, from what and why"""
    parser = command_parser("decisions", main.__doc__)
    parser.add_argument("--agent", metavar="AGENT", default="", help="that concern this one (default: all)")
    parser.add_argument("--kind", metavar="KIND", default="", help="apply, delete, rollback, scale, purge, token, ...")
    parser.add_argument("--limit", metavar="N", type=count, default=100, help="default: 100")
    parser.add_argument("--full", action="store_true", help="with what each was taken from, and all of its outcome")
    add_since(parser, "")
    return run(parser, arguments, _decisions)


def _decisions(session: Session) -> None:
    options, out = session.options, session.out
    reply = session.operator.list_decisions(options.agent, options.kind, options.since, options.limit)
    if out.is_json:
        out.json({"decisions": [plain(decision) for decision in reply.decisions]})
        return
    if not reply.decisions:
        out.line("no decision", "yellow")
        return
    rows = []
    for decision in reply.decisions:
        data = plain(decision)
        outcome = brief(data["outcome"], options.full)
        if decision.kind == SCALE:
            outcome = change_of(decision) + (f"\n{outcome}" if options.full else "")
        if options.full and data["inputs"]:
            outcome = f"{outcome}\nfrom {brief(data['inputs'], True)}"
        time, who = clock_time(decision.at_unix_ms), decision.author
        rows.append((decision.id, time, decision.kind, decision.agent_id or NONE, who, decision.reason, outcome))
    out.show(table((">ID", "TIME", "KIND", "AGENT", "BY", "WHY", "OUTCOME"), rows))


def change_of(decision: pb.Decision) -> str:
    """What a decision of the scale loop does to the number of instances: `up 3 -> 20`, `hold 3`, `pause 3`."""
    outcome = plain(decision)["outcome"] or {}
    before, after = outcome.get("from"), outcome.get("to", outcome.get("desired"))
    moved = after if before in (None, after) else f"{before} -> {after}"
    return " ".join(str(word) for word in (outcome.get("action"), moved) if word is not None) or NONE


def brief(data: dict[str, Any] | None, is_full: bool) -> str:
    """Facts on one line; lists and objects only in full."""
    parts = (
        f"{name}={value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
        for name, value in (data or {}).items()
        if is_full or not isinstance(value, dict | list)
    )
    return " ".join(parts) or NONE
