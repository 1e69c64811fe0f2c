"""What every server process of the bench shares: tell the bound ports, live until a signal.

Always holds: a ports file appears whole (written beside, then renamed), so a reader never sees half of it.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path


def announce(ports: Mapping[str, int], ports_file: str) -> None:
    """Write the bound ports to `ports_file`, or print them as one line of JSON where it is empty."""
    text = json.dumps(dict(ports))
    if not ports_file:
        print(text, flush=True)
        return
    beside = Path(f"{ports_file}.{os.getpid()}")
    beside.write_text(text, encoding="utf-8")
    beside.replace(ports_file)


async def until_signal() -> None:
    """Return at SIGTERM or SIGINT."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    await stopped.wait()
