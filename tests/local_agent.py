"""A tiny agent program for tests of engines: listens, does what it is told, ends on SIGTERM. No gRPC: it starts fast.

It prints what it was started with as one line of JSON. Modes: `serve`; `die` (at its start, with code 3); `crash` (at
its first connection); `deaf` (never listens); `stubborn` (takes no SIGTERM); `sorry` (says good bye first). SIGUSR1
closes its listener while it lives on.

Deliberately not here: registering, health (`bench.agents` does both).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import FrameType


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--ports-file", default="", help="the bound port is written there")
    parser.add_argument("--mode", default="serve")
    parser.add_argument("--die-if", default="", help="a file: where it is there, the mode is `die`")
    parser.add_argument("--child", default="", help="start a process of our own; its pid goes to this file")
    options = parser.parse_args()
    started = {"arguments": sys.argv[1:], "environment": dict(os.environ), "cwd": str(Path.cwd())}
    print(json.dumps({**started, "stdin": sys.stdin.read()}), flush=True)
    mode = "die" if options.die_if and Path(options.die_if).exists() else options.mode
    if mode == "die":
        print("no model\x07 to load", flush=True)
        sys.exit(3)
    if mode == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if mode == "sorry":
        signal.signal(signal.SIGTERM, say_good_bye)
    if options.child:
        sleeper = subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(60)"])
        Path(options.child).write_text(str(sleeper.pid), encoding="ascii")
    if mode == "deaf":
        signal.pause()
    serve(options.port, options.ports_file, mode == "crash")


def serve(port: int, ports_file: str, crashes: bool) -> None:
    listener = socket.create_server(("127.0.0.1", port))
    signal.signal(signal.SIGUSR1, lambda *_: listener.close())
    if ports_file:
        beside = Path(f"{ports_file}.new")
        beside.write_text(json.dumps({"port": listener.getsockname()[1]}), encoding="ascii")
        beside.replace(ports_file)
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            signal.pause()
            continue
        connection.close()
        if crashes:
            sys.exit("something went wrong")


def say_good_bye(number: int, frame: FrameType | None) -> None:
    print("good bye", flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
