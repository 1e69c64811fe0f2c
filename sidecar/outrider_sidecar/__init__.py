"""The sidecar: one process beside each agent that proxies, caches, balances and reports its gRPC calls.

Always holds: layers import downwards only (`core` <- `engines` <- `filters` <- `stack` <- `edge` <- `app`); the
process imports neither grpc nor pydantic.
"""
