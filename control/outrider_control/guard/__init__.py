"""The listener in front of the control plane's gRPC server."""
