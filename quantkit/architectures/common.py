"""What most families share: the keys that every text model has, in the order of llama.cpp's
converter (`conversion/base.py`, TextModel.set_gguf_parameters), and rows that recur."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from quantkit.architectures.class_defaults import class_defaults
from quantkit.architectures.config import CLASS
from quantkit.architectures.rope import ROPE_KEYS
from quantkit.architectures.rules import (
    Config,
    Dim,
    Expect,
    Key,
    Map,
    RowMap,
    edited,
    halves,
    linear,
    reading,
    rotary,
    stack,
    transposed,
    vector,
    whole,
)
from quantkit.errors import ConfigError

L = "model.layers.{bid}"

GATING = {"softmax": 1, "sigmoid": 2, "sqrtsoftplus": 4}  # llama.cpp `ExpertGatingFuncType`
_GATING_NAMES = (
    "score_function", "scoring_func", "score_func", "moe_router_activation",
    "moe_router_activation_func", "expert_selection_fn", "router_score_func",
)  # fmt: skip


def _gating(config: Config) -> int | None:
    name = config.get(*_GATING_NAMES, kind="STRING", default=None)
    if name is not None and name not in GATING:
        raise ConfigError(f"{config.where}: experts are scored by {name!r}, which llama.cpp cannot")
    return GATING.get(name)


def _groups(name: str) -> Callable[[Config], Any]:
    """A number of groups of experts, or none; HunYuan-A13B says false for 0."""
    return lambda config: (
        0 if config.find(name) is False else config.get(name, default=None, lists=True)
    )


DENSE_FFN = ("prefix_dense_intermediate_size", "dense_intermediate_size", "intermediate_size")
EXPERT_COUNT = ("num_local_experts", "num_experts", "n_routed_experts")
EXPERT_USED = ("num_experts_per_tok", "num_experts_per_token", "top_k_experts")

TEXT_KEYS = (
    Key("{arch}.block_count", lambda c: c.blocks),
    Key("{arch}.context_length", ("max_position_embeddings", "n_ctx", "n_positions",
        "max_length", "max_sequence_length", "model_max_length"), default=None),
    Key("{arch}.embedding_length", "hidden_size"),
    Key("{arch}.feed_forward_length",
        DENSE_FFN, default=None),
    Key("{arch}.attention.head_count", "num_attention_heads"),
    Key("{arch}.attention.head_count_kv", ("num_key_value_heads", "num_attention_heads")),
    Key("{arch}.attention.causal", lambda c: False if c.find("is_causal") is False else None,
        "BOOL"),
    *ROPE_KEYS,
    Key("{arch}.attention.layer_norm_rms_epsilon", ("rms_norm_eps", "norm_eps"), "FLOAT32",
        default=None),
    Key("{arch}.attention.layer_norm_epsilon",
        ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"), "FLOAT32", default=None),
    Key("{arch}.expert_count", EXPERT_COUNT, default=None),
    Key("{arch}.expert_used_count", EXPERT_USED, default=None),
    Key("{arch}.expert_group_count", _groups("n_group")),
    Key("{arch}.expert_group_used_count", _groups("topk_group")),
    Key("{arch}.expert_gating_func", _gating),
    Key("{arch}.attention.key_length", "head_dim", default=None),
    Key("{arch}.attention.value_length", "head_dim", default=None),
)  # fmt: skip

RMS_NORM = Expect("rms_norm_eps", required=True)
SILU = Expect("hidden_act", ("silu", "swish"))


def no_key(keys: tuple[Key, ...], *names: str) -> tuple[Key, ...]:
    """`keys` without those whose name ends in one of `names`."""
    return tuple(key for key in keys if not key.name.endswith(names))


def with_head_dim(keys: tuple[Key, ...], *classes: str) -> tuple[Key, ...]:
    """`keys` with the length of a head also where config.json is silent: transformers' class
    computes it, if that is one of `classes` (any that is known, if none are named)."""

    def read(config: Config) -> Any:
        name = config.find(CLASS)
        known = name in classes if classes else bool(class_defaults(name))
        return config.head_dim if known else config.get("head_dim", default=None)

    return reading(keys, ".key_length", ".value_length", config=read)


def optional_key(name: str, *config: str, kind: str = "UINT32") -> Key:
    """A key that is left out where config.json is silent."""
    return Key("{arch}." + name, config, kind, default=None)


def text_keys(*order: str) -> tuple[Key, ...]:
    """The keys of TEXT_KEYS with these last parts of their names, in this order."""
    by_name = {key.name.rpartition(".")[2]: key for key in TEXT_KEYS}
    return tuple(by_name[name] for name in order)


ROPE_DIMENSION = Key("{arch}.rope.dimension_count", lambda c: c.head_dim)
EXPERT_FFN = Key("{arch}.expert_feed_forward_length", "moe_intermediate_size")
LEADING_DENSE = Key("{arch}.leading_dense_block_count", "first_k_dense_replace")
SHARED_COUNT = Key("{arch}.expert_shared_count", "n_shared_experts")
WEIGHTS_SCALE = Key("{arch}.expert_weights_scale", "routed_scaling_factor", "FLOAT32")
# whether the weights of the experts that a token uses are made to add up to one
NORMALIZED, NOT_NORMALIZED = Expect("norm_topk_prob", (True,)), Expect("norm_topk_prob", (False,))
WEIGHTS_NORM = Key("{arch}.expert_weights_norm", "norm_topk_prob", "BOOL")
VOCAB_SIZE = Key("{arch}.vocab_size", "vocab_size")


def partial_rope(default: float) -> Key:
    """The channels of a head that are rotated, where it is not all of them."""

    def read(config: Config) -> int:
        return int(config.head_dim * config.rope.get("partial_rotary_factor", default))

    return Key("{arch}.rope.dimension_count", read)


def kv_heads(config: Config) -> int:
    """Heads of keys and values."""
    n: int = config.get("num_key_value_heads", "num_attention_heads")
    return n


def slides(config: Config, every: int | None = None) -> list[bool] | None:
    """Whether each layer sees a sliding window only: by `layer_types`, by a pattern ("LLLG", or 4:
    every fourth sees all), or else every `every`th sees all."""
    types, pattern = config.find("layer_types"), config.find("sliding_window_pattern")
    if types is not None:
        return [kind == "sliding_attention" for kind in types]
    if isinstance(pattern, str):
        return [pattern[bid % len(pattern)] == "L" for bid in range(config.layers)]
    step = pattern if isinstance(pattern, int) else every
    return [(bid + 1) % step != 0 for bid in range(config.layers)] if step else None


DIMS: dict[str, Dim] = {
    "vocab": lambda c: c.get("vocab_size"),
    "hidden": lambda c: c.get("hidden_size"),
    "ffn": lambda c: c.get(*DENSE_FFN, default=0),  # none where every layer has experts
    "heads": lambda c: c.get("num_attention_heads"),
    "kv_heads": kv_heads,
    "head": lambda c: c.head_dim,
    "q": lambda c: c.get("num_attention_heads") * c.head_dim,
    "kv": lambda c: kv_heads(c) * c.head_dim,
    "2hidden": lambda c: 2 * c.get("hidden_size"),
    "one": lambda c: 1,
}


def expert_dims(ffn: str = "moe_intermediate_size") -> dict[str, Dim]:
    """The dimensions of routed experts whose width config.json calls `ffn`."""
    return {
        "experts": lambda c: c.get(*EXPERT_COUNT),
        "used": lambda c: c.get(*EXPERT_USED),
        "expert_ffn": lambda c: c.get(ffn),
        "2expert_ffn": lambda c: 2 * c.get(ffn),
    }


def shifted(*maps: Map) -> tuple[Map, ...]:
    """Norms whose weights are kept as their distance from one."""
    return tuple(replace(m, rows=edited(m.rows, ("add", 1.0))) for m in maps)


EMBEDDINGS = (
    Map("model.embed_tokens.weight", ("vocab", "hidden"), whole("token_embd.weight")),
    vector("model.norm", "output_norm"),
    Map("lm_head.weight", ("vocab", "hidden"), whole("output.weight")),
)
# a head of its own, in families whose runtime takes one and whose releases are tied
OPTIONAL_HEAD = replace(EMBEDDINGS[2], optional=True)
NORMS = (
    vector(f"{L}.input_layernorm", "attn_norm"),
    vector(f"{L}.post_attention_layernorm", "ffn_norm"),
)


def attention(
    base: str = f"{L}.self_attn", rotated: bool = False, bias: bool | None = False,
    out_bias: bool | None = False, layers: str = "", out: str = "o_proj",
) -> tuple[Map, ...]:  # fmt: skip
    """Query, key, value and output, which is called `out`. `rotated`: queries and keys change to
    the original Llama's order of channels. `bias`: as in `linear`."""
    turn: Callable[..., RowMap] = rotary if rotated else whole
    q, k = (("heads",), ("kv_heads",)) if rotated else ((), ())
    more: dict[str, Any] = {"layers": layers, "bias": bias}
    return (
        *linear(f"{base}.q_proj", ("q", "hidden"), "attn_q", turn, *q, **more),
        *linear(f"{base}.k_proj", ("kv", "hidden"), "attn_k", turn, *k, **more),
        *linear(f"{base}.v_proj", ("kv", "hidden"), "attn_v", **more),
        *linear(f"{base}.{out}", ("hidden", "q"), "attn_output", layers=layers, bias=out_bias),
    )


