"""T5, mT5 and UMT5, and their encoders alone. llama.cpp: `conversion/t5.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from quantkit.architectures.common import DIMS, EMBEDDINGS
from quantkit.architectures.rules import (
    Architecture,
    Config,
    Expect,
    Key,
    Map,
    Shape,
    Values,
    linear,
    vector,
    whole,
)
from quantkit.source.tensors import SourceTensor

# the same embeddings, of which each tool saves others
TABLES = ("decoder.embed_tokens.weight", "encoder.embed_tokens.weight", "shared.weight")


def _decoder_layers(config: Config) -> int:
    n: int = config.one("num_decoder_layers", "num_layers")
    return n


def _attention(source: str, role: str, layers: str) -> tuple[Map, ...]:
    """One kind of attention, below `source`."""
    bias = f"{source}.relative_attention_bias.weight"
    return (
        *linear(f"{source}.q", ("q", "hidden"), f"{role}_q", layers=layers, bias=False),
        *linear(f"{source}.k", ("q", "hidden"), f"{role}_k", layers=layers, bias=False),
        *linear(f"{source}.v", ("q", "hidden"), f"{role}_v", layers=layers, bias=False),
        *linear(f"{source}.o", ("hidden", "q"), f"{role}_o", layers=layers, bias=False),
        # of the first layer, but for UMT5
        Map(bias, ("buckets", "heads"), whole(f"{role}_rel_b.weight"), layers, optional=True),
    )


def _stack(name: str, half: str, feed_forward: int) -> tuple[Map, ...]:
    """The encoder or the decoder; `feed_forward`: which of a block's parts that is."""
    b, last = f"{name}.block.{{bid}}.layer", feed_forward
    dense = f"{b}.{last}.DenseReluDense"
    up, down = ("ffn", "hidden"), ("hidden", "ffn")
    gated, plain = f"gated {name}", f"plain {name}"
    return (
        *_attention(f"{b}.0.SelfAttention", f"{half}.attn", name),
        vector(f"{b}.0.layer_norm", f"{half}.attn_norm", layers=name),
        *linear(f"{dense}.wi_0", up, f"{half}.ffn_gate", layers=gated, bias=False),
        *linear(f"{dense}.wi_1", up, f"{half}.ffn_up", layers=gated, bias=False),
        *linear(f"{dense}.wi", up, f"{half}.ffn_up", layers=plain, bias=False),
        *linear(f"{dense}.wo", down, f"{half}.ffn_down", layers=name, bias=False),
        vector(f"{b}.{last}.layer_norm", f"{half}.ffn_norm", layers=name),
        vector(f"{name}.final_layer_norm", f"{half}.output_norm"),
    )


def _gated(config: Config) -> bool:
    return str(config.get("feed_forward_proj", kind="STRING")).startswith("gated-")


def _in_encoder(config: Config, bid: int) -> bool:
    return bool(bid < config.one("num_layers"))


def _in_decoder(config: Config, bid: int) -> bool:
    return bid < _decoder_layers(config)


def _first_table(sources: Mapping[str, SourceTensor], values: Values) -> dict[str, Any]:
    """The table of embeddings that llama.cpp's converter meets first: file by file, by name in
    each, or in the order of a `.bin`."""
    met = [
        (t.path.name, name if t.path.suffix == ".safetensors" else f"{i:09}", table)
        for i, (name, t) in enumerate(sources.items())
        for table in TABLES
        if name.endswith(table)
    ]
    return {"table": min(met)[-1]} if met else {}


def _one_table(config: Config, shapes: Mapping[str, Shape]) -> Architecture | None:
    """With the first table of embeddings that is there, and without the others."""
    arch = T5_ENCODER if config.values["architectures"][0] == "T5EncoderModel" else T5
    there = next((name for name in TABLES if name in shapes), TABLES[-1])
    first: str = config.find("table") or there
    table = Map(first, ("vocab", "hidden"), whole("token_embd.weight"))
    drops = tuple(name.replace(".", r"\.") for name in TABLES if name != first)
    return replace(arch, maps=(table, *arch.maps), drops=(*arch.drops, *drops))


ENCODER = _stack("encoder", "enc", 1)
NUMBERS = (
    Key("{arch}.attention.head_count", "num_heads"),
    Key("{arch}.attention.key_length", "d_kv"),
    Key("{arch}.attention.value_length", "d_kv"),
    Key("{arch}.attention.layer_norm_epsilon", "layer_norm_epsilon", "FLOAT32"),
    Key("{arch}.attention.relative_buckets_count", "relative_attention_num_buckets"),
    Key("{arch}.attention.layer_norm_rms_epsilon", "layer_norm_epsilon", "FLOAT32"),
)
FIRST = (
    Key("{arch}.context_length", "n_positions", default=512),
    Key("{arch}.embedding_length", "d_model"),
    Key("{arch}.feed_forward_length", "d_ff"),
    Key("{arch}.block_count", "num_layers"),
)

T5 = Architecture(
    hf_names=(
        "T5ForConditionalGeneration", "T5WithLMHeadModel", "MT5ForConditionalGeneration",
        "UMT5ForConditionalGeneration", "UMT5Model",
    ),
    gguf_arch="t5",
    keys=(
        *FIRST,
        Key("{arch}.decoder_block_count", _decoder_layers),
        *NUMBERS,
        Key("{arch}.decoder_start_token_id", "decoder_start_token_id"),
    ),
    late_keys=(),
    expects=(Expect("feed_forward_proj", ("relu", "gated-gelu")),),
    assumes=(Expect("relative_attention_max_distance", (128,)),),
    aliases={
        "hidden_size": "d_model", "num_attention_heads": "num_heads", "head_dim": "d_kv",
        "intermediate_size": "d_ff",
        "num_hidden_layers": lambda c: max(c.one("num_layers"), _decoder_layers(c)),
    },
    dims={**DIMS, "buckets": lambda c: c.get("relative_attention_num_buckets")},
    maps=(
        replace(EMBEDDINGS[2], optional=True),  # llama.cpp takes the embeddings without it
        *ENCODER,
        *_stack("decoder", "dec", 2),
        *_attention("decoder.block.{bid}.layer.1.EncDecAttention", "dec.cross_attn", "decoder"),
        vector("decoder.block.{bid}.layer.1.layer_norm", "dec.cross_attn_norm", layers="decoder"),
    ),
    layers={
        "encoder": _in_encoder,
        "gated encoder": lambda c, bid: _gated(c) and _in_encoder(c, bid),
        "plain encoder": lambda c, bid: not _gated(c) and _in_encoder(c, bid),
        "decoder": _in_decoder,
        "gated decoder": lambda c, bid: _gated(c) and _in_decoder(c, bid),
        "plain decoder": lambda c, bid: not _gated(c) and _in_decoder(c, bid),
    },
    learned=_first_table,
    respelled=_one_table,
    defaults={
        "vocab_size": 32128, "d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6,
        "num_heads": 8, "relative_attention_num_buckets": 32, "layer_norm_epsilon": 1e-6,
        "feed_forward_proj": "relu", "decoder_start_token_id": 0, "tie_word_embeddings": True,
    },
)  # fmt: skip

T5_ENCODER = replace(
    T5,
    hf_names=("T5EncoderModel",),
    gguf_arch="t5encoder",
    keys=(*FIRST, *NUMBERS),
    aliases={**T5.aliases, "num_hidden_layers": "num_layers"},
    maps=ENCODER,
)

FAMILY = (T5, T5_ENCODER)
