"""Sockets, files and the process: all I/O of the sidecar."""
