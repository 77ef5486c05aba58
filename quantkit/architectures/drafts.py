"""Drafts, which guess what another model will say: EAGLE-3, DFlash and DSpark, and Muse Glimmer's
assistant. They have the vocabulary of that model, and read layers of it.

llama.cpp: `conversion/llama.py`, `conversion/qwen.py`, `conversion/muse_glimmer.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from quantkit.architectures.common import (
    DIMS,
    EMBEDDINGS,
    NORMS,
    ROPE_DIMENSION,
    TEXT_KEYS,
    VOCAB_SIZE,
    L,
    attention,
    gated_mlp,
    optional_key,
    qk_norms,
    rope_of,
    slides,
)
from quantkit.architectures.llama import rope_freqs
from quantkit.architectures.rules import (
    Architecture,
    Config,
    Dims,
    Expect,
    Key,
    Map,
    Piece,
    RowMap,
    Shape,
    Values,
    linear,
    piece,
    rotary,
    vector,
    whole,
)
from quantkit.errors import ConfigError
from quantkit.source.tensors import SourceTensor


def _target(name: str) -> Callable[[Config], Any]:
    """A number of the model that is drafted for."""
    return lambda config: config.one(f"target.{name}")


def _number(*names: str, kind: str = "UINT32", default: Any = None) -> Callable[[Config], Any]:
    """A value of `dflash_config`, or else of the config itself."""
    both = [f"dflash_config.{name}" for name in names] + [*names]
    return lambda config: config.get(*both, kind=kind, default=default)


# a smaller vocabulary: the distance of each of its tokens from that of the other model
IDS = "~d2t"  # after all other names


def _one_row(dims: Dims, source: Shape, xid: int) -> Sequence[Piece]:
    return (piece("d2t", source, 1),)


SMALLER = Map(IDS, ("draft",), _one_row, "smaller vocabulary", like=IDS)


def learned_of_draft(sources: Mapping[str, SourceTensor], values: Values) -> dict[str, Any]:
    """What its tensors say of it: a smaller vocabulary, a head that says how sure it is, the width
    of the chain of guesses."""
    found = next((t for name, t in sources.items() if name in ("d2t", "model.d2t")), None)
    chain = next((t for name, t in sources.items() if name.endswith("markov_w1.weight")), None)
    return {
        "d2t": None if found is None else values(found),
        "sure": any("confidence_" in name for name in sources),
        "markov_rank": 0 if chain is None else chain.shape[-1],
    }


def _draft_vocab(config: Config) -> int:
    n: int = config.get("draft_vocab_size", "vocab_size")
    return n


def _ids(config: Config) -> dict[str, Any]:
    """The token of the other model that each is. Raises ConfigError."""
    import numpy as np

    found, n = config.find("d2t"), config.get("vocab_size")
    if found is None:
        if _draft_vocab(config) < n:
            raise ConfigError(f"{config.where}: {_draft_vocab(config)} of {n} tokens, and no d2t")
        return {}
    ids = np.array(found, np.int64) + np.arange(len(found))
    if len(ids) != _draft_vocab(config) or len({*ids.tolist()}) != len(ids):
        raise ConfigError(f"{config.where}: d2t has not {_draft_vocab(config)} different tokens")
    if len(ids) and not 0 <= ids.min() <= ids.max() < n:
        raise ConfigError(f"{config.where}: d2t has tokens past the model's {n}")
    return {IDS: ids}


def _layers_of_target(config: Config) -> list[int]:
    said: list[int] | None = config.find("eagle_aux_hidden_state_layer_ids")
    n = config.one("target.num_hidden_layers")
    return said or [2, n // 2, n - 3]


def _width(config: Config) -> int:
    n: int = config.get("target_hidden_size", "target.hidden_size")
    return n


A = f"{L}.self_attn"
BOTH = ("2hidden",)  # the embedding of a token and what the model made of it
EAGLE3 = Architecture(
    hf_names=(
        "LlamaForCausalLMEagle3", "Eagle3LlamaForCausalLM", "Eagle3Speculator", "Eagle3DraftModel",
    ),
    gguf_arch="eagle3",
    first_keys=(
        Key("{arch}.target_layers", _layers_of_target, "INT32"),
        Key("{arch}.target_hidden_size", _width),
        Key("{arch}.norm_before_residual", "norm_before_residual", "BOOL", default=False),
        Key("{arch}.norm_before_fc", "norm_before_fc", "BOOL", default=False),
    ),
    keys=TEXT_KEYS,
    late_keys=(VOCAB_SIZE, ROPE_DIMENSION),
    expects=(Expect("num_hidden_layers", (1,)), Expect("draft_vocab_size", required=True)),
    dims={
        **DIMS,
        "draft": _draft_vocab,
        "seen": lambda c: len(_layers_of_target(c)) * _width(c),
        "target_vocab": _target("vocab_size"),
    },
    maps=(
        SMALLER,
        Map("fc.weight", ("hidden", "seen"), whole("fc.weight")),
        Map("input_norm.weight", ("seen",), whole("enc.output_norm.weight"), "norm before"),
        Map("embed_tokens.weight", ("target_vocab", "hidden"), whole("token_embd.weight"),
            optional=True),
        vector("norm", "output_norm"),
        Map("lm_head.weight", ("draft", "hidden"), whole("output.weight"), optional=True),
        *NORMS,
        vector(f"{L}.hidden_norm", "attn_norm_2"),
        *linear(f"{A}.q_proj", ("q", *BOTH), "attn_q", rotary, "heads"),
        *linear(f"{A}.k_proj", ("kv", *BOTH), "attn_k", rotary, "kv_heads"),
        *linear(f"{A}.v_proj", ("kv", *BOTH), "attn_v", bias=False),
        *linear(f"{A}.o_proj", ("hidden", "q"), "attn_output", bias=False),
        *gated_mlp(),
    ),
    layers={
        "norm before": lambda c, bid: c.get("norm_before_fc", kind="BOOL", default=False),
        "smaller vocabulary": lambda c, bid: c.find("d2t") is not None,
    },
    renames=((r"^(midlayer|layers\.0)\.", "model.layers.0."),),
    drops=("d2t", "t2d"),
    learned=learned_of_draft,
    added=_ids,
    drafts=True,
    computed={"rope_freqs.weight": rope_freqs},
)  # fmt: skip


def _layer_ids(config: Config) -> list[int]:
    """Layers of the other model whose outputs are read."""
    names = "aux_hidden_state_layer_ids", "dflash_config.target_layer_ids", "target_layer_ids"
    if config.find("dflash_config") is None and (ids := config.find(names[0])) is not None:
        return [n - 1 for n in ids]
    found: list[int] = config.get(*names[1:])
    return found


def _rotated(config: Config) -> int | None:
    share = rope_of(config).get("partial_rotary_factor")
    return None if share is None else int(config.head_dim * share)


def _embedding_scale(config: Config) -> float | None:
    said: float | None = _number("input_embedding_scale", kind="FLOAT32")(config)
    if said is None and str(config.find("target.architecture")).startswith("Gemma"):
        return float(config.one("target.hidden_size") ** 0.5)
    return said


def _window(config: Config) -> int | None:
    used = config.find("use_sliding_window") or config.find("dflash_config.use_swa")
    n = config.find("dflash_config.swa_window_size") or config.find("sliding_window")
    return n if used and n else None


def _windows(config: Config) -> list[bool] | None:
    if _window(config) is None:
        return None
    every = config.find("dflash_config.use_swa")
    return [True] * config.layers if every else slides(config) or []


def _softcap(config: Config) -> float | None:
    found: float = _number("final_logit_softcapping", kind="FLOAT32", default=0.0)(config)
    return found if found > 0 else None


def _sections(config: Config) -> list[int] | None:
    """Where the other model rotates by several axes, the draft knows the first."""
    several = config.find("target.mrope_section") is not None
    return [config.head_dim // 2, 0, 0, 0] if several else None


def _halves(role: str, heads: str = "") -> RowMap:
    """Channels that take turns in a head as two halves, where config.json says that they do."""

    def pieces(dims: Dims, source: Shape, xid: int) -> Sequence[Piece]:
        n = dims["head"]
        order = (*range(0, n, 2), *range(1, n, 2)) if dims["interleaved"] else ()
        return (piece(role, source, source[0], order=order),)

    return pieces


def _causal(config: Config) -> bool | None:
    found: bool | None = config.get("is_causal", "dflash_config.causal", kind="BOOL", default=None)
    return found


def _conv(name: str, role: str) -> tuple[Map, ...]:
    base = f"{L}.{name}_conv"
    return (
        Map(f"{base}.base_kernel", ("two", "kernel", "hidden"), whole(f"{role}_conv_base"),
            "convolutions"),
        Map(f"{base}.kernel_projection.weight", ("kernels", "hidden"),
            whole(f"{role}_conv_proj.weight"), "convolutions"),
    )  # fmt: skip


SELECTOR = "model.candidate_selector"
MASK = Key("tokenizer.ggml.mask_token_id", _number("mask_token_id"))
DFLASH = Architecture(
    hf_names=("DFlashDraftModel", "DFlash2DraftModel"),
    gguf_arch="dflash",
    keys=TEXT_KEYS,
    late_keys=(
        Key("{arch}.rope.dimension_count", _rotated),
        Key("{arch}.attention.value_scale",
            lambda c: c.get("dflash_config.attention_value_scale", kind="FLOAT32", default=None),
            "FLOAT32"),
        Key("{arch}.block_size", _number("block_size", default=16)),
        *(optional_key(name, f"dflash_config.{name}")
          for name in ("conv_kernel_size", "conv_group_size", "selector_rank", "selector_top_k")),
        Key("{arch}.logit_scale", _number("output_multiplier", kind="FLOAT32"), "FLOAT32"),
        Key("{arch}.final_logit_softcapping", _softcap, "FLOAT32"),
        Key("{arch}.embedding_scale", _embedding_scale, "FLOAT32"),
        Key("{arch}.target_layers", lambda c: [n + 1 for n in _layer_ids(c)], "INT32"),
        Key("{arch}.attention.sliding_window", _window),
        Key("{arch}.attention.sliding_window_pattern", _windows, "BOOL"),
        Key("{arch}.attention.causal", _causal, "BOOL"),
        Key("{arch}.rope.dimension_sections", _sections, "INT32"),
    ),
    last_keys=(MASK,),
    expects=(Expect("hidden_act", ("silu",)), Expect("attention_bias", (False,))),
    dims={
        **DIMS,
        "seen": lambda c: len(_layer_ids(c)) * c.one("hidden_size"),
        "draft": _draft_vocab,
        "two": lambda c: 2,
        "interleaved": lambda c: int(c.find("rope_is_neox_style") is False),
        "kernel": lambda c: c.get("dflash_config.conv_kernel_size", default=0),
        "kernels": lambda c: 2 * c.get("dflash_config.conv_kernel_size", default=0)
        * (c.one("hidden_size") // c.get("dflash_config.conv_group_size", default=1)),
        "rank": lambda c: c.get("dflash_config.selector_rank", default=0),
    },
    maps=(
        *(replace(m, optional=True) for m in EMBEDDINGS if "norm" not in m.source),
        EMBEDDINGS[1],
        Map("model.fc.weight", ("hidden", "seen"), whole("fc.weight")),
        vector("model.hidden_norm", "enc.output_norm"),
        *NORMS,
        *(m for m in attention() if not m.source.endswith(("q_proj.weight", "k_proj.weight"))),
        Map(f"{A}.q_proj.weight", ("q", "hidden"), _halves("attn_q.weight")),
        Map(f"{A}.k_proj.weight", ("kv", "hidden"), _halves("attn_k.weight")),
        Map(f"{A}.q_norm.weight", ("head",), _halves("attn_q_norm.weight")),
        Map(f"{A}.k_norm.weight", ("head",), _halves("attn_k_norm.weight")),
        Map(f"{A}.sinks", ("heads",), whole("attn_sinks.weight"), optional=True),
        *gated_mlp(),
        *_conv("attention", "attn"),
        *_conv("mlp", "ffn"),
        Map(f"{SELECTOR}.predecessor_codebook", ("vocab", "rank"),
            whole("selector_predecessor.weight"), "convolutions"),
        Map(f"{SELECTOR}.successor_codebook", ("vocab", "rank"),
            whole("selector_successor.weight"), "convolutions"),
        Map(f"{SELECTOR}.hidden_projection.weight", ("rank", "hidden"),
            whole("selector_hidden.weight"), "convolutions"),
    ),
    layers={
        "convolutions": lambda c, bid: c.find("dflash_config.conv_kernel_size") is not None,
        "smaller vocabulary": lambda c, bid: c.find("d2t") is not None,
        "own head": lambda c, bid: _draft_vocab(c) != c.get("vocab_size"),
    },
    renames=(
        (r"^(?!model\.|lm_head\.|~)", "model."), (r"^model\.lm_head\.", "lm_head."),
        (r"\.sinks\.weight$", ".sinks"), (r"_codebook\.weight$", "_codebook"),
    ),
    drafts=True,
)  # fmt: skip

MARKOV = "model.markov_head"


def _anchor(config: Config) -> bool:
    other = ("transformer_layer_config", "aux_hidden_state_layer_ids")
    default = all(config.find(name) is None for name in other)
    found: bool = config.get("sample_from_anchor", kind="BOOL", default=default)
    return found


# with a chain of guesses, each from the one before
DSPARK = replace(
    DFLASH,
    hf_names=(
        "Qwen3DSparkModel", "DSparkDraftModel", "DSparkSpeculator", "Lfm2DSparkDraftModel",
        "LingDSparkModel",
    ),
    late_keys=(
        *DFLASH.late_keys,
        Key("{arch}.sample_from_anchor", _anchor, "BOOL"),
        Key("{arch}.has_confidence_head", "sure", "BOOL"),
    ),
    expects=(*DFLASH.expects, Expect("markov_head_type", ("vanilla",))),
    dims={
        **DFLASH.dims,
        "markov": lambda c: c.get("markov_rank"),
        "after": lambda c: c.one("hidden_size") + c.get("markov_rank"),
    },
    maps=(
        *(
            replace(m, shape=("draft", "hidden"), optional=False, layers="own head")
            if m.source == "lm_head.weight" else m
            for m in DFLASH.maps
        ),
        SMALLER,
        Map(f"{MARKOV}.markov_w1.weight", ("vocab", "markov"), whole("markov_w1.weight")),
        Map(f"{MARKOV}.markov_w2.weight", ("draft", "markov"), whole("markov_w2.weight")),
        *(replace(m, optional=True)
          for m in linear("model.confidence_head.proj", ("one", "after"), "conf_proj")),
    ),
    drops=(*DFLASH.drops, r"(model\.)?(d2t|t2d)", r"lm_head\.weight"),
    learned=learned_of_draft,
    added=_ids,
)  # fmt: skip

MUSE_ASSISTANT = replace(
    DFLASH,
    hf_names=("MuseGlimmerAssistantModel",),
    late_keys=(
        Key("{arch}.block_size", "block_size"),
        Key("{arch}.target_layers", lambda c: [n + 1 for n in c.get("target_layer_ids")], "INT32"),
        Key("{arch}.attention.sliding_window",
            lambda c: c.find("sliding_window") if c.find("layer_types") else None),
        Key("{arch}.attention.sliding_window_pattern",
            lambda c: slides(c) if c.find("sliding_window") and c.find("layer_types") else None,
            "BOOL"),
    ),
    last_keys=(Key("tokenizer.ggml.mask_token_id", "mask_token_id", default=None),),
    maps=(
        vector("encoder.output_norm_enc", "enc.output_norm"),
        Map("encoder.fc.weight", ("hidden", "seen"), whole("fc.weight")),
        EMBEDDINGS[1],
        *NORMS,
        *attention(),
        *qk_norms(),
        *gated_mlp(),
    ),
    layers={},
    renames=((r"^(?=(layers|norm)\.)", "model."),),
)  # fmt: skip

FAMILY = (EAGLE3, DFLASH, DSPARK, MUSE_ASSISTANT)
