"""One agent instance behind a sidecar of its own: what the local engine starts in `make spike`.

`python -m bench.spike.instance --name tax-3 --agent tax --port N --control HOST:PORT [--concurrency N] [knobs]`. The
agent listens on a port of the system's choice and refuses calls over its concurrency; its sidecar's ingress listens on
`--port` and announces it.

Always holds: SIGTERM ends the sidecar first, which withdraws the endpoint and lets its calls finish, then the agent;
both are in one process group, so that killing it leaves nothing behind.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import tempfile
from pathlib import Path

import uvloop

from bench.agents.behaviour import add_arguments, from_arguments
from bench.agents.server import Instance, running
from bench.process import python_environment
from bench.serve import until_signal

_DRAIN_S = 20.0


def _settings(options: argparse.Namespace, target: int, folder: Path) -> Path:
    file = folder / "sidecar.yaml"
    ingress = {
        "listen": f"127.0.0.1:{options.port}",
        "agent_id": options.agent,
        "target": f"127.0.0.1:{target}",
        "capacity": options.concurrency,
        "labels": {"instance": options.name},
    }
    settings = {
        "listen": "127.0.0.1:0",
        "admin": "127.0.0.1:0",
        "control": [options.control],
        "ingress": ingress,
        "drain_grace_s": _DRAIN_S,
    }
    file.write_text(json.dumps(settings, indent=1), encoding="utf-8")
    return file


async def _serve(options: argparse.Namespace) -> int:
    instance = Instance(options.name, options.agent, from_arguments(options), options.seed)
    with tempfile.TemporaryDirectory(prefix="outrider-instance-") as folder:
        async with running(instance) as port:
            file = _settings(options, port, Path(folder))
            command = [sys.executable, "-m", "outrider_sidecar", "--config", str(file)]
            sidecar = await asyncio.create_subprocess_exec(*command, env=python_environment())
            stopped = asyncio.ensure_future(until_signal())
            ended = asyncio.ensure_future(sidecar.wait())
            await asyncio.wait((stopped, ended), return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                stopped.cancel()
                print(f"the sidecar of {options.name} ended with code {ended.result()}", file=sys.stderr)
                return 1
            with contextlib.suppress(ProcessLookupError):
                sidecar.terminate()
            await ended
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", required=True)
    parser.add_argument("--agent", required=True)
    parser.add_argument("--port", type=int, required=True, help="of the sidecar's ingress")
    parser.add_argument("--control", required=True)
    parser.add_argument("--seed", type=int, default=1)
    add_arguments(parser)
    return uvloop.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    raise SystemExit(main())
