"""`outrider compress`: what compression makes of a conversation or a text, what it saves, and how to undo it.

Always holds: nothing is sent anywhere; what cannot be read as messages is taken as one text; errors are one line on
standard error, with exit code 2 for a wrong command line and 1 for everything else.

Deliberately not here: compressors and deciding (`compress`).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from outrider.policy import COMPRESSIONS, PROVIDERS, Compression
from outrider_sidecar.compress import catalog, detect, openai_messages, simulate, tokens
from outrider_sidecar.compress.billing import rules_of
from outrider_sidecar.compress.block import TOOL, USER, Block, digest_of, label_of
from outrider_sidecar.compress.controller import Controller
from outrider_sidecar.compress.conversation import Part, Plan, Planner
from outrider_sidecar.compress.ledger import COMPRESSED, SENT, Ledger, Memo
from outrider_sidecar.compress.openai_messages import NotMessages

MAX_BYTES = 256 * 1024 * 1024
_UNBOUNDED = 1 << 60


class _Refused(Exception):
    """What cannot be done, for people."""


def main(arguments: Sequence[str]) -> int:
    """make a conversation smaller, see what that saves, or undo it

    FILE is JSON as OpenAI's chat API has it ([{"role": ...}] or {"messages": [...]}), or any text, which counts as the
    result of a tool. Without an option the result is printed.
    """
    options = _parser().parse_args(arguments)
    try:
        return _run(options)
    except _Refused as refused:
        print(f"outrider compress: {refused}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="outrider compress",
        description=(main.__doc__ or "").strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("file", nargs="?", default="-", metavar="FILE", help="default: standard input")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--stats", action="store_true", help="tokens before and after, block by block")
    what.add_argument("--explain", action="store_true", help="what was done with each block, and why")
    what.add_argument("--restore", action="store_true", help="undo what can be undone from the text itself")
    what.add_argument(
        "--simulate", action="store_true", help="bill the whole conversation, turn by turn, with and without"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--mode", choices=COMPRESSIONS, default="lossless")
    parser.add_argument("--query", default="", help="a text's question, for lossy selection (messages bring their own)")
    parser.add_argument(
        "--ratio", type=_ratio, default=0.5, help="of its tokens that a block selected from keeps (lossy)"
    )
    parser.add_argument("--budget", type=_count, default=0, metavar="TOKENS", help="for the whole conversation")
    parser.add_argument("--model", default="", help="whose vocabulary counts, and whose prices hold")
    parser.add_argument("--provider", choices=PROVIDERS[1:], default="", help="whose rules of prefix caching hold")
    parser.add_argument("--deny-tool", action="append", default=[], metavar="NAME", help="leave its results alone")
    parser.add_argument(
        "--estimate", action="store_true", help="count tokens by estimate although a vocabulary is there"
    )
    return parser


def _ratio(text: str) -> float:
    value = float(text)
    if not 0.01 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"{text} is not between 0.01 and 1")
    return value


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no number of tokens")
    return int(text)


def _run(options: argparse.Namespace) -> int:
    text = _read(options.file)
    document, messages = _messages(text)
    if options.restore:
        return _restore(text, document, messages)
    if options.simulate and messages is None:
        raise _Refused(f"{options.file}: --simulate needs a conversation: a JSON list of messages")
    count, exact = _counter(options)
    policy = Compression(
        mode=options.mode,
        provider=options.provider,
        model=options.model,
        deny_tools=tuple(options.deny_tool),
        lossy_ratio=options.ratio,
        max_steps=_UNBOUNDED,
        min_tokens=16,
    )
    if options.simulate:
        assert messages is not None
        return _simulate(simulate.simulate(messages, policy, count, options.model), options.json, exact)
    parts = _parts(text, messages, options)
    planner = Planner(policy, Controller(rules_of(policy, options.model)), Ledger(), Memo(), count)
    plan = planner.plan(parts, 0.0, max_tokens=options.budget)
    if options.stats or options.explain:
        return _report(plan, exact, options)
    print(_result(plan, document, messages), end="" if messages is None else "\n")
    return 0


# -- in --------------------------------------------------------------------------------------------------------------


def _read(name: str) -> str:
    try:
        if name == "-":
            data = sys.stdin.buffer.read(MAX_BYTES + 1)
        else:
            with Path(name).open("rb") as file:
                data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise _Refused(f"{name}: {error.strerror or error}") from None
    if len(data) > MAX_BYTES:
        raise _Refused(f"{name}: more than {MAX_BYTES >> 20} MB")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise _Refused(f"{name}: no UTF-8 text: {error.reason} at byte {error.start}") from None


def _messages(text: str) -> tuple[Any, list[Any] | None]:
    """The document and its messages; None where the text is none."""
    if not text.lstrip().startswith(("[", "{")):
        return None, None
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return None, None
    try:
        return document, openai_messages.messages_in(document)
    except NotMessages as error:
        claims = isinstance(document, dict) and isinstance(document.get("messages"), list)
        said = (
            [one for one in document if isinstance(one, dict) and "role" in one] if isinstance(document, list) else []
        )
        if claims or (said and len(said) == len(document)):
            raise _Refused(str(error)) from None
        return None, None


def _parts(text: str, messages: list[Any] | None, options: argparse.Namespace) -> list[Part]:
    if messages is not None:
        return openai_messages.parts_of(messages, options.deny_tool)
    asked = [Part("query", Block(options.query, USER), True)] if options.query else []
    return [*asked, Part("text", Block(text, TOOL))]


def _counter(options: argparse.Namespace) -> tuple[tokens.Count, bool]:
    vocabulary, own = tokens.vocabulary_of(options.model)
    if not options.estimate:
        try:
            return tokens.exact(vocabulary), own or not options.model
        except LookupError:
            pass
    return lambda text: tokens.estimate(text, vocabulary), False


# -- out -------------------------------------------------------------------------------------------------------------


def _result(plan: Plan, document: Any, messages: list[Any] | None) -> str:
    if messages is None:
        return plan.sent[-1].text or ""
    texts = {one.part.path: one.text for one in plan.sent if one.text is not None and not one.part.fixed}
    return _document(document, openai_messages.with_texts(messages, texts))


def _document(document: Any, messages: list[Any]) -> str:
    return json.dumps(
        {**document, "messages": messages} if isinstance(document, dict) else messages, ensure_ascii=False
    )


def _report(plan: Plan, exact: bool, options: argparse.Namespace) -> int:
    before = after = 0
    blocks = []
    rows = []
    for one in plan.sent:
        was = one.decision.tokens_before
        is_now = one.decision.tokens_after
        before += was
        after += is_now
        result = one.decision.result
        if one.decision.action == COMPRESSED and result is not None:
            blocks.append(
                {
                    "kind": result.kind,
                    "compressor": result.compressor,
                    "tokens_before": was,
                    "tokens_after": is_now,
                    "reversible": result.reversible,
                }
            )
        rows.append({"path": one.part.path, **_explained(one.part, one.decision), "tokens": [was, is_now]})
    if options.json:
        found: dict[str, Any] = {"tokens_before": before, "tokens_after": after, "exact": exact}
        found |= {"blocks": blocks} if options.stats else {"explain": rows}
        print(json.dumps({**found, "notes": plan.notes}, ensure_ascii=False))
        return 0
    if options.explain:
        for row in rows:
            print(f"{row['path']:<32} {row['kind']:<11} {row['tokens'][0]:>7} -> {row['tokens'][1]:>7}  {row['what']}")
    else:
        for block in blocks:
            way = "reversible" if block["reversible"] else "not reversible"
            print(
                f"{block['kind']:<12} {block['compressor']:<12} {block['tokens_before']:>8} ->"
                f" {block['tokens_after']:>8}  {way}"
            )
    share = 1 - after / before if before else 0.0
    print(f"{before} tokens -> {after}, {share:.1%} fewer{'' if exact else ' (estimated)'}")
    for note in plan.notes:
        print(note)
    return 0


def _explained(part: Part, decision: Any) -> dict[str, str]:
    kind = detect.kind_of(part.block.text, part.block.media_type)
    if decision.action != SENT:
        name = decision.result.compressor if decision.result is not None else decision.action
        way = "reversible" if decision.result is not None and decision.result.reversible else "not reversible"
        return {"kind": kind, "what": f"{name}, {way}{f': {decision.why}' if decision.why else ''}"}
    if part.fixed:
        why = "a denied tool's" if part.block.role == TOOL else f"what the {part.block.role} said stays"
    else:
        why = decision.why or ("code stays" if kind == detect.CODE else "nothing makes it smaller")
    return {"kind": kind, "what": f"as it is: {why}"}


def _restore(text: str, document: Any, messages: list[Any] | None) -> int:
    earlier: dict[str, str] = {}
    if messages is None:
        print(catalog.restore(text), end="")
        return 0
    texts: dict[str, str] = {}
    for path, one in openai_messages.texts_of(messages):
        restored = catalog.restore(one, earlier.get)
        texts[path] = restored
        earlier.setdefault(label_of(digest_of(restored)), restored)
    print(_document(document, openai_messages.with_texts(messages, texts)))
    return 0


def _simulate(bills: simulate.Bills, as_json: bool, exact: bool) -> int:
    if as_json:
        names = ("bill_before", "bill_after", "cached_share_before", "cached_share_after")
        found = {name: round(getattr(bills, name), 6) for name in names}
        print(json.dumps({**found, "turns": len(bills.turns), "rewritten": bills.rewritten, "exact": exact}))
        return 0
    print(f"{'turn':>4} {'tokens':>9} {'sent':>9} {'bill':>11} {'with':>11}")
    for number, turn in enumerate(bills.turns, 1):
        sizes = f"{number:>4} {turn.tokens_before:>9} {turn.tokens_after:>9}"
        print(f"{sizes} {turn.cost_before:>11.1f} {turn.cost_after:>11.1f}{'  epoch' if turn.epoch else ''}")
    share = 1 - bills.bill_after / bills.bill_before if bills.bill_before else 0.0
    print(f"bill {bills.bill_before:.1f} -> {bills.bill_after:.1f}, {share:.1%} lower{'' if exact else ' (estimated)'}")
    shares = f"{bills.cached_share_before:.1%} of the tokens without, {bills.cached_share_after:.1%} with"
    print(f"read from the cache: {shares}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
