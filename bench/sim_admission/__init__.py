"""Admission under overload, simulated: the sidecar's queue beside simpler ones."""