def qk_norms(dims: tuple[str, str] = ("head", "head"), layers: str = "") -> tuple[Map, ...]:
    """Norms of queries and keys."""
    return (
        vector(f"{L}.self_attn.q_norm", "attn_q_norm", dims[0], layers),
        vector(f"{L}.self_attn.k_norm", "attn_k_norm", dims[1], layers),
    )


def gated_mlp(
    base: str = f"{L}.mlp", suffix: str = "", ffn: str = "ffn", layers: str = "",
    bias: bool | None = False, names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
) -> tuple[Map, ...]:  # fmt: skip
    """A gated feed-forward network; `suffix` of its roles is empty or `_shexp`."""
    gate, up, down = names
    more: dict[str, Any] = {"layers": layers, "bias": bias}
    return (
        *linear(f"{base}.{gate}", (ffn, "hidden"), f"ffn_gate{suffix}", **more),
        *linear(f"{base}.{up}", (ffn, "hidden"), f"ffn_up{suffix}", **more),
        *linear(f"{base}.{down}", ("hidden", ffn), f"ffn_down{suffix}", **more),
    )


def router(source: str = f"{L}.mlp.gate", layers: str = "", **more: Any) -> Map:
    """The matrix that chooses experts."""
    shape = ("experts", "hidden")
    return Map(f"{source}.weight", shape, whole("ffn_gate_inp.weight"), layers, **more)


