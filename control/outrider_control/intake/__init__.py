"""OTLP in: received bytes become samples and kept spans, exactly once."""
