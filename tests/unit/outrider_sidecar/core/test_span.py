from outrider_sidecar.core.span import CLIENT, Span


def test_the_end_is_the_start_plus_the_monotonic_duration():
    span = Span(b"1" * 32, b"2" * 16, b"", b"", 1, CLIENT, "/a.B/C", "tax", "", 1_700_000_000_000_000_123, 2_500, 0)
    assert span.end_unix_ns == 1_700_000_000_002_500_123


def test_what_is_not_given_is_empty_and_the_record_cannot_be_changed():
    span = Span(b"1" * 32, b"2" * 16, b"", b"", 1, CLIENT, "/a.B/C", "tax", "", 1, 1, 0)
    assert not any(span[12:])
    assert not hasattr(span, "__dict__")


def test_it_is_no_wider_than_what_is_cheap_to_build():
    assert len(Span._fields) <= 30
