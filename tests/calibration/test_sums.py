"""Files of sums and counts are llama-imatrix's, byte for byte; and what they tell."""

from __future__ import annotations

import hashlib
import json
import lzma
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from quantkit.calibration.imatrix import read_imatrix
from quantkit.calibration.statistics import (
    first_predicting,
    layer_statistics,
    routing,
    tensor_statistics,
)  # fmt: skip
from quantkit.calibration.sums import (
    Entry,
    Sums,
    as_dat,
    as_gguf,
    merged,
    read_exact,
    read_sums,
    write,
)  # fmt: skip
from quantkit.cli import app
from quantkit.errors import ImatrixError, SourceNotFound
from tests.calibration.imatrix_bytes import KEYS, entry, gguf
from tests.checkpoints import DATA
from tests.fake_hub import Hub

run = CliRunner().invoke
# llama-imatrix of b11549, of the golden checkpoint `qwen3moe` at BF16 and of its own output:
#   -f held-python.txt -c 128 --chunks 12; then --in-file a --output-format dat,
#   --in-file a,a and --in-file a,a.dat
GOLDEN = DATA / "imatrix" / "llama-imatrix-qwen3moe.gguf.xz"
DAT = "18932fc0d55b16edb7291a6b6422af20009d4a689705d8c85e019afa70fb5450"
TWICE = "7b4695383e5ae49f9eda43f1b9ddf8c966ec74da2cc4d44c53b0da74308a17f8"
WITH_DAT = "261ada98f8d616aaf30fb34b096b90102ac4b9631a49bc7542c55c040f497d01"


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    path = tmp_path / "golden.gguf"
    path.write_bytes(lzma.decompress(GOLDEN.read_bytes()))
    return path


def digest(parts: list[bytes]) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()


def test_files_are_llama_imatrix_s_with_their_statistics(golden: Path, tmp_path: Path) -> None:
    sums = read_sums(golden)
    assert b"".join(as_gguf(sums)) == golden.read_bytes()
    assert digest(as_dat(sums)) == DAT
    write(tmp_path / "a.dat", sums, dat=True)
    dat = read_sums(tmp_path / "a.dat")
    assert dat.is_dat
    assert digest(as_gguf(merged([("a", sums), ("b", sums)]))) == TWICE
    assert digest(as_gguf(merged([("a", sums), ("b", dat)]))) == WITH_DAT


def test_a_file_that_is_kept_has_everything(golden: Path, tmp_path: Path) -> None:
    sums = read_sums(golden)
    many = {
        n: replace(e, counts=e.counts + (1 << 40) + 1) for n, e in sums.entries.items()
    }  # float32 has no such numbers
    path = tmp_path / "kept"
    path.write_bytes(b"".join(as_gguf(replace(sums, entries=many), exact=True)))
    kept = read_exact(path)
    for name, e in many.items():
        np.testing.assert_array_equal(kept.entries[name].counts, e.counts)
        np.testing.assert_array_equal(kept.entries[name].squares, e.squares)
        np.testing.assert_array_equal(kept.entries[name].sums, e.sums)


def test_one_count_and_many_are_added_up(golden: Path) -> None:
    sums = read_sums(golden)
    name = "blk.0.ffn_up_exps.weight"
    e = sums.entries[name]
    one = replace(sums, entries={name: Entry(e.squares, np.array([7], np.int64))})
    both = merged([("one", one), ("many", sums)]).entries[name]
    np.testing.assert_array_equal(both.counts, e.counts + 7)
    np.testing.assert_array_equal(both.squares, e.squares * 2)
    assert both.sums is None  # one of them has none


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"blk.9.attn_q.weight": Entry(np.ones(4, "f4"), np.ones(1, "i8"))}, "no tensor in both"),
        (
            {"blk.0.attn_q.weight": Entry(np.ones(4, "f4"), np.ones(1, "i8"))},
            "4 values .*, not 256",
        ),
        (
            {"blk.0.ffn_up_exps.weight": Entry(np.ones(1024, "f4"), np.ones(2, "i8"))},
            "2 counts .*, not 4",
        ),
    ],
)
def test_matrices_of_two_models_are_not_added_up(
    golden: Path, entries: dict[str, Entry], message: str
) -> None:
    with pytest.raises(ImatrixError, match=f"^b is of another model.*{message}"):
        merged([("a", read_sums(golden)), ("b", Sums(entries))])


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_damaged_matrices_are_not_added_up(golden: Path, value: float) -> None:
    squares = np.array([1, value], "f4")
    entries = {"blk.0.attn_q.weight": Entry(squares, np.ones(1, "i8"))}
    with pytest.raises(ImatrixError, match=r"^b: NaN, .* blk.0.attn_q.weight; the file is damaged"):
        merged([("b", Sums(entries)), ("a", read_sums(golden))])


