"""OpenELM: each layer has its own number of heads and width. llama.cpp: `conversion/openelm.py`."""

from __future__ import annotations

from quantkit.architectures.common import text_keys
from quantkit.architectures.rules import (
    Architecture,
    Config,
    Expect,
    Key,
    Map,
    halves,
    vector,
    whole,
)
from quantkit.errors import ConfigError

T = "transformer.layers.{bid}"


def _divisible(value: float, by: int) -> int:
    """The nearest multiple, but not a tenth less."""
    n = max(by, int(value + by / 2) // by * by)
    return n + by if n < 0.9 * value else n


def _widths(config: Config) -> list[int]:
    by = config.one("ffn_dim_divisor")
    if by < 1:
        raise ConfigError(f"{config.where}: 'ffn_dim_divisor' must be 1 at least")
    ratios = config.get("ffn_multipliers", kind="FLOAT32")
    return [_divisible(ratio * config.get("hidden_size"), by) for ratio in ratios]


def _heads(name: str, config: Config) -> list[int]:
    found: list[int] = config.get(name)
    return found


def _qkv(config: Config) -> list[int]:
    counts = zip(_heads("num_query_heads", config), _heads("num_kv_heads", config), strict=True)
    return [(q + 2 * kv) * config.head_dim for q, kv in counts]


OPENELM = Architecture(
    hf_names=("OpenELMForCausalLM",),
    gguf_arch="openelm",
    keys=(
        *text_keys("block_count"),
        Key("{arch}.context_length", "max_context_length"),
        *text_keys("embedding_length"),
        Key("{arch}.feed_forward_length", _widths),
        Key("{arch}.attention.head_count", "num_query_heads"),
        Key("{arch}.attention.head_count_kv", "num_kv_heads"),
        Key("{arch}.rope.freq_base", "rope_freq_constant", "FLOAT32"),
        Key("{arch}.attention.layer_norm_rms_epsilon", lambda c: 1e-6, "FLOAT32"),
        Key("{arch}.rope.dimension_count", "head_dim"),
        *text_keys("key_length", "value_length"),
    ),
    late_keys=(),
    expects=(
        Expect("activation_fn_name", ("swish", "silu")), Expect("ffn_with_glu", (True,)),
        Expect("normalize_qk_projections", (True,)), Expect("share_input_output_layers", (True,)),
        Expect("normalization_layer_name", ("rms_norm",)),
    ),
    aliases={"hidden_size": "model_dim", "num_hidden_layers": "num_transformer_layers"},
    dims={
        "vocab": lambda c: c.get("vocab_size"),
        "hidden": lambda c: c.get("hidden_size"),
        "head": lambda c: c.head_dim,
        "ffn": _widths,
        "2ffn": lambda c: [2 * n for n in _widths(c)],
        "q": lambda c: [n * c.head_dim for n in _heads("num_query_heads", c)],
        "qkv": _qkv,
    },
    maps=(
        Map("transformer.token_embeddings.weight", ("vocab", "hidden"), whole("token_embd.weight")),
        vector("transformer.norm", "output_norm"),
        vector(f"{T}.attn_norm", "attn_norm"),
        vector(f"{T}.ffn_norm", "ffn_norm"),
        Map(f"{T}.attn.qkv_proj.weight", ("qkv", "hidden"), whole("attn_qkv.weight")),
        vector(f"{T}.attn.q_norm", "attn_q_norm", "head"),
        vector(f"{T}.attn.k_norm", "attn_k_norm", "head"),
        Map(f"{T}.attn.out_proj.weight", ("hidden", "q"), whole("attn_output.weight")),
        Map(f"{T}.ffn.proj_1.weight", ("2ffn", "hidden"),
            halves("ffn_gate.weight", "ffn_up.weight")),
        Map(f"{T}.ffn.proj_2.weight", ("hidden", "ffn"), whole("ffn_down.weight")),
    ),
    defaults={"tie_word_embeddings": True},
)  # fmt: skip

FAMILY = (OPENELM,)
