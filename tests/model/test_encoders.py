"""Encoders, classifiers and state-space models: what follows from values and files, and what is
refused (the goldens among the architectures hold whole files to llama.cpp's)."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit import errors
from quantkit.architectures.rules import ConversionOptions
from quantkit.gguf.container import read_header
from quantkit.jobs import convert, quantize
from quantkit.llama.llama_cpp import Llama
from quantkit.model.from_checkpoint import from_checkpoint
from quantkit.model.model import Model
from quantkit.source.checkpoint import read_weights
from quantkit.source.checkpoint_files import CheckpointFiles
from quantkit.source.tensors import Files
from tests.checkpoints import read_safetensors, write_safetensors
from tests.damage import edit_config, edit_tensors

Broken = Callable[..., Path]


def converted(source: Path, **options: Any) -> Model:
    return from_checkpoint(
        CheckpointFiles.local(source), "bf16", None, ConversionOptions(**options)
    )


def value(model: Model, key: str) -> Any:
    return next((i.value for i in model.kv if i.key in (key, f"{model.arch}.{key}")), None)


def shapes(model: Model) -> dict[str, tuple[int, ...]]:
    return {t.name: t.shape for t in model.tensors}


def head(source: Path, labels: int) -> None:
    """Give a classifier another number of labels, by its last matrix."""

    def edit(tensors: dict[str, Any]) -> None:
        for name in [n for n in tensors if n.startswith("classifier.")]:
            width = [] if name.endswith("bias") else [256]
            tensors[name] = ("F32", [labels, *width], bytes(4 * labels * (256 if width else 1)))

    edit_tensors(source, edit)


@pytest.mark.parametrize("config", [{}, {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}])
def test_two_labels_without_names_are_a_classifiers(
    config: dict[str, Any], broken: Broken, tmp_path: Path
) -> None:
    """llama.cpp's converter takes them for transformers' default, and its file does not load."""
    source = broken("bert-reranker")
    edit_config(source, **{"id2label": None, **config})
    head(source, 2)
    assert value(converted(source), "classifier.output_labels") == ["LABEL_0", "LABEL_1"]
    assert shapes(converted(source))["cls.output.weight"] == (2, 256)
    out = tmp_path / "out.gguf"
    convert(source, out)
    with Llama(out, 64, threads=1) as model:
        assert model.embeds
        assert np.isfinite(model.embed(np.arange(1, 9, dtype=np.int32))).all()


def test_two_labels_of_an_embedding_model_are_none(broken: Broken) -> None:
    source = broken("bert-bge")
    edit_config(source, id2label={"0": "LABEL_0", "1": "LABEL_1"})
    assert value(converted(source), "classifier.output_labels") is None


@pytest.mark.parametrize("labels", [["a"], {"x": "a"}, {"0": 3}])
def test_labels_of_another_kind(labels: Any, broken: Broken) -> None:
    source = broken("bert-bge")
    edit_config(source, id2label=labels)
    with pytest.raises(errors.ConfigError, match="'id2label' is not a table of numbers and names"):
        converted(source)


def test_positions_are_counted_from_the_padding_token(broken: Broken) -> None:
    source = broken("roberta")
    model = converted(source)
    assert value(model, "context_length") == 128
    assert shapes(model)["position_embd.weight"] == (128, 256)
    edit_config(source, pad_token_id=130)
    with pytest.raises(errors.ConfigError, match="positions"):
        converted(source)


def test_camembert_is_laid_out_as_xlm_roberta_is(broken: Broken) -> None:
    source = broken("xlmr-e5-hfvocab")
    expected = converted(source)
    edit_config(source, architectures=["CamembertModel"], model_type="camembert")
    model = converted(source)
    assert shapes(model) == shapes(expected)
    assert value(model, "tokenizer.ggml.model") == "t5"


@pytest.mark.parametrize(
    ("case", "config", "words"),
    [
        ("bert-bge", {"hidden_act": "relu"}, "'hidden_act' is 'relu'"),
        ("bert-bge", {"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ("bert-bge", {"type_vocab_size": 0}, "no types"),
        ("bert-bge", {"type_vocab_size": "two"}, "type_vocab_size"),
        ("modernbert-reranker", {"classifier_pooling": "max"}, "classifier_pooling 'max'"),
        ("modernbert-reranker", {"classifier_activation": "relu"}, "classifier_activation 'relu'"),
        ("nomic-bert", {"causal": True}, "'causal' is True"),
        ("falcon-40b", {"alibi": True}, "'alibi' is True"),
        ("mamba-hf", {"intermediate_size": 768}, "768 channels of state"),
        ("mamba2", {"head_dim": 48}, "heads of 48"),
        ("flan-t5", {"feed_forward_proj": "gated-silu"}, "feed_forward_proj"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("granite-swa-theta", {"layer_rope_theta": [0, 1e4, 2e4, 1e4]}, "several bases"),
        ("baichuan", {"num_hidden_layers": 33}, "'num_hidden_layers' is 33"),
        ("baichuan", {"num_key_value_heads": 2}, "must be 'num_attention_heads'"),
        ("mpt", {"attn_config": {"alibi": True, "qk_ln": True}}, "qk_ln"),
        ("deci-nas", {"block_configs": [{}]}, "must describe 5 layers"),
        ("deci-nas", {"block_configs": [{}] * 5}, "has no 'ffn' of layer 0"),
        ("deci-nas", {"rope_theta": -2.0}, "factors that are not finite"),
        (
            "llama-plain",
            {"rope_scaling": {"rope_type": "llama3", "factor": 0}},
            "or not above zero",
        ),
        (
            "phi3",
            {
                "rope_scaling": {"type": "longrope"}
                | dict.fromkeys(("long_factor", "short_factor"), [0.0] * 32)
            },
            "or not above zero",
        ),
        ("openelm", {"ffn_dim_divisor": 0}, "must be 1 at least"),
        ("pythia", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "'linear' is not one"),
        ("eurobert", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "scaled positions"),
        ("neobert", {"rms_norm": False}, "'rms_norm' is False"),
        ("llada", {"block_type": "sequential"}, "'block_type' is 'sequential'"),
        ("youtu", {"n_routed_experts": 4}, "'n_routed_experts' is 4"),
        ("spark25", {"headwise_attn_output_gate": False}, "headwise_attn_output_gate"),
    ],
)
def test_what_llama_cpp_does_not_run(
    case: str, config: dict[str, Any], words: str, broken: Broken
) -> None:
    source = broken(case)
    edit_config(source, **config)
    with pytest.raises(errors.QuantkitError, match=words):
        from_checkpoint(CheckpointFiles.local(source), "bf16")


def test_a_pooler_stands_before_a_classifier(broken: Broken) -> None:
    """llama.cpp's converter drops it, and its runtime has a place for it, with the same tanh."""
    source = broken("bert-reranker")
    assert shapes(converted(source))["cls.weight"] == (256, 256)
    edit_config(source, architectures=["BertForMaskedLM"])
    edit_tensors(source, lambda t: [t.pop(f"classifier.{part}") for part in ("weight", "bias")])
    assert "cls.weight" not in shapes(converted(source))
    edit_config(source, architectures=["BertForSequenceClassification"])
    edit_tensors(source, lambda t: t.pop("bert.pooler.dense.weight"))
    with pytest.raises(errors.TensorMissing, match=r"pooler\.dense\.weight"):
        converted(source)