def router_bias(source: str = f"{L}.mlp.gate.e_score_correction_bias", layers: str = "",
                **more: Any) -> Map:  # fmt: skip
    """What is added to the experts' scores when they are chosen."""
    return Map(source, ("experts",), whole("exp_probs_b.bias"), layers, **more)


def plain_mlp(
    base: str = f"{L}.mlp", names: tuple[str, str] = ("up_proj", "down_proj"),
    bias: bool | None = False,
) -> tuple[Map, ...]:  # fmt: skip
    """A feed-forward network without a gate."""
    up, down = names
    return (
        *linear(f"{base}.{up}", ("ffn", "hidden"), "ffn_up", bias=bias),
        *linear(f"{base}.{down}", ("hidden", "ffn"), "ffn_down", bias=bias),
    )


def layer_norm(
    source: str, role: str, dim: str = "hidden", bias: bool | None = True
) -> tuple[Map, ...]:  # fmt: skip
    """The weight and the bias of a norm; `bias` as in `linear`."""
    return linear(source, (dim,), role, bias=bias)


PROJ = ("gate_proj", "up_proj", "down_proj")
W123 = ("w1", "w3", "w2")
DOWN_GATE_UP = ("ffn_down_exps", "ffn_gate_exps", "ffn_up_exps")
GATE_DOWN_UP = ("ffn_gate_exps", "ffn_down_exps", "ffn_up_exps")
GATE_UP_DOWN = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")


def experts(
    base: str = f"{L}.mlp.experts", names: tuple[str, str, str] = PROJ, layers: str = "",
    fused: str | None = None, like: bool = True, hidden: str = "hidden",
) -> tuple[Map, ...]:  # fmt: skip
    """Routed experts in both spellings: one tensor an expert (gate, up, down), and fused, as
    transformers 5 keeps them below `fused` (default: `base`). `like`: llama.cpp's converter only
    knows the former, so the latter takes its order. `hidden`: the width that they work on."""
    gate, up, down = (f"{base}.{{xid}}.{name}.weight" for name in names)
    fused = fused or base
    return (
        Map(gate, ("expert_ffn", hidden), stack("ffn_gate_exps.weight"), layers),
        Map(up, ("expert_ffn", hidden), stack("ffn_up_exps.weight"), layers),
        Map(down, (hidden, "expert_ffn"), stack("ffn_down_exps.weight"), layers),
        Map(f"{fused}.gate_up_proj", ("experts", "2expert_ffn", hidden),
            halves("ffn_gate_exps.weight", "ffn_up_exps.weight"), layers,
            like=up if like else ""),
        Map(f"{fused}.down_proj", ("experts", hidden, "expert_ffn"),
            whole("ffn_down_exps.weight"), layers, like=down if like else ""),
    )  # fmt: skip


