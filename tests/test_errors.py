"""Bad input: a named error in one line, exit code 1, and nothing left behind."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit import cli, errors
from quantkit.jobs import Run, convert, quantize
from quantkit.model.open import Reading
from tests.checkpoints import read_safetensors, write_safetensors
from tests.told import Told

Broken = Callable[..., Path]


def edit_config(checkpoint: Path, **changes: Any) -> None:
    path = checkpoint / "config.json"
    config = json.loads(path.read_text())
    for key, value in changes.items():
        if value is None:
            del config[key]
        else:
            config[key] = value
    path.write_text(json.dumps(config))


def edit_tensors(checkpoint: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    path = checkpoint / "model.safetensors"
    tensors = read_safetensors(path)
    edit(tensors)
    write_safetensors(path, tensors)


def fails(
    error: type[errors.QuantkitError], words: str, source: Path, out: Path
) -> errors.QuantkitError:
    """Both jobs raise `error`, its line says `words`, and the output directory stays empty."""
    out.mkdir()
    with pytest.raises(error) as caught:
        quantize(source, ["Q4_K_M", "Q8_0"], out)
    if source.is_dir():
        with pytest.raises(error):
            convert(source, out)
    assert list(out.iterdir()) == []
    message = str(caught.value)
    assert type(caught.value) is error
    assert "\n" not in message
    for word in words.split(" & "):
        assert word in message, message
    return caught.value


def test_no_such_directory(tmp_path: Path) -> None:
    fails(errors.SourceNotFound, "nowhere & no such", tmp_path / "nowhere", tmp_path / "out")


def test_no_config(broken: Broken, tmp_path: Path) -> None:
    source = broken()
    (source / "config.json").unlink()
    fails(errors.SourceNotFound, "no config.json", source, tmp_path / "out")


def test_config_that_is_not_json(broken: Broken, tmp_path: Path) -> None:
    source = broken()
    (source / "config.json").write_text("{")
    fails(errors.CorruptFile, "config.json & not JSON", source, tmp_path / "out")


def test_unsupported_architecture(broken: Broken, tmp_path: Path) -> None:
    source = broken()
    edit_config(source, architectures=["MixtralForSequenceClassification"])
    fails(
        errors.UnsupportedArchitecture,
        "'MixtralForSequenceClassification' & nearest: Mixtral & inspect --architectures",
        source,
        tmp_path / "out",
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        # of a class that is not known: others have defaults
        (
            {"num_attention_heads": None, "model_type": "merged"},
            "'num_attention_heads' is missing",
        ),
        ({"num_attention_heads": "four"}, "'num_attention_heads' must be uint32, not 'four'"),
        ({"num_attention_heads": 0}, "no heads"),
        (
            {"num_experts_per_tok": None, "model_type": "merged"},
            "'num_experts_per_tok' is missing",
        ),
        ({"num_experts_per_tok": 5}, "5 experts are used of 4"),
        ({"num_local_experts": 0}, "no experts"),
        ({"hidden_act": "gelu"}, "'hidden_act' is 'gelu' & 'silu'"),
        ({"head_dim": 63}, "63 channels cannot be rotated"),
        ({"rope_theta": "many"}, "must be float32"),
        ({"rope_scaling": {"type": "spiral"}}, "'spiral'"),
        (
            {"rope_scaling": {"type": "linear", "factor": "two"}},
            "'rope.scaling.factor' must be float32",
        ),
        ({"architectures": []}, "'architectures'"),
    ],
)
def test_config_values(changes: dict[str, Any], words: str, broken: Broken, tmp_path: Path) -> None:
    source = broken()
    edit_config(source, **changes)
    fails(errors.ConfigError, f"config.json & {words}", source, tmp_path / "out")


def test_shard_missing(broken: Broken, tmp_path: Path) -> None:
    source = broken("mixtral-4x-sharded")
    (source / "model-00002-of-00003.safetensors").unlink()
    fails(
        errors.ShardMissing, "model-00002-of-00003.safetensors & 1 of 3", source, tmp_path / "out"
    )


def test_index_that_leaves_the_directory(broken: Broken, tmp_path: Path) -> None:
    source = broken("mixtral-4x-sharded")
    path = source / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"][next(iter(index["weight_map"]))] = "../secret.safetensors"
    path.write_text(json.dumps(index))
    fails(errors.CorruptFile, "'../secret.safetensors' points outside", source, tmp_path / "out")


def test_index_of_shards_in_a_folder(broken: Broken, tmp_path: Path) -> None:
    source = broken("mixtral-4x-sharded")
    path = source / "model.safetensors.index.json"
    path.write_text(path.read_text().replace('"model-', '"weights/model-'))
    fails(errors.CorruptFile, "lies in a folder; move", source, tmp_path / "out")


@pytest.mark.parametrize("size", [0, 5, 21])
def test_a_torch_file_that_is_cut_short(size: int, broken: Broken, tmp_path: Path) -> None:
    source = broken()
    (source / "model.safetensors").unlink()
    (source / "pytorch_model.bin").write_bytes(b"PK\3\4".ljust(size, b"\0")[:size])
    fails(errors.CorruptFile, "not a whole torch file; download it", source, tmp_path / "out")


def test_index_and_shards_disagree(broken: Broken, tmp_path: Path) -> None:
    source = broken("mixtral-4x-sharded")
    path = source / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.surplus.weight"] = "model-00001-of-00003.safetensors"
    path.write_text(json.dumps(index))
    fails(errors.CorruptFile, "model.surplus.weight", source, tmp_path / "out")


@pytest.mark.parametrize("case", ["mixtral-4x", "mixtral-4x-tf5fused"])
def test_tensor_missing(case: str, broken: Broken, tmp_path: Path) -> None:
    source = broken(case)
    gone: list[str] = []

    def drop(tensors: dict[str, Any]) -> None:
        gone.append(next(n for n in tensors if "layers.1" in n and "experts" in n))
        del tensors[gone[0]]

    edit_tensors(source, drop)
    fails(errors.TensorMissing, f"{gone[0]} & 2 layers and 4 experts", source, tmp_path / "out")


@pytest.mark.parametrize("tied", [False, True])
def test_a_head_that_is_the_embedding(tied: bool, broken: Broken, tmp_path: Path) -> None:
    """llama.cpp takes the embedding, whatever the config says; where it says otherwise, that is
    told."""
    source, told = broken(), Told()
    edit_tensors(source, lambda tensors: tensors.pop("lm_head.weight"))
    edit_config(source, tie_word_embeddings=tied)
    plan = quantize(source, ["Q4_K_M"], tmp_path / "out", run=Run(progress=told))
    assert plan.outputs[0].by_name["token_embd.weight"].format == "Q6_K"
    assert any("no lm_head.weight is there" in note for note in told.notes) != tied


def test_a_head_that_llama_cpp_asks_for(broken: Broken, tmp_path: Path) -> None:
    source = broken("minimax-m2")
    edit_tensors(source, lambda tensors: tensors.pop("lm_head.weight"))
    fails(errors.TensorMissing, "lm_head.weight", source, tmp_path / "out")


def test_tensor_of_the_wrong_shape(broken: Broken, tmp_path: Path) -> None:
    source = broken()
    name = "model.layers.0.self_attn.k_proj.weight"

    def shrink(tensors: dict[str, Any]) -> None:
        dtype, (rows, n), data = tensors[name]
        tensors[name] = (dtype, [rows // 2, n], data[: len(data) // 2])

    edit_tensors(source, shrink)
    fails(
        errors.TensorShape,
        f"{name} & [64, 256] found & [128, 256] expected",
        source,
        tmp_path / "out",
    )


def test_tensor_that_has_no_place(broken: Broken, tmp_path: Path) -> None:
    source = broken()
    edit_tensors(
        source,
        lambda t: t.update({"model.layers.0.self_attn.q_norm.weight": ("F32", [1], b"\0" * 4)}),
    )
    fails(errors.TensorUnknown, "q_norm.weight & MixtralForCausalLM", source, tmp_path / "out")


def test_more_experts_or_layers_than_the_config_says(broken: Broken, tmp_path: Path) -> None:
    source = broken()
    edit_config(source, num_hidden_layers=1)
    fails(errors.TensorUnknown, "layer 1 & num_hidden_layers 1", source, tmp_path / "out")


def test_both_spellings_at_once(broken: Broken, tmp_path: Path) -> None:
    source = broken()

    def add(tensors: dict[str, Any]) -> None:
        down = b"".join(
            tensors[f"model.layers.0.block_sparse_moe.experts.{i}.w2.weight"][2] for i in range(4)
        )
        tensors["model.layers.0.mlp.experts.down_proj"] = ("BF16", [4, 256, 256], down)

    edit_tensors(source, add)
    fails(errors.TensorUnknown, "second spelling & blk.0.ffn_down_exps", source, tmp_path / "out")


@pytest.mark.parametrize("keep", [4, 100, 5000, -1])
def test_truncated_safetensors(keep: int, broken: Broken, tmp_path: Path) -> None:
    source = broken()
    path = source / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    fails(errors.CorruptFile, "model.safetensors & download it again", source, tmp_path / "out")


def test_no_weights(broken: Broken, tmp_path: Path) -> None:
    source = broken()
    (source / "model.safetensors").unlink()
    fails(errors.SourceNotFound, "no model*.safetensors", source, tmp_path / "out")
    (source / "consolidated.00.pth").write_bytes(b"PK")
    fails(errors.SourceNotFound, "consolidated.00.pth is not read", source, tmp_path / "b")
    (source / "model.safetensors").symlink_to(tmp_path / "nowhere")
    words = "model.safetensors is a link to a file that is not there"
    fails(errors.SourceNotFound, words, source, tmp_path / "c")


def test_shards_without_an_index(broken: Broken, tmp_path: Path) -> None:
    """Where a tensor is missing, the names of the others say which file."""
    source = broken()
    edit_tensors(source, lambda t: t.pop("model.norm.weight"))
    (source / "model.safetensors").rename(source / "model-00001-of-00003.safetensors")
    words = "model.norm.weight is not & ; not there: model-00002-of-00003.safetensors, model-00003"
    fails(errors.TensorMissing, words, source, tmp_path / "out")


def test_a_dtype_that_is_not_read(broken: Broken, tmp_path: Path) -> None:
    source = broken()

    def retype(tensors: dict[str, Any]) -> None:
        _, shape, data = tensors["model.norm.weight"]
        tensors["model.norm.weight"] = ("F8_E4M3", shape, data[: len(data) // 2])

    edit_tensors(source, retype)
    fails(errors.UnsupportedSource, "model.norm.weight is F8_E4M3", source, tmp_path / "out")


@pytest.mark.parametrize("bits", [0x7F80, 0xFF80, 0x7FC0], ids=["inf", "-inf", "nan"])
@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("model.layers.1.block_sparse_moe.experts.2.w3.weight", 200),
        ("model.layers.0.self_attn.q_proj.weight", 37),  # its rows are permuted on the way
        ("model.norm.weight", 7),
        ("lm_head.weight", 511),
    ],
)
def test_a_weight_that_is_not_finite(
    name: str, row: int, bits: int, broken: Broken, tmp_path: Path
) -> None:
    source = broken()

    def poison(tensors: dict[str, Any]) -> None:
        dtype, shape, data = tensors[name]
        x = np.frombuffer(data, np.uint16).copy()
        x[row * (shape[1] if len(shape) == 2 else 1)] = bits
        tensors[name] = (dtype, shape, x.tobytes())

    edit_tensors(source, poison)
    fails(errors.NonFiniteWeight, f"{name} & row {row};", source, tmp_path / "out")


def test_unknown_type(broken: Broken, tmp_path: Path) -> None:
    with pytest.raises(errors.UsageError, match="Q4_K_M"):
        quantize(broken(), ["Q4_KN"], tmp_path)


def test_unknown_outtype(broken: Broken, tmp_path: Path) -> None:
    with pytest.raises(errors.UsageError, match="bf17"):
        convert(broken(), tmp_path, "bf17")


def test_quantizing_what_is_quantized(broken: Broken, tmp_path: Path) -> None:
    quantize(broken(), ["Q8_0"], tmp_path / "m.gguf")
    with pytest.raises(errors.RecipeError, match="Q8_0 already"):
        quantize(tmp_path / "m.gguf", ["Q4_K_M"], tmp_path)


def test_a_file_that_is_no_gguf(broken: Broken, tmp_path: Path) -> None:
    source = broken()
    words = f"a part of a checkpoint & the model is its directory, {source}"
    fails(errors.UnsupportedSource, words, source / "config.json", tmp_path / "out")
    (source / "model.md").write_text("GGML")
    fails(errors.CorruptFile, "not a GGUF file", source / "model.md", tmp_path / "other")


def test_tokenizer_missing(broken: Broken, tmp_path: Path) -> None:
    source = broken("llama-dense")
    (source / "tokenizer.json").unlink()
    fails(errors.TokenizerError, "neither tokenizer.model nor", source, tmp_path / "out")


@pytest.mark.parametrize(
    ("case", "lender"),
    [
        ("openelm", "meta-llama/Llama-2-7b-hf"),
        ("mamba-hf", "EleutherAI/gpt-neox-20b"),
        ("mamba2", "EleutherAI/gpt-neox-20b"),
    ],
)
def test_tokenizer_that_another_model_lends(
    case: str, lender: str, broken: Broken, tmp_path: Path
) -> None:
    source = broken(case)
    for path in source.glob("tokenizer*"):
        path.unlink()
    words = f"neither tokenizer.model nor & use that of {lender}: copy tokenizer*"
    fails(errors.TokenizerError, words, source, tmp_path / "out")


def test_tokenizer_model_that_is_junk(broken: Broken, tmp_path: Path) -> None:
    source = broken()
    (source / "tokenizer.model").write_bytes(b"\xff" * 100)
    fails(errors.TokenizerError, "tokenizer.model & SentencePiece", source, tmp_path / "out")


def test_front_matter_that_is_not_yaml(broken: Broken, tmp_path: Path) -> None:
    source = broken()
    (source / "README.md").write_text("---\nlicense: [mit\n---\n")
    fails(errors.CorruptFile, "README.md", source, tmp_path / "out")


def test_unknown_pre_tokenizer_is_named_on_the_command_line(broken: Broken, tmp_path: Path) -> None:
    source = broken("llama-dense")
    path = source / "tokenizer.json"
    path.write_text(path.read_text().replace(r"\\p{N}{1,3}", r"\\p{N}{1,7}"))
    fails(errors.TokenizerError, "--pre", source, tmp_path / "out")
    plan = convert(source, tmp_path / "m.gguf", reading=Reading(pre="llama-bpe"))
    assert plan.files[0].path.exists()


def test_every_error_is_raised_by_a_test() -> None:
    """The tree in errors.py is the whole list; each leaf is named in the tests."""
    text = "".join(p.read_text() for p in Path(__file__).parent.rglob("test_*.py"))
    leaves = [
        e
        for e in vars(errors).values()
        if isinstance(e, type) and issubclass(e, errors.QuantkitError) and not e.__subclasses__()
    ]
    assert len(leaves) >= 12
    assert [e.__name__ for e in leaves if e.__name__ not in text] == []
    assert [e.__name__ for e in leaves if e.__name__ not in (errors.__doc__ or "")] == []


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["quantize", "nowhere", "--type", "Q8_0"], 1, "error: nowhere: no such"),
        (["quantize", "nowhere"], 2, "--type"),
        (["convert", "nowhere"], 1, "error: nowhere: no such"),
        (["report", "nowhere"], 1, "error: nowhere: no such"),
        (["report", "."], 1, "error:"),
        (["melt"], 2, "melt"),
    ],
)
def test_the_command_says_it_in_one_line(
    arguments: list[str], code: int, words: str, tmp_path: Path
) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "quantkit.cli", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(Path(__file__).parent.parent), "PATH": ""},
    )
    assert run.returncode == code
    assert run.stdout == ""
    assert words in run.stderr
    assert "Traceback" not in run.stderr
    if code == 1:
        assert len(run.stderr.splitlines()) == 1


def test_kernels_that_cannot_be_compiled(
    checkpoint: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """quant_types says so, and the command line says it in a line."""
    from quant_types import kernels

    monkeypatch.setattr(kernels, "cache_dir", lambda: tmp_path)
    monkeypatch.setattr(kernels, "_loaded", {})
    monkeypatch.setattr(sys, "executable", None)
    monkeypatch.setattr(
        sys, "argv", ["quantkit", "quantize", str(checkpoint("mixtral-4x")), "-t", "Q8_0"]
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: there is no Python to compile with; NumPy does the same")
    assert list(tmp_path.iterdir()) == []
