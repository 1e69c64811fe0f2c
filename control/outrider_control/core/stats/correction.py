"""Several questions to the same data: the level of each, so that all together hold at the level that was asked for.

Always holds: Bonferroni, which needs nothing to be independent, and which nobody has to be told about twice.
"""

from __future__ import annotations


def level_of_each(alpha: float, questions: int) -> float:
    """The level of each of several questions."""
    return alpha / max(1, questions)


def adjusted_p(p_value: float, questions: int) -> float:
    """A p-value as it may be shown beside the level of all."""
    return min(1.0, p_value * max(1, questions))
