"""`outrider examples`: learning examples made of corrections and complaints, reviewed, and frozen as datasets.

Always holds: a review and a dataset say why; an exported file is whole or not there, and its bytes are those the
control plane froze.

Deliberately not here: the review by keyboard (`example_review`).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from outrider.v1 import experiment_pb2 as pb
from outrider_control.commands.arguments import add_common, add_reason, command_parser, count, decimal, version, whole
from outrider_control.commands.example_review import CANDIDATE, review_all, terminal_desk
from outrider_control.commands.feedback import brief
from outrider_control.commands.output import NONE, clock_time, number, plain, shown, state, table
from outrider_control.commands.session import WRONG, CommandError, Session, add_actions, run

STATES = ("candidate", "approved", "rejected")
PARTS = ("train", "validation", "holdout")


def main(arguments: list[str]) -> int:
    """learning examples: list, review, dataset create|list|export"""
    parser = command_parser("examples", main.__doc__)
    actions = add_actions(parser)
    listing = actions.add_parser("list", help="examples, oldest first")
    listing.add_argument("--agent", metavar="AGENT", default="", help="of this one")
    listing.add_argument("--state", choices=STATES, default="", help="in this state (default: all)")
    listing.add_argument("--limit", metavar="N", type=count, default=100, help="default: 100")
    listing.add_argument("--after", metavar="ID", type=whole, default=0, help="the next page")
    add_common(listing)
    review = actions.add_parser("review", help="approve, edit or reject: by keyboard, or one with --id and --verdict")
    review.add_argument("--agent", metavar="AGENT", default="", help="of this one (default: all)")
    review.add_argument("--id", metavar="ID", type=count, help="this one, without a terminal")
    review.add_argument("--verdict", choices=("approve", "reject"), default="", help="of --id")
    review.add_argument("--question", metavar="TEXT", help="in place of what is there, with --verdict approve")
    review.add_argument("--correction", metavar="TEXT", help="in place of what is there, with --verdict approve")
    add_reason(review)
    add_common(review)
    _add_dataset(actions)
    return run(parser, arguments, lambda session: _ACTIONS[session.options.action](session))


def _add_dataset(actions: Any) -> None:
    dataset = actions.add_parser("dataset", aliases=["datasets"], help="frozen versions: create, list, export")
    steps = dataset.add_subparsers(dest="step", metavar="STEP", title="what to do (default: list)")
    create = steps.add_parser("create", help="freeze the approved examples of an agent")
    create.add_argument("agent", metavar="AGENT")
    for part, usual in (("train", "0.7"), ("validation", "0.15"), ("holdout", "0.15")):
        create.add_argument(f"--{part}", metavar="SHARE", type=decimal, default=0.0, help=f"default: {usual}")
    add_reason(create)
    add_common(create)
    listing = steps.add_parser("list", help="all versions, newest first")
    listing.add_argument("--agent", metavar="AGENT", default="", help="of this one")
    add_common(listing)
    export = steps.add_parser("export", help="a version as JSONL, an example a line")
    export.add_argument("agent", metavar="AGENT")
    export.add_argument("--version", metavar="N", type=version, default=0, help="default: the newest")
    export.add_argument("--part", choices=PARTS, default="", help="default: all")
    export.add_argument("-o", "--output", metavar="FILE", default="", help="default: standard output")
    add_common(export)


def _list(session: Session) -> None:
    options, out = session.options, session.out
    reply = session.operator.list_examples(options.agent, options.state, options.limit, options.after)
    counts = {name: reply.counts.get(name, 0) for name in STATES}
    if out.is_json:
        out.json({"examples": [plain(example) for example in reply.examples], "counts": counts})
        return
    if reply.examples:
        columns = (">ID", "AGENT", "STATE", ">SAID", "QUESTION", "SHOULD BE", "REVIEWED")
        out.show(table(columns, map(_row, reply.examples)))
    told = ", ".join(f"{number(counts[name])} {name}" for name in STATES)
    out.line(f"{told}; outrider examples review goes through the candidates" if counts[CANDIDATE] else told, "dim")


def _row(example: pb.Example) -> list[Any]:
    wanted = example.correction or (f"complaint: {example.complaint}" if example.complaint else "")
    reviewed = f"{example.reviewer}: {example.review_reason}" if example.reviewer else NONE
    return [
        example.id,
        example.agent_id,
        state(example.state),
        example.count,
        brief(example.input) or NONE,
        brief(wanted) or NONE,
        reviewed,
    ]


def _review(session: Session) -> None:
    options, out = session.options, session.out
    if options.id is not None:
        _review_one(session)
        return
    if options.verdict or options.question is not None or options.correction is not None:
        raise CommandError("--verdict, --question and --correction go with --id", WRONG)
    if out.is_json or not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise CommandError("without a terminal: --id ID --verdict approve|reject --reason TEXT", WRONG)
    tally = review_all(session, options.agent, options.reason.strip(), terminal_desk())
    out.line(f"{tally.approved} approved, {tally.rejected} rejected, {tally.skipped} skipped")


def _review_one(session: Session) -> None:
    options, out = session.options, session.out
    if not options.verdict:
        raise CommandError("--id needs --verdict approve or reject", WRONG)
    if options.verdict == "reject" and (options.question is not None or options.correction is not None):
        raise CommandError("what is rejected is not edited: --question and --correction go with approve", WRONG)
    example = session.operator.review_example(
        options.id, options.verdict, session.reason(), options.question, options.correction
    )
    if out.is_json:
        out.json(plain(example))
    else:
        out.line(f"example {example.id} of {shown(example.agent_id)} is {example.state}")


def _dataset(session: Session) -> None:
    _STEPS[session.options.step or "list"](session)


def _create_dataset(session: Session) -> None:
    options, out = session.options, session.out
    made = session.operator.create_dataset(
        options.agent, session.reason(), options.train, options.validation, options.holdout
    )
    if out.is_json:
        out.json(plain(made))
        return
    out.line(f"{shown(made.agent_id)}: version {made.version} is frozen: {_counts(made)}")


def _list_datasets(session: Session) -> None:
    out = session.out
    reply = session.operator.list_datasets(getattr(session.options, "agent", ""))
    if out.is_json:
        out.json({"datasets": [plain(one) for one in reply.datasets]})
        return
    if not reply.datasets:
        out.line("no dataset: outrider examples dataset create AGENT --reason TEXT", "yellow")
        return
    rows = (
        (
            one.agent_id,
            one.version,
            clock_time(one.created_unix_ms),
            _counts(one),
            one.digest[:12],
            one.author,
            one.reason,
        )
        for one in reply.datasets
    )
    out.show(table(("AGENT", ">VERSION", "CREATED", "EXAMPLES", "|SHA-256", "BY", "WHY"), rows))


def _counts(dataset: pb.Dataset) -> str:
    return ", ".join(f"{number(dataset.counts.get(part, 0))} {part}" for part in PARTS)


def _export(session: Session) -> None:
    options, out = session.options, session.out
    if out.is_json and not options.output:
        raise CommandError("the export is JSON lines by itself; --json goes with -o FILE", WRONG)
    if not options.output:
        _copy(session, out.console.file)
        return
    with _whole_file(options.output) as file:
        dataset, lines = _copy(session, file)
    if out.is_json:
        out.json({"file": options.output, "lines": lines, "part": options.part, "dataset": plain(dataset)})
    else:
        print(f"{lines} examples of version {dataset.version} in {options.output}", file=sys.stderr)


def _copy(session: Session, file: IO[str]) -> tuple[pb.Dataset, int]:
    """Write a dataset to a file; which it is, and how many lines were written."""
    options = session.options
    dataset, digest, lines = pb.Dataset(), hashlib.sha256(), 0
    for chunk in session.operator.export_dataset(options.agent, options.version, options.part):
        if chunk.HasField("dataset"):
            dataset = chunk.dataset
        digest.update(chunk.jsonl.encode())
        lines += chunk.jsonl.count("\n")
        file.write(chunk.jsonl)
    wanted = dataset.counts.get(options.part, 0) if options.part else sum(dataset.counts.values())
    if lines != wanted or (not options.part and digest.hexdigest() != dataset.digest):
        raise CommandError(f"what came is not version {dataset.version} as it was frozen: {lines} of {wanted} lines")
    return dataset, lines


@contextlib.contextmanager
def _whole_file(path: str) -> Iterator[IO[str]]:
    """A file that appears under its name when it is complete, or not at all."""
    target = Path(path)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    except OSError as error:
        raise CommandError(f"{path}: cannot be written: {error.strerror or error}") from None
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, target)  # noqa: PTH105 - a name, not a Path
    except OSError as error:
        raise CommandError(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)  # noqa: PTH108


_STEPS = {"create": _create_dataset, "list": _list_datasets, "export": _export}
_ACTIONS = {"list": _list, "review": _review, "dataset": _dataset, "datasets": _dataset}
