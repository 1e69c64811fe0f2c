"""The control plane's package. This version has none: sidecars run standalone, with policy from their own file."""
