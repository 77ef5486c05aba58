"""Gemma 3n: four streams of activations (AltUp), a low-rank path beside attention (LAuReL), inputs
of every layer's own. llama.cpp: `conversion/gemma.py`, Gemma3NModel."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

from quantkit.architectures.common import (
    DIMS,
    EMBEDDINGS,
    OPTIONAL_HEAD,
    RMS_NORM,
    TEXT_KEYS,
    L,
    attention,
    gated_mlp,
    qk_norms,
    slides,
)
from quantkit.architectures.gemma import FULL_BASE
from quantkit.architectures.rules import (
    Architecture,
    Config,
    Expect,
    Key,
    Map,
    linear,
    padded,
    stack,
    vector,
    whole,
)
from quantkit.errors import ConfigError

ALTUP, LAUREL = f"{L}.altup", f"{L}.laurel"


def _ffn(config: Config) -> list[int]:
    found = config.get("intermediate_size")
    return found if isinstance(found, list) else [found] * config.layers


def _slides(config: Config) -> list[bool]:
    return slides(config, 5) or []


def _quantiles(config: Config) -> list[float]:
    """How many deviations above the mean an activation must be, from the share of them that is to
    be zero; in torch's float32 steps."""
    import numpy as np

    n = config.layers
    found = config.find("activation_sparsity_pattern")
    if found is None:
        found = [0.95 if n > 10 and bid < 10 else 0.0 for bid in range(n)]
    shares = found if isinstance(found, list) else [found] * n
    if len(shares) != n or not all(isinstance(s, float | int) and 0 <= s < 1 for s in shares):
        raise ConfigError(
            f"{config.where}: 'activation_sparsity_pattern' must hold {n} numbers from 0 to 1"
        )
    f32 = np.float32

    def quantile(share: float) -> float:
        y = f32(2) * f32(share) - f32(1)
        if y == -1:
            return -math.inf
        inverse = f32(NormalDist().inv_cdf((float(y) + 1) / 2) / math.sqrt(2))
        return float(inverse * f32(math.sqrt(2)))

    return [quantile(share) for share in shares]


def _no_inputs(config: Config) -> dict[str, Any]:
    """Zeros for the tokens that stand for images and sounds, whose layers have no inputs."""
    import numpy as np

    vocab, known = (config.get(name) for name in ("vocab_size", "vocab_size_per_layer_input"))
    width = config.layers * config.get("hidden_size_per_layer_input")
    return {PADDING: np.zeros((vocab - known, width), np.float32)} if vocab > known else {}


PADDING = "embed_tokens_per_layer, of images and sounds"

