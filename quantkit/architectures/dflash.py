"""DFlash's drafts, which guess blocks of tokens from layers of their model. llama.cpp:
`conversion/qwen.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from quantkit.architectures.common import (
    DIMS,
    EMBEDDINGS,
    NORMS,
    TEXT_KEYS,
    L,
    attention,
    gated_mlp,
    optional_key,
    slides,
)
from quantkit.architectures.drafts import draft_vocab, mask_token
from quantkit.architectures.rope import rope_of
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
    piece,
    vector,
    whole,
)


def _number(*names: str, kind: str = "UINT32", default: Any = None) -> Callable[[Config], Any]:
    """A value of `dflash_config`, or else of the config itself."""
    both = [f"dflash_config.{name}" for name in names] + [*names]
    return lambda config: config.get(*both, kind=kind, default=default)


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


A = f"{L}.self_attn"
SELECTOR = "model.candidate_selector"
MASK = mask_token(_number("mask_token_id"))
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
        "draft": draft_vocab,
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
        "own head": lambda c, bid: draft_vocab(c) != c.get("vocab_size"),
    },
    renames=(
        (r"^(?!model\.|lm_head\.|~)", "model."), (r"^model\.lm_head\.", "lm_head."),
        (r"\.sinks\.weight$", ".sinks"), (r"_codebook\.weight$", "_codebook"),
    ),
    drafts=True,
)  # fmt: skip

FAMILY = (DFLASH,)