def transposed_experts(base: str = f"{L}.mlp.experts", layers: str = "") -> tuple[Map, ...]:
    """Fused experts whose matrices are kept as `[in, out]`."""
    return (
        Map(f"{base}.gate_up_proj", ("experts", "hidden", "2expert_ffn"),
            transposed("ffn_gate_exps.weight", "ffn_up_exps.weight"), layers),
        Map(f"{base}.down_proj", ("experts", "expert_ffn", "hidden"),
            transposed("ffn_down_exps.weight"), layers),
    )  # fmt: skip


# parts of a model of several modes that are not its text (llama.cpp `TextModel.filter_tensors`)
OTHER_MODES = (
    r"(mlp|(vit|vpm|siglip2|conformer|merger|resampler|sound_encoder|sound_projection|"
    r"speech_embeddings)\.).*",
    r".*((visual|vision|audio|talker|token2wav|code2wav|projector|patch_merger|patch_merge_mlp|"
    r"model\.connector)\.|vision_|audio_|pre_mm_projector_norm|image_newline|view_seperator|"
    r"patch_embed).*",
    r"(model\.)?connector\..*",
)
# what no converter keeps, of any family
DROPS = (r".*\.attention\.(masked_)?bias", r".*\.rotary_emb\.inv_freq")


def after_dense(config: Config, bid: int) -> bool:
    """Whether a layer has experts, in models whose first few have none."""
    first: int = config.get("first_k_dense_replace")
    return bid >= first


DENSE_FIRST: dict[str, Callable[[Config, int], bool]] = {
    "experts": after_dense,
    "dense MLP": lambda c, bid: not after_dense(c, bid),
}


def dense_said(config: Config) -> int | None:
    """How many layers at the beginning have no experts by `mlp_layer_types`, which classes of
    transformers go by whatever `first_k_dense_replace` says; None where it is not there. Raises
    ConfigError."""
    types = config.find("mlp_layer_types")
    if types is None:
        return None
    dense = next((i for i, kind in enumerate(types) if kind != "dense"), len(types))
    if len(types) < config.layers or "dense" in types[dense:]:
        raise ConfigError(
            f"{config.where}: 'mlp_layer_types' must be dense layers, then sparse ones, for each "
            f"of {config.layers} layers"
        )
    return dense


def leading_dense(config: Config) -> int:
    """How many layers at the beginning have no experts: one where nothing says it. Raises
    ConfigError."""
    said, found = config.find("first_k_dense_replace"), dense_said(config)
    return found if found is not None else 1 if said is None else int(said)


# DeepSeek's layers after the last, which predict further tokens ("NextN")
def nextn_layers(config: Config) -> int:
    """How many there are."""
    n: int = config.get("num_nextn_predict_layers", default=0)
    return n


def _nextn(config: Config) -> int | None:
    """As many as are converted; 0 is written where config.json says it, and nobody leaves them
    out."""
    declared = config.find("num_nextn_predict_layers")
    said = declared == 0 and not config.find("no_mtp")
    return config.mtp if config.mtp or said else None


NEXTN_KEY = Key("{arch}.nextn_predict_layers", _nextn)
NEXTN_KEY_IF_ANY = Key("{arch}.nextn_predict_layers", lambda c: c.mtp or None)
NEXTN_MAPS = (
    Map(f"{L}.eh_proj.weight", ("hidden", "2hidden"), whole("nextn.eh_proj.weight"), "mtp"),
    vector(f"{L}.enorm", "nextn.enorm", layers="mtp"),
    vector(f"{L}.hnorm", "nextn.hnorm", layers="mtp"),
    vector(f"{L}.shared_head.norm", "nextn.shared_head_norm", layers="mtp"),
    Map(f"{L}.shared_head.head.weight", ("vocab", "hidden"),
        whole("nextn.shared_head_head.weight"), "mtp", optional=True),
    Map(f"{L}.embed_tokens.weight", ("vocab", "hidden"),
        whole("nextn.embed_tokens.weight"), "mtp", optional=True),
)  # fmt: skip
MTP_LAYERS: dict[str, Callable[[Config, int], bool]] = {"mtp": lambda c, bid: bid >= c.layers}