def test_a_head_that_llama_cpp_runs_otherwise_is_told(broken: Broken) -> None:
    notes = converted(broken("distilbert-sst2")).notes
    assert any("scores without the ReLU of its head" in note for note in notes)


def test_heads_of_neobert_are_taken_apart(broken: Broken, tmp_path: Path) -> None:
    """Its matrix holds a query, a key and a value for each head in turn. llama.cpp's converter
    leaves them so; its graph wants all queries, all keys, all values. Against the model's own
    formulas (chandar-lab/NeoBERT, model.py), in float64."""
    source, path = broken("neobert"), tmp_path / "out.gguf"
    convert(source, path, "f32")
    ids = np.arange(3, 15)
    with Llama(path, 64, threads=1) as model:
        found = model.embed(ids.astype(np.int32))
    w = {}
    for t in read_weights(source / "model.safetensors"):
        with Files([t.path]) as files:
            rows = files.read_rows(t, 0, t.n_rows).astype(np.float64)
        w[t.name.removeprefix("model.")] = rows.reshape(t.shape)

    def norm(x: Any, weight: Any) -> Any:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * weight

    def turned(x: Any) -> Any:  # [token, head, channel], neighbours are a complex number
        angles = np.outer(np.arange(len(x)), 10000.0 ** (-np.arange(0, 64, 2) / 64))
        z = (x[..., ::2] + 1j * x[..., 1::2]) * np.exp(1j * angles)[:, None]
        return np.stack([z.real, z.imag], -1).reshape(x.shape)

    x = w["encoder.weight"][ids]
    for bid in range(2):
        own = {name: w[f"transformer_encoder.{bid}.{name}.weight"] for name in
               ("attention_norm", "qkv", "wo", "ffn_norm", "ffn.w12", "ffn.w3")}  # fmt: skip
        qkv = norm(x, own["attention_norm"]) @ own["qkv"].T
        q, k, v = np.split(qkv.reshape(len(x), 4, 3 * 64), 3, -1)
        scores = np.einsum("thc,shc->hts", turned(q), turned(k)) / 8
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = np.einsum("hts,shc->thc", scores / scores.sum(-1, keepdims=True), v)
        x = x + mixed.reshape(len(x), -1) @ own["wo"].T
        gate, up = np.split(norm(x, own["ffn_norm"]) @ own["ffn.w12"].T, 2, -1)
        x = x + (gate / (1 + np.exp(-gate)) * up) @ own["ffn.w3"].T
    expected = norm(x, w["layer_norm.weight"])[0]
    # keys and values are 16-bit floats there: 0.003; with the rows as they are it is 4.3
    assert np.abs(found - expected).max() < 0.01


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [("linear.bias", [128], "linear.bias has no place"), ("linear.weight", [128, 64], "128, 64")],
)
def test_a_matrix_after_lfm2_that_does_not_fit(
    name: str, shape: list[int], words: str, broken: Broken
) -> None:
    source = broken("lfm2-colbert")
    path = source / "1_Dense" / "model.safetensors"
    tensors = read_safetensors(path)
    tensors[name] = ("F32", shape, bytes(4 * math.prod(shape)))
    write_safetensors(path, tensors)
    with pytest.raises((errors.TensorUnknown, errors.TensorShape), match=words):
        converted(source)


