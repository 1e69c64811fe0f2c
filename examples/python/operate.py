"""An operator's script: says what the mesh knows of an agent, and turns its cache on for some time or off.

Always holds: a change is sent once, with a reason, and only if nobody else changed the agent since it was read. The
exit code is 0 only if the control plane answered and took the change.

Run: python operate.py AGENT [--control 127.0.0.1:7700] [--cache-ttl-s 600 --reason "rates change hourly"]
"""

from __future__ import annotations

import argparse
import os
import sys

from outrider.control_channel import DEFAULT_CONTROL, Access, OperatorError
from outrider.operator import Operator
from outrider.policy import PolicyError


def show(operator: Operator, agent_id: str) -> None:
    """Health, and the figures of the last hour."""
    health = operator.get_agent_health(agent_id)
    print(f"{agent_id}: {health.state}, {health.endpoints} endpoints")
    for reason in health.reasons:
        print(f"  {reason.severity}: {reason.text}")
    of = next((one.figures for one in operator.get_overview().agents if one.agent_id == agent_id), None)
    if of is None or not of.requests:
        print("  no call in the last hour")
        return
    # What is not known is not set, which is not the same as 0.
    cost = f"${of.cost_usd:.4f}" if of.HasField("cost_usd") else "not priced"
    hits = f"{of.hit_rate:.0%}" if of.HasField("hit_rate") else "not cacheable"
    print(f"  {of.requests} calls, {of.errors} failed, P95 {of.p95_ms:.0f} ms, hits: {hits}, cost: {cost}")


def change(operator: Operator, agent_id: str, ttl_s: int, reason: str) -> None:
    """The cache on for `ttl_s`, or off for 0."""
    optimization = {"cache_enabled": True, "cache_ttl": ttl_s} if ttl_s else {"cache_enabled": False}
    for applied in operator.configure_response_optimization(agent_id, reason, **optimization).agents:
        print(f"{applied.agent_id}: {applied.outcome}, version {applied.version}")
        for field in applied.changes:
            print(f"  {field.path}: {field.before or 'unset'} -> {field.after or 'unset'}")


def main() -> int:
    parser = argparse.ArgumentParser(description="Looks at an agent of the mesh, and sets its cache.")
    parser.add_argument("--control", default=os.environ.get("OUTRIDER_CONTROL") or DEFAULT_CONTROL)
    parser.add_argument("--cache-ttl-s", type=int, default=None, help="0 turns the cache off")
    parser.add_argument("--reason", default="", help="of a change; goes into the journal")
    parser.add_argument("agent_id")
    options = parser.parse_args()
    access = Access(token=os.environ.get("OUTRIDER_TOKEN", ""))
    try:
        with Operator(options.control, access=access) as operator:
            if options.cache_ttl_s is not None:
                change(operator, options.agent_id, options.cache_ttl_s, options.reason)
            show(operator, options.agent_id)
    except (OperatorError, PolicyError) as error:
        print(f"operate: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
