"""`make bench`: Outrider's sidecar beside Envoy and a grpc.aio proxy, in one run on one machine."""
