"""HPACK (RFC 7541): header blocks to fields and back. Pure: no I/O, no clock; one of each per connection side.

Always holds:
- A `Decoder` keeps its table in step with the peer to the end of every block it accepts, also of one whose fields are
  too large to hand out; what it raises is `HpackError` (the connection is over) or `HeaderListTooLarge` (the stream).
- An `Encoder` fills its table once and never evicts by inserting, so the blocks of a warm encoder repeat byte for byte.
- `generation` rises with every change after which a block may mean, or look, something else. A block decoded or encoded
  may be kept for reuse if `generation` was the same before and after the call, and as long as it stays that.

Deliberately not here: Huffman coding on output and any judgement of names and values (`fields`). Which fields the peer
marked as never indexed is not handed out: `SENSITIVE` names are never indexed, whatever the peer did.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from outrider_http2.hpack_static import SENSITIVE, STATIC, UNIQUE, Field
from outrider_http2.huffman import HuffmanError
from outrider_http2.huffman import decode as huffman_decode

ENTRY_OVERHEAD_BYTES: Final = 32  # what the RFC adds to the name and value of a field
MAX_INTEGER: Final = 1 << 28
MAX_CONTINUATION_BYTES: Final = 5
FIRST_DYNAMIC: Final = len(STATIC)

BOMB_FACTOR: Final = 4  # header lists above this many times the limit end the connection
STEP_BYTES: Final = 1024  # how much of a large block is decoded between two looks at the size of its list

ENCODER_TABLE_BYTES: Final = 4096
MAX_INSERTED_VALUE_BYTES: Final = 256
MAX_SEEN: Final = 128


class HpackError(Exception):
    """The block cannot be decoded and the table is out of step: COMPRESSION_ERROR on the connection."""


class HeaderListTooLarge(Exception):
    """The fields of the block exceed the limit. The table is in step: only the stream is refused."""


class Decoder:
    """The receiving side. `max_table_bytes` is in force from the first block, `max_list_bytes` bounds one list."""

    __slots__ = (
        "_largest_bytes",
        "_limit_bytes",
        "_max_bytes",
        "_max_list_bytes",
        "_owed_bytes",
        "_table",
        "_used_bytes",
        "generation",
    )

    def __init__(self, max_table_bytes: int = 4096, max_list_bytes: int = 65536):
        self.generation = 0
        self._table: list[Field] = list(STATIC)  # both tables, as indexes name them: the newest entry is at 62
        self._used_bytes = 0
        self._max_bytes = max_table_bytes  # what the peer says it uses
        self._limit_bytes = max_table_bytes  # what we allow it
        self._owed_bytes: int | None = None  # the next block must start with an update to at most this
        self._max_list_bytes = max_list_bytes
        self._largest_bytes = 64  # no entry, static or inserted so far, is larger

    def resize_limit(self, max_table_bytes: int) -> None:
        """Our SETTINGS_HEADER_TABLE_SIZE, once acknowledged: the peer owes an update if its table may be larger."""
        self._limit_bytes = max_table_bytes
        if max_table_bytes < self._max_bytes:
            self._owed_bytes = max_table_bytes if self._owed_bytes is None else min(self._owed_bytes, max_table_bytes)
            self.generation += 1

    def decode(self, block: bytes) -> tuple[Field, ...]:
        """The fields of one whole block. Raises `HpackError`, `HeaderListTooLarge`."""
        end = len(block)
        fields: list[Field] = []
        try:
            pos = 0
            if self._owed_bytes is not None or (end and 0x20 <= block[0] < 0x40):
                pos = self._updates(block)
            pos = self._walk(block, pos, end if end <= STEP_BYTES else min(end, pos + STEP_BYTES), fields)
            # Each byte read adds at most one largest entry, so an ordinary block needs no count of its list.
            if pos < end or end * self._largest_bytes > self._max_list_bytes:
                self._count_rest(block, pos, fields)
        except IndexError:
            raise HpackError("a header block ends inside a field or uses an index beyond the table") from None
        except HuffmanError as error:
            raise HpackError(str(error)) from None
        return tuple(fields)

    def _walk(self, block: bytes, pos: int, stop: int, fields: list[Field]) -> int:
        """Decodes the fields that start in block[pos:stop]; returns where the next one starts."""
        table = self._table
        end = len(block)
        while pos < stop:
            first = block[pos]
            pos += 1
            if first > 0x80:  # indexed field
                if first == 0xFF:
                    index, pos = _integer(block, pos, 0x7F)
                    fields.append(table[index])
                else:
                    fields.append(table[first & 0x7F])
                continue
            if first >= 0x40:
                prefix = 0x3F
                if first == 0x80:
                    raise HpackError("a header block uses index 0")
            else:
                prefix = 0x0F
                if first >= 0x20:
                    raise HpackError("a table size update stands after the start of a header block")
            index = first & prefix
            if index == prefix:
                index, pos = _integer(block, pos, prefix)
            if index:
                name = table[index][0]
            else:
                name, pos = _string(block, pos)
            size = block[pos]
            if size & 0x7F == 0x7F:
                value, pos = _string(block, pos)
            else:  # a short string, spelled out here because nearly all are
                start = pos + 1
                pos = start + (size & 0x7F)
                if pos > end:
                    raise HpackError("a header block ends inside a string")
                value = block[start:pos] if size < 0x7F else huffman_decode(block[start:pos])
            field = (name, value)
            fields.append(field)
            if prefix == 0x3F:  # with incremental indexing
                size = len(name) + len(value) + ENTRY_OVERHEAD_BYTES
                room = self._max_bytes - size
                if self._used_bytes > room:
                    self._evict(room)
                if room >= 0:  # RFC 7541, 4.4: what is too large empties the table and is no error
                    table.insert(FIRST_DYNAMIC, field)
                    self._used_bytes += size
                    if size > self._largest_bytes:
                        self._largest_bytes = size
                self.generation += 1
        return pos

    def _count_rest(self, block: bytes, pos: int, fields: list[Field]) -> None:
        """Goes on from `pos` with the list counted; past the limit fields are decoded for the table's sake only."""
        max_bytes = self._max_list_bytes
        list_bytes = _list_bytes(fields)
        while list_bytes <= max_bytes * BOMB_FACTOR:
            if pos >= len(block):
                if list_bytes > max_bytes:
                    raise HeaderListTooLarge(f"a header list of {list_bytes} bytes exceeds {max_bytes}")
                return
            more: list[Field] = []
            pos = self._walk(block, pos, min(len(block), pos + STEP_BYTES), more)
            list_bytes += _list_bytes(more)
            if list_bytes <= max_bytes:
                fields += more
        raise HpackError(f"a header list exceeds {BOMB_FACTOR} times the limit of {max_bytes} bytes")

    def _updates(self, block: bytes) -> int:
        """Applies the table size updates a block starts with; returns where they end."""
        pos = 0
        smallest: int | None = None
        while pos < len(block) and 0x20 <= block[pos] < 0x40:
            size = block[pos] & 0x1F
            pos += 1
            if size == 0x1F:
                size, pos = _integer(block, pos, 0x1F)
            if size > self._limit_bytes:
                raise HpackError(f"a table size update to {size} bytes exceeds the limit of {self._limit_bytes}")
            if size != self._max_bytes:
                self._max_bytes = size
                self._evict(size)
                self.generation += 1
            smallest = size if smallest is None else min(smallest, size)
        if self._owed_bytes is not None:
            if smallest is None or smallest > self._owed_bytes:
                raise HpackError(f"a table size update to at most {self._owed_bytes} bytes is missing")
            self._owed_bytes = None
        return pos

    def _evict(self, max_bytes: int) -> None:
        """Drops the oldest entries until at most `max_bytes` are in use; all of them where that is negative."""
        table = self._table
        if max_bytes < 0:
            del table[FIRST_DYNAMIC:]
            self._used_bytes = 0
            return
        used = self._used_bytes
        while used > max_bytes:
            name, value = table.pop()
            used -= len(name) + len(value) + ENTRY_OVERHEAD_BYTES
        self._used_bytes = used


