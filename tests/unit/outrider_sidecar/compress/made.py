"""Blocks for the tests of compressors, drawn and named."""

from __future__ import annotations

import base64
import json
from typing import Any

from hypothesis import strategies as st

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**20), 10**20),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=12),
    st.sampled_from(["available", "JFK", "2024-05-01T10:00:00Z", "economy", "", "null", "1.0", "a,b"]),
)
JSONS = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=6), inner, max_size=5),
    max_leaves=25,
)
RECORDS = st.lists(
    st.fixed_dictionaries(
        {"id": st.integers(0, 999), "status": st.sampled_from(["ok", "late"]), "price": st.floats(0, 1e4)},
        optional={"note": st.text(max_size=8), "tags": st.lists(st.text(max_size=3), max_size=2)},
    ),
    min_size=1,
    max_size=12,
)
STYLES: list[dict[str, Any]] = [
    {},
    {"separators": (",", ":")},
    {"indent": 2},
    {"indent": 4},
    {"ensure_ascii": False},
]


@st.composite
def json_texts(draw: Any) -> str:
    """Documents as serializers write them."""
    data = draw(RECORDS | JSONS | st.dictionaries(st.text(max_size=5), RECORDS, max_size=3))
    return json.dumps(data, **draw(st.sampled_from(STYLES))) + draw(st.sampled_from(["", "\n", "  "]))


@st.composite
def json_lines(draw: Any) -> str:
    rows = draw(RECORDS)
    return "\n".join([json.dumps(row) for row in rows]) + draw(st.sampled_from(["", "\n"]))


@st.composite
def logs(draw: Any) -> str:
    """Lines of a service: a clock, a level, a few forms with numbers and ids in them."""
    forms = [
        "INFO worker-{} handled request id={} in {} ms",
        "WARN retry {} of {} after {} ms",
        "ERROR upstream {} said {} ({} bytes)",
        "{} {} {}",
    ]
    lines = []
    for at in range(draw(st.integers(3, 40))):
        form = draw(st.sampled_from(forms))
        values = [draw(st.integers(0, 10**6) | st.text("abcdef0123456789", min_size=1, max_size=8)) for _ in range(3)]
        lines.append(
            f"2026-11-23T05:{at // 60:02}:{at % 60:02}.{draw(st.integers(0, 999)):03}Z " + form.format(*values)
        )
    return "\n".join(lines) + draw(st.sampled_from(["", "\n"]))


@st.composite
def tables(draw: Any) -> str:
    """Rows of cells, by a delimiter or in columns."""
    cells = st.text("abc123 .-", min_size=1, max_size=8).map(str.strip).filter(bool)
    width = draw(st.integers(3, 5))
    rows = draw(st.lists(st.lists(cells, min_size=width, max_size=width), min_size=4, max_size=12))
    delimiter = draw(st.sampled_from([",", "\t", " | ", ";", ""]))
    if delimiter:
        return "\n".join([delimiter.join(row) for row in rows])
    widths = [max([len(row[at]) for row in rows]) + 2 for at in range(width)]
    return "\n".join(["".join([cell.ljust(size) for cell, size in zip(row, widths, strict=True)]) for row in rows])


TEXTS = st.text(max_size=400) | st.lists(st.sampled_from(["The", "tax", "is", "7.5", "%.", "\n", "not"])).map(" ".join)
ODD = st.sampled_from(
    [
        "",
        "[" * 3_000,
        "{" * 100 + "}" * 100,
        '{"a": 1, "a": 2}' * 1,
        '[{"a": 1, "a": 2}, {"a": 3, "a": 4}]',
        "[123456789012345678901234567890.10e+500, -0, 1E5]",
        '["\\ud800", "\\u0000"]',
        "\ud800 alone",
        "\0\1\2" * 200,
        "#columns/1 a\n1\n2",
        "#lines/1 x",
        "#outrider:same/1 abcdefgh: what x gave before, beginning y",
        "#outrider:cleared/1 nothing",
        "x" * 20_000,
        "NaN",
        '{"a": NaN}',
        base64.b64encode(bytes(range(256)) * 8).decode(),
    ]
)
BLOCKS = st.one_of(json_texts(), json_lines(), logs(), tables(), TEXTS, ODD)

CODE = {
    "python": "import os\n\n\ndef total(rows: list[int]) -> int:\n    return sum([row for row in rows])\n" * 8,
    "javascript": "export function total(rows) {\n  let sum = 0;\n  for (const row of rows) { sum += row; }\n}\n" * 8,
    "sql": "select id, name from people where age > 3;\ninsert into people values (1, 'a');\n" * 10,
    "fenced": "Do this:\n\n```python\nfor row in rows:\n    print(row)\n```\n" * 10,
}
PAGE = (
    "<html><head><title>Tax</title><script>var x = 1;</script></head><body><h1>Tax &amp; law</h1>"
    + "".join(
        [f"<p class='x'>Paragraph {at} of <b>the</b> page, see <a href='/p/{at}?q=1'>here</a>.</p>" for at in range(40)]
    )
    + "<table><tr><th>a</th><th>b</th></tr><tr><td>1</td><td>2</td></tr></table></body></html>"
)
DIFF = "diff --git a/x b/x\n--- a/x\n+++ b/x\n@@ -1,40 +1,40 @@\n" + "".join(
    [f" line {at}\n" for at in range(20)] + ["-old value\n", "+new value\n"] + [f" line {at}\n" for at in range(20, 40)]
)