# --- Mamba's head -----------------------------------------------------------------------------


@pytest.mark.parametrize("same", [True, False])
def test_a_head_that_is_the_embedding_is_left_out(same: bool, broken: Broken) -> None:
    """As llama.cpp's converter compares them: every weight."""
    source = broken("mamba-own")

    def edit(tensors: dict[str, Any]) -> None:
        dtype, shape, data = tensors["backbone.embedding.weight"]
        last = data[-1:] if same else bytes([data[-1] ^ 1])
        tensors["lm_head.weight"] = (dtype, shape, data[:-1] + last)

    edit_tensors(source, edit)
    assert ("output.weight" in shapes(converted(source))) is not same


# --- Falcon -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "heads"),
    [
        ({}, 2),
        ({"new_decoder_architecture": False}, 1),  # num_kv_heads is not read then
        ({"new_decoder_architecture": False, "multi_query": False}, 4),
        ({"new_decoder_architecture": False, "n_head_kv": 2}, 2),
    ],
)
def test_falcons_heads(config: dict[str, Any], heads: int, broken: Broken) -> None:
    source = broken("falcon-40b")
    edit_config(source, **config)

    def edit(tensors: dict[str, Any]) -> None:
        for name in [n for n in tensors if "query_key_value" in n]:
            rows = 64 * (4 + 2 * heads)
            tensors[name] = ("BF16", [rows, 256], bytes(2 * rows * 256))

    edit_tensors(source, edit)
    assert value(converted(source), "attention.head_count_kv") == heads


