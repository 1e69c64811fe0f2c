"""HTTP/2 for gRPC peers: a sans-io state machine for both roles, and asyncio shells around it.

Always holds: nothing here imports the rest of the project; the state machine reads no clock and does no I/O.
"""
