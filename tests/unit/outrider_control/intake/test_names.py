"""One spelling on both sides of the wire."""

from __future__ import annotations

from outrider_control.intake import names
from outrider_sidecar.core import attributes


def test_what_sidecars_write_is_spelled_as_in_their_table():
    written = {name: value for name, value in vars(attributes).items() if name.isupper() and isinstance(value, str)}
    read = {name: value for name, value in vars(names).items() if name.isupper() and isinstance(value, str)}
    shared = written.keys() & read.keys()
    assert {"AGENT_ID", "RPC_METHOD", "CACHE", "FIRST_BYTE_US", "BATCH_SEQUENCE", "TOKENS_SAVED"} <= shared
    assert {name: read[name] for name in shared} == {name: written[name] for name in shared}
    assert names.OUTRIDER_SCOPE == attributes.SCOPE_NAME
