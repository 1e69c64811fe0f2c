"""Simulated agents: `python -m bench.agents --name tax-1 [--port N] [--ports-file FILE] [--seed N] [knobs]`.

One process can host many: `--name` repeated; then the ports file holds a port per name, seeds count up from `--seed`,
and the agent of an instance is its name up to the last dash.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses

import uvloop

from bench.agents.behaviour import Behaviour, add_arguments, from_arguments
from bench.agents.server import Instance, serve


def slower(behaviour: Behaviour, times: float) -> Behaviour:
    """The same agent on a machine that takes `times` as long."""
    return dataclasses.replace(
        behaviour,
        first_token_ms=behaviour.first_token_ms * times,
        tokens_per_s=behaviour.tokens_per_s / times,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--name", action="append", default=[], help="told in every reply's attributes")
    parser.add_argument("--slower", action="append", type=float, default=[], help="of each name, in order; 1: as told")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--ports-file", default="", help="the bound ports as JSON; printed where empty")
    parser.add_argument("--control", action="append", default=[], help="a control plane to register with")
    parser.add_argument("--seed", type=int, default=1)
    add_arguments(parser)
    options = parser.parse_args()
    try:
        behaviour = from_arguments(options)
    except ValueError as error:
        parser.error(str(error))
    names = options.name or ["agent"]
    if options.port and len(names) > 1:
        parser.error("--port goes with one --name")
    times = [*options.slower, *[1.0] * len(names)]
    instances = [
        Instance(name, name.rpartition("-")[0] or name, slower(behaviour, times[at]), options.seed + at, options.port)
        for at, name in enumerate(names)
    ]
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    asyncio.run(serve(instances, options.ports_file, options.control))


if __name__ == "__main__":
    main()
