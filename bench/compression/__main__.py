"""What compression saves, what it keeps, and what it costs: every figure that is promised of it, in one run.

    python -m bench.compression [--every N] [--rounds N] [--seed N] [--quick] [--json]

Real conversations and questions are read from `$OUTRIDER_DATA`, else `../shared/data`; without them their rows are left
out, visibly. Tokens are counted with o200k_base where bpe-openai is installed, else estimated. Exit code 0: everything
that must be reached is; 1: something is not. Figures are written to bench/out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any, NamedTuple

from bench.compression import answers, bills, corpora, cost, lossless
from bench.process import ROOT, stop_on_signals
from outrider_sidecar.compress import tokens
from outrider_sidecar.compress.tokens import Count

OUT = ROOT / "bench" / "out"


class Verdict(NamedTuple):
    """One requirement."""

    what: str
    is_met: bool
    found: str


def main(arguments: list[str] | None = None) -> int:
    options = _arguments(arguments)
    stop_on_signals()
    count, counted_with = _count()
    figures = _measured(options, count) | {"counted_with": counted_with}
    verdicts = _verdicts(figures)
    figures["verdicts"] = [one._asdict() for one in verdicts]
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "compression.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=1) if options.json else _text(figures, verdicts))
    return 0 if all([one.is_met for one in verdicts]) else 1


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, help="one in so many of the questions that are held out")
    parser.add_argument("--rounds", type=int, default=7, help="of what is timed")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="one question in eight, fewer rounds")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON only")
    options = parser.parse_args(arguments)
    if options.quick:
        options.every, options.rounds = 8, 3
    if options.every < 1 or options.rounds < 1:
        parser.error("--every and --rounds must be at least 1")
    return options


def _count() -> tuple[Count, str]:
    try:
        return tokens.exact(), tokens.O200K
    except LookupError:
        return tokens.estimate, "estimate"


def _measured(options: argparse.Namespace, count: Count) -> dict[str, Any]:
    data = corpora.folder()
    started = time.monotonic()
    found: dict[str, Any] = {"lossless": lossless.rows(data, options.seed, count)}
    found["records_cost"] = cost.beside_json(corpora.records(options.seed), options.rounds)
    found["wait_ms"] = cost.wait_ms(options.seed, 2 * options.rounds)
    if data is not None:
        conversations = corpora.conversations(data)
        told = [text for one in conversations for text in lossless.tool_outputs(one)]
        documents = [text for text in told if text.startswith(("{", "["))]
        found["tools_cost"] = cost.beside_json(documents, options.rounds)
        found["memoised"] = cost.memoised(max(conversations, key=len), options.rounds)
        found["estimate"] = cost.estimate_error(told, count)
        found["bills"] = bills.rows(conversations, options.seed, count)
        asked = corpora.questions(data, options.seed, options.every)
        found["answers"] = answers.rows(asked, count, options.seed)
    found["seconds"] = time.monotonic() - started
    return found


def _verdicts(figures: dict[str, Any]) -> list[Verdict]:
    blocks = figures["lossless"]
    records, code = blocks["uniform records"], blocks["code"]
    broken = sum([row["broken"] for row in blocks.values()])
    found = [
        Verdict("uniform records: at least 60 % fewer tokens", records["saved"] >= 0.6, f"{records['saved']:.1%}"),
        Verdict("code: unchanged", code["changed"] == 0, f"{code['changed']} of {code['blocks']} changed"),
        Verdict("every reversible result restores exactly", broken == 0, f"{broken} do not"),
    ]
    for mode, told in figures["wait_ms"].items():
        said = f"{statistics.median(told):.2f} ms, median of {', '.join([f'{one:.2f}' for one in told])}"
        found.append(Verdict(f"no other call waits more than 2 ms ({mode})", statistics.median(told) <= 2.0, said))
    costs = {"uniform records": figures["records_cost"]}
    if "tools_cost" in figures:
        costs["tool outputs"] = figures["tools_cost"]
    for name, one in costs.items():
        what = f"{name}: at most 4 x the time of json.loads and json.dumps"
        found.append(Verdict(what, one["ratio"] <= 4.0, f"{one['ratio']:.2f} x"))
    if "bills" in figures:
        found += _of_conversations(figures)
        found += _of_answers(figures["answers"])
    return found


def _of_conversations(figures: dict[str, Any]) -> list[Verdict]:
    tools = figures["lossless"]["tool outputs, tau-bench"]
    rows = {(row["provider"], row["mode"], row["decided by"]): row for row in figures["bills"]}
    found = [Verdict("tool outputs: at least 25 % fewer tokens", tools["saved"] >= 0.25, f"{tools['saved']:.1%}")]
    for provider in ("anthropic", "openai"):
        saved = rows[provider, "lossless", "exact"]["saved"]
        found.append(Verdict(f"input bill, {provider}: at least 8 % lower", saved >= 0.08, f"{saved:.1%}"))
    saved = rows["none", "lossless", "exact"]["tool_tokens_saved"]
    found.append(Verdict("tool output without caching: at least 20 % lower", saved >= 0.2, f"{saved:.1%}"))
    worst = max(figures["bills"], key=lambda row: row["worst"])
    said = f"{worst['worst']:.4f} ({worst['provider']}, {worst['mode']}, by {worst['decided by']})"
    found.append(Verdict("no conversation more than 1 % above its bill, in any mode", worst["worst"] <= 1.01, said))
    rewritten = sum([row["rewritten"] for row in figures["bills"]])
    found.append(Verdict("the prefix once sent is never rewritten", rewritten == 0, f"{rewritten} prompts"))
    return found


def _of_answers(rows: list[dict[str, Any]]) -> list[Verdict]:
    found = []
    for share, limit in ((0.5, 0.95), (0.25, 0.91)):
        own = {
            row["method"]: row["survived"] for row in rows if row["form"] == answers.MAIN_FORM and row["share"] == share
        }
        ours = own.pop(answers.OURS)
        best = max(own, key=lambda name: own[name])
        what = f"answers at {share:.0%} of the tokens"
        found.append(Verdict(f"{what}: at least {limit:.0%}", ours >= limit, f"{ours:.1%}"))
        found.append(Verdict(f"{what}: better than {best}", ours > own[best], f"{ours:.1%} and {own[best]:.1%}"))
    return found


def _text(figures: dict[str, Any], verdicts: list[Verdict]) -> str:
    lines = [f"tokens by {figures['counted_with']}; {figures['seconds']:.0f} s", ""]
    lines.append(_line("blocks, each alone", "blocks", "changed", "tokens", "after", "saved", "bytes"))
    for name, row in figures["lossless"].items():
        before, after = f"{row['tokens_before']:,}", f"{row['tokens_after']:,}"
        saved, smaller = f"{row['saved']:.1%}", f"{row['bytes_saved']:.1%}"
        lines.append(_line(name, row["blocks"], row["changed"], before, after, saved, smaller))
    lines.append("")
    if "bills" in figures:
        lines += _text_of_conversations(figures)
    else:
        lines.append("real conversations and questions are not here: their rows are left out")
    lines.append("")
    lines += [f"{'PASS' if one.is_met else 'MISS'}  {one.what}: {one.found}" for one in verdicts]
    return "\n".join(lines)


def _text_of_conversations(figures: dict[str, Any]) -> list[str]:
    lines = [_line("input bills of conversations", "decided by", "saved", "tools", "worst", "rewritten")]
    for row in figures["bills"]:
        saved, tools = f"{row['saved']:.1%}", f"{row['tool_tokens_saved']:.1%}"
        name = f"{row['provider']}, {row['mode']}"
        lines.append(_line(name, row["decided by"], saved, tools, f"{row['worst']:.4f}", row["rewritten"]))
    lines += ["", _line("answers that survive", "of tokens", "survive", "questions")]
    for row in figures["answers"]:
        name, tokens_kept = f"{row['form']}, {row['method']}", f"{row['tokens']:.1%}"
        lines.append(_line(name, tokens_kept, f"{row['survived']:.1%}", row["questions"]))
    known, error = figures["memoised"], figures["estimate"]
    first, again = f"{known['first_us']:,.0f} us at first", f"{known['again_us']:,.0f} us when known"
    lines += ["", f"a conversation of {known['blocks']} blocks: {first}, {again}"]
    errors = f"mean error {error['mean']:.1%}, 95th percentile {error['p95']:.1%}, together {error['together']:+.1%}"
    lines.append(f"the estimate of tokens, tool outputs: {errors}")
    return lines


def _line(name: str, *cells: object) -> str:
    return f"{name:36}" + "".join([f"{cell!s:>12}" for cell in cells])


if __name__ == "__main__":
    raise SystemExit(main())
