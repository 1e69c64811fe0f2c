"""Whether compression pays: decided per block from prices, measured per agent by what upstreams report.

Always holds: pure; what was sent once stays as it was sent (that is the ledger's doing: nothing here reaches back); a
controller that knows nothing says lossless, which cannot cost more than it saves but for the steps and minimums of
provider caches, and these are looked at. An agent is turned off when its net is negative by more than chance, with the
reason in words, and tried again with a few sessions after a while.

What is measured. A small share of sessions (by hash, `HOLDOUT`) is not compressed: the others' output tokens per call
are compared with theirs, for shorter inputs have been seen to make longer outputs. Input saved is what was taken away,
at the price of the cached share that the upstream itself reports; where it reports less cache reading than before
compression, the loss is charged. Net = saved input - growth of output - lost cache reads, in the prices of `Rules`.

Break-even of an epoch: editing history once makes S tokens behind the edit be written anew, and saves R tokens'
reading in every turn after: it pays after (write - read) * S / (read * R) turns, which for Anthropic is 1.15 S / (0.1
R).

Deliberately not here: prices and bills (`billing`), what is sent in a session's place (`ledger`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import sqrt
from typing import Final

from outrider_sidecar.compress.billing import Rules

NONE: Final = "none"
LOSSLESS: Final = "lossless"
LOSSY: Final = "lossy"
EPOCH: Final = "epoch"

HOLDOUT: Final = 20  # one session in so many is left as it is
MIN_CALLS: Final = 50  # on either side before output growth is believed
RETRY_S: Final = 3_600.0  # how long an agent stays turned off
TRIAL_SHARE: Final = 10  # then one session in so many is compressed until the net is known
_Z: Final = 1.645  # one-sided 5 %
PREFIX_SURE: Final = 1.15  # times the minimum: counts may be estimates
STEPS_FIRST: Final = 0.85  # of the cache's steps, that a conversation's first saving has at least
STEPS_SURE: Final = 1.0  # saved by a conversation: from there on every saving is taken
_MARGIN: Final = 0.5  # an epoch pays within this share of the turns that are expected
_DECAY: Final = 0.999  # per call: some thousand calls are remembered


@dataclass(slots=True)
class Mean:
    """A decayed mean and its variance (West 1979)."""

    n: float = 0.0
    mean: float = 0.0
    spread: float = 0.0  # sum of squared differences

    def add(self, value: float) -> None:
        self.n = self.n * _DECAY + 1.0
        delta = value - self.mean
        self.mean += delta / self.n
        self.spread = self.spread * _DECAY + delta * (value - self.mean)

    @property
    def error(self) -> float:
        """Standard error of the mean."""
        return sqrt(max(0.0, self.spread) / max(1.0, self.n - 1.0) / max(1.0, self.n))


@dataclass(frozen=True, slots=True)
class Used:
    """What one call came to. Tokens of the prompt as it was sent; None: the upstream did not say."""

    treated: bool  # whether the session is compressed
    claimed_tokens: int  # of the prompt as it was sent, by our count
    saved_tokens: int  # that the whole prompt would have had more, by our count
    input_tokens: int | None = None
    cache_read_tokens: int | None = None
    output_tokens: int | None = None


@dataclass(slots=True)
class Controller:
    """One agent's. `rules` may be replaced when the policy changes."""

    rules: Rules
    off_since: float = 0.0  # monotonic seconds; 0: it is on
    reason: str = ""  # why it is off, or why it was
    calls: int = 0
    saved: float = 0.0  # of the input, in the prices of `rules`
    growth: float = 0.0  # of the output
    turns: Mean = field(default_factory=Mean)  # of ended sessions
    _outputs: tuple[Mean, Mean] = field(default_factory=lambda: (Mean(), Mean()))  # held out, treated
    _reads: tuple[Mean, Mean] = field(default_factory=lambda: (Mean(), Mean()))  # share of the prompt that was read
    _nets: Mean = field(default_factory=Mean)
    _scale: Mean = field(default_factory=Mean)  # reported over claimed tokens

    # -- before a call -----------------------------------------------------------------------------------------------

    def treats(self, session_hash: int, now: float) -> bool:
        """Whether a session is compressed; for a session without history, and asked once."""
        if session_hash % HOLDOUT == 0:
            return False
        if not self.off_since:
            return True
        if now - self.off_since < RETRY_S:
            return False
        return session_hash % TRIAL_SHARE == 1

    def takes(self, prefix_tokens: int, before: int, after: int, saved_before: int = 0) -> bool:
        """Whether a block is sent compressed: `prefix_tokens` are sent before it, where `saved_before` more came; it
        has `before` tokens or `after`.

        Nothing is as long as the prompt is below the provider's minimum for caching: as it is, it gets there sooner,
        and a turn before that costs more than any block saves. Where the cache is read in steps, a few tokens less may
        be a whole step less in any later turn: a conversation has to save most of a step at once before small savings
        are taken.
        """
        saved = before - after
        if saved <= 0:
            return False
        rules = self.rules
        if not rules.caches:
            return True
        if prefix_tokens + after < PREFIX_SURE * rules.min_prefix:
            return False
        return saved_before >= STEPS_SURE * rules.step or saved >= STEPS_FIRST * rules.step or rules.step == 1

    def epoch_pays(self, suffix_tokens: int, removed_tokens: int, turns_so_far: int) -> bool:
        """Whether to edit history now: `removed_tokens` go, `suffix_tokens` behind the edit are written anew."""
        if removed_tokens <= 0:
            return False
        return self.break_even_turns(suffix_tokens, removed_tokens) <= _MARGIN * self.turns_left(turns_so_far)

    def break_even_turns(self, suffix_tokens: int, removed_tokens: int) -> float:
        """After how many further turns an epoch has paid; see the module."""
        rules = self.rules
        per_turn = rules.read if rules.caches else rules.input
        once = (rules.write - rules.read) if rules.caches else 0.0
        return once * suffix_tokens / max(per_turn * removed_tokens, 1e-12)

    def turns_left(self, turns_so_far: int) -> float:
        """Of a session that has had so many: as many as it had by then, where nothing is known (Lindy); else what
        sessions of this agent have on average, at least a quarter of what it had."""
        if self.turns.n < 20.0:
            return float(turns_so_far)
        return max(self.turns.mean - turns_so_far, 0.25 * turns_so_far)

    # -- after a call ------------------------------------------------------------------------------------------------

    def told(
        self,
        treated: bool,
        claimed_tokens: int,
        saved_tokens: int,
        input_tokens: int | None,
        cache_read_tokens: int | None,
        output_tokens: int | None,
        now: float,
    ) -> float:
        """`ended` for who does not know `Used`."""
        used = Used(treated, claimed_tokens, saved_tokens, input_tokens, cache_read_tokens, output_tokens)
        return self.ended(used, now)

    def ended(self, used: Used, now: float) -> float:
        """Take what the upstream reports; turns the agent off, or on again after a trial. What the call saved net, in
        the prices of `rules`; 0 for one that was held out."""
        self.calls += 1
        side = 1 if used.treated else 0
        if used.output_tokens is not None:
            self._outputs[side].add(float(used.output_tokens))
        read_share = 0.0
        if used.input_tokens:
            if used.claimed_tokens:
                self._scale.add(used.input_tokens / used.claimed_tokens)
            if used.cache_read_tokens is not None:
                read_share = min(1.0, used.cache_read_tokens / used.input_tokens)
                self._reads[side].add(read_share)
        if not used.treated:
            return 0.0
        saved = self._saved(used, read_share)
        self.saved += saved
        growth = self._growth()
        self.growth += growth
        net = saved - growth - self._lost(used)
        self._nets.add(net)
        self._judge(now)
        return net

    def _saved(self, used: Used, read_share: float) -> float:
        rules = self.rules
        fresh = rules.write if rules.caches else rules.input
        return used.saved_tokens * self.scale * (read_share * rules.read + (1.0 - read_share) * fresh)

    def _growth(self) -> float:
        """What a call's output costs more than without; 0 while that may be chance."""
        held, treated = self._outputs
        if held.n < MIN_CALLS or treated.n < MIN_CALLS:
            return 0.0
        more = treated.mean - held.mean
        sure = more - _Z * sqrt(held.error**2 + treated.error**2)
        return more * self.rules.output if sure > 0.0 else 0.0

    def _lost(self, used: Used) -> float:
        """What is read less from the provider's cache than without; 0 while that may be chance."""
        held, treated = self._reads
        if held.n < MIN_CALLS or treated.n < MIN_CALLS or not used.input_tokens:
            return 0.0
        less = held.mean - treated.mean
        sure = less - _Z * sqrt(held.error**2 + treated.error**2)
        return less * used.input_tokens * (self.rules.write - self.rules.read) if sure > 0.0 else 0.0

    def _judge(self, now: float) -> None:
        nets = self._nets
        if nets.n < MIN_CALLS:
            return
        if nets.mean + _Z * nets.error < 0.0:
            if not self.off_since or now - self.off_since >= RETRY_S:
                self.off_since = now
                held, treated = self._outputs
                self.reason = (
                    f"compression costs {-nets.mean:.4g} a call more than it saves: output {treated.mean:.0f} tokens"
                    f" against {held.mean:.0f} without it, read from the provider's cache"
                    f" {self._reads[1].mean:.0%} against {self._reads[0].mean:.0%}"
                )
                self._nets = Mean()
        elif self.off_since and now - self.off_since >= RETRY_S:
            self.off_since = 0.0  # the trial has paid

    @property
    def scale(self) -> float:
        """Tokens as the upstream counts them over ours; 1 until it has said."""
        return self._scale.mean if self._scale.n >= 1.0 else 1.0

    @property
    def net(self) -> float:
        """Of a call, on average, in the prices of `rules`."""
        return self._nets.mean
