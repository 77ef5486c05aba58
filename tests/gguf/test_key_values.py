"""Keys as bytes: the same as in a file that the gguf package writes."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFValueType, GGUFWriter

from quantkit.gguf.container import read_header
from quantkit.gguf.key_values import KeyValueWriter


def add_all(writer: GGUFWriter) -> None:
    for kind in GGUFValueType:
        if kind not in (GGUFValueType.ARRAY, GGUFValueType.STRING):
            writer.add_key_value(f"{kind.name}.one", 1, kind)
    writer.add_string("text", "größe\n")
    writer.add_string("empty", "")  # which adds nothing, as an empty array
    writer.add_array("nothing", [])
    for name, values in {
        "texts": ["a", "", "ß"],
        "integers": [1, -2],
        "numbers": [0.5, 2.0],
        "flags": [True, False],
        "bytes": b"\0\1\2",
        "texts as bytes": [b"a", b"\xff"],
    }.items():
        writer.add_array(name, values)
    writer.add_key_value("sub", [1, 2], GGUFValueType.ARRAY, sub_type=GGUFValueType.UINT64)
    writer.add_token_types([1, 3])
    writer.add_tags(["a"])
    writer.add_bool("BOOL.one", False)  # again: its place, another value
    writer.add_uint64("text", 7)


def test_same_bytes_as_in_a_file(tmp_path: Path) -> None:
    theirs, ours = GGUFWriter(tmp_path / "keys.gguf", "llama"), KeyValueWriter("llama")
    add_all(theirs)
    add_all(ours)
    theirs.write_header_to_file()
    theirs.write_kv_data_to_file()
    theirs.write_ti_data_to_file()
    theirs.close()
    with (tmp_path / "keys.gguf").open("ab") as f:
        f.write(bytes(32))
    assert ours.entries == read_header(tmp_path / "keys.gguf").kv
    assert len(ours.entries) > 20


@pytest.mark.parametrize(
    ("value", "kind", "error"),
    [
        (-1, GGUFValueType.UINT32, struct.error),
        (1e300, GGUFValueType.FLOAT32, OverflowError),
        ("x", GGUFValueType.FLOAT32, struct.error),
        ("\ud800", GGUFValueType.STRING, ValueError),
        (7, GGUFValueType.STRING, TypeError),
        ([1, "a"], GGUFValueType.ARRAY, ValueError),
        ([1 << 40], GGUFValueType.ARRAY, struct.error),
    ],
)
def test_a_value_of_another_type_adds_nothing(
    value: Any, kind: GGUFValueType, error: type[Exception]
) -> None:
    writer = KeyValueWriter("llama")
    with pytest.raises(error):
        writer.add_key_value("key", value, kind)
    assert [entry.key for entry in writer.entries] == ["general.architecture"]