def test_sums_of_another_size_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    tensors = {**entry("a", [[1.0, 2.0]], [1.0]), "a.in_sum": [[1.0]]}
    path.write_bytes(gguf(tensors, KEYS))
    with pytest.raises(ImatrixError, match="2 sums of squares and 1 sums for a; the file is dam"):
        read_sums(path)
    path.write_bytes(gguf({"a.in_sum": [[1.0]]}, KEYS))
    with pytest.raises(ImatrixError, match=r"a\.in_sum2 is missing"):
        read_sums(path)


def test_there_is_no_dat_without_data() -> None:
    empty = Sums({"a": Entry(np.zeros(4, "f4"), np.zeros(1, "i8"))})
    with pytest.raises(ImatrixError, match="no tensor has data"):
        as_dat(empty)


def test_what_is_told_is_what_llama_imatrix_shows(golden: Path) -> None:
    sums = read_sums(golden)
    told = tensor_statistics(sums.entries)
    up = told["blk.1.ffn_up_exps.weight"]
    shown = [up.mean, up.deviation, up.skewness, up.kurtosis, up.evenness, up.energy, up.gain]
    assert np.round(shown, 4).tolist() == pytest.approx(
        [-0.0673, 0.4920, -0.0668, -0.2834, 98.76, 1013.8264, 1.00], abs=5e-3
    )
    first, second = layer_statistics(told).values()
    assert first.energy == pytest.approx(3131.6052, abs=1e-3)
    assert np.isnan(first.gain)
    assert [second.gain, second.distance, second.cosine, second.pearson, second.covariance] == (
        pytest.approx([1.00, 25.5159, 0.3993, 0.3916, 0.0455], abs=5e-3)
    )
    experts = routing(sums.entries)[0]
    assert experts.tokens.sum() == 2 * 12 * 128  # two experts a token
    assert 0 < experts.evenness <= 100
    assert experts.below(1 << 20) == [0, 1, 2, 3]


def test_layers_that_predict_are_compared_with_each_other(golden: Path) -> None:
    sums = read_sums(golden)
    assert first_predicting(sums.entries, 1) == 1
    alone = tensor_statistics(sums.entries, nextn=1)["blk.1.ffn_up_exps.weight"]
    assert np.isnan(alone.gain)


def test_the_command_shows_and_converts(golden: Path, tmp_path: Path) -> None:
    out = tmp_path / "twice.gguf"
    assert run(app, ["imatrix", "--merge", str(golden), str(golden), "-o", str(out)]).exit_code == 0
    assert digest([out.read_bytes()]) == TWICE
    again = run(app, ["imatrix", "--merge", str(golden), "-o", str(out)])
    assert "twice.gguf exists; give --force" in str(again.exception)
    dat = ["imatrix", "--merge", str(golden), "-o", str(tmp_path / "a.dat"), "--format", "dat"]
    assert run(app, dat).exit_code == 0
    assert digest([(tmp_path / "a.dat").read_bytes()]) == DAT
    shown = run(app, ["imatrix", str(golden), "--show-statistics", "--min-tokens", "800"]).stdout
    assert "blk.1.ffn_down_exps.weight" in shown
    assert "25.5159" in shown
    assert "of 4 experts below 800 tokens" in shown
    told = json.loads(run(app, ["imatrix", str(golden), "--show-statistics", "--json"]).stdout)
    assert told["chunks"] == 12
    assert told["experts"]["0"]["below"] == []
    for wrong in (["--merge", str(golden), "-f", "x"], [str(golden)], ["a", "b", "-o", "x"]):
        assert run(app, ["imatrix", *wrong]).exit_code == 2


def test_a_matrix_on_the_hub(golden: Path, tmp_path: Path, hub: Hub) -> None:
    (tmp_path / "repo").mkdir()
    golden.rename(tmp_path / "repo" / "m.gguf")
    hub.publish("org/matrix", tmp_path / "repo")
    there = read_imatrix("hf://org/matrix/m.gguf")
    assert there.file == "hf://org/matrix/m.gguf"
    here = read_imatrix(tmp_path / "repo" / "m.gguf")
    for name, values in here.values.items():
        np.testing.assert_array_equal(there.values[name], values)
    with pytest.raises(SourceNotFound, match=r"none\.gguf: no such file in the model"):
        read_imatrix("hf://org/matrix/none.gguf")
