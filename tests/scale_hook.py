"""A receiver of the webhook engine, in a process of its own: remembers what it is told, and does it or does not.

`POST /NAME` is the engine's `url` (NAME says which control plane it is that asks), `GET /instances` its
`instances_url`. A test reads `GET /posts` and says by `POST /mode/AGENT/MODE` what becomes of the next ones: `take`
does what is asked at once; `lie` says so and does nothing; `stall` never answers; `fail` cannot; `nonsense` takes, and
then says what cannot be of what runs.

Run: `python -m tests.scale_hook --ports-file FILE`
"""

from __future__ import annotations

import argparse
import asyncio
import json
import urllib.request
from collections import defaultdict
from typing import Any

import uvloop
from aiohttp import web

from bench.serve import announce, until_signal
from tests.sidecars import WAIT_S, Mesh


class Receiver:
    """What was asked, and what there is, by agent."""

    def __init__(self) -> None:
        self.posts: list[dict[str, Any]] = []
        self.modes: dict[str, str] = defaultdict(lambda: "take")
        self.there: dict[str, int] = defaultdict(int)

    async def asked(self, request: web.Request) -> web.Response:
        body = await request.json()
        agent_id = body["agent_id"]
        mode = self.modes[agent_id]
        self.posts.append({**body, "by": request.match_info["name"], "mode": mode})
        if mode == "stall":
            await asyncio.Event().wait()
        if mode == "fail":
            return web.Response(status=503, text="no machine is free")
        if mode != "lie":
            self.there[agent_id] = body["desired"]
        return web.Response()

    async def instances(self, request: web.Request) -> web.Response:
        agent_id = request.query["agent_id"]
        count = -1 if self.modes[agent_id] == "nonsense" else self.there[agent_id]
        return web.json_response({"ready": count, "desired": count})

    async def told(self, request: web.Request) -> web.Response:
        return web.json_response(self.posts)

    async def mode(self, request: web.Request) -> web.Response:
        self.modes[request.match_info["agent"]] = request.match_info["mode"]
        return web.json_response(None)


class Hook:
    """Such a process, as a test sees it."""

    def __init__(self, mesh: Mesh):
        _, ports = mesh.module("hook", "tests.scale_hook")
        self._url = f"http://127.0.0.1:{ports['port']}"

    def engine(self, name: str) -> dict[str, Any]:
        """The section of an engine whose control plane goes by this name."""
        return {"kind": "webhook", "url": f"{self._url}/{name}", "instances_url": f"{self._url}/instances"}

    def posts(self, agent_id: str) -> list[dict[str, Any]]:
        """What was asked of an agent, oldest first."""
        with urllib.request.urlopen(f"{self._url}/posts", timeout=WAIT_S) as reply:
            return [one for one in json.load(reply) if one["agent_id"] == agent_id]

    def mode(self, agent_id: str, mode: str) -> None:
        request = urllib.request.Request(f"{self._url}/mode/{agent_id}/{mode}", method="POST")
        with urllib.request.urlopen(request, timeout=WAIT_S):
            pass


async def serve(ports_file: str) -> None:
    receiver = Receiver()
    app = web.Application()
    app.router.add_get("/posts", receiver.told)
    app.router.add_get("/instances", receiver.instances)
    app.router.add_post("/mode/{agent}/{mode}", receiver.mode)
    app.router.add_post("/{name}", receiver.asked)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    announce({"port": runner.addresses[0][1]}, ports_file)
    await until_signal()
    await runner.cleanup()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ports-file", default="")
    uvloop.run(serve(parser.parse_args().ports_file))


if __name__ == "__main__":
    main()
