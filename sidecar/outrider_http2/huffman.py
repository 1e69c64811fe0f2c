"""Huffman decoding of HPACK strings (RFC 7541, section 5.2 and appendix B), a byte at a time.

The decoder is a table of (state, byte) -> (next state, bytes emitted). A state is an inner node of the code tree: the
bits read since the last whole symbol. Its row is built when a string first reaches it, so importing costs next to
nothing. Ordinary text reaches 40 to 60 states, 0.3 to 0.5 MB; all 256 are 2.2 MB, the bound whatever peers send.

Always holds: the result depends on the input alone; what the RFC calls an error (the EOS symbol inside a string,
padding of more than seven bits or of anything but ones) is a `HuffmanError`.

Deliberately not here: encoding. Our encoder sends plain strings, which cost less time on both sides.
"""

from __future__ import annotations

from typing import Any, Final


class HuffmanError(ValueError):
    """The bytes are not a valid Huffman-coded string."""


EOS: Final = 256

# Bits in the code of each symbol 0..255 and of EOS. The code is canonical, so the lengths say everything: within a
# length codes count up in symbol order, and a longer code goes on where the shorter ones stopped.
CODE_BITS: Final = bytes.fromhex(
    "0d171c1c1c1c1c1c1c181e1c1c1e1c1c1c1c1c1c1c1c1e1c1c1c1c1c1c1c1c1c060a0a0c0d06080b0a0a080b080606060505"
    "050606060606060607080f060c0a0d06070707070707070707070707070707070707070707070807080d130d0e060f050605"
    "06050606060507070606060506070605050607070707070f0b0e0d1c14161414161616171617171717171817181816171817"
    "1717171516171617171816151416161717151716161815161717151516151716171714161616171616171a1a141316171619"
    "1a1a1a1b1b1a181913151a1b1b1a1b1815151a1a1c1b1b1b14181415161515171616191918181a171a1b1a1a1b1b1b1b1b1c"
    "1b1b1b1b1b1a1e"
)


def _tree() -> list[list[int]]:
    """Inner nodes of the code tree, the root first: [child on 0, child on 1]; a negative child is ~symbol."""
    nodes = [[0, 0]]
    code = bits = 0
    for symbol in sorted(range(257), key=lambda symbol: (CODE_BITS[symbol], symbol)):
        code <<= CODE_BITS[symbol] - bits
        bits = CODE_BITS[symbol]
        node = nodes[0]
        for shift in range(bits - 1, 0, -1):
            bit = code >> shift & 1
            if not node[bit]:
                node[bit] = len(nodes)
                nodes.append([0, 0])
            node = nodes[node[bit]]
        node[code & 1] = ~symbol
        code += 1
    return nodes


# A row is a list, not an object, because subscribing an exact list is the cheapest step there is. Items 0..255 are the
# next rows, item 256 is the list of what is emitted, item 257 says whether a string may end here. An unbuilt row is
# empty. Rows hold no tuple per cell: that would be as fast, five times as large, and work for the garbage collector.
_NODES: Final = _tree()
_ROWS: Final[list[list[Any]]] = [[] for _ in _NODES]
_NODE_OF_ROW: Final = {id(row): node for node, row in enumerate(_ROWS)}
_ROOT: Final = _ROWS[0]
_DEAD: Final[list[Any]] = []  # where EOS leads: it swallows the rest and refuses at the end
_DEAD[:] = [*[_DEAD] * 256, [b""] * 256, False]


def _padding_nodes() -> set[int]:
    """Nodes reached from the root by at most seven ones: the only ends a string may have."""
    nodes = [0]
    while len(nodes) < 8:
        nodes.append(_NODES[nodes[-1]][1])
    return set(nodes)


_PADDING_NODES: Final = _padding_nodes()


def _build(row: list[Any]) -> None:
    """Fills the row of one state. Assigned at once: a second thread that builds it too writes the same cells."""
    start = _NODE_OF_ROW[id(row)]
    ends: list[tuple[int, bytes]] = [(start, b"")]  # (node or -1 for dead, emitted) for every run of bits so far
    for _ in range(8):
        longer: list[tuple[int, bytes]] = []
        for node, emitted in ends:
            for child in _NODES[node] if node >= 0 else (~EOS, ~EOS):
                if child >= 0:
                    longer.append((child, emitted))
                elif child == ~EOS:
                    longer.append((-1, b""))
                else:
                    longer.append((0, emitted + bytes((~child,))))
        ends = longer
    nexts = [_ROWS[node] if node >= 0 else _DEAD for node, _ in ends]
    emits = [text for _, text in ends]
    row[:] = [*nexts, emits, start in _PADDING_NODES]


def decode(coded: bytes) -> bytes:
    """The text of a Huffman-coded string. Raises `HuffmanError`."""
    row = _ROOT
    text: list[bytes] = []
    rest = coded
    while True:
        try:
            for byte in rest:
                text.append(row[256][byte])
                row = row[byte]
            if row[257]:
                return b"".join(text)
            raise HuffmanError("a Huffman-coded string contains EOS or ends in padding that is not up to 7 one bits")
        except IndexError:  # only an unbuilt row is too short: build it, then go on where it stopped
            _build(row)
            rest = coded[len(text) :]
