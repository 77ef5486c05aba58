"""DeepSeek-V3.2, GLM-5 and GLM-5.2: latent attention over the tokens that an indexer chooses.

llama.cpp: `conversion/deepseek.py` (DeepseekV32Model), `conversion/glm.py` (GlmMoeDsaModel).
"""

from __future__ import annotations

from dataclasses import replace

from quantkit.architectures.common import MTP_LAYERS, NEXTN_KEY, NEXTN_MAPS
from quantkit.architectures.deepseek import ATTN, DEEPSEEK_V3
from quantkit.architectures.rules import (
    Config,
    Dim,
    Key,
    Map,
    linear,
    tied_head_dropped,
    vector,
    whole,
)
from quantkit.errors import ConfigError

INDEXER_KEYS = (
    Key("{arch}.attention.indexer.head_count", "index_n_heads"),
    Key("{arch}.attention.indexer.key_length", "index_head_dim"),
    Key("{arch}.attention.indexer.top_k", "index_topk"),
)
INDEXER_DIMS: dict[str, Dim] = {
    "i_heads": lambda c: c.get("index_n_heads"),
    "i_head": lambda c: c.get("index_head_dim"),
    "i_q": lambda c: c.get("index_n_heads") * c.get("index_head_dim"),
}


def indexer(layers: str, optional: bool = False) -> tuple[Map, ...]:
    """What scores the tokens before: queries from the latent, one key, a weight for each head."""
    base = f"{ATTN}.indexer"
    maps = (
        *linear(f"{base}.wq_b", ("i_q", "q_lora"), "indexer.attn_q_b", layers=layers, bias=False),
        *linear(f"{base}.wk", ("i_head", "hidden"), "indexer.attn_k", layers=layers, bias=False),
        vector(f"{base}.k_norm", "indexer.k_norm", "i_head", layers),
        Map(f"{base}.k_norm.bias", ("i_head",), whole("indexer.k_norm.bias"), layers),
        *linear(
            f"{base}.weights_proj", ("i_heads", "hidden"), "indexer.proj", layers=layers, bias=False
        ),
    )
    return tuple(replace(m, optional=optional) for m in maps)


def index_types(config: Config) -> list[bool]:
    """Whether each layer has an indexer of its own, or takes what the last one chose.

    Where config.json does not list it, every `index_topk_freq`-th has one, counted as transformers
    counts (`GlmMoeDsaConfig`). Raises ConfigError: it says something else than full or shared.
    """
    layers = config.layers
    types = config.find("indexer_types") or config.find("index_topk_pattern")
    if types is None:
        every = max(config.get("index_topk_freq", default=1), 1)
        offset = config.get("index_skip_topk_offset", default=2)
        return [max(bid - offset + 1, 0) % every == 0 for bid in range(layers)]
    known = {"full": True, "shared": False, "F": True, "S": False}
    if len(types) != layers or not {*types} <= known.keys():
        raise ConfigError(
            f"{config.where}: 'indexer_types' must say full or shared for each of {layers} layers"
        )
    return [known[t] for t in types]


def has_indexer(config: Config, bid: int) -> bool:
    """Whether a layer must have one. A layer that predicts further tokens may."""
    return bid < config.layers and index_types(config)[bid]


DEEPSEEK_V32 = replace(
    DEEPSEEK_V3,
    hf_names=("DeepseekV32ForCausalLM",),
    gguf_arch="deepseek32",
    late_keys=(*DEEPSEEK_V3.late_keys, NEXTN_KEY, *INDEXER_KEYS),
    dims={**DEEPSEEK_V3.dims, **INDEXER_DIMS},
    maps=(
        *DEEPSEEK_V3.maps,
        *indexer("trunk"),
        *indexer("mtp", optional=True),
        *NEXTN_MAPS,
    ),
    layers={**DEEPSEEK_V3.layers, **MTP_LAYERS, "trunk": lambda c, bid: bid < c.layers},
    keeps_mtp=True,
)


def _whole_rope(config: Config) -> None:
    """llama.cpp has no tensors of the shape that it expects where only a part is rotated."""
    if (share := config.rope.get("partial_rotary_factor", 1.0)) != 1.0:
        raise ConfigError(
            f"{config.where}: 'partial_rotary_factor' is {share}; llama.cpp runs glm-dsa with 1.0"
        )


GLM_DSA = replace(
    DEEPSEEK_V32,
    hf_names=("GlmMoeDsaForCausalLM",),
    gguf_arch="glm-dsa",
    late_keys=(
        *DEEPSEEK_V32.late_keys,
        Key("{arch}.attention.indexer.types", index_types, "BOOL"),
    ),
    maps=(
        *DEEPSEEK_V3.maps,
        *indexer("indexer"),
        *indexer("maybe an indexer", optional=True),
        *NEXTN_MAPS,
    ),
    layers={
        **DEEPSEEK_V3.layers,
        **MTP_LAYERS,
        "indexer": has_indexer,
        "maybe an indexer": lambda c, bid: not has_indexer(c, bid),
    },
    defaults={
        "rms_norm_eps": 1e-5, "first_k_dense_replace": 3, "routed_scaling_factor": 2.5,
        "norm_topk_prob": True, "n_shared_experts": 1,
    },
    variant=_whole_rope,
)  # fmt: skip

FAMILY = (tied_head_dropped(DEEPSEEK_V32), tied_head_dropped(GLM_DSA))
