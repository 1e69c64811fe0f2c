"""Sums of units, by split: what experiments and rollouts are decided on.

Always holds: a call is counted in the transaction that takes its batch in, so as often as the batch: once. A unit has
one variant; one that came with two is marked and decides nothing. Units per split are bounded, what is past the bound
is counted. Every change carries a number of one counter that all writers raise under its row's lock, so that "what
changed since n" misses nothing.

Deliberately not here: what is summed (`core.unit_sums`), what is made of it (`loops.tally`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy import Connection

from outrider_control.core.unit_sums import UnitCall, UnitFeedback, UnitSums
from outrider_control.state import meta, schema
from outrider_control.state.schema import unit_counts
from outrider_control.state.schema import unit_sums as table
from outrider_control.state.upsert import upsert

MAX_UNITS = 500_000  # of one split
MAX_VARIANT = 100  # characters
_COUNTER = "unit_sums"  # the row of `meta`
_ROWS = 400  # of one statement: within SQLite's bound of parameters

Key = tuple[str, str]  # split, unit


class UnitRow(NamedTuple):
    """One unit. `variant` is empty where it has none yet."""

    unit: str
    variant: str
    flipped: bool
    changed: int
    sums: UnitSums


class Told(NamedTuple):
    """What was said of one call, with `units` and `variant` as on its span. `sign` -1 takes it back."""

    units: str
    variant: str
    rating: float | None
    complaint: bool
    scores: Mapping[str, float]
    sign: int = 1


class Counts(NamedTuple):
    """Units of one split, and calls of units for which there was no room."""

    units: int = 0
    left_out: int = 0


def pairs_of(text: str) -> Iterator[tuple[str, str]]:
    """ "split=value[,split=value...]", as on spans."""
    for pair in text.split(",") if text else ():
        name, _, value = pair.partition("=")
        if name and value:
            yield name, value


def add(connection: Connection, calls: Iterable[UnitCall], now_ms: int) -> None:
    """Count calls. Those of splits that are not there (any more) are passed over."""
    known = set(connection.execute(sa.select(schema.splits.c.name)).scalars())
    by_unit: dict[Key, list[UnitCall]] = {}
    for call in calls:
        if call.split in known:
            by_unit.setdefault((call.split, call.unit), []).append(call)
    if by_unit:
        _change(connection, {key: _Calls(of_unit) for key, of_unit in by_unit.items()})
        came = sorted({split for split, _ in by_unit})
        connection.execute(sa.update(unit_counts).where(unit_counts.c.split.in_(came)).values(last_ms=now_ms))


def tell(connection: Connection, told: Iterable[Told], now_ms: int) -> None:
    """Count feedback with the units of its calls; a unit that is not known is passed over."""
    del now_ms
    by_unit: dict[Key, _Change] = {}
    for one in told:
        variants = dict(pairs_of(one.variant))
        said = UnitFeedback(one.rating, one.complaint, one.scores, one.sign)
        for key in pairs_of(one.units):
            by_unit.setdefault(key, _Feedback()).told.append((variants.get(key[0], ""), said))
    if by_unit:
        _change(connection, by_unit)


def changed_since(connection: Connection, split: str, since: int, limit: int) -> list[UnitRow]:
    """Units of a split that changed after a number of the counter, in the order of their changes.

    The rows of the last number may be more than `limit`, for they are one change.
    """
    of_split = sa.and_(table.c.split == split, table.c.changed > since)
    last = connection.execute(
        sa.select(table.c.changed).where(of_split).order_by(table.c.changed).offset(limit - 1).limit(1)
    ).scalar()
    query = sa.select(table).where(of_split if last is None else sa.and_(of_split, table.c.changed <= last))
    return [
        UnitRow(row.unit, row.variant, bool(row.flipped), row.changed, UnitSums.decode(row.sums))
        for row in connection.execute(query.order_by(table.c.changed))
    ]


def counts(connection: Connection, split: str) -> Counts:
    """How many units there are."""
    row = connection.execute(sa.select(unit_counts).where(unit_counts.c.split == split)).first()
    return Counts(row.units, row.left_out) if row is not None else Counts()


def last_ms(connection: Connection, split: str) -> int:
    """When calls of its units came last; 0: none has come."""
    return connection.execute(sa.select(unit_counts.c.last_ms).where(unit_counts.c.split == split)).scalar() or 0


def forget(connection: Connection, split: str) -> None:
    """The split begins anew."""
    connection.execute(sa.delete(table).where(table.c.split == split))
    connection.execute(sa.delete(unit_counts).where(unit_counts.c.split == split))


def prune(connection: Connection, portion: int) -> int:
    """Take away sums of splits that neither stand nor belong to an experiment; how many."""
    kept = sa.union(sa.select(schema.splits.c.name), sa.select(schema.experiments.c.name))
    over = sa.select(unit_counts.c.split).where(unit_counts.c.split.not_in(kept)).limit(1)
    split = connection.execute(over).scalar()
    if split is None:
        return 0
    units = sa.select(table.c.unit).where(table.c.split == split).limit(portion)
    gone = connection.execute(sa.delete(table).where(table.c.split == split, table.c.unit.in_(units))).rowcount
    if gone < portion:
        connection.execute(sa.delete(unit_counts).where(unit_counts.c.split == split))
    return gone


# -- changes ---------------------------------------------------------------------------------------------------------


class _Change:
    """What is to be done to one unit's row."""

    makes = False  # a row where there is none
    told: list[tuple[str, UnitFeedback]]

    def apply(self, variant: str, sums: UnitSums) -> tuple[str, bool]:
        """Changes the sums; the variant that the unit has from now on, and whether it came with another."""
        raise NotImplementedError  # abstract


