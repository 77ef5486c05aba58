"""What people are told when something else lies where a model should be, or is not used."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from quantkit import errors
from quantkit.architectures import find, supported
from quantkit.cli import app
from quantkit.errors import QuantkitError
from quantkit.execution.outputs import _amount
from quantkit.gguf.container import MAGIC, read_header
from quantkit.gguf.splits import Splits
from quantkit.jobs import convert, merge, quantize, split
from quantkit.llama.apart import reason
from quantkit.model.from_checkpoint import from_checkpoint
from quantkit.model.model import Model
from quantkit.model.open import open_source
from quantkit.planning.build import Request
from quantkit.source.checkpoint_files import CheckpointFiles
from quantkit.source.location import Source
from tests.checkpoints import read_safetensors, write_safetensors
from tests.damage import edit_config
from tests.vocabularies import edit_json

Broken = Callable[..., Path]
run = CliRunner().invoke
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def converted(source: Path) -> Model:
    return from_checkpoint(CheckpointFiles.local(source))


def says(kind: type[QuantkitError], words: str, source: Path) -> None:
    with pytest.raises(kind) as caught:
        open_source(source)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words.split(" & ")), message


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model.layers.0.self_attn.q_proj.lora_A.default.weight", "adapter & merge"),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight", "adapter & merge"),
        ("model.layers.0.self_attn.q_proj.base_layer.weight", "adapter & merge"),
        ("model.layers.0.mlp.down_proj.weight.quant_state.bitsandbytes__nf4", "bitsandbytes"),
        ("model.layers.0.mlp.switch_mlp.down_proj.weight", "mlx"),
        ("model.layers.0.self_attn.q_proj.scales", "mlx & 16-bit"),
        ("v_head.summary.weight", "value head & remove it"),
        ("something.else", "another architecture?"),
    ],
)
def test_tensors_of_other_tools(name: str, words: str, broken: Broken) -> None:
    source = broken("qwen3moe")
    path = source / "model.safetensors"
    tensors = read_safetensors(path)
    write_safetensors(path, {**tensors, name: tensors["model.norm.weight"]})
    says(errors.TensorUnknown, f"has no place & {words}", source)


@pytest.mark.parametrize("config", [False, True])
def test_an_adapter(config: bool, broken: Broken) -> None:
    source = broken("qwen3moe")
    (source / "model.safetensors").rename(source / "adapter_model.safetensors")
    (source / "adapter_config.json").write_text("{}")
    if not config:
        (source / "config.json").unlink()
    says(errors.SourceNotFound, "an adapter (LoRA) & convert makes & or merge it", source)


def test_a_directory_of_gguf_files(tmp_path: Path) -> None:
    (tmp_path / "b.GGUF").write_bytes(b"")
    says(errors.SourceNotFound, "no config.json & GGUF files & b.GGUF", tmp_path)


def test_an_index_of_before(broken: Broken) -> None:
    source = broken("qwen3moe")
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    says(errors.ShardMissing, "model.safetensors is the model & delete it", source)


def test_a_whole_file_beside_an_index(broken: Broken) -> None:
    """transformers reads the one, and a person may mean the other."""
    source = broken("mixtral-4x-sharded")
    shutil.copy(source / "model-00001-of-00003.safetensors", source / "model.safetensors")
    says(errors.CorruptFile, "beside the 3 files of & keep the files of one model", source)


def test_one_id_for_two_texts(broken: Broken) -> None:
    source = broken("qwen3moe")
    path = source / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocab = tokenizer["model"]["vocab"]
    first, second = list(vocab)[60:62]
    vocab[second] = vocab[first]
    path.write_text(json.dumps(tokenizer))
    says(errors.TokenizerError, f"have the same id, {vocab[first]}", source)


@pytest.mark.parametrize("name", ["m.gguf.part1of2", "m.gguf.part2of2"])
@pytest.mark.parametrize("data", [b"weights" * 99, None])
def test_plain_pieces(name: str, data: bytes | None, broken: Broken, tmp_path: Path) -> None:
    if data is None:
        convert(broken("llama-dense"), tmp_path / "m.gguf")
        whole = (tmp_path / "m.gguf").read_bytes()
        data = whole[: len(whole) // 2]
    (tmp_path / name).write_bytes(data)
    says(errors.UnsupportedSource, "cat m.gguf.part1of2 m.gguf.part2of2 > m.gguf", tmp_path / name)


def test_big_endian(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(MAGIC + (3).to_bytes(4, "big") + bytes(64))
    says(errors.UnsupportedSource, "big-endian & gguf_convert_endian.py", tmp_path / "m.gguf")


def test_renamed_splits(broken: Broken, tmp_path: Path) -> None:
    convert(broken("llama-dense"), tmp_path / "m.gguf")
    files = split(tmp_path / "m.gguf", tmp_path / "s.gguf", Splits(max_tensors=12)).files
    first, second = (f.path for f in files)
    second.rename(tmp_path / "other.gguf")
    says(
        errors.CorruptFile,
        "split 2 of 2 under another name & -00001-of-00002.gguf",
        tmp_path / "other.gguf",
    )
    second.write_bytes(first.read_bytes())
    says(errors.CorruptFile, f"in order, by their headers: & {second.name} is 0 of 2", first)


def test_amounts_that_differ() -> None:
    assert _amount(12_000_000) == "12.00 MB"
    assert _amount(11_000_000) != _amount(12_000_000)
    assert _amount(25_000_000_000) == "25.00 GB"
    assert _amount(900) == "900 bytes"


def test_one_near_name_and_a_list_of_all() -> None:
    assert run(app, ["inspect", "--architectures"]).stdout.split() == supported()
    result = run(app, ["inspect"])
    assert result.exit_code == 2
    with pytest.raises(errors.UnsupportedArchitecture) as caught:
        find("Qwen3MoeForSequenceClassification")
    assert "nearest: Qwen3Moe" in str(caught.value)
    assert len(str(caught.value)) < 250


def test_tekken_alone(broken: Broken) -> None:
    source = broken("qwen3moe")
    (source / "tokenizer.json").rename(source / "tekken.json")
    (source / "vocab.json").unlink(missing_ok=True)
    says(errors.TokenizerError, "tekken.json alone & tokenizer.json", source)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("/x/llama-vocab.cpp:2665: GGML_ASSERT(a == b) failed\n[New LWP 1]\n"
         "360 ../csu/libc-start.c: No such file or directory.\n",
         "/x/llama-vocab.cpp:2665: GGML_ASSERT(a == b) failed"),
        ("terminate called after throwing an instance of 'std::out_of_range'\n"
         "  what():  map::at\n0x0 in ?? ()\n",
         "terminate called after throwing an instance of 'std::out_of_range' what():  map::at"),
        ("Traceback\nquantkit.errors.LlamaError: it does not\n", "LlamaError: it does not"),
        ("", "no reason is given"),
        ("killed\n", "killed"),
    ],
)  # fmt: skip
def test_the_reason_of_a_process_that_ended(said: str, told: str) -> None:
    assert reason(1, said) == told


# --- what is not used ---------------------------------------------------------------------------


@pytest.mark.parametrize(("config", "words"), [("other", "differs"), ("", "an empty text"),
                                               ("file", ""), (None, "")])  # fmt: skip
def test_a_template_that_is_not_used(config: str | None, words: str, broken: Broken) -> None:
    source = broken("qwen3moe")
    edit_json(source / "tokenizer_config.json", chat_template=config)
    (source / "chat_template.jinja").write_text("file")
    notes = [note for note in converted(source).notes if "chat template" in note]
    assert len(notes) == bool(words)
    assert all(words in note for note in notes)


@pytest.mark.parametrize("case", ["qwen3-reranker", "gemma2-dense", "cohere"])
@pytest.mark.parametrize("apart", [True, False])
def test_a_head_that_was_trained_apart(case: str, apart: bool, broken: Broken) -> None:
    source = broken(case)
    add_head(source, tied=True, apart=apart)
    notes = [n for n in converted(source).notes if "is not the embedding" in n]
    assert len(notes) == apart
    assert all(("left out" in n) is (case != "qwen3-reranker") for n in notes)


@pytest.mark.parametrize("case", ["gemma2-dense", "cohere"])
def test_a_head_that_llama_cpp_has_no_place_for(case: str, broken: Broken) -> None:
    source = broken(case)
    add_head(source, tied=False, apart=False)
    assert "output.weight" not in {t.name for t in converted(source).tensors}
    add_head(source, tied=False, apart=True)
    says(errors.ConfigError, "is not the embedding & tie_word_embeddings", source)


def add_head(source: Path, tied: bool, apart: bool) -> None:
    """Give a checkpoint an `lm_head`: the embedding, or zeros."""
    edit_config(source, tie_word_embeddings=tied)
    path = source / "model.safetensors"
    tensors = read_safetensors(path)
    kind, shape, data = tensors["model.embed_tokens.weight"]
    tensors["lm_head.weight"] = (kind, shape, bytes(len(data)) if apart else data)
    write_safetensors(path, dict(sorted(tensors.items())))


# --- the Hub's cache ----------------------------------------------------------------------------


@pytest.fixture
def cached(broken: Broken, tmp_path: Path) -> Path:
    folder = tmp_path / "models--some-org--Tiny-Model-4x1M"
    (folder / "snapshots").mkdir(parents=True)
    broken("llama-dense").rename(folder / "snapshots" / ("0f" * 20))
    return folder


@pytest.mark.parametrize("below", ["", "snapshots", "snapshots/" + "0f" * 20])
def test_a_model_in_the_cache(below: str, cached: Path) -> None:
    source = Source.parse(cached / below)
    model = open_source(source)
    assert source.model_on_hub == source.name == "some-org/Tiny-Model-4x1M"
    assert model.name == "Tiny-Model-4x1M"
    values = {i.key: i.value for i in model.kv}
    assert values["general.name"] == "Tiny Model 4x1M"
    assert not any("0f0f" in str(v) for v in values.values())


def test_of_several_snapshots_main(cached: Path) -> None:
    (cached / "snapshots" / "other").mkdir()
    says(errors.SourceNotFound, "one snapshot & other & name one", cached)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0f" * 20)
    assert open_source(cached).name == "Tiny-Model-4x1M"


# --- files and splits ---------------------------------------------------------------------------


@pytest.fixture
def whole(broken: Broken, tmp_path: Path) -> Path:
    convert(broken("llama-dense"), tmp_path / "m.gguf")
    return tmp_path / "m.gguf"


def test_splits_in_a_directory(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    split(whole, tmp_path / "out", Splits(max_tensors=12))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "m-00001-of-00002.gguf",
        "m-00002-of-00002.gguf",
    ]
    split(whole, tmp_path / "one", Splits(max_tensors=99))
    assert (tmp_path / "one.gguf").is_file()


def test_upper_case(whole: Path, tmp_path: Path) -> None:
    quantize(whole, ["Q8_0"], tmp_path / "OUT.GGUF")
    files = split(tmp_path / "OUT.GGUF", tmp_path / "S.GGUF", Splits(max_tensors=12)).files
    assert [f.path.name for f in files] == ["S-00001-of-00002.gguf", "S-00002-of-00002.gguf"]
    renamed = [f.path.rename(f.path.with_suffix(".GGUF")) for f in files]  # of another program
    merge(renamed[1], tmp_path / "again.gguf")
    assert (tmp_path / "again.gguf").read_bytes() == (tmp_path / "OUT.GGUF").read_bytes()


@pytest.mark.parametrize("job", ["split", "quantize"])
def test_splits_end_as_llama_cpp_wants_them(job: str, whole: Path, tmp_path: Path) -> None:
    """It takes `.GGUF` for a whole file, and for no split."""
    more = ["-t", "Q8_0"] if job == "quantize" else []
    out = tmp_path / "out"
    out.mkdir()
    args = [job, str(whole), *more, "-o", str(out / "OUT.GGUF"), "--split-max-tensors", "12"]
    assert run(app, args).exit_code == 0
    assert {p.name for p in out.iterdir()} == {
        "OUT-00001-of-00002.gguf",
        "OUT-00002-of-00002.gguf",
    }


@pytest.mark.parametrize(("data", "words"), [(None, "No such file"), (b"\xff\xfe", "not UTF-8")])
def test_a_tensor_type_file_that_is_none(
    data: bytes | None, words: str, whole: Path, tmp_path: Path
) -> None:
    path = tmp_path / "types.txt"
    if data is not None:
        path.write_bytes(data)
    args = ["quantize", str(whole), "-t", "Q8_0", "--tensor-type-file", str(path)]
    result = run(app, args)
    assert result.exit_code == 2
    assert words in result.stderr


def test_a_tensor_larger_than_a_split_is_told(whole: Path, tmp_path: Path) -> None:
    result = run(app, ["split", str(whole), "-o", str(tmp_path), "--split-max-size", "20K"])
    assert result.exit_code == 0, result.output
    assert "larger than --split-max-size" in result.stderr


def test_an_empty_first_split_is_kept(whole: Path, tmp_path: Path) -> None:
    files = split(whole, tmp_path / "s.gguf", Splits(max_tensors=12, no_tensor_first=True)).files
    assert len(files) == 3
    plan = quantize(files[1].path, ["Q8_0"], tmp_path / "q.gguf", request=Request(keep_split=True))
    headers = [read_header(f.path) for f in plan.files]
    assert [len(h.tensors) for h in headers] == [len(read_header(f.path).tensors) for f in files]
    assert open_source(plan.files[0].path).tensors


def test_comments_in_a_tensor_type_file(whole: Path, tmp_path: Path) -> None:
    listed = tmp_path / "types.txt"
    listed.write_text("# attention\nattn_q=q8_0  # wide\n\n  # ffn_up=q8_0\nattn_k=q8_0\n")
    arguments = ["quantize", str(whole), "--type", "Q4_0", "--tensor-type-file", str(listed)]
    result = run(app, [*arguments, "-o", str(tmp_path / "q.gguf")])
    assert result.exit_code == 0, result.output
    types = {t.name: t.ggml_type for t in read_header(tmp_path / "q.gguf").tensors}
    eight = {n for n, kind in types.items() if kind == 8 and ".attn_" in n}
    assert eight == {n for n in types if ".attn_q." in n or ".attn_k." in n}
    assert types["blk.0.ffn_up.weight"] == 2
