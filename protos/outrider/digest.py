"""BLAKE2 by itself: `hashlib` loads all of OpenSSL's hashes beside it, two thirds of a megabyte in every sidecar."""

from __future__ import annotations

try:
    from _blake2 import blake2b  # what `hashlib.blake2b` is
except ImportError:  # another Python than CPython
    from hashlib import blake2b

__all__ = ["blake2b"]