class Encoder:
    """The sending side. A field enters the table on its second sight, while there is room without evicting."""

    __slots__ = (
        "_cap_bytes",
        "_codes",
        "_entries",
        "_inserted",
        "_names",
        "_seen",
        "_smallest_bytes",
        "_used_bytes",
        "generation",
    )

    def __init__(self, max_table_bytes: int = 4096):
        self.generation = 0
        self._cap_bytes = ENCODER_TABLE_BYTES
        self._smallest_bytes: int | None = None  # smallest cap since the last block; None: no update is due
        self._used_bytes = 0
        self._entries: dict[Field, int] = {}  # field -> its number by insertion, from 1; oldest first
        self._names: dict[bytes, int] = {}  # name -> the number of its newest entry
        self._inserted = 0  # entries ever inserted
        self._codes: dict[Field, bytes] = {}  # field -> indexed representation, of this generation
        self._seen: set[int] = set()  # hashes of fields sent once; a collision only inserts early
        self.resize(max_table_bytes)

    def resize(self, max_table_bytes: int) -> None:
        """The peer's SETTINGS_HEADER_TABLE_SIZE. Where it changes our table the next block says so."""
        cap = min(max_table_bytes, ENCODER_TABLE_BYTES)
        if cap == self._cap_bytes:
            return
        self._cap_bytes = cap
        self._smallest_bytes = cap if self._smallest_bytes is None else min(self._smallest_bytes, cap)
        while self._used_bytes > cap:
            field = next(iter(self._entries))
            number = self._entries.pop(field)
            if self._names[field[0]] == number:
                del self._names[field[0]]
            self._used_bytes -= _field_bytes(field)
        self._changed()

    def encode(self, fields: Iterable[Field]) -> bytes:
        """One block. See the module for when it may be kept; `literal`s may be appended to it."""
        update = b"" if self._smallest_bytes is None else self._update()
        known = self._codes.get
        block = b"".join([known(field) or self._code(field) for field in fields])
        return update + block if update else block

    def _update(self) -> bytes:
        """The due table size updates. They belong to this one block, hence the rise of `generation`."""
        smallest, self._smallest_bytes = self._smallest_bytes, None
        update = _integer_code(0x20, 0x1F, self._cap_bytes)
        self._changed()
        if smallest is not None and smallest < self._cap_bytes:
            return _integer_code(0x20, 0x1F, smallest) + update
        return update

    def _code(self, field: Field) -> bytes:
        name, value = field
        prefix = _NAME_CODES.get(name)
        if prefix is not None:
            return prefix + (_SHORT[len(value)] + value if len(value) < 0x7F else _string_code(value))
        index = _STATIC_FIELDS.get(field)
        if index is None and field in self._entries:
            index = FIRST_DYNAMIC + self._inserted - self._entries[field]
        if index is not None:
            code = self._codes[field] = _integer_code(0x80, 0x7F, index)
            return code
        index = _STATIC_NAMES.get(name, 0)
        if not index and name in self._names:
            index = FIRST_DYNAMIC + self._inserted - self._names[name]
        if self._is_worth(field):
            self._insert(field)
            code = _integer_code(0x40, 0x3F, index)
        else:
            code = _integer_code(0x00, 0x0F, index)
        return code + (b"" if index else _string_code(name)) + _string_code(value)

    def _is_worth(self, field: Field) -> bool:
        """Seen before, and it fits. The first sight is noted: most fields that will not come back stop there."""
        if len(field[1]) > MAX_INSERTED_VALUE_BYTES or self._used_bytes + _field_bytes(field) > self._cap_bytes:
            return False
        seen = hash(field)
        if seen in self._seen:
            self._seen.discard(seen)
            return True
        if len(self._seen) >= MAX_SEEN:
            self._seen.clear()
        self._seen.add(seen)
        return False

    def _insert(self, field: Field) -> None:
        self._inserted += 1
        self._entries[field] = self._names[field[0]] = self._inserted
        self._used_bytes += _field_bytes(field)
        self._changed()

    def _changed(self) -> None:
        self.generation += 1
        self._codes.clear()  # every dynamic index has moved