GEMMA3N = Architecture(
    hf_names=("Gemma3nForCausalLM", "Gemma3nForConditionalGeneration"),
    gguf_arch="gemma3n",
    keys=tuple(
        Key(key.name, _ffn) if key.name.endswith(".feed_forward_length") else key
        for key in TEXT_KEYS
    ),
    late_keys=(
        FULL_BASE,
        Key("{arch}.final_logit_softcapping", "final_logit_softcapping", "FLOAT32", default=None),
        Key("{arch}.attention.sliding_window", "sliding_window"),
        Key("{arch}.altup.active_idx", "altup_active_idx"),
        Key("{arch}.altup.num_inputs", "altup_num_inputs"),
        Key("{arch}.embedding_length_per_layer_input", "hidden_size_per_layer_input"),
        Key("{arch}.attention.shared_kv_layers", "num_kv_shared_layers"),
        Key("{arch}.activation_sparsity_scale", _quantiles, "NUMBER"),
        Key("{arch}.attention.sliding_window_pattern", _slides, "BOOL"),
    ),
    # the two numbers are llama.cpp's own
    expects=(
        RMS_NORM, Expect("hidden_activation", ("gelu_pytorch_tanh",)),
        Expect("altup_num_inputs", (4,)), Expect("hidden_size_per_layer_input", (256,)),
    ),
    dims={
        **DIMS,
        "ffn": _ffn,
        "streams": lambda c: c.get("altup_num_inputs"),
        "others": lambda c: c.get("altup_num_inputs") - 1,
        "squared": lambda c: c.get("altup_num_inputs") ** 2,
        "rank": lambda c: c.get("laurel_rank"),
        "inputs_vocab": lambda c: c.get("vocab_size_per_layer_input"),
        "padding": lambda c: max(c.get("vocab_size") - c.get("vocab_size_per_layer_input"), 1),
        "input": lambda c: c.get("hidden_size_per_layer_input"),
        "inputs": lambda c: c.layers * c.get("hidden_size_per_layer_input"),
    },
    maps=(
        *EMBEDDINGS[:2], OPTIONAL_HEAD,
        Map("model.embed_tokens_per_layer.weight", ("inputs_vocab", "inputs"),
            padded("per_layer_token_embd.weight", "vocab")),
        Map(PADDING, ("padding", "inputs"),
            padded("per_layer_token_embd.weight", "vocab", after="inputs_vocab"), optional=True),
        Map("model.altup_projections.{xid}.weight", ("hidden", "hidden"),
            stack("altup_proj.weight", "others"), experts="others"),
        Map("model.altup_unembed_projections.{xid}.weight", ("hidden", "hidden"),
            stack("altup_unembd_proj.weight", "others"), experts="others"),
        *linear("model.per_layer_model_projection", ("inputs", "hidden"), "per_layer_model_proj",
                bias=False),
        vector("model.per_layer_projection_norm", "per_layer_proj_norm", "input"),
        vector(f"{L}.input_layernorm", "attn_norm"),
        vector(f"{L}.post_attention_layernorm", "post_attention_norm"),
        vector(f"{L}.pre_feedforward_layernorm", "ffn_norm"),
        vector(f"{L}.post_feedforward_layernorm", "post_ffw_norm"),
        *attention(),
        *qk_norms(),
        *gated_mlp(),
        Map(f"{ALTUP}.correct_output_scale", ("hidden",), whole("altup_correct_scale.weight")),
        Map(f"{ALTUP}.correction_coefs.weight", ("streams", "streams"),
            whole("altup_correct_coef.weight")),
        Map(f"{ALTUP}.prediction_coefs.weight", ("squared", "streams"),
            whole("altup_predict_coef.weight")),
        Map(f"{ALTUP}.modality_router.weight", ("streams", "hidden"), whole("altup_router.weight")),
        vector(f"{ALTUP}.router_norm", "altup_router_norm"),
        *linear(f"{LAUREL}.linear_left", ("rank", "hidden"), "laurel_l", bias=False),
        *linear(f"{LAUREL}.linear_right", ("hidden", "rank"), "laurel_r", bias=False),
        vector(f"{LAUREL}.post_laurel_norm", "laurel_post_norm"),
        *linear(f"{L}.per_layer_input_gate", ("input", "hidden"), "inp_gate", bias=False),
        *linear(f"{L}.per_layer_projection", ("hidden", "input"), "proj", bias=False),
        vector(f"{L}.post_per_layer_input_norm", "post_norm"),
    ),
    added=_no_inputs,
    defaults={
        "rms_norm_eps": 1e-6, "rope_local_base_freq": 10000.0,
        "vocab_size": 262400, "vocab_size_per_layer_input": 262144, "head_dim": 256,
        "num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 32768,
        "hidden_size": 2048, "hidden_size_per_layer_input": 256, "intermediate_size": 16384,
        "num_hidden_layers": 35, "num_kv_shared_layers": 15, "laurel_rank": 64,
        "sliding_window": 512, "final_logit_softcapping": 30.0, "altup_active_idx": 0,
        "altup_num_inputs": 4, "tie_word_embeddings": True,
    },
    fuses=("qkv",),
)  # fmt: skip

FAMILY = (GEMMA3N,)
