"""What is inside a message: one adapter a format, chosen by the method's path.

Always holds: adapters keep no state between calls. The native adapter, and with it protobuf, is loaded by the first
native call, or before by `Payloads.load_native`.
"""

from __future__ import annotations

from typing import Final

from outrider_sidecar.core.payload import Payload
from outrider_sidecar.core.stage import Stage
from outrider_sidecar.payloads.raw import RawPayload, listed

NATIVE_UNARY: Final = b"/outrider.v1.Agent/Invoke"
NATIVE_STREAM: Final = b"/outrider.v1.Agent/InvokeStream"
NATIVE_PATHS: Final = frozenset((NATIVE_UNARY, NATIVE_STREAM))


class Payloads:
    """The adapters of a process. `seed` is its secret (engines `cache_key`)."""

    __slots__ = ("_native", "_raw", "_seed")

    def __init__(self, seed: int = 0):
        self._seed = seed
        self._raw = RawPayload(seed)
        self._native: dict[bytes, Payload] = {}

    def of(self, path: bytes) -> Payload:
        """The adapter of a method."""
        if path not in NATIVE_PATHS:
            return self._raw
        if not self._native:
            self.load_native()
        return self._native[path]

    def load_native(self) -> None:
        """Load the native adapter now: about 20 ms and 3.5 MB."""
        from outrider_sidecar.payloads.native import NativePayload

        self._native = {
            NATIVE_UNARY: NativePayload(False, self._seed),
            NATIVE_STREAM: NativePayload(True, self._seed),
        }


def may_be_cached(path: bytes, methods: tuple[str, ...]) -> bool:
    """Whether a call of this method is worth waiting for its whole request: it is native, or policy lists it."""
    return path in NATIVE_PATHS or listed(path, methods)


def request_agent_id(body: bytes, encoding: bytes = b"") -> str:
    """The agent a native request names in its message, empty where it names none or cannot be read."""
    from outrider_sidecar.payloads import native

    return native.request_agent_id(encoding, body)


def request_identity(body: bytes, encoding: bytes = b"") -> tuple[str, str]:
    """Session and user that a native request names in its message, empty where it names none or cannot be read."""
    from outrider_sidecar.payloads import native

    return native.request_identity(encoding, body)


def native_contract() -> bytes:
    """The file that describes the native Agent API, as a serialized FileDescriptorProto."""
    from outrider.v1 import agent_pb2

    return agent_pb2.DESCRIPTOR.serialized_pb


def sidecar_contract() -> tuple[bytes, ...]:
    """The files that describe the sidecar's own service, those it imports first; the Agent API's stands before them."""
    from outrider.v1 import feedback_pb2, sidecar_pb2

    return feedback_pb2.DESCRIPTOR.serialized_pb, sidecar_pb2.DESCRIPTOR.serialized_pb


def one_chunk() -> Stage:
    """A stage that answers a native stream whole, for one call."""
    from outrider_sidecar.payloads.joiner import Joiner

    return Joiner()