def literal(name: bytes, value: bytes) -> bytes:
    """A field without indexing and without Huffman coding: valid in any block of any connection."""
    return b"\x00" + _string_code(name) + _string_code(value)


def _field_bytes(field: Field) -> int:
    return len(field[0]) + len(field[1]) + ENTRY_OVERHEAD_BYTES


def _list_bytes(fields: list[Field]) -> int:
    return sum(map(_field_bytes, fields))


def _integer(block: bytes, pos: int, value: int) -> tuple[int, int]:
    """An integer whose prefix is full (`value`), its continuation at `pos`: (integer, where the next thing starts)."""
    byte = block[pos]
    pos += 1
    if byte < 0x80:
        return value + byte, pos
    value += byte & 0x7F
    for shift in range(7, 7 * MAX_CONTINUATION_BYTES, 7):
        byte = block[pos]
        pos += 1
        value += (byte & 0x7F) << shift
        if byte < 0x80:
            if value > MAX_INTEGER:
                break
            return value, pos
    raise HpackError(f"an integer exceeds {MAX_INTEGER} or {MAX_CONTINUATION_BYTES} continuation bytes")


def _string(block: bytes, pos: int) -> tuple[bytes, int]:
    """The string at `pos`: (text, where the next thing starts)."""
    first = block[pos]
    size = first & 0x7F
    pos += 1
    if size == 0x7F:
        size, pos = _integer(block, pos, 0x7F)
    end = pos + size
    if end > len(block):
        raise HpackError("a header block ends inside a string")
    text = block[pos:end]
    return (huffman_decode(text) if first & 0x80 else text), end


def _integer_code(pattern: int, prefix: int, value: int) -> bytes:
    """`value` with the bits of `pattern` over a prefix that holds up to `prefix`."""
    if value < prefix:
        return bytes((pattern | value,))
    code = bytearray((pattern | prefix,))
    value -= prefix
    while value >= 0x80:
        code.append(value & 0x7F | 0x80)
        value >>= 7
    code.append(value)
    return bytes(code)


def _string_code(text: bytes) -> bytes:
    return (_SHORT[len(text)] if len(text) < 0x7F else _integer_code(0x00, 0x7F, len(text))) + text


_SHORT: Final = tuple(bytes((size,)) for size in range(0x7F))  # length prefixes of short plain strings
_STATIC_FIELDS: Final = {field: index for index, field in enumerate(STATIC) if index}
# The first index of each name.
_STATIC_NAMES: Final = {field[0]: index for index, field in reversed(list(enumerate(STATIC))) if index}
_NAME_CODES: Final = {  # all of a field but its value, for names that are never inserted
    name: _integer_code(0x10 if name in SENSITIVE else 0x00, 0x0F, _STATIC_NAMES[name])
    if name in _STATIC_NAMES
    else (b"\x10" if name in SENSITIVE else b"\x00") + _string_code(name)
    for name in UNIQUE | SENSITIVE
}