# --- T5 ---------------------------------------------------------------------------------------


def test_a_decoder_of_other_layers_than_the_encoder(broken: Broken) -> None:
    source = broken("t5-small")
    edit_config(source, num_decoder_layers=1)

    def edit(tensors: dict[str, Any]) -> None:
        for name in [n for n in tensors if n.startswith("decoder.block.1.")]:
            del tensors[name]

    edit_tensors(source, edit)
    model = converted(source)
    assert value(model, "decoder_block_count") == 1
    names = shapes(model)
    assert "dec.blk.1.attn_q.weight" not in names
    assert "enc.blk.1.attn_q.weight" in names
    edit_config(source, num_decoder_layers=2)
    with pytest.raises(errors.TensorMissing, match=r"decoder\.block\.1"):
        converted(source)


# --- EmbeddingGemma's dense modules -----------------------------------------------------------


def dense(source: Path, change: dict[str, Any]) -> None:
    path = source / "2_Dense" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))


def test_dense_modules_are_left_out_unless_they_are_asked_for(broken: Broken) -> None:
    source = broken("embeddinggemma")
    assert "dense_2.weight" not in shapes(converted(source))
    model = converted(source, dense_modules=True)
    assert [*shapes(model)][:2] == ["dense_2.weight", "dense_3.weight"]
    assert value(model, "dense_2_feat_out") == 512


@pytest.mark.parametrize("change", [{"bias": True}, {"activation_function": "torch.nn.Tanh"}])
def test_dense_modules_of_more_than_a_matrix(change: dict[str, Any], broken: Broken) -> None:
    source = broken("embeddinggemma")
    dense(source, change)
    with pytest.raises(errors.ConfigError, match="a bias or an activation"):
        converted(source, dense_modules=True)


def test_dense_modules_that_are_not_there(broken: Broken) -> None:
    source = broken("embeddinggemma")
    (source / "3_Dense" / "model.safetensors").unlink()
    with pytest.raises(errors.SourceNotFound, match="3_Dense"):
        converted(source, dense_modules=True)


def test_dense_modules_of_another_architecture(checkpoint: Callable[[str], Path]) -> None:
    with pytest.raises(errors.ConfigError, match="no dense modules that llama"):
        converted(checkpoint("bert-bge"), dense_modules=True)


def test_a_matrix_of_another_name(broken: Broken) -> None:
    source = broken("embeddinggemma")
    path = source / "2_Dense" / "model.safetensors"
    (tensor,) = read_safetensors(path).values()
    write_safetensors(path, {"dense.weight": tensor})
    with pytest.raises(errors.TensorMissing, match=r"linear\.weight"):
        converted(source, dense_modules=True)


# --- the real llama.cpp -----------------------------------------------------------------------


@pytest.mark.parametrize("case", ["bert-minilm", "modernbert-embed", "xlmr-e5-hfvocab"])
def test_a_pooled_vector_is_that_of_the_tokens(
    case: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    """By llama.cpp's own code: the mean of what it gives without pooling."""
    pooled, each = tmp_path / "pooled.gguf", tmp_path / "each.gguf"
    convert(checkpoint(case), pooled, "f32")
    arch = read_header(pooled).get("general.architecture")
    quantize(pooled, ["F32"], each, override_kv=[f"{arch}.pooling_type=int:0"])
    ids, vectors = np.arange(3, 13, dtype=np.int32), []
    for path in (pooled, each):
        with Llama(path, 64, threads=1) as model:
            vectors.append(model.embed(ids))
    assert vectors[1].shape == (len(ids), 256)
    assert np.allclose(vectors[1].mean(axis=0), vectors[0], atol=1e-4)
