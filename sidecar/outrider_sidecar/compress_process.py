"""The process that compresses large blocks for a sidecar: questions on its standard input, answers on its output.

Always holds: one answer for each question, in order, each with its length before it; it says `READY` first, ends when
its input does, and gives way to the sidecar wherever both want a processor.

Deliberately not here: what a question means (`compress.work`), whose process it is (`edge.compress_worker`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import BinaryIO

from outrider_sidecar.compress.work import LENGTH_BYTES, done, framed

READY = b"ready"


def serve(questions: BinaryIO, answers: BinaryIO) -> None:
    """Answer until there is nothing more."""
    answers.write(framed(READY))
    answers.flush()
    while len(head := questions.read(LENGTH_BYTES)) == LENGTH_BYTES:
        question = questions.read(int.from_bytes(head, "big"))
        answers.write(framed(done(question)))
        answers.flush()


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal: the sidecar says when it is over
    with contextlib.suppress(OSError):
        os.nice(10)
    with contextlib.suppress(BrokenPipeError):
        serve(sys.stdin.buffer, sys.stdout.buffer)


if __name__ == "__main__":
    main()
