"""A caller: asks an agent through the sidecar. The answer goes to stdout, what is known about the call to stderr.

Always holds: every call has a deadline; Ctrl-C cancels the call, which reaches the agent; the exit code is 0 only when
the answer is complete. `-` as the question: read it from stdin.

Run: python client.py [--target 127.0.0.1:7600] [--agent-id ID] [--session-id ID] [--deadline-ms N] [--unary] QUESTION
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading

from outrider.client import Outrider, OutriderError
from outrider.reply import CallInfo
from outrider.v1 import agent_pb2


def tell(info: CallInfo, status: str, finish: str = "", usage: agent_pb2.Usage | None = None) -> None:
    lines = {"x-outrider-cache": info.cache, "x-outrider-endpoint": info.endpoint, "finish": finish}
    if usage is not None:
        lines["usage"] = f"{usage.input_tokens} in, {usage.output_tokens} out"
    lines["status"] = status
    for name, value in lines.items():
        if value:
            print(f"{name}: {value}", file=sys.stderr)


def ask(client: Outrider, question: str, unary: bool) -> bool:
    """Whether the answer is complete."""
    if unary:
        reply = client.invoke(question)
        print(reply.text)
        reason, usage = reply.message.finish_reason, reply.message.usage
        tell(reply.info, "OK", agent_pb2.FinishReason.Name(reason), usage)
        return reason == agent_pb2.FINISH_REASON_STOP
    with client.invoke_stream(question) as stream:  # leaving the block early cancels the call
        for chunk in stream:
            print(chunk.text, end="", flush=True)
    print()
    finish = stream.finish or agent_pb2.Finish()
    tell(stream.info, "OK", agent_pb2.FinishReason.Name(finish.reason), finish.usage)
    return finish.reason == agent_pb2.FINISH_REASON_STOP


def main() -> int:
    parser = argparse.ArgumentParser(description="Asks an agent through the sidecar.")
    parser.add_argument("--target", default="127.0.0.1:7600")
    parser.add_argument("--agent-id", default="")
    parser.add_argument("--session-id", default="")
    parser.add_argument("--deadline-ms", type=float, default=30_000)
    parser.add_argument("--unary", action="store_true")
    parser.add_argument("question", nargs="+")
    options = parser.parse_args()
    asked = " ".join(options.question)
    question = sys.stdin.read() if asked == "-" else asked
    identity = {"agent_id": options.agent_id, "session_id": options.session_id}
    stopped = threading.Event()
    with Outrider(options.target, timeout_s=options.deadline_ms / 1000, **identity) as client:

        def stop(*_: object) -> None:
            # Not KeyboardInterrupt: raised while grpcio holds its locks, it breaks them.
            stopped.set()
            threading.Thread(target=client.close).start()  # ends the call, which reaches the agent

        signal.signal(signal.SIGINT, stop)
        try:
            return 0 if ask(client, question, options.unary) else 1
        except OutriderError as error:
            print()
            tell(error.info, "CANCELLED" if stopped.is_set() else str(error))
        except ValueError:  # the channel was closed before the call began
            if not stopped.is_set():
                raise
            print()
            tell(CallInfo(), "CANCELLED")
    return 1


if __name__ == "__main__":
    sys.exit(main())
