"""GPT-2, whose matrices are kept as `[in, out]`. llama.cpp: `conversion/gpt2.py`."""

from __future__ import annotations

from quantkit.architectures.common import DIMS, EMBEDDINGS, layer_norm, text_keys
from quantkit.architectures.rules import (
    Architecture,
    Config,
    Expect,
    Key,
    Map,
    linear,
    transposed,
    whole,
)

H = "transformer.h.{bid}"


def _ffn(config: Config) -> int:
    n: int = config.get("n_inner", default=0)
    return n or 4 * config.get("hidden_size")


def _turned(source: str, shape: tuple[str, str], role: str) -> tuple[Map, ...]:
    weight, bias = linear(source, shape, role, transposed, bias=True)
    return weight, Map(bias.source, shape[1:], whole(f"{role}.bias"))


GPT2 = Architecture(
    hf_names=("GPT2LMHeadModel",),
    gguf_arch="gpt2",
    keys=(
        *text_keys("block_count", "context_length", "embedding_length"),
        Key("{arch}.feed_forward_length", _ffn),
        *text_keys("head_count", "layer_norm_epsilon"),
    ),
    late_keys=(),
    expects=(
        Expect("activation_function", ("gelu_new", "gelu", "gelu_fast", "gelu_pytorch_tanh")),
        Expect("scale_attn_weights", (True,)),
        Expect("scale_attn_by_inverse_layer_idx", (False,)),
        Expect("add_cross_attention", (False,)),
    ),
    aliases={
        "hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head",
        # the table of positions is as long as n_positions says; n_ctx is the same, or left out
        "max_position_embeddings": lambda c: c.get("n_positions", "n_ctx"),
    },
    dims={
        **DIMS,
        "ffn": _ffn,
        "positions": lambda c: c.get("max_position_embeddings"),
        "3hidden": lambda c: 3 * c.get("hidden_size"),
    },
    maps=(
        Map("transformer.wte.weight", ("vocab", "hidden"), whole("token_embd.weight")),
        Map("transformer.wpe.weight", ("positions", "hidden"), whole("position_embd.weight")),
        *layer_norm("transformer.ln_f", "output_norm"),
        EMBEDDINGS[2],
        *layer_norm(f"{H}.ln_1", "attn_norm"),
        *layer_norm(f"{H}.ln_2", "ffn_norm"),
        *_turned(f"{H}.attn.c_attn", ("hidden", "3hidden"), "attn_qkv"),
        *_turned(f"{H}.attn.c_proj", ("hidden", "hidden"), "attn_output"),
        *_turned(f"{H}.mlp.c_fc", ("hidden", "ffn"), "ffn_up"),
        *_turned(f"{H}.mlp.c_proj", ("ffn", "hidden"), "ffn_down"),
    ),
    renames=((r"^(?=(h\.\d+|wte|wpe|ln_f)\.)", "transformer."),),
    drops=(r".*\.attn\.(masked_)?bias",),
    defaults={
        "vocab_size": 50257, "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024,
        "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True,
    },
)  # fmt: skip

FAMILY = (GPT2,)
