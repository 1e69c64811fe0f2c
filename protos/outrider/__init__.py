"""The contract of the mesh: message types, the policy tree and a thin client of the local sidecar.

Always holds: importing this package loads nothing else, so that the sidecar may read the policy without loading
grpcio, and an agent may use the stubs without loading the client.
"""

__version__ = "0.1.0"
