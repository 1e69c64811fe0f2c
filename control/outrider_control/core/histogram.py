"""An exponential histogram: quantiles within a known relative error, merged without loss of it.

Bucket i at scale s holds the values of [b^i, b^(i+1)) with b = 2^(2^-s), as OTLP's exponential histogram does but for
the side a boundary belongs to. A histogram begins at scale 6; where more than 1,024 buckets are occupied, neighbours
are joined and the scale falls by one. A quantile is off by at most (b - 1) / (b + 1): 0.542 % at scale 6, 1.083 % at
scale 5, which takes values dense over more than sixteen doublings.

Always holds: the same values give the same histogram, whatever the order they came in and however they were merged;
count, sum, least and greatest are exact (the sum as far as its type is: whole numbers add up exactly). Values are 0 to
1e12; less than 1e-9 counts as 0 and more than 1e12 as 1e12.

Deliberately not here: units and labels (`core.figures`), negative values.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Sequence
from itertools import accumulate, pairwise
from math import ceil, floor, inf, log2

MAX_SCALE = 6
MIN_SCALE = 3  # 70 doublings fit into 1,024 buckets
MAX_BUCKETS = 1024
MAX_VALUE = 10**12
LEAST_VALUE = 1e-9  # what is less has no bucket but zero's

_VERSION = 1
# version, flags, scale, count of zeros, least, greatest, buckets that follow, first index
_HEAD = struct.Struct("<BBBQddHh")
_INTEGRAL = 1  # the sum is a whole number of 12 bytes, else a double
_DENSE = 2  # counts of all buckets from the first to the last, else steps between occupied ones and their counts
_DENSE_SHARE = 6  # as many buckets as that for each occupied one
_COUNT_TYPE_SHIFT = 2
_FLAGS_END = 16
_COUNT_TYPES = "BHIQ"
_COUNT_LIMITS = (1 << 8, 1 << 16, 1 << 32, 1 << 64)
_INTEGER_BYTES = 12
_COUNT_BITS = 56
_LANE_BYTES = 8
_LANE_BITS = 64
_DOUBLE = struct.Struct("<d")
_SWAP = sys.byteorder != "little"


def relative_error(scale: int) -> float:
    """The most a quantile differs from the exact one, as a share of it."""
    base = 2.0 ** (2.0**-scale)
    return (base - 1) / (base + 1)


class Histogram:
    """Counts of values by exponential buckets."""

    __slots__ = ("_factor", "buckets", "count", "maximum", "minimum", "scale", "total", "zeros")

    def __init__(self) -> None:
        self.scale = MAX_SCALE
        self._factor = 1 << MAX_SCALE
        self.buckets: dict[int, int] = {}
        self.zeros = 0
        self.count = 0
        self.total: float = 0  # an int while all values are
        self.minimum: float = inf  # while there is no value
        self.maximum: float = 0

    def add(self, value: float) -> None:
        """Counts one value. ValueError: it is negative or not a number."""
        if not 1 <= value <= MAX_VALUE:
            self.add_times(value, 1)
            return
        index = int(log2(value) * self._factor)
        try:
            self.buckets[index] += 1
        except KeyError:
            self._occupy(index, 1)
        if value > self.maximum:
            self.maximum = value
        if value < self.minimum:
            self.minimum = value
        self.count += 1
        self.total += value

    def add_times(self, value: float, times: int) -> None:
        """Counts one value several times. ValueError: it is negative or not a number."""
        if not value >= 0:
            raise ValueError(f"a histogram counts values of 0 and more, not {value}")
        if times <= 0:
            return
        value = min(value, MAX_VALUE)
        if value < LEAST_VALUE:
            self.zeros += times
        else:
            self._occupy(floor(log2(value) * self._factor), times)
        self.maximum = max(value, self.maximum)
        self.minimum = min(value, self.minimum)
        self.count += times
        self.total += value * times

    def _occupy(self, index: int, times: int) -> None:
        buckets = self.buckets
        buckets[index] = buckets.get(index, 0) + times
        if len(buckets) > MAX_BUCKETS:
            self._downscale(1)

    def _downscale(self, steps: int) -> None:
        """Joins neighbours `steps` times, and as often again as it takes to be within the bound."""
        while steps > 0:
            joined: dict[int, int] = {}
            get = joined.get
            for index, times in self.buckets.items():
                index >>= steps
                joined[index] = get(index, 0) + times
            self.buckets = joined
            self.scale -= steps
            steps = int(len(joined) > MAX_BUCKETS)
        self._factor = 1 << self.scale

    def merge(self, other: Histogram) -> None:
        """Counts everything the other one counted; the other stays as it is."""
        if not other.count:
            return
        if other.scale < self.scale:
            self._downscale(self.scale - other.scale)
        buckets = self.buckets
        if shift := other.scale - self.scale:
            get = buckets.get
            for index, times in other.buckets.items():
                index >>= shift
                buckets[index] = get(index, 0) + times
        elif buckets:
            get = buckets.get
            for index, times in other.buckets.items():
                buckets[index] = get(index, 0) + times
        else:
            buckets.update(other.buckets)
        if len(buckets) > MAX_BUCKETS:
            self._downscale(1)
        self.minimum = min(self.minimum, other.minimum)
        self.maximum = max(self.maximum, other.maximum)
        self.zeros += other.zeros
        self.count += other.count
        self.total += other.total

    @property
    def mean(self) -> float | None:
        """Exact; None without a value."""
        return self.total / self.count if self.count else None

    def quantile(self, q: float, more_zeros: int = 0) -> float | None:
        """The value of nearest rank, ceil(q * count), within `relative_error(scale)`; None without a value."""
        return self.quantiles((q,), more_zeros)[0]

    def quantiles(self, qs: Sequence[float], more_zeros: int = 0) -> list[float | None]:
        """Several at once, in the order asked for. `more_zeros`: values of 0 that were left out when counting."""
        count = self.count + more_zeros
        if not count:
            return [None] * len(qs)
        indexes = sorted(self.buckets)
        reached = list(accumulate((self.buckets[index] for index in indexes), initial=self.zeros + more_zeros))
        found: list[float | None] = []
        for q in qs:
            rank = min(max(ceil(q * count), 1), count)
            low, high = 0, len(reached) - 1  # the first place where `rank` is reached
            while low < high:
                middle = (low + high) // 2
                if reached[middle] >= rank:
                    high = middle
                else:
                    low = middle + 1
            found.append(self._value(indexes[low - 1]) if low else 0.0)
        return found

    def _value(self, index: int) -> float:
        """What stands for the values of one bucket: as far, in proportion, from either of its ends."""
        lower = 2.0 ** (index / self._factor)
        upper = 2.0 ** ((index + 1) / self._factor)
        return min(max(2 * lower * upper / (lower + upper), self.minimum), self.maximum)

    def encode(self) -> bytes:
        """Compact bytes: a run of counts where buckets lie close, else two to three a bucket while counts are small."""
        buckets = self.buckets
        first = min(buckets, default=0)
        width = max(buckets, default=-1) - first + 1
        top = max(buckets.values(), default=0)
        count_type = next(number for number, limit in enumerate(_COUNT_LIMITS) if top < limit)
        integral = isinstance(self.total, int)
        flags = (_INTEGRAL if integral else 0) | count_type << _COUNT_TYPE_SHIFT
        if width <= _DENSE_SHARE * len(buckets):
            flags |= _DENSE
            places = array(_COUNT_TYPES[count_type], bytes(width << count_type))
            for index, times in buckets.items():
                places[index - first] = times
            counts = _to_bytes(places)
        else:
            indexes = sorted(buckets)
            steps = array("H", [after - before for before, after in pairwise(indexes)])
            counts = _to_bytes(steps) + _to_bytes(array(_COUNT_TYPES[count_type], [buckets[at] for at in indexes]))
        minimum = self.minimum if self.count else 0
        head = _HEAD.pack(
            _VERSION,
            flags,
            self.scale,
            self.zeros,
            minimum,
            self.maximum,
            width if flags & _DENSE else len(buckets),
            first,
        )
        total = int(self.total).to_bytes(_INTEGER_BYTES, "little") if integral else _DOUBLE.pack(self.total)
        return b"".join((head, total, counts))

    @classmethod
    def decode(cls, data: bytes) -> Histogram:
        """What `encode` gave. ValueError: it is not that."""
        try:
            return cls._decode(data)
        except (struct.error, OverflowError) as error:
            raise ValueError(f"not a histogram: {error}") from None

    @classmethod
    def _decode(cls, data: bytes) -> Histogram:
        version, flags, scale, zeros, minimum, maximum, places, first = _HEAD.unpack_from(data)
        if version != _VERSION or not MIN_SCALE <= scale <= MAX_SCALE or flags >= _FLAGS_END:
            raise ValueError("not a histogram: unknown version, flags or scale")
        at = _HEAD.size + (_INTEGER_BYTES if flags & _INTEGRAL else _DOUBLE.size)
        counts = array(_COUNT_TYPES[flags >> _COUNT_TYPE_SHIFT & 3])
        steps = array("H")
        counts_at = at if flags & _DENSE or not places else at + steps.itemsize * (places - 1)
        if len(data) != counts_at + counts.itemsize * places:
            raise ValueError("not a histogram: wrong length")
        _from_bytes(steps, data[at:counts_at])
        _from_bytes(counts, data[counts_at:])
        self = cls()
        self.scale = scale
        self._factor = 1 << scale
        if flags & _DENSE:
            self.buckets = {first + place: times for place, times in enumerate(counts) if times}
        elif places:
            self.buckets = dict(zip(accumulate(steps, initial=first), counts, strict=True))
            if len(self.buckets) != places or not min(counts):
                raise ValueError("not a histogram: an empty bucket")
        last = first + (places - 1 if flags & _DENSE else sum(steps))
        if places and (first < lowest_index(scale) or last >= ceil(log2(MAX_VALUE)) << scale):
            raise ValueError("not a histogram: a bucket is out of range")
        self.zeros = zeros
        self.count = zeros + sum(counts)
        if self.count >> _COUNT_BITS or len(self.buckets) > MAX_BUCKETS:
            raise ValueError("not a histogram: more values or buckets than there may be")
        if self.count:
            self._decode_values(data[_HEAD.size : at], bool(flags & _INTEGRAL), minimum, maximum)
        return self

    def _decode_values(self, total: bytes, integral: bool, minimum: float, maximum: float) -> None:
        if not 0 <= minimum <= maximum <= MAX_VALUE:
            raise ValueError("not a histogram: its values are out of range")
        if integral:
            self.total, self.minimum, self.maximum = int.from_bytes(total, "little"), int(minimum), int(maximum)
        else:
            self.total, self.minimum, self.maximum = _DOUBLE.unpack(total)[0], minimum, maximum
        if not 0 <= self.total <= self.count * MAX_VALUE * (1 + 1e-9):
            raise ValueError("not a histogram: its sum is out of range")


class HistogramSum:
    """Adds up many encoded histograms, without a dictionary for each: what questions over many windows are made of.

    Runs of counts at the finest scale are added as one large whole number, 64 bits a bucket; everything else is
    decoded and merged.
    """

    __slots__ = ("_base", "_histogram", "_lanes", "_top")

    def __init__(self) -> None:
        self._lanes = 0
        self._base = 0  # index of the first lane
        self._top = 0  # index after the last one
        self._histogram = Histogram()  # all but the lanes' counts

    def add(self, data: bytes) -> None:
        """Adds what `Histogram.encode` gave. ValueError: it is not that."""
        if len(data) < _HEAD.size or data[1] & (_DENSE | _INTEGRAL) != _DENSE | _INTEGRAL or data[2] != MAX_SCALE:
            self._histogram.merge(Histogram.decode(data))  # few values, or odd ones
            return
        version, flags, _, zeros, minimum, maximum, width, first = _HEAD.unpack_from(data)
        at = _HEAD.size + _INTEGER_BYTES
        size = 1 << (flags >> _COUNT_TYPE_SHIFT & 3)
        outside = first < _LOWEST or first + width > _HIGHEST
        if version != _VERSION or flags >= _FLAGS_END or outside or len(data) != at + size * width:
            raise ValueError("not a histogram: unknown version or flags, or a wrong length")
        spread = bytearray(_LANE_BYTES * width)
        for byte in range(size):
            spread[byte::_LANE_BYTES] = data[at + byte :: size]
        lanes = int.from_bytes(spread, "little")
        if not self._lanes:
            self._base, self._top = first, first + width
            self._lanes = lanes
        elif first >= self._base:
            self._lanes += lanes << _LANE_BITS * (first - self._base)
            self._top = max(self._top, first + width)
        else:
            self._lanes = (self._lanes << _LANE_BITS * (self._base - first)) + lanes
            self._base = first
            self._top = max(self._top, first + width)
        apart = self._histogram
        if lanes or zeros:
            apart.minimum = min(apart.minimum, int(minimum))
            apart.maximum = max(apart.maximum, int(maximum))
            apart.zeros += zeros
            apart.count += zeros
            apart.total += int.from_bytes(data[_HEAD.size : at], "little")

    def histogram(self) -> Histogram:
        """Everything together; nothing can be added after that."""
        together = self._histogram
        if self._lanes:
            counts = array("Q")
            _from_bytes(counts, self._lanes.to_bytes(_LANE_BYTES * (self._top - self._base), "little"))
            lanes = Histogram()
            lanes.buckets = {self._base + place: times for place, times in enumerate(counts) if times}
            lanes.count = sum(counts)
            if len(lanes.buckets) > MAX_BUCKETS:
                lanes._downscale(1)
            lanes.minimum, lanes.maximum = together.minimum, together.maximum
            together.merge(lanes)
            self._lanes = 0
        return together


def lowest_index(scale: int) -> int:
    """The first bucket there can be."""
    return floor(log2(LEAST_VALUE)) << scale


_LOWEST = lowest_index(MAX_SCALE)
_HIGHEST = ceil(log2(MAX_VALUE)) << MAX_SCALE


def _to_bytes(numbers: array[int]) -> bytes:
    if _SWAP:
        numbers.byteswap()
    return numbers.tobytes()


def _from_bytes(numbers: array[int], data: bytes) -> None:
    numbers.frombytes(data)
    if _SWAP:
        numbers.byteswap()
