"""Families whose vocabularies, codings or rules are their own: what is read and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit import architectures as package
from quantkit import errors
from quantkit.architectures import FAMILIES, family
from quantkit.architectures.rules import ConversionOptions
from quantkit.gguf.container import read_header, uint32
from quantkit.model.from_checkpoint import from_checkpoint
from quantkit.planning.build import plan_conversion
from quantkit.source.checkpoint_files import CheckpointFiles
from tests import checkpoints, golden
from tests.architectures.test_architectures import convert
from tests.checkpoints import architectures
from tests.damage import edit_config, edit_tensors

Broken = Callable[..., Path]


def _values(path: Path, name: str) -> np.ndarray[Any, Any]:
    """The values of a bfloat16 tensor of a file, flat."""
    header, data = read_header(path), path.read_bytes()
    t = next(t for t in header.tensors if t.name == name)
    n = int(np.prod(t.shape))
    raw = np.frombuffer(data, np.uint16, n, header.data_offset + t.offset)
    return (raw.astype(np.uint32) << 16).view(np.float32)


@pytest.mark.parametrize("linear", ["autobitlinear", "bitlinear"])
def test_bitnet_in_two_bits(linear: str, broken: Broken, tmp_path: Path) -> None:
    """As the 2B is released, where llama.cpp's converter stops: the values are taken as they are,
    times the scale or, in the other class of layers, divided by it."""
    source, path = broken("bitnet"), tmp_path / "out.gguf"
    edit_config(
        source, architectures=["BitNetForCausalLM"], model_type="bitnet", hidden_act="relu2",
        quantization_config={"quant_method": "bitnet", "linear_class": linear},
    )  # fmt: skip
    codes = np.random.default_rng(0).integers(0, 3, (4, 64, 256)).astype(np.uint8)

    def pack(tensors: dict[str, Any]) -> None:
        for name in [n for n in tensors if n.endswith("_proj.weight")]:
            _, (rows, columns), _ = tensors[name]
            few = np.resize(codes, (4, rows // 4, columns))
            packed = few[0] | few[1] << 2 | few[2] << 4 | few[3] << 6
            tensors[name] = ("U8", [rows // 4, columns], packed.tobytes())
            tensors[f"{name}_scale"] = ("F32", [1], np.float32([0.25]).tobytes())
        for name in [n for n in tensors if "inner_attn_ln" in n]:
            tensors[name.replace("inner_attn_ln", "attn_sub_norm")] = tensors.pop(name)

    edit_tensors(source, pack)
    model = convert(source, path, "bf16", None, ConversionOptions())
    assert any("'hidden_act' is 'relu2'" in note for note in model.notes)
    expected = (codes.astype(np.float32) - 1) * (0.25 if linear == "autobitlinear" else 4)
    found = _values(path, "blk.1.attn_output.weight")
    assert (found == expected.ravel()).all()


def test_norms_of_each_head_are_kept(broken: Broken, tmp_path: Path) -> None:
    """llama.cpp's converter has the first one's in place of all."""
    source, path = broken("chameleon-34b"), tmp_path / "out.gguf"
    norms = np.arange(64, dtype=np.float32).reshape(4, 16)

    def number(tensors: dict[str, Any]) -> None:
        name = "model.layers.0.self_attn.q_norm.weight"
        tensors[name] = ("F32", [4, 16], norms.tobytes())

    edit_tensors(source, number)
    convert(source, path, "bf16", "qwen2", ConversionOptions())
    header, data = read_header(path), path.read_bytes()
    t = next(t for t in header.tensors if t.name == "blk.0.attn_q_norm.weight")
    found = np.frombuffer(data, np.float32, 64, header.data_offset + t.offset).reshape(4, 8, 2)
    assert (found == norms.reshape(4, 2, 8).swapaxes(1, 2)).all()


@pytest.mark.parametrize(
    ("case", "changes", "words"),
    [
        ("chameleon", {"vocab_size": 8000}, "8192 tokens are of images"),
        ("jais", {"position_embedding_type": "learned"}, "needs 'alibi'"),
        ("plamo2", {"mamba_enabled": False}, "'mamba_enabled' is False"),
        ("bitnet", {"tie_word_embeddings": False}, "'tie_word_embeddings' is False"),
        ("hrm-text", {"L_cycles": 0}, "0 low cycles"),
        ("cogvlm-kv", {"num_multi_query_heads": 2}, "llama.cpp runs 4"),
        ("arwkv7", {"wkv_version": 6}, "'wkv_version' is 6"),
    ],
)
def test_what_llama_cpp_would_not_run_is_refused(
    case: str, changes: dict[str, Any], words: str, broken: Broken
) -> None:
    source = broken(case)
    edit_config(source, **changes)
    with pytest.raises(errors.ConfigError, match=words):
        from_checkpoint(CheckpointFiles.local(source), "bf16", "qwen2")


def test_layers_rotate_where_they_have_a_window(broken: Broken) -> None:
    source = broken("muse-glimmer")
    path = source / "config.json"
    config = json.loads(path.read_text())
    for bases, good in (([5e5, 5e5, 5e5, 0], True), ([0, 5e5, 5e5, 0], False)):
        config["text_config"]["layer_rope_theta"] = bases
        path.write_text(json.dumps(config))
        if good:
            from_checkpoint(CheckpointFiles.local(source), "bf16", "qwen2")
            continue
        with pytest.raises(errors.ConfigError, match="'layer_rope_theta' must be"):
            from_checkpoint(CheckpointFiles.local(source), "bf16", "qwen2")


@pytest.mark.parametrize(
    ("case", "file", "old", "new", "words"),
    [
        ("rwkv7", "rwkv_vocab_v20230424.txt", "263 'the' 3", "263 'the' 4", "line 263 is not"),
        ("rwkv7", "rwkv_vocab_v20230424.txt", "263 'the' 3", "263 exit() 3", "line 263 is not"),
        ("rwkv7", "rwkv_vocab_v20230424.txt", "263 'the' 3", "263 '\\xz' 3", "line 263 is not"),
        ("rwkv7", "rwkv_vocab_v20230424.txt", "263 'the' 3", "263 '\\de' 3", "line 263 is not"),
        ("plamo2", "tokenizer.jsonl", '["the", -3.25', '["the", "x"', "is not a token and its"),
        ("plamo2", "tokenizer.jsonl", '["the", -3.25', '["the", ', "line 358"),
        ("plamo2", "tokenizer.jsonl", "<|plamo:op|>", "<|plamo:no|>", "'<|plamo:op|>' is no token"),
        ("plamo3", "tokenizer_config.json", "Plamo3Tokenizer", "Plamo4", "'Plamo4'; Plamo2"),
    ],
)  # fmt: skip
def test_damaged_vocabularies_are_refused(
    case: str, file: str, old: str, new: str, words: str, broken: Broken
) -> None:
    source = broken(case)
    text = (source / file).read_text("utf-8")
    assert old in text
    (source / file).write_text(text.replace(old, new), "utf-8")
    with pytest.raises(errors.QuantkitError) as caught:
        from_checkpoint(CheckpointFiles.local(source), "bf16")
    message = str(caught.value)
    assert words in message, message
    assert "\n" not in message


@pytest.mark.parametrize("case", ["rwkv6", "plamo2", "plamo3"])
def test_vocabularies_that_are_longer_or_absent(case: str, broken: Broken) -> None:
    source = broken(case)
    edit_config(source, vocab_size=100)
    edit_tensors(source, lambda tensors: [_cut(tensors, name) for name in [*tensors]])
    with pytest.raises(errors.TokenizerError, match="and the model has 100"):
        from_checkpoint(CheckpointFiles.local(source), "bf16")
    name = "rwkv_vocab_v20230424.txt" if case == "rwkv6" else "tokenizer.jsonl"
    (source / name).unlink()
    with pytest.raises(errors.TokenizerError, match="is not there"):
        from_checkpoint(CheckpointFiles.local(source), "bf16")


def _cut(tensors: dict[str, Any], name: str) -> None:
    """The first 100 rows of a table of tokens."""
    dtype, shape, data = tensors[name]
    if "embed" in name or name.startswith(("head", "lm_head")):
        tensors[name] = (dtype, [100, shape[1]], data[: 200 * shape[1]])


def test_pieces_have_scores(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    """XVERSE's, which llama.cpp's converter writes without."""
    path = tmp_path / "out.gguf"
    convert(checkpoint("xverse"), path, "bf16", None, ConversionOptions())
    header = read_header(path)
    assert len({*header.get("tokenizer.ggml.scores")}) > 100
    theirs = architectures()["xverse"]["golden"]["outtypes"]["bf16"]
    tokens = next(i for i in header.kv if i.key == "tokenizer.ggml.tokens")
    assert golden.fingerprint(tokens) == theirs["kv"]["tokenizer.ggml.tokens"]


def _target(source: Path) -> ConversionOptions:
    return ConversionOptions(target=source / "target")


@pytest.mark.parametrize(
    ("case", "change", "words"),
    [
        ("eagle3", {}, "name the directory of that one"),
        ("eagle3", {"d2t": [0] * 47 + [-1]}, "48 different tokens"),
        ("eagle3", {"d2t": [0] * 47 + [600]}, "past the model's 520"),
        ("eagle3", {"d2t": None}, "48 of 520 tokens, and no d2t"),
        ("dspark", {"markov_head_type": "gated"}, "'markov_head_type' is 'gated'"),
        ("dflash", {"mask_embedding.pt": b"x"}, r"mask_embedding\.pt is not read"),
        ("deepseek-v4-dspark-own", {"dspark_noise_token_id": 520}, "the mask token is 520, of"),
        ("deepseek-v4-dspark-own", {"dspark_target_layer_ids": []}, "must list layers"),
    ],
)
def test_drafts_that_do_not_fit_are_refused(
    case: str, change: dict[str, Any], words: str, broken: Broken
) -> None:
    source = broken(case)
    options = _target(source) if change else ConversionOptions()
    for name, value in change.items():
        if name == "d2t":
            edit_tensors(source, lambda tensors, value=value: _ids(tensors, value))
        elif isinstance(value, bytes):
            (source / name).write_bytes(value)
        else:
            edit_config(source, **{name: value})
    with pytest.raises(errors.ConfigError, match=words):
        from_checkpoint(CheckpointFiles.local(source), "bf16", "qwen2", options)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sliding_window": 0}, r"attention\.sliding_window is 0, without which"),
        ({"dspark_block_size": 0}, "block_size is 0"),
    ],
)
def test_what_the_loader_of_drafts_ends_at_is_refused(
    change: dict[str, Any], words: str, broken: Broken, tmp_path: Path
) -> None:
    source = broken("deepseek-v4-dspark-own")
    edit_config(source, **change)
    files = CheckpointFiles.local(source)
    model = from_checkpoint(files, "bf16", "deepseek-v3", _target(source))
    with pytest.raises(errors.NotLoadable, match=words):
        plan_conversion(model, "bf16", tmp_path / "out.gguf")


@pytest.mark.parametrize(
    ("case", "change", "words"),
    [
        ("dflash", {}, "256 channels wide and its model 384"),
        ("dflash", {"hidden_size": 256}, None),
        (
            "dflash",
            {"hidden_size": 256, "num_hidden_layers": 5},
            "layer 6 of its model, which has 5",
        ),
        ("eagle3", {}, "256 channels wide and its model 384"),
        ("eagle3-speculator", {}, None),  # it has an embedding of its own
        ("eagle3-speculator", {"num_hidden_layers": 5}, "layer 6 of its model, which has 5"),
        ("deepseek-v4-dspark-own", {}, None),
    ],
)
def test_a_draft_that_its_model_does_not_run_with_is_told(
    case: str, change: dict[str, Any], words: str | None, broken: Broken
) -> None:
    source = broken(case)
    edit_config(source / "target", **change)
    pre = architectures()[case]["golden"]["pre"]
    model = from_checkpoint(CheckpointFiles.local(source), "bf16", pre, _target(source))
    told = [note for note in model.notes if note.endswith("together")]
    assert [words in note for note in told] == [True] if words else not told


def test_an_assistant_as_wide_as_its_model_is_refused(broken: Broken, tmp_path: Path) -> None:
    source = broken("gemma4-assistant")
    model = from_checkpoint(CheckpointFiles.local(source), "bf16")
    kv = [
        uint32(item.key, 256) if item.key.endswith("embedding_length_out") else item
        for item in model.kv
    ]
    with pytest.raises(errors.NotLoadable, match="as embedding_length is"):
        plan_conversion(replace(model, kv=tuple(kv)), "bf16", tmp_path / "out.gguf")


def test_only_a_checkpoint_with_a_draft_has_one(broken: Broken) -> None:
    options = ConversionOptions(dspark=True)
    with pytest.raises(errors.ConfigError, match="Qwen3ForCausalLM holds no DSpark draft"):
        from_checkpoint(CheckpointFiles.local(broken("qwen3-dense")), "bf16", "qwen2", options)


def _ids(tensors: dict[str, Any], values: list[int] | None) -> None:
    del tensors["d2t"]
    if values is not None:
        tensors["d2t"] = ("I64", [len(values)], np.int64(values).tobytes())


def test_the_vocabulary_of_a_draft_is_its_models(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    """And the ids of a smaller one are those of its model's tokens."""
    source, path = checkpoint("eagle3"), tmp_path / "out.gguf"
    convert(source, path, "bf16", "qwen2", _target(source))
    header, data = read_header(path), path.read_bytes()
    assert len(header.get("tokenizer.ggml.tokens")) == 520
    t = next(t for t in header.tensors if t.name == "d2t")
    ids = np.frombuffer(data, np.int64, 48, header.data_offset + t.offset)
    assert (np.diff(ids) > 0).all()
    assert 0 <= ids[0] < ids[-1] < 520


