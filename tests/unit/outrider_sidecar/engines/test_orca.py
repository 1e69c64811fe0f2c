"""The hand-written OrcaLoadReport decoder against protobuf's own, and on bytes that are none."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from hypothesis import given
from hypothesis import strategies as st

from outrider_sidecar.core.load_report import LoadReport
from outrider_sidecar.engines.orca import MAX_BYTES, MAX_ENTRIES, decode_load_report

FIGURES = {
    "cpu_utilization": 1,
    "mem_utilization": 2,
    "rps_fractional": 6,
    "eps": 7,
    "application_utilization": 9,
}
MAPS = {"request_cost": 4, "utilization": 5, "named_metrics": 8}


def oracle_class() -> type[Any]:
    """xds.data.orca.v3.OrcaLoadReport as protobuf knows it, with a field of every wire type nobody reads."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="orca_test.proto", package="orca_test", syntax="proto3")
    message = file.message_type.add(name="Report")
    message.field.add(name="rps", number=3, type=field.TYPE_UINT64, label=field.LABEL_OPTIONAL)
    message.field.add(name="unknown_bytes", number=100, type=field.TYPE_BYTES, label=field.LABEL_OPTIONAL)
    message.field.add(name="unknown_fixed32", number=101, type=field.TYPE_FIXED32, label=field.LABEL_OPTIONAL)
    message.field.add(name="unknown_fixed64", number=102, type=field.TYPE_FIXED64, label=field.LABEL_OPTIONAL)
    for name, number in FIGURES.items():
        message.field.add(name=name, number=number, type=field.TYPE_DOUBLE, label=field.LABEL_OPTIONAL)
    for name, number in MAPS.items():
        entry_name = "".join(part.capitalize() for part in name.split("_")) + "Entry"
        entry = message.nested_type.add(name=entry_name)
        entry.options.map_entry = True
        entry.field.add(name="key", number=1, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
        entry.field.add(name="value", number=2, type=field.TYPE_DOUBLE, label=field.LABEL_OPTIONAL)
        message.field.add(
            name=name,
            number=number,
            type=field.TYPE_MESSAGE,
            type_name=f".orca_test.Report.{entry_name}",
            label=field.LABEL_REPEATED,
        )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("orca_test.Report"))


Report = oracle_class()
figure = st.floats(0.0, 1e300)
entries = st.dictionaries(st.text(max_size=12), figure, max_size=6)


@given(
    figures=st.fixed_dictionaries({}, optional=dict.fromkeys(FIGURES, figure)),
    maps=st.fixed_dictionaries({}, optional=dict.fromkeys(MAPS, entries)),
    unread=st.fixed_dictionaries(
        {},
        optional={
            "rps": st.integers(0, 2**64 - 1),
            "unknown_bytes": st.binary(max_size=200),
            "unknown_fixed32": st.integers(0, 2**32 - 1),
            "unknown_fixed64": st.integers(0, 2**64 - 1),
        },
    ),
)
def test_what_protobuf_writes_is_read_back(figures: dict, maps: dict, unread: dict) -> None:
    load = decode_load_report(Report(**figures, **maps, **unread).SerializeToString())
    assert load == LoadReport(**figures, **maps)


@given(data=st.binary(max_size=200))
def test_arbitrary_bytes_agree_with_protobuf_or_are_refused(data: bytes) -> None:
    load = decode_load_report(data)
    if load is None:
        return
    # Whatever is accepted, protobuf reads the same way.
    expected = Report.FromString(data)
    for name in FIGURES:
        assert getattr(load, name) == getattr(expected, name)
    for name in MAPS:
        assert dict(getattr(load, name)) == dict(getattr(expected, name))


@given(maps=entries, cut=st.integers(0, 400), flip=st.integers(0, 255))
def test_damaged_reports_never_raise(maps: dict[str, float], cut: int, flip: int) -> None:
    data = bytearray(Report(cpu_utilization=0.5, named_metrics=maps).SerializeToString())
    decode_load_report(bytes(data[: cut % (len(data) + 1)]))
    data[cut % len(data)] ^= flip
    decode_load_report(bytes(data))


def test_no_bytes_are_a_report_of_nothing() -> None:
    assert decode_load_report(b"") == LoadReport()


def test_an_entry_may_lack_its_figure_or_its_name() -> None:
    load = decode_load_report(b"\x42\x04\x0a\x02kv" + b"\x2a\x09\x11" + struct.pack("<d", 0.25))
    assert load == LoadReport(named_metrics={"kv": 0.0}, utilization={"": 0.25})


def test_the_last_of_a_repeated_figure_counts() -> None:
    data = Report(eps=1.0).SerializeToString() + Report(eps=2.0).SerializeToString()
    assert decode_load_report(data) == LoadReport(eps=2.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), -0.5])
@pytest.mark.parametrize("where", ["figure", "entry"])
def test_figures_that_are_none_refuse_the_report(value: float, where: str) -> None:
    report = Report(eps=value) if where == "figure" else Report(utilization={"kv": value})
    assert decode_load_report(report.SerializeToString()) is None


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\x09", id="no figure after its tag"),
        pytest.param(b"\x09\0\0\0\0\0\0\0", id="figure cut short"),
        pytest.param(b"\x42\x05\x0a", id="entry cut short"),
        pytest.param(b"\x42\x02\x0a\x05abcde", id="name longer than its entry"),
        pytest.param(b"\x42\x04\x0a\x02\xff\xfe", id="name not UTF-8"),
        pytest.param(b"\x80" * 11 + b"\x01", id="endless tag"),
        pytest.param(b"\x18" + b"\xff" * 10, id="endless integer"),
        pytest.param(b"\x00\x00", id="field number 0"),
        pytest.param(b"\xa3\x06\xa4\x06", id="group"),
        pytest.param(b"\xa6\x06", id="wire type 6"),
        pytest.param(b"\xa5\x06\x00", id="fixed32 cut short"),
        pytest.param(b"\xa2\x06\x7f", id="bytes cut short"),
    ],
)
def test_malformed_bytes_give_none(data: bytes) -> None:
    assert decode_load_report(data) is None


def test_a_report_that_is_too_long_or_has_too_many_entries_is_refused() -> None:
    just = Report(named_metrics={f"m{number}": 1.0 for number in range(MAX_ENTRIES)}).SerializeToString()
    over = Report(named_metrics={f"m{number}": 1.0 for number in range(MAX_ENTRIES + 1)}).SerializeToString()
    load = decode_load_report(just)
    assert load is not None
    assert len(load.named_metrics) == MAX_ENTRIES
    assert decode_load_report(over) is None
    padding = b"\xa2\x06" + b"\xff\x3f" + bytes(MAX_BYTES)
    assert decode_load_report(padding) is None


def test_a_figure_of_another_wire_type_is_skipped() -> None:
    as_fixed32 = b"\x0d" + struct.pack("<f", 0.5)
    assert decode_load_report(as_fixed32) == LoadReport()
