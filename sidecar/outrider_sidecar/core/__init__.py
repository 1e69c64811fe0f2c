"""The call, what runs over it, and the live state that outlives policies. Imports `outrider_http2` and the policy."""
