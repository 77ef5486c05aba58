"""RWKV 7, and Qwen 2.5 with its time mixing. llama.cpp: `conversion/rwkv.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from quantkit.architectures.common import EMBEDDINGS, NORMS, L, gated_mlp, layer_norm
from quantkit.architectures.rules import (
    AGAIN,
    Architecture,
    Config,
    Dims,
    Expect,
    Key,
    Map,
    Piece,
    RowMap,
    Shape,
    linear,
    piece,
    transposed,
    whole,
)
from quantkit.architectures.rwkv import (
    EPS,
    HEAD,
    NO_HEADS,
    ONE_SHIFT,
    RMS_EPS,
    ROW,
    SIZES,
    WIDTHS,
    fused,
)

A, F = f"{L}.attention", f"{L}.feed_forward"
AS_V = f"{AGAIN}v"  # what stands in the place of the first layer's v, which nothing reads
RENAMES = (
    (r"\bblocks\.", "layers."), (r"\bffn\b", "feed_forward"), (r"\bffn_norm\b", "ln2"),
    (r"\b(self_)?attn\b", "attention"), (r"\battn_norm\b", "ln1"), (r"\.time_mixer\.", "."),
    (r"\bg_norm\b", "ln_x"), (r"\.layers\.0\.pre_norm\b", ".pre_ln"),
    (r"^model\.norm\b", "model.ln_out"),
    (r"^lm_head\b", "head"), (r"\br_proj\b", "receptance"), (r"\bk_proj\b", "key"),
    (r"\bv_proj\b", "value"), (r"attention\.o_proj\b", "attention.output"),
)  # fmt: skip


def _rank(*names: str, power: float, factor: float) -> Callable[[Config], int]:
    """As config.json says, or a multiple of 32 that the class computes."""

    def value(config: Config) -> int:
        n = max(1, round(config.one("hidden_size") ** power * factor / 32)) * 32
        return config.one(*names, default=n)

    return value


RANKS7: dict[str, Callable[[Config], int]] = {
    "decay": _rank("lora_rank_decay", "decay_low_rank_dim", power=0.5, factor=1.8),
    "iclr": _rank("lora_rank_iclr", "a_low_rank_dim", power=0.5, factor=1.8),
    "value_residual_mix": _rank("lora_rank_value_residual_mix", "v_low_rank_dim", power=0.5,
                                factor=1.3),
    "gate": _rank("lora_rank_gate", "gate_low_rank_dim", power=0.8, factor=0.6),
}  # fmt: skip


def _ffn7(config: Config) -> int:
    n: int = config.get("intermediate_size", default=0)
    return n or 4 * config.one("hidden_size")


def _head(config: Config) -> int:
    return config.one("head_size", "head_dim")


def _has_gate(config: Config, bid: int = 0) -> bool:
    found: bool = config.get("wkv_has_gate", kind="BOOL", default=True)
    return found


KINDS = {
    "after the first": lambda c, bid: bid > 0,
    "the first": lambda c, bid: bid == 0,
    "gated": _has_gate,
    "not gated": lambda c, bid: not _has_gate(c, bid),
}


def _low_rank(fla: bool, x: str, rank: str, role: str, layers: str, end: str = "") -> list[Map]:
    """Two matrices and, but for the gate, a bias: of letter `x`, as `role`; names have an `end`."""
    names = [f"{A}.{x}{n}{end}" for n in (1, 2, 0)]
    shapes = (("hidden", rank), (rank, "hidden"))
    rows: Callable[[str], RowMap] = transposed
    if fla:
        names = [f"{A}.{x}_lora.lora.{part}{end}" for part in ("0.weight", "2.weight", "2.bias")]
        shapes, rows = (shapes[1], shapes[0]), whole
    out = [Map(names[i], shapes[i], rows(f"{role}{i + 1}.weight"), layers) for i in (0, 1)]
    bias = Map(names[2], *_vector(fla, f"{role}0"), layers)
    return out if x == "g" else [*out, bias]


def _vector(fla: bool, role: str) -> tuple[tuple[str, ...], RowMap]:
    return ("hidden",) if fla else ROW, whole(f"{role}.weight", "hidden")


def _joined(role: str) -> RowMap:
    """All rows as one."""
    return lambda dims, source, xid: (piece(role, (dims["hidden"],), 1),)


def _fused_already(dims: Dims, source: Shape, xid: int) -> Sequence[Piece]:
    n = dims["letters"]
    return (piece("time_mix_lerp_fused.weight", (n, 1, 1, dims["hidden"]), n),)


def _time_mixing(fla: bool, norm: bool = True) -> tuple[Map, ...]:
    """All below `A`; `fla`: as flash-linear-attention keeps it, linear layers and flat vectors."""
    return (
        *fused(f"{A}.x_", "rwkvag", "gated"),
        *fused(f"{A}.x_", "rwkva", "not gated"),
        Map(f"{A}.x_x", ("letters", "hidden"), _fused_already),
        *(Map(f"{A}.k_{x}", *_vector(fla, f"time_mix_k_{x}")) for x in "ka"),
        Map(f"{A}.r_k", ("heads", "head"), _joined("time_mix_r_k.weight"), seen=("one", "hidden")),
        *(
            Map(f"{A}.{x}.weight", ("hidden", "hidden"), whole(f"time_mix_{x}.weight"))
            for x in ("receptance", "key", "value", "output")
        ),
        *(replace(m, optional=not norm) for m in layer_norm(f"{A}.ln_x", "time_mix_ln")),
        *_low_rank(fla, "w", "decay", "time_mix_w", ""),
        *_low_rank(fla, "a", "iclr", "time_mix_a", ""),
        *_low_rank(fla, "a", "iclr", "time_mix_v", "the first", AS_V),
        *_low_rank(fla, "v", "value_residual_mix", "time_mix_v", "after the first"),
        *_low_rank(fla, "g", "gate", "time_mix_g", "gated"),
    )


def _maps7(fla: bool) -> tuple[Map, ...]:
    return (
        Map("model.embeddings.weight", ("vocab", "hidden"), whole("token_embd.weight")),
        *layer_norm("model.pre_ln", "token_embd_norm"),
        *layer_norm("model.ln_out", "output_norm"),
        Map("head.weight", ("vocab", "hidden"), whole("output.weight")),
        *layer_norm(f"{L}.ln1", "attn_norm"),
        *layer_norm(f"{L}.ln2", "attn_norm_2"),
        *_time_mixing(fla),
        Map(f"{F}.x_k", *_vector(fla, "channel_mix_lerp_k")),
        *linear(f"{F}.key", ("ffn", "hidden"), "channel_mix_key", bias=False),
        *linear(f"{F}.value", ("hidden", "ffn"), "channel_mix_value", bias=False),
    )


def _spelling(config: Config, shapes: Mapping[str, Shape]) -> Architecture | None:
    """As flash-linear-attention keeps it, where names say so."""
    fla = any("_lora.lora." in name for name in shapes)
    return replace(RWKV7, maps=_maps7(True)) if fla else None


RWKV7 = Architecture(
    hf_names=("Rwkv7ForCausalLM", "RWKV7ForCausalLM"),
    gguf_arch="rwkv7",
    keys=(
        *SIZES,
        EPS,
        HEAD,
        *(Key(f"{{arch}}.attention.{name}_lora_rank", rank) for name, rank in RANKS7.items()),
        Key("{arch}.feed_forward_length", _ffn7),
    ),
    late_keys=(NO_HEADS,),
    expects=(),
    dims={
        **WIDTHS,
        **RANKS7,
        "ffn": _ffn7,
        "head": _head,
        "letters": lambda c: 5 + _has_gate(c),
        "heads": lambda c: c.one("hidden_size") // max(_head(c), 1),
    },
    maps=_maps7(False),
    layers=KINDS,
    renames=RENAMES,
    copies=(r"model\.layers\.0\.attention\.a(_lora\..*|[012])", AS_V),
    drops=(r"model\.layers\.0\.attention\.v(_lora\..*|[012])",),
    respelled=_spelling,
)

ARANKS: dict[str, Callable[[Config], int]] = {
    "decay": lambda c: 64,
    "iclr": lambda c: 64,
    "value_residual_mix": lambda c: 32,
    "gate": lambda c: 128 if _has_gate(c) else 0,
}
ARWKV7 = replace(
    RWKV7,
    hf_names=("RwkvHybridForCausalLM",),
    gguf_arch="arwkv7",
    keys=(
        *SIZES,
        RMS_EPS,
        HEAD,
        *(Key(f"{{arch}}.attention.{name}_lora_rank", rank) for name, rank in ARANKS.items()),
        Key("{arch}.feed_forward_length", "intermediate_size"),
    ),
    late_keys=(ONE_SHIFT, NO_HEADS),
    expects=(Expect("wkv_version", (7,), required=True), Expect("wkv_has_gate", required=True)),
    dims={**RWKV7.dims, **ARANKS, "ffn": lambda c: c.get("intermediate_size")},
    maps=(*EMBEDDINGS, *NORMS, *_time_mixing(False, norm=False), *gated_mlp()),
    renames=tuple(r for r in RENAMES if not r[0].startswith("^")),
    respelled=lambda c, shapes: None,
)

FAMILY = (RWKV7, ARWKV7)