class _Calls(_Change):
    makes = True

    def __init__(self, calls: Sequence[UnitCall]):
        self._calls = calls

    def apply(self, variant: str, sums: UnitSums) -> tuple[str, bool]:
        flipped = False
        for call in self._calls:
            if call.variant:
                variant = variant or call.variant[:MAX_VARIANT]
                flipped = flipped or variant != call.variant[:MAX_VARIANT]
            sums.part(call.variant).add(call)
        return variant, flipped


class _Feedback(_Change):
    def __init__(self) -> None:
        self.told = []

    def apply(self, variant: str, sums: UnitSums) -> tuple[str, bool]:
        for of_call, said in self.told:
            sums.part(of_call).tell(said)
        return variant, False


def _change(connection: Connection, changes: Mapping[Key, _Change]) -> None:
    number = meta.raise_number(connection, _COUNTER)
    keys = sorted(changes)
    by_split: dict[str, list[str]] = {}
    for split, unit in keys:
        by_split.setdefault(split, []).append(unit)
    rows: list[dict[str, Any]] = []
    for split, units in by_split.items():
        standing = _standing(connection, split, units)
        new = [unit for unit in units if unit not in standing and changes[split, unit].makes]
        room = _room(connection, split, new)
        for unit in units:
            row = standing.get(unit)
            if row is None and unit not in room:
                continue
            sums = UnitSums.decode(row.sums) if row is not None else UnitSums()
            variant, flipped = changes[split, unit].apply(row.variant if row is not None else "", sums)
            rows.append(
                {
                    "split": split,
                    "unit": unit,
                    "variant": variant,
                    "flipped": int(flipped or (row is not None and row.flipped)),
                    "changed": number,
                    "sums": sums.encode(),
                }
            )
    if rows:
        replaced = ["variant", "flipped", "changed", "sums"]
        connection.execute(upsert(connection, table, ["split", "unit"], replaced), rows)


def _standing(connection: Connection, split: str, units: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for at in range(0, len(units), _ROWS):
        query = sa.select(table).where(table.c.split == split, table.c.unit.in_(units[at : at + _ROWS]))
        for row in connection.execute(query):
            found[row.unit] = row
    return found


def _room(connection: Connection, split: str, units: Sequence[str]) -> set[str]:
    """Of new units, those for which there is room; they and the others are counted."""
    if not units:
        return set()
    connection.execute(upsert(connection, unit_counts, ["split"], []), [{"split": split}])
    known = counts(connection, split).units
    taken = units[: max(0, MAX_UNITS - known)]
    values = {
        "units": unit_counts.c.units + len(taken),
        "left_out": unit_counts.c.left_out + len(units) - len(taken),
    }
    connection.execute(sa.update(unit_counts).where(unit_counts.c.split == split).values(**values))
    return set(taken)
