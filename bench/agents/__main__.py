"""One simulated agent: `python -m bench.agents --name tax-1 [--port N] [--ports-file FILE] [--seed N] [knobs]`."""

from __future__ import annotations

import argparse
import asyncio

import uvloop

from bench.agents.behaviour import add_arguments, from_arguments
from bench.agents.server import serve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--name", default="agent", help="told in every reply's attributes")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--ports-file", default="", help="the bound port as JSON; printed where empty")
    parser.add_argument("--seed", type=int, default=1)
    add_arguments(parser)
    options = parser.parse_args()
    try:
        behaviour = from_arguments(options)
    except ValueError as error:
        parser.error(str(error))
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    asyncio.run(serve(options.name, behaviour, options.seed, options.port, options.ports_file))


if __name__ == "__main__":
    main()
