"""`outrider feedback`: what is said of calls that were made.

Always holds: sending the same again is harmless; the exit code is 0 only if every piece was taken or kept.

Deliberately not here: what becomes of corrections and complaints (`examples`).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from typing import Any

from outrider.experiment_spec import feedback_of
from outrider.policy import PolicyError
from outrider.v1 import experiment_pb2, feedback_pb2
from outrider_control.commands.agent_files import read_bytes
from outrider_control.commands.arguments import add_common, add_since, command_parser, count, decimal, real
from outrider_control.commands.figures import optional
from outrider_control.commands.output import NONE, clock_time, plain, state, table
from outrider_control.commands.session import FAILED, WRONG, CommandError, Session, add_actions, run

MAX_ITEMS = 1_000  # of one request
_MOST_SHOWN = 60  # characters of a text in a table


def main(arguments: list[str]) -> int:
    """what is said of calls: send, list, satisfaction"""
    parser = command_parser("feedback", main.__doc__)
    actions = add_actions(parser)
    _add_send(actions)
    listing = actions.add_parser("list", help="what was said, newest first")
    listing.add_argument("--agent", metavar="AGENT", default="", help="of this one's calls")
    listing.add_argument("--trace", metavar="ID", default="", help="of this trace")
    listing.add_argument("--unknown", action="store_true", help="only what waits for its call")
    listing.add_argument("--limit", metavar="N", type=count, default=100, help="default: 100")
    add_since(listing, "24h")
    add_common(listing)
    satisfaction = actions.add_parser("satisfaction", help="ratings and complaints by agent and variant")
    satisfaction.add_argument("--agent", metavar="AGENT", default="", help="of this one")
    add_since(satisfaction, "24h")
    add_common(satisfaction)
    return run(parser, arguments, lambda session: _ACTIONS[session.options.action](session))


def _add_send(actions: Any) -> None:
    send = actions.add_parser("send", help="rate, correct or complain of a call")
    send.add_argument("--call", metavar="ID", default="", help="x-outrider-call-id of its reply")
    send.add_argument("--trace", metavar="ID", default="", help="x-outrider-trace-id: the first call of the trace")
    send.add_argument("--agent", metavar="AGENT", default="", help="that was called (default: as the call says)")
    send.add_argument("--rating", metavar="X", type=decimal, help="0 (useless) to 5 (could not be better)")
    send.add_argument("--correction", metavar="TEXT", default="", help="what the answer should have been")
    send.add_argument("--complaint", metavar="TEXT", default="", help="what was wrong")
    send.add_argument("--label", metavar="WORD", action="append", default=[], help="a free word")
    send.add_argument("--score", metavar="NAME=X", action="append", default=[], help="a free figure: accuracy=1")
    send.add_argument("--author", metavar="NAME", default="", help="who says so")
    send.add_argument("--id", metavar="ID", default="", help="your name for it (default: made of all the rest)")
    send.add_argument("--question", metavar="TEXT", default="", help="what was asked, for learning examples")
    send.add_argument("--answer", metavar="TEXT", default="", help="what was answered, for learning examples")
    text = "JSON, a piece of feedback a line with the fields of outrider.v1.Feedback; - is standard input"
    send.add_argument("--file", "-f", metavar="FILE", default="", help=text)
    add_common(send)


def _send(session: Session) -> int:
    options, out = session.options, session.out
    try:
        items = _lines(options.file) if options.file else [feedback_of(_fields(options))]
    except PolicyError as error:
        raise CommandError(f"{options.file}: {error}" if options.file else str(error), WRONG) from None
    outcomes: list[feedback_pb2.FeedbackOutcome] = []
    for at in range(0, len(items), MAX_ITEMS):
        outcomes += session.operator.collect_feedback(items[at : at + MAX_ITEMS]).outcomes
    if out.is_json:
        out.json({"outcomes": [plain(outcome) for outcome in outcomes]})
    else:
        out.show(table(("FEEDBACK", "OUTCOME", "WHY"), map(_outcome_row, outcomes)))
    return FAILED if any(outcome.outcome == "refused" for outcome in outcomes) else 0


def _fields(options: argparse.Namespace) -> dict[str, Any]:
    """What the command line says."""
    said: dict[str, Any] = {
        "call_id": options.call,
        "trace_id": options.trace,
        "agent_id": options.agent,
        "correction": options.correction,
        "complaint": options.complaint,
        "labels": options.label,
        "author": options.author,
        "feedback_id": options.id,
        "input": options.question,
        "output": options.answer,
        "scores": _scores(options.score),
    }
    fields = {name: value for name, value in said.items() if value}
    if options.rating is not None:
        fields["rating"] = options.rating
    if not options.call and not options.trace:
        raise PolicyError("", "say of which call: --call ID or --trace ID")
    return fields


def _scores(texts: Sequence[str]) -> dict[str, float]:
    scores: dict[str, float] = {}
    for text in texts:
        name, _, value = text.rpartition("=")
        try:
            scores[name] = real(value)
        except argparse.ArgumentTypeError as error:
            raise PolicyError("--score", f"{error}: write NAME=X") from None
        if not name:
            raise PolicyError("--score", f"{text!r} is not NAME=X")
    return scores


def _lines(path: str) -> list[feedback_pb2.Feedback]:
    """A file of JSON lines, checked before anything is sent."""
    _, content = read_bytes(path)
    items: list[feedback_pb2.Feedback] = []
    for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), 1):
        if not line.strip():
            continue
        try:
            data = json.loads(line)
        except ValueError as error:
            raise PolicyError(f"line {number}", f"is no JSON: {error}") from None
        items.append(feedback_of(data, f"line {number}"))
    if not items:
        raise PolicyError("", "holds no feedback")
    return items


def _outcome_row(outcome: feedback_pb2.FeedbackOutcome) -> list[Any]:
    return [outcome.feedback_id or NONE, state(outcome.outcome), outcome.reason or NONE]


def _list(session: Session) -> None:
    options, out = session.options, session.out
    reply = session.operator.list_feedback(options.agent, options.trace, options.unknown, options.since, options.limit)
    if out.is_json:
        out.json({"feedback": [plain(record) for record in reply.feedback]})
        return
    if not reply.feedback:
        out.line("nobody said anything: outrider feedback send --call ID --rating 4", "yellow")
        return
    columns = ("TIME", "AGENT", "|CALL", "VARIANT", ">RATING", "SAID", "BY")
    out.show(table(columns, map(_row, reply.feedback)))


def _row(record: experiment_pb2.FeedbackRecord) -> list[Any]:
    rating = optional(record, "rating")
    return [
        clock_time(record.at_unix_ms),
        record.agent_id or NONE,
        (record.call_id or NONE) if record.joined else "not known yet",
        record.variant or NONE,
        NONE if rating is None else f"{rating:g}",
        "; ".join(_said(record)) or NONE,
        record.author or NONE,
    ]


def _said(record: experiment_pb2.FeedbackRecord) -> Iterable[str]:
    if record.complaint:
        yield brief(record.complaint)
    if record.correction:
        yield f"should be: {brief(record.correction)}"
    if record.labels:
        yield ", ".join(record.labels)
    yield from (f"{name} {record.scores[name]:g}" for name in sorted(record.scores))


def brief(text: str) -> str:
    """The beginning of a text, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= _MOST_SHOWN else f"{line[: _MOST_SHOWN - 3]}..."


def _satisfaction(session: Session) -> None:
    options, out = session.options, session.out
    reply = session.operator.get_satisfaction(options.agent, options.since)
    if out.is_json:
        out.json({"satisfaction": [plain(row) for row in reply.rows]})
        return
    if not reply.rows:
        out.line("nobody rated or complained in that time", "yellow")
        return
    rows = ((row.agent_id, row.variant or "all", row.ratings, _mean(row), row.complaints) for row in reply.rows)
    out.show(table(("AGENT", "VARIANT", ">RATINGS", ">MEAN", ">COMPLAINTS"), rows))


def _mean(row: experiment_pb2.Satisfaction) -> str:
    mean = optional(row, "mean")
    return NONE if mean is None else f"{mean:.2f}"


_ACTIONS = {"send": _send, "list": _list, "satisfaction": _satisfaction}
