"""What the variants of one call come to: what is said of them, and what they change on the call's way.

Always holds: nothing of it ever changes, and calls of the same variants share one. What a variant leaves out stays as
it is without the split; where two splits say something of the same field, the later one's word counts, labels as a
whole.

Deliberately not here: who gets which variant (`engines.assign`), the changes themselves (the filters they belong to).
"""

from __future__ import annotations

from collections.abc import Sequence

from outrider.digest import blake2b
from outrider.split import Variant
from outrider_http2.hpack import literal

Labels = tuple[tuple[str, str], ...]


class Arm:
    """One variant of one split."""

    __slots__ = ("count_key", "labels", "name", "split", "text", "variant")

    def __init__(self, split: str, variant: Variant):
        self.split = split
        self.name = variant.name
        self.text = f"{split}={variant.name}"
        self.count_key = (split, variant.name)
        self.labels: Labels = tuple(sorted(variant.labels.items()))
        self.variant = variant


class Rewrite:
    """What a native request asks for in place of what its caller did; None and empty: as the caller did."""

    __slots__ = ("max_output_tokens", "model", "temperature", "top_p")

    def __init__(self, model: str, temperature: float | None, top_p: float | None, max_output_tokens: int | None):
        self.model = model
        self.temperature = temperature
        self.top_p = top_p
        self.max_output_tokens = max_output_tokens


class Treatment:
    """See the module. `trailer` and `metadata` are literals, `key` is a part of the keys of stored replies."""

    __slots__ = ("compression", "key", "labels", "metadata", "rewrite", "trailer", "variant")

    def __init__(self, arms: Sequence[Arm]):
        self.variant = ",".join([arm.text for arm in arms])
        self.trailer = literal(b"x-outrider-variant", self.variant.encode())
        self.labels: Labels = ()
        self.compression: bool | None = None
        prompt_version = model = ""
        temperature: float | None = None
        top_p: float | None = None
        max_output_tokens: int | None = None
        for arm in arms:
            one = arm.variant
            self.labels = arm.labels or self.labels
            prompt_version = one.prompt_version or prompt_version
            model = one.model or model
            temperature = one.temperature if one.temperature is not None else temperature
            top_p = one.top_p if one.top_p is not None else top_p
            if one.max_output_tokens is not None:
                max_output_tokens = one.max_output_tokens
            if one.compression is not None:
                self.compression = one.compression
        self.metadata = self.trailer
        if prompt_version:
            self.metadata += literal(b"x-outrider-prompt-version", prompt_version.encode())
        self.rewrite: Rewrite | None = None
        if model or temperature is not None or top_p is not None or max_output_tokens is not None:
            self.rewrite = Rewrite(model, temperature, top_p, max_output_tokens)
        # Of the key of stored replies: a variant that comes to mean something else is another one.
        meaning = (self.labels, prompt_version, model, temperature, top_p, max_output_tokens, self.compression)
        self.key = f"{self.variant}\n{blake2b(repr(meaning).encode(), digest_size=8).hexdigest()}"
