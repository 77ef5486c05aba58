"""The GGUF container: what we write is what the gguf package reads, and no bytes make it trip."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, GGUFValueType, GGUFWriter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quantkit import errors
from quantkit.gguf.container import (
    KeyValue,
    TensorInfo,
    align,
    array,
    header_bytes,
    header_size,
    read_header,
    replaced,
    uint32,
)
from quantkit.gguf.key_values import KeyValueWriter
from quantkit.gguf.splits import Splits
from quantkit.jobs import convert, merge, quantize, split
from quantkit.verification.verify import verify

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)


@pytest.fixture(scope="module")
def small_file(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    convert(checkpoint("llama-dense"), path)
    return path


@given(
    strings=st.lists(TEXT, min_size=1, max_size=20), number=st.integers(0, 2**32 - 1),
    real=st.floats(width=32, allow_nan=False), flag=st.booleans(), text=TEXT.filter(bool),
)  # fmt: skip
def test_values_survive(
    strings: list[str], number: int, real: float, flag: bool, text: str
) -> None:
    writer = KeyValueWriter("llama")
    writer.add_array("strings", strings)
    writer.add_uint32("number", number)
    writer.add_float32("real", real)
    writer.add_bool("flag", flag)
    writer.add_string("text", text)
    writer.add_array("numbers", [number // 2, 7])
    values = {item.key: item.value for item in writer.entries}
    assert values == {
        "general.architecture": "llama",
        "strings": strings,
        "number": number,
        "real": real,
        "flag": flag,
        "text": text,
        "numbers": [number // 2, 7],
    }


@pytest.mark.parametrize("values", [[1, -2], [True, False], [0.5, 3.0], ["ä", "", "b"], [b"\xff"]])
def test_arrays_are_packed_as_the_gguf_package_packs_them(values: list[object]) -> None:
    writer = GGUFWriter(None, "llama")
    theirs = writer._pack_val(values, GGUFValueType.ARRAY, add_vtype=True)
    assert array("key", values).raw == theirs
    assert array("key", [7, 9], GGUFValueType.UINT16).raw == writer._pack_val(
        [7, 9], GGUFValueType.ARRAY, add_vtype=True, sub_type=GGUFValueType.UINT16
    )


@pytest.mark.parametrize("values", [[], [1, "a"], [1, True], [None], [2**31], ["\ud800"]])
def test_arrays_that_cannot_be_stored(values: list[object]) -> None:
    with pytest.raises((ValueError, struct.error)):
        array("key", values)


def test_the_gguf_package_reads_our_files(small_file: Path) -> None:
    ours, theirs = read_header(small_file), GGUFReader(small_file)
    assert [t.name for t in ours.tensors] == [t.name for t in theirs.tensors]
    for a, b in zip(ours.tensors, theirs.tensors, strict=True):
        assert list(a.shape[::-1]) == b.shape.tolist()
        assert a.ggml_type == b.tensor_type
        assert ours.data_offset + a.offset == b.data_offset
    for item in ours.kv:
        theirs_value = theirs.fields[item.key].contents()
        assert np.array_equal(item.value, theirs_value), item.key


def test_setting_a_key_moves_it_to_the_end() -> None:
    kv = (uint32("a", 1), uint32("b", 2), uint32("c", 3))
    assert [(i.key, i.value) for i in replaced(kv, uint32("a", 9))] == [
        ("b", 2),
        ("c", 3),
        ("a", 9),
    ]


def test_text_that_is_not_utf8_is_kept() -> None:
    raw = b"\x08\0\0\0" + (3).to_bytes(8, "little") + b"a\xff\xfe"
    assert header_bytes([KeyValue("k", raw)], []).endswith(raw)
    assert KeyValue("k", raw).value == "a\udcff\udcfe"


def test_keys_alone_end_without_padding_and_a_split_of_keys_with_it() -> None:
    """As llama.cpp's converter ends a vocabulary, and gguf-split a first file of no tensors."""
    for kv in ([uint32("a", 1)], [uint32("split.count", 2)]):
        assert len(header_bytes(kv, [])) == header_size(kv, [])
    assert len(header_bytes([uint32("a", 1)], [])) == 24 + 9 + 8
    assert len(header_bytes([uint32("split.count", 2)], [])) == 64


