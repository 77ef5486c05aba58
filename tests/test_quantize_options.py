"""What a person asks for beside the type."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import quant_types
from quantkit import errors
from quantkit.cli import app
from quantkit.gguf.container import read_header
from quantkit.gguf.splits import Splits, parse_size, split_path
from quantkit.jobs import Run, convert, merge, quantize, split
from quantkit.planning import schedule
from quantkit.planning.build import Request
from quantkit.planning.schedule import BASE_MEMORY, CHUNK_WEIGHTS
from quantkit.recipes.choose import Overrides, tensor_type
from quantkit.source.gguf_set import open_gguf, open_gguf_set
from quantkit.source.tensors import Files
from tests import golden
from tests.checkpoints import DATA
from tests.conftest import sha256
from tests.runtime import Llama

MATRIX = str(DATA / "imatrix" / "mixtral-4x.gguf")
run = CliRunner().invoke
Get = Callable[[str], Path]


def by_name(*paths: Path) -> dict[str, tuple[str, str]]:
    return {t["name"]: (t["type"], t["sha256"]) for p in paths for t in golden.tensors(p)}


# --- splits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "splits", [Splits(max_bytes=300_000), Splits(max_tensors=7), Splits(10**6, 0, True)]
)
def test_split_outputs_hold_the_same_tensors(
    splits: Splits, checkpoint: Get, tmp_path: Path
) -> None:
    source = checkpoint("mixtral-4x")
    plan = quantize(source, ["Q4_K_M", "Q8_0"], tmp_path, request=Request(splits=splits))
    for output in plan.outputs:
        whole = tmp_path / f"whole-{output.type}.gguf"
        quantize(source, [output.type], whole)
        paths = [f.path for f in output.files]
        assert len(paths) > 2
        base = tmp_path / f"ckpt-{output.type}.gguf"
        assert paths == [split_path(base, i, len(paths)) for i in range(len(paths))]
        assert by_name(*paths) == by_name(whole)
        for i, path in enumerate(paths):
            header = read_header(path)
            assert header.get("split.no") == i
            assert header.get("split.count") == len(paths)
            assert header.get("split.tensors.count") == len(by_name(whole))
            assert (len(header.kv) == 3) == (i > 0)
            sizes = [t.nbytes for t in output.files[i].tensors]
            assert len(sizes) <= (splits.max_tensors or 99)
            assert not splits.max_bytes or len(sizes) <= 1 or sum(sizes) <= splits.max_bytes
        assert bool(output.files[0].tensors) is not splits.no_tensor_first
        merge(paths[1], tmp_path / f"merged-{output.type}.gguf")
        assert sha256(tmp_path / f"merged-{output.type}.gguf") == sha256(whole)


def test_llama_cpp_loads_splits(frankenmoe: dict[str, Path], tmp_path: Path) -> None:
    request = Request(splits=Splits(max_bytes=600_000))
    plan = quantize(frankenmoe["mergekit"], ["Q4_K_M"], tmp_path, request=request)
    quantize(frankenmoe["mergekit"], ["Q4_K_M"], tmp_path / "whole.gguf")
    prompt = "The following chapter explains how to"
    answers = [
        Llama(path).complete(prompt)["choices"][0]["text"]
        for path in (plan.files[0].path, tmp_path / "whole.gguf")
    ]
    assert answers[0] == answers[1] != ""


def test_split_then_merge_is_the_same_file(checkpoint: Get, tmp_path: Path) -> None:
    whole = tmp_path / "m.gguf"
    quantize(checkpoint("mixtral-5x"), ["Q4_K_M"], whole)
    plan = split(whole, tmp_path / "cut.gguf", Splits(max_tensors=5))
    assert len(plan.files) > 3
    merge(plan.files[-1].path, tmp_path / "again.gguf")
    assert sha256(tmp_path / "again.gguf") == sha256(whole)


def test_shares_for_several_machines(checkpoint: Get, tmp_path: Path) -> None:
    """Each split is a job of its own, and gives the very file of the whole run."""
    source, types = checkpoint("mixtral-4x"), ["Q4_K_M", "Q8_0"]
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    splits = Splits(max_tensors=5)
    plan = quantize(source, types, tmp_path / "whole", request=Request(splits=splits))
    count = len(plan.outputs[0].files)
    for share in ((3,), (1, 5), tuple(n for n in range(1, count + 1) if n not in (1, 3, 5))):
        request = Request(splits=splits, only_splits=share)
        part = quantize(source, types, tmp_path / "parts", request=request)
        assert len(part.files) == 2 * len(share)
        assert part.source_bytes < plan.source_bytes
    whole, parts = (
        {p.name: sha256(p) for p in (tmp_path / name).iterdir()} for name in ("whole", "parts")
    )
    assert whole == parts
    assert len(whole) == 2 * count


def test_memory_is_kept_by_smaller_chunks(
    checkpoint: Get, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, types = checkpoint("mixtral-4x"), ["Q4_K_M", "F32"]
    plan = quantize(source, types, tmp_path, run=Run(threads=2, memory=BASE_MEMORY + 2_000_000))
    small = schedule.schedule(plan, 2, BASE_MEMORY + 2_000_000)
    assert small.chunk_weights < CHUNK_WEIGHTS
    assert small.least_memory <= 2_000_000
    (tmp_path / "whole").mkdir()
    whole = quantize(source, types, tmp_path / "whole")
    assert [sha256(f.path) for f in plan.files] == [sha256(f.path) for f in whole.files]
    # without a number the threads of a large machine share a gigabyte, and nothing is refused
    monkeypatch.setattr(schedule, "USUAL_MEMORY", BASE_MEMORY + 2_000_000)
    assert schedule.schedule(plan, 2) == small
    many = schedule.schedule(plan, 2000)
    assert schedule.Schedule(plan, 1, many.chunk_weights).least_memory < 2_000_000
    too_little = Run(threads=2000, dry=True, memory=BASE_MEMORY + 2_000_000)
    with pytest.raises(errors.RecipeError, match="2000 threads need at least"):
        quantize(source, types, tmp_path, run=too_little)


def test_blocks_of_low_bits_are_copied(checkpoint: Get, tmp_path: Path) -> None:
    source = tmp_path / "iq.gguf"
    quantize(checkpoint("mixtral-4x"), ["IQ3_S"], source)
    assert {t["type"] for t in golden.tensors(source)} > {"IQ3_S", "Q6_K"}
    copied = quantize(source, ["COPY"], tmp_path / "copy.gguf").files[0].path
    cut = split(source, tmp_path / "cut.gguf", Splits(max_tensors=9)).files
    merge(cut[0].path, tmp_path / "merged.gguf")
    for paths in ([copied], [f.path for f in cut], [tmp_path / "merged.gguf"]):
        assert by_name(*paths) == by_name(source)


def test_keep_split(checkpoint: Get, tmp_path: Path) -> None:
    source = checkpoint("mixtral-4x")
    cut = convert(source, tmp_path / "m.gguf", "bf16", splits=Splits(max_tensors=6)).files
    request = Request(keep_split=True)
    plan = quantize(cut[0].path, ["Q8_0"], tmp_path / "q.gguf", request=request)
    assert len(plan.files) == len(cut)
    for a, b in zip(plan.files, cut, strict=True):
        assert [t.name for t in a.tensors] == [t.name for t in b.tensors]
    quantize(cut[2].path, ["Q8_0"], tmp_path / "whole.gguf")
    assert by_name(*(f.path for f in plan.files)) == by_name(tmp_path / "whole.gguf")


def test_a_split_that_is_missing_or_of_another_set(checkpoint: Get, tmp_path: Path) -> None:
    plan = quantize(checkpoint("mixtral-4x"), ["Q8_0"], tmp_path / "m.gguf",
                    request=Request(splits=Splits(max_tensors=9)))  # fmt: skip
    paths = [f.path for f in plan.files]
    assert len(open_gguf_set(paths[0])[1]) == 23
    kept = paths[1].read_bytes()
    paths[1].write_bytes(paths[2].read_bytes())
    with pytest.raises(errors.CorruptFile, match="not of one set"):
        merge(paths[0], tmp_path / "whole.gguf")
    paths[1].write_bytes(kept)
    paths[2].unlink()
    with pytest.raises(errors.ShardMissing, match="00003-of-00003"):
        merge(paths[0], tmp_path / "whole.gguf")
    assert not (tmp_path / "whole.gguf").exists()


@pytest.mark.parametrize(
    ("text", "size"),
    [("300M", 300_000_000), ("4g", 4 * 10**9), ("7K", 7000), ("4.5GB", 45 * 10**8),
     ("2GiB", 1 << 31), ("12 GB", 12 * 10**9)],
)  # fmt: skip
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "4", "4P", "-4G", "0M", "four", "4.G", "1.5", "4iB", "0.0G"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(errors.UsageError, match="not a size"):
        parse_size(text)


def test_split_without_a_limit(checkpoint: Get, tmp_path: Path) -> None:
    quantize(checkpoint("mixtral-4x"), ["Q8_0"], tmp_path / "m.gguf")
    with pytest.raises(errors.UsageError, match="--split-max-size"):
        split(tmp_path / "m.gguf", None, Splits())


# --- requantizing ---------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["Q8_0", "Q4_K_M", "Q2_K", "IQ4_XS"])
def test_requantizing_dequantizes_first(first: str, checkpoint: Get, tmp_path: Path) -> None:
    """As llama-quantize does: to_float, then the new format; what has it already is copied."""
    middle, out = tmp_path / "middle.gguf", tmp_path / "out.gguf"
    quantize(checkpoint("mixtral-4x"), [first], middle)
    with pytest.raises(errors.RecipeError, match="--allow-requantize"):
        quantize(middle, ["Q5_K_M"], out)
    assert not out.exists()
    quantize(middle, ["Q5_K_M"], out, request=Request(allow_requantize=True))
    _, tensors = open_gguf(middle)
    expected = by_name(out)
    import hashlib

    with Files([middle]) as files:
        for t in tensors:
            rows = files.read_rows(t, 0, t.n_rows)
            fmt, digest = expected[t.name]
            if t.ggml.name != fmt:
                if not t.ggml.is_float:
                    rows = quant_types.dequantize(rows, t.ggml.name)
                rows = quant_types.quantize(rows, fmt)
            assert hashlib.sha256(np.ascontiguousarray(rows).tobytes()).hexdigest() == digest


def test_quantizing_to_what_it_is_needs_no_flag(checkpoint: Get, tmp_path: Path) -> None:
    quantize(checkpoint("mixtral-4x"), ["Q8_0"], tmp_path / "a.gguf")
    quantize(tmp_path / "a.gguf", ["Q8_0"], tmp_path / "b.gguf")
    quantize(tmp_path / "a.gguf", ["COPY"], tmp_path / "c.gguf")
    assert len({sha256(tmp_path / f"{x}.gguf") for x in "abc"}) == 1


# --- mixtures by hand -----------------------------------------------------------------------------


def test_overrides_reach_the_file(checkpoint: Get, tmp_path: Path) -> None:
    overrides = Overrides(
        output_tensor_type="Q8_0", tensor_types=(tensor_type("blk\\.1\\..*_exps=Q5_0"),)
    )
    request = Request(overrides=overrides)
    plan = quantize(checkpoint("mixtral-4x"), ["Q4_K_M"], tmp_path / "m.gguf", request=request)
    found = {name: kind for name, (kind, _) in by_name(tmp_path / "m.gguf").items()}
    assert found["output.weight"] == "Q8_0"
    assert {k for n, k in found.items() if n.startswith("blk.1.") and "_exps" in n} == {"Q5_0"}
    assert found["blk.0.ffn_gate_exps.weight"] == "Q4_K"
    assert plan.outputs[0].overridden_weights == 512 * 256 + 3 * 4 * 256 * 256
    with pytest.raises(errors.RecipeError, match="--strict"):
        quantize(checkpoint("mixtral-4x"), ["Q4_K_M"], tmp_path / "n.gguf",
                 request=Request(overrides=overrides, strict=True))  # fmt: skip


def test_options_of_the_command(checkpoint: Get, tmp_path: Path) -> None:
    types = tmp_path / "types.txt"
    types.write_text("\ufeffattn_q=Q8_0\n  attn_k=q5_1\n", encoding="utf-8")  # as Notepad saves it
    result = run(app, [
        "quantize", str(checkpoint("mixtral-4x")), "-t", "Q4_K_M", "-o", str(tmp_path / "m.gguf"),
        "--tensor-type-file", str(types), "--tensor-type", "ffn_down_exps=Q6_K",
        "--token-embedding-type", "q8_0", "--leave-output-tensor", "--override-kv",
        "general.name=str:Ein Modell", "--override-kv", "llama.expert_used_count=int:3",
        "--prune-layers", "0",
    ])  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "chosen by hand" in result.stdout
    header = read_header(tmp_path / "m.gguf")
    assert header.get("general.name") == "Ein Modell"
    assert header.get("llama.expert_used_count") == 3
    assert header.get("llama.block_count") == 1
    assert [item.key for item in header.kv][-3:] == [
        "general.name", "llama.expert_used_count", "llama.block_count",
    ]  # fmt: skip
    found = {name: kind for name, (kind, _) in by_name(tmp_path / "m.gguf").items()}
    assert not any(name.startswith("blk.1.") for name in found)
    assert found["blk.0.attn_q.weight"] == "Q8_0"
    assert found["blk.0.attn_k.weight"] == "Q5_1"
    assert found["blk.0.ffn_down_exps.weight"] == "Q6_K"
    assert found["token_embd.weight"] == "Q8_0"
    assert found["output.weight"] == "BF16"


def test_files_of_tensor_types(checkpoint: Get, tmp_path: Path) -> None:
    """Files and single ones count in the order of the command, as in llama-quantize. A file may be
    for a whole family, one with nothing for this model is for another."""
    family, more = tmp_path / "family.txt", tmp_path / "more.txt"
    family.write_text("attn_q=Q8_0 ffn_gate_shexp=Q6_K\nffn_up_shexp=Q6_K ffn_up=Q5_1\n")
    more.write_text("attn_(q|k)=Q5_0")
    words = ["--tensor-type-file", str(family), "--tensor-type=attn_k=IQ4_NL", "--tensor-type",
             "attn_q=Q4_1", "--tensor-type-file", str(more)]  # fmt: skip
    out = tmp_path / "m.gguf"
    given = ["quantize", str(checkpoint("mixtral-4x")), "-t", "Q4_K_M", "-o", str(out), "--force"]
    kinds = []
    for order in (words, words[5:] + words[2:5] + words[:2]):
        result = run(app, [*given, *order])
        assert result.exit_code == 0, result.output
        assert (
            "2 of 5 tensor types of the file name no tensor of this model: ffn_gate_shexp=Q6_K, "
            "ffn_up_shexp=Q6_K" in " ".join(result.stderr.split())
        )
        found = by_name(out)
        kinds.append([found[f"blk.0.{name}.weight"][0] for name in ("attn_q", "attn_k")])
        assert found["blk.1.ffn_up_exps.weight"][0] == "Q5_1"
    assert kinds == [["Q8_0", "IQ4_NL"], ["Q5_0", "Q5_0"]]
    family.write_text("attn_qkv=Q8_0\nffn_gate_shexp=Q6_K")
    result = run(app, [*given, *words[:2]])
    assert result.exit_code == 1
    assert "is for another model: no tensor's name holds attn_qkv=Q8_0, ffn_g" in str(
        result.exception
    )


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--tensor-type", "ffn_dwn=Q6_K"], 1, "matches no tensor"),
        (["--tensor-type", "ffn_down"], 2, "PATTERN=FORMAT"),
        (["--tensor-type", "(=Q6_K"], 2, "regular expression"),
        (["--output-tensor-type", "Q9_K"], 2, "unknown format 'Q9_K'"),
        (["--override-kv", "general.name=Merge"], 2, "KEY=TYPE:VALUE"),
        (["--override-kv", "general.name=int:5"], 1, "is STRING in this model"),
        (["--override-kv", "llama.expert_count=str:4"], 1, "is UINT32 in this model"),
        (["--override-kv", "my.key=int:four"], 2, "'four' is not a value of type int"),
        (["--override-kv", "my.key=bool:yes"], 2, "'yes' is not a value of type bool"),
        (["--prune-layers", "0,7"], 1, "layer 7 cannot be pruned"),
        (["--prune-layers", "first"], 2, "not a list of layers"),
        (["--split-max-size", "4"], 2, "not a size"),
        (["--memory", "1MB"], 1, "too little"),
        (["--split-max-tensors", "9", "--only-splits", "4"], 1, "there is no split 4"),
        (["--split-max-tensors", "9", "--only-splits", "2-1"], 2, "not a list of numbers"),
        (["--imatrix", "nowhere.gguf"], 1, "nowhere.gguf"),
        (["-t", "IQ2_XXS"], 1, "importance matrix"),
        (["-t", "Q2_K_S"], 1, "importance matrix"),
        (["--tensor-type", "attn_q=IQ2_XS"], 1, "importance matrix"),
        (["-t", "IQ2_M-moe"], 1, "importance matrix"),
        (["-t", "IQ2_M", "--imatrix", MATRIX, "--exclude-weights", "attn_q"], 1, "so few bits"),
        (["--recipe", "nowhere.gguf"], 1, "nowhere.gguf: no such file"),
    ],
)
def test_what_cannot_be(
    arguments: list[str], code: int, words: str, checkpoint: Get, tmp_path: Path
) -> None:
    source = str(checkpoint("mixtral-4x"))
    result = run(app, ["quantize", source, "-t", "Q4_K_M", "-o", str(tmp_path), *arguments])
    assert result.exit_code == code
    if code == 2:
        line = result.stderr.removeprefix("error: ").removesuffix("\n")
    else:
        assert isinstance(result.exception, errors.QuantkitError)
        line = str(result.exception)
    assert words in line
    assert "\n" not in line
    assert list(tmp_path.iterdir()) == []


def test_an_imatrix_of_another_model(checkpoint: Get, tmp_path: Path) -> None:
    arguments = ["quantize", str(checkpoint("mixtral-5x")), "-t", "Q4_K_M", "-o", str(tmp_path)]
    matrix = ["--imatrix", str(DATA / "imatrix" / "mixtral-4x.gguf")]
    with pytest.raises(errors.ImatrixError, match=r"blk\.0\.ffn_.*_exps\.weight"):
        run(app, [*arguments, *matrix], catch_exceptions=False)
    assert list(tmp_path.iterdir()) == []


def test_what_an_imatrix_lacks_is_said(checkpoint: Get, tmp_path: Path) -> None:
    arguments = ["quantize", str(checkpoint("mixtral-4x")), "-t", "Q4_K_M", "-o", str(tmp_path)]
    matrix = ["--imatrix", str(DATA / "imatrix" / "mixtral-4x.gguf")]
    left_out = [*matrix, "--exclude-weights", "attn_q"]
    result = run(app, [*arguments, *left_out])
    assert result.exit_code == 0
    assert "no importances for blk.0.attn_q.weight" in result.stderr
    with pytest.raises(errors.ImatrixError):
        run(app, [*arguments, *left_out, "--imatrix-strict", "--force"], catch_exceptions=False)


def test_dry_run_writes_nothing_and_says_all(checkpoint: Get, tmp_path: Path) -> None:
    source = checkpoint("mixtral-4x")
    arguments = ["quantize", str(source), "-t", "Q4_K_M", "-t", "Q2_K", "-o", str(tmp_path)]
    planned = json.loads(run(app, [*arguments, "--dry-run", "--json"]).stdout)["outputs"]
    assert list(tmp_path.iterdir()) == []
    run(app, arguments)
    for output in planned:
        (f,) = output["files"]
        assert Path(f["path"]).stat().st_size == f["bytes"] == output["bytes"]
        expected = golden.tensors(Path(f["path"]))
        assert [(t["name"], t["format"], t["bytes"]) for t in output["tensors"]] == [
            (t["name"], t["type"], t["n_bytes"]) for t in expected
        ]


def test_a_row_that_does_not_divide_falls_back_and_says_so(
    broken: Callable[..., Path], tmp_path: Path
) -> None:
    """A model 288 wide: 288 is nine blocks of 32 and no block of 256."""
    from tests.damage import edit_config, edit_tensors

    source = broken("llama-dense")

    def widen(tensors: dict[str, tuple[str, list[int], bytes]]) -> None:
        sizes = {256: 288, 128: 144}
        for name, (dtype, shape, _) in list(tensors.items()):
            wide = [sizes.get(n, n) for n in shape]
            data = (np.arange(np.prod(wide)) % 17 + 1).astype(np.float32) / 9
            tensors[name] = (dtype, wide, (data.view(np.uint32) >> 16).astype(np.uint16).tobytes())

    edit_tensors(source, widen)
    edit_config(source, hidden_size=288, head_dim=72)
    plan = quantize(source, ["Q4_K_M", "Q8_0"], tmp_path)
    fallen = plan.outputs[0]
    formats = {t.format for t in fallen.by_name.values()}
    assert {"Q5_0", "Q8_0"} <= formats
    assert fallen.fallback_weights > 0.5 * sum(t.weights for t in fallen.by_name.values())
    assert plan.outputs[1].fallback_weights == 0
    with pytest.raises(errors.RecipeError, match=r"Q4_K_M would differ .* fell back from Q"):
        quantize(source, ["Q4_K_M"], tmp_path, request=Request(strict=True), run=Run(force=True))
    result = run(app, ["quantize", str(source), "-t", "Q4_K_M", "-o", str(tmp_path), "--force"])
    assert "of the weights fell back" in result.stdout


# --- a recipe from a file -------------------------------------------------------------------------


def test_a_file_is_a_recipe(checkpoint: Get, tmp_path: Path) -> None:
    """Each tensor gets the format that it has in the file; what is not there follows the type."""
    source = checkpoint("mixtral-4x")
    tuned = tmp_path / "tuned.gguf"
    own = (("attn_v", "Q5_K"), ("blk.1.ffn_down_exps", "Q8_0"))
    quantize(source, ["Q4_K_M"], tuned, request=Request(Overrides(tensor_types=own)))
    again = tmp_path / "again.gguf"
    result = run(app, ["quantize", str(source), "-t", "Q2_K", "--recipe", str(tuned),
                       "-o", str(again)], catch_exceptions=False)  # fmt: skip
    assert "note: " not in result.stderr.replace("note: pre-tokenizer", "")
    assert by_name(again) == by_name(tuned)
    fewer = tmp_path / "fewer.gguf"
    quantize(source, ["Q4_K_M"], fewer, prune=[1])
    result = run(app, ["quantize", str(source), "-t", "Q8_0", "--recipe", str(fewer), "--dry-run",
                       "-o", str(tmp_path)], catch_exceptions=False)  # fmt: skip
    assert "tensors are only in the model, and follow the type: blk.1." in result.stderr
    missing = run(app, ["quantize", str(source), "-t", "Q8_0", "--recipe", "none.gguf"])
    assert isinstance(missing.exception, errors.SourceNotFound)


def test_types_with_embedding_and_output_in_q8_0(checkpoint: Get, tmp_path: Path) -> None:
    """Q4_K_L is Q4_K_M with llama-quantize's two options."""
    source, request = checkpoint("mixtral-4x"), Request(
        Overrides(output_tensor_type="Q8_0", token_embedding_type="Q8_0")
    )  # fmt: skip
    large = quantize(source, ["Q4_K_L"], tmp_path / "large.gguf")
    quantize(source, ["Q4_K_M"], tmp_path / "options.gguf", request=request)
    assert by_name(tmp_path / "large.gguf") == by_name(tmp_path / "options.gguf")
    assert large.outputs[0].overridden_weights == 0
