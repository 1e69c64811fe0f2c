"""`outrider compress`: what it prints, undoes, bills and refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from outrider_sidecar.compress_command import main

ROWS = json.dumps([{"flight": f"HAT{at:03}", "from": "JFK", "seats": at, "status": "available"} for at in range(60)])
CALL = {"id": "c", "type": "function", "function": {"name": "search", "arguments": "{}"}}
MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "You help. " * 300},
    {"role": "user", "content": "Which flight?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c", "content": ROWS},
    {"role": "assistant", "content": "HAT001."},
    {"role": "user", "content": "And now?"},
    {"role": "assistant", "content": "HAT002."},
]


@pytest.fixture
def conversation(tmp_path: Path) -> str:
    file = tmp_path / "conversation.json"
    file.write_text(json.dumps({"model": "gpt-4o", "messages": MESSAGES}), encoding="utf-8")
    return str(file)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    """What is printed; as JSON where it is asked for."""
    assert main(["--estimate", *arguments]) == 0
    text = capsys.readouterr().out
    return json.loads(text) if "--json" in arguments else text


def test_a_conversation_is_printed_smaller_and_restored(
    conversation: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    made = json.loads(run(capsys, conversation))
    assert made["model"] == "gpt-4o"
    assert made["messages"][3]["content"].startswith("#columns/1")
    assert [one for at, one in enumerate(made["messages"]) if at != 3] == [
        one for at, one in enumerate(MESSAGES) if at != 3
    ]
    file = tmp_path / "made.json"
    file.write_text(json.dumps(made), encoding="utf-8")
    assert json.loads(run(capsys, str(file), "--restore"))["messages"] == MESSAGES


def test_a_text_is_the_result_of_a_tool(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file, made = tmp_path / "rows.json", tmp_path / "made"
    file.write_text(ROWS, encoding="utf-8")
    made.write_text(run(capsys, str(file)), encoding="utf-8")
    assert made.read_text(encoding="utf-8").startswith("#columns/1")
    assert run(capsys, str(made), "--restore") == ROWS


def test_stats_and_explanations(conversation: str, capsys: pytest.CaptureFixture[str]) -> None:
    stats = run(capsys, conversation, "--stats", "--json")
    (block,) = stats["blocks"]
    assert (block["kind"], block["compressor"], block["reversible"]) == ("json", "columns/1", True)
    saved = block["tokens_before"] - block["tokens_after"]
    assert saved == stats["tokens_before"] - stats["tokens_after"] > 0
    assert not stats["exact"]
    shown = run(capsys, conversation, "--explain")
    assert "messages[3].content" in shown
    assert "fewer (estimated)" in shown
    assert "columns/1" in run(capsys, conversation, "--stats")


@pytest.mark.parametrize("provider", ["anthropic", "openai", "none"])
def test_a_whole_conversation_is_billed(conversation: str, provider: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = run(capsys, conversation, "--simulate", "--provider", provider, "--json")
    assert {"bill_before", "bill_after", "cached_share_before", "cached_share_after"} <= set(found)
    assert 0 < found["bill_after"] <= found["bill_before"]
    assert "bill" in run(capsys, conversation, "--simulate", "--provider", provider)


def test_lossy_takes_a_question_and_a_budget(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "text"
    lines = [f"Report {at}\nThe report number {at} was filed in {1900 + at} by the office." for at in range(80)]
    file.write_text("\n\n".join(lines), encoding="utf-8")
    text = run(capsys, str(file), "--mode", "lossy", "--query", "When was report number 17 filed?", "--ratio", "0.3")
    assert "filed in 1917" in text
    assert len(text) < 0.5 * file.stat().st_size


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["/no/such/file"], 1, "outrider compress: "),
        (["--mode", "zip"], 2, "invalid choice"),
        (["--ratio", "7"], 2, "not between 0.01 and 1"),
        (["--budget", "-3"], 2, "budget"),
        (["--stats", "--restore"], 2, "not allowed with"),
    ],
)
def test_what_is_wrong_is_said(arguments: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        found = main(arguments)
    except SystemExit as error:
        found = error.code
    assert found == code
    assert said in capsys.readouterr().err


def test_a_text_cannot_be_billed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_text("no messages", encoding="utf-8")
    assert main([str(file), "--simulate"]) == 1
    assert "needs a conversation" in capsys.readouterr().err


def test_it_is_a_subcommand_and_reads_standard_input() -> None:
    command = [sys.executable, "-m", "outrider.cli", "compress", "--estimate"]
    made = subprocess.run(command, input=ROWS.encode(), capture_output=True, timeout=60, check=True)
    assert made.stdout.startswith(b"#columns/1")