@pytest.mark.parametrize("part", ["magic", "version", "swapped", "counts", "short", "data"])
def test_damage_is_named(part: str, small_file: Path, tmp_path: Path) -> None:
    data = bytearray(small_file.read_bytes())
    error: type[errors.QuantkitError] = errors.CorruptFile
    if part == "magic":
        data[:4] = b"ggml"
    elif part == "version":
        data[4], error = 1, errors.UnsupportedSource
    elif part == "swapped":
        data[4:8], error = b"\0\0\0\3", errors.UnsupportedSource
    elif part == "counts":
        data[8:16] = b"\xff" * 8
    elif part == "short":
        del data[1000:]
    else:
        del data[-5000:]
    path = tmp_path / "bad.gguf"
    path.write_bytes(data)
    with pytest.raises(error):
        read_header(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_no_bytes_make_the_reader_trip(
    data: st.DataObject, small_file: Path, tmp_path: Path
) -> None:
    """Flip, cut and overwrite: the header is read or refused by name."""
    raw = bytearray(small_file.read_bytes()[:60_000])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, 3000) | st.integers(0, len(raw) - 1))
        raw[at : at + 8] = data.draw(st.binary(max_size=8))
    if data.draw(st.booleans()):
        del raw[data.draw(st.integers(0, len(raw))) :]
    path = tmp_path / "fuzzed.gguf"
    path.write_bytes(raw)
    with contextlib.suppress(errors.SourceError):
        header = read_header(path)
        assert all(item.type for item in header.kv if item.value is not None)


@given(n=st.integers(0, 10**12))
def test_align(n: int) -> None:
    assert 0 <= align(n) - n < 32
    assert align(n) % 32 == 0


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (TensorInfo("t", (2, 100), 12, 0), "does not fit Q4_K"),
        (TensorInfo("t", (1 << 40, 256), 0, 0), "truncated"),
        (TensorInfo("t", (1, 256), 0, 8), "truncated"),
        (TensorInfo("t", (1, 256), 200, 0), "unknown ggml type 200"),
    ],
)
def test_tensor_infos_are_checked(tensor: TensorInfo, words: str, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(header_bytes([], [tensor]) + bytes(4096))
    with pytest.raises(errors.SourceError, match=words):
        read_header(path)


def test_a_tensor_that_is_listed_twice(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    t = TensorInfo("t", (1, 256), 0, 0)
    path.write_bytes(header_bytes([], [t, t]) + bytes(4096))
    with pytest.raises(errors.CorruptFile, match="twice"):
        read_header(path)


@pytest.mark.parametrize("alignment", [8, 16, 64, 128, 4096, 65536])
def test_any_alignment_is_read_and_32_is_written(
    alignment: int, small_file: Path, tmp_path: Path
) -> None:
    """What is made of the file is what is made of the one that it was laid out from."""
    aligned = tmp_path / "aligned.gguf"
    with_alignment(small_file, aligned, alignment)
    header = read_header(aligned)
    assert header.alignment == alignment
    assert verify(aligned).good == (alignment % 32 == 0)  # llama.cpp maps others, and ends at them
    for source, name in ((small_file, "a"), (aligned, "b")):
        quantize(source, ["Q8_0"], tmp_path / f"{name}.gguf")
        split(source, tmp_path / f"{name}-split.gguf", Splits(max_tensors=7))
        merge(source, tmp_path / f"{name}-merged.gguf")
    made = read_header(tmp_path / "b.gguf")
    assert made.alignment == 32
    assert made.get("general.alignment") is None
    for name in ("{}.gguf", "{}-merged.gguf", "{}-split-00002-of-00004.gguf"):
        a, b = ((tmp_path / name.format(which)).read_bytes() for which in "ab")
        assert a == b


def with_alignment(source: Path, out: Path, alignment: int) -> None:
    """A GGUF file laid out anew."""
    header, data = read_header(source), source.read_bytes()[read_header(source).data_offset :]
    infos, body = [], b""
    for t, end in zip(header.tensors, [*(t.offset for t in header.tensors[1:]), None], strict=True):
        infos.append(TensorInfo(t.name, t.shape, t.ggml_type, len(body)))
        body += data[t.offset : end]
        body += bytes(-len(body) % alignment)
    kv = (*header.kv, uint32("general.alignment", alignment))
    size = 24 + sum(8 + len(i.key.encode()) + len(i.raw) for i in kv)
    size += sum(24 + len(t.name) + 8 * len(t.shape) for t in infos)
    text = header_bytes(kv, infos)[:size]  # without its padding
    out.write_bytes(text + bytes(-len(text) % alignment) + body)


@pytest.mark.parametrize("alignment", [0, 1, 4, 24, 33])
def test_no_alignment_at_all(alignment: int, small_file: Path, tmp_path: Path) -> None:
    header = read_header(small_file)
    text = header_bytes((*header.kv, uint32("general.alignment", alignment)), header.tensors)
    (tmp_path / "m.gguf").write_bytes(text + small_file.read_bytes()[header.data_offset :])
    with pytest.raises(errors.CorruptFile, match="not a power of two from 8 on"):
        read_header(tmp_path / "m.gguf")