def test_ranks_in_tokenizer_model(broken: Broken, tmp_path: Path) -> None:
    """GLM-4-9b as first released: what follows the ranks is in tokenizer_config.json."""
    source, path = broken("chatglm4"), tmp_path / "out.gguf"
    (source / "tokenizer.json").unlink()
    ranks = (checkpoints.GOLDEN / "tokenizers" / "afe64c538cd7-tiktoken.model").read_bytes()
    (source / "tokenizer.model").write_bytes(ranks)
    n = len(ranks.split(b"\n")) - 1
    named = {str(n + i): {"content": text} for i, text in enumerate(("<|endoftext|>", "<|user|>"))}
    (source / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": named}))
    convert(source, path, "bf16", None, ConversionOptions())
    header = read_header(path)
    assert header.get("tokenizer.ggml.pre") == "chatglm-bpe"
    assert header.get("tokenizer.ggml.tokens")[n : n + 2] == ["<|endoftext|>", "<|user|>"]
    assert header.get("tokenizer.ggml.eot_token_id") == n + 1
    assert len(header.get("tokenizer.ggml.merges")) > 10


def test_the_table_of_families_has_the_names_of_their_rows() -> None:
    """All of them, each once, in their order; and every file that has rows is in it."""
    for file, names in FAMILIES.items():
        assert names.split() == [name for row in family(file) for name in row.hf_names], file
    listed = " ".join(FAMILIES.values()).split()
    assert len(listed) == len({*listed})
    files = Path(package.__path__[0]).glob("*.py")
    assert {f.stem for f in files if "\nFAMILY = " in f.read_text()} == {*FAMILIES}
