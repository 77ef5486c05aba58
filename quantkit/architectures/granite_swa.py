"""Granite with sliding windows and sinks, dense and with experts. llama.cpp:
`conversion/granite.py`.

Positions are rotated in some layers only. Its converter knows those by `no_rope_layers`, and misses
`layer_rope_theta`, as transformers spells them, where zero stands for a layer without.
"""

from __future__ import annotations

from dataclasses import replace

from quantkit.architectures.common import EMBEDDINGS, NORMS, L, attention, gated_mlp, slides
from quantkit.architectures.granite import GRANITE, GRANITE_EXPERTS, GRANITE_MOE_SHARED, SHARED
from quantkit.architectures.rules import (
    Config,
    Key,
    Map,
    reading,
    whole,
)
from quantkit.errors import ConfigError


def _windows(config: Config) -> list[bool]:
    return slides(config) or [bid % 4 != 0 for bid in range(config.layers)]


def _rotates(config: Config) -> list[bool] | None:
    """Whether each layer rotates positions. Raises ConfigError."""
    old = config.get("no_rope_layers", default=None)
    if old is not None:
        return [bool(n) for n in old] if isinstance(old, list) and old else None
    bases = config.get("layer_rope_theta", kind="FLOAT32", default=None)
    if bases is None:
        return None
    if not isinstance(bases, list) or len({*bases} - {0}) > 1:
        raise ConfigError(
            f"{config.where}: 'layer_rope_theta' has several bases; llama.cpp has one"
        )
    return [bool(n) for n in bases] if 0 in bases else None


def _base(config: Config) -> float | None:
    bases = config.get("layer_rope_theta", kind="FLOAT32", default=None)
    found = {*bases} - {0} if isinstance(bases, list) else set()
    base: float | None = next(iter(found), config.rope.get("rope_theta"))
    return base


GRANITE_SWA = replace(
    GRANITE,
    hf_names=("GraniteSWAForCausalLM",),
    gguf_arch="granite_swa",
    keys=reading(GRANITE.keys, ".freq_base", config=_base),
    late_keys=(
        *GRANITE.late_keys,
        Key("{arch}.attention.sliding_window", "sliding_window", default=128),
        Key("{arch}.attention.sliding_window_pattern", _windows, "BOOL"),
        Key("{arch}.attention.rope_pattern", _rotates, "BOOL"),
    ),
    maps=(
        *GRANITE.maps,
        Map(f"{L}.self_attn.sinks", ("heads",), whole("attn_sinks.weight")),
    ),
    defaults={
        "rope_theta": 10000.0, "rms_norm_eps": 1e-5, "logits_scaling": 1.0,
        "embedding_multiplier": 1.0, "residual_multiplier": 1.0, "attention_multiplier": 1.0,
        "tie_word_embeddings": True,
    },
    fuses=(),
)  # fmt: skip


def _sparse(config: Config, bid: int = 0) -> bool:
    return bool(config.get("num_local_experts", default=0))


GRANITE_MOE_SWA = replace(
    GRANITE_SWA,
    hf_names=("GraniteMoeSWAForCausalLM",),
    late_keys=(
        *GRANITE_SWA.late_keys,
        *(k for k in GRANITE_MOE_SHARED.late_keys if "expert_shared" in k.name),
    ),
    dims=GRANITE_MOE_SHARED.dims,
    maps=(
        *EMBEDDINGS,
        *NORMS,
        *attention(rotated=True, bias=None, out_bias=None),
        GRANITE_SWA.maps[-1],
        *gated_mlp(layers="one MLP"),
        # gate and up stay one matrix, which the graph takes as it is
        *(
            replace(m, layers="experts", like="",
                    rows=whole("ffn_gate_up_exps.weight") if "2expert_ffn" in m.shape else m.rows)
            for m in GRANITE_EXPERTS
        ),
        Map(f"{SHARED}.input_linear.weight", ("2shared_ffn", "hidden"),
            whole("ffn_up_shexp.weight"), "shared expert"),
        Map(f"{SHARED}.output_linear.weight", ("hidden", "shared_ffn"),
            whole("ffn_down_shexp.weight"), "shared expert"),
    ),
    layers={
        "experts": _sparse,
        "one MLP": lambda c, bid: not _sparse(c),
        "shared expert": lambda c, bid: bool(c.get("shared_intermediate_size", default=0)),
    },
    defaults={
        **GRANITE_SWA.defaults, "rms_norm_eps": 1e-6, "num_local_experts": 8,
        "num_experts_per_tok": 2, "tie_word_embeddings": False,
    },
)  # fmt: skip

FAMILY = (GRANITE_SWA, GRANITE_MOE_SWA)
