"""What HPACK knows before the first block: the static table (RFC 7541, appendix A) and names an encoder never inserts.

`STATIC[0]` stands for index 0, which names no field.
"""

from __future__ import annotations

Field = tuple[bytes, bytes]

STATIC: tuple[Field, ...] = (
    (b"", b""),
    (b":authority", b""),
    (b":method", b"GET"),
    (b":method", b"POST"),
    (b":path", b"/"),
    (b":path", b"/index.html"),
    (b":scheme", b"http"),
    (b":scheme", b"https"),
    (b":status", b"200"),
    (b":status", b"204"),
    (b":status", b"206"),
    (b":status", b"304"),
    (b":status", b"400"),
    (b":status", b"404"),
    (b":status", b"500"),
    (b"accept-charset", b""),
    (b"accept-encoding", b"gzip, deflate"),
    (b"accept-language", b""),
    (b"accept-ranges", b""),
    (b"accept", b""),
    (b"access-control-allow-origin", b""),
    (b"age", b""),
    (b"allow", b""),
    (b"authorization", b""),
    (b"cache-control", b""),
    (b"content-disposition", b""),
    (b"content-encoding", b""),
    (b"content-language", b""),
    (b"content-length", b""),
    (b"content-location", b""),
    (b"content-range", b""),
    (b"content-type", b""),
    (b"cookie", b""),
    (b"date", b""),
    (b"etag", b""),
    (b"expect", b""),
    (b"expires", b""),
    (b"from", b""),
    (b"host", b""),
    (b"if-match", b""),
    (b"if-modified-since", b""),
    (b"if-none-match", b""),
    (b"if-range", b""),
    (b"if-unmodified-since", b""),
    (b"last-modified", b""),
    (b"link", b""),
    (b"location", b""),
    (b"max-forwards", b""),
    (b"proxy-authenticate", b""),
    (b"proxy-authorization", b""),
    (b"range", b""),
    (b"referer", b""),
    (b"refresh", b""),
    (b"retry-after", b""),
    (b"server", b""),
    (b"set-cookie", b""),
    (b"strict-transport-security", b""),
    (b"transfer-encoding", b""),
    (b"user-agent", b""),
    (b"vary", b""),
    (b"via", b""),
    (b"www-authenticate", b""),
)

# Values that differ from call to call: inserted, they would fill the table with what never comes back.
UNIQUE = frozenset(
    b"age baggage content-length date etag expires grpc-message grpc-previous-rpc-attempts grpc-retry-pushback-ms "
    b"grpc-status-details-bin grpc-tags-bin grpc-timeout grpc-trace-bin idempotency-key if-modified-since "
    b"if-none-match last-modified traceparent tracestate x-amzn-trace-id x-b3-parentspanid x-b3-sampled x-b3-spanid "
    b"x-b3-traceid x-cloud-trace-context x-correlation-id x-outrider-call-id x-outrider-tokens-saved "
    b"x-outrider-trace-id x-request-id x-session-id x-user-id".split()
)
# Credentials: literals that no hop may put into a table, so that their values cannot be probed by compression.
SENSITIVE = frozenset(b"authorization cookie proxy-authorization set-cookie x-api-key".split())
