"""RWKV 6, and Qwen 2.5 with its time mixing in place of attention. A state goes along the text, and
there is no cache. llama.cpp: `conversion/rwkv.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from quantkit.architectures.common import DIMS, EMBEDDINGS, NORMS, L, gated_mlp, layer_norm
from quantkit.architectures.rules import (
    Architecture,
    Config,
    Dims,
    Key,
    Map,
    Piece,
    RowMap,
    Shape,
    edited,
    linear,
    piece,
    transposed,
    whole,
)

WIDTHS = {name: DIMS[name] for name in ("vocab", "hidden", "one")}
ROW = ("one", "one", "hidden")


def row(source: str, role: str, layers: str = "") -> Map:
    """A vector that is kept as `[1, 1, width]`."""
    return Map(source, ROW, whole(f"{role}.weight", "hidden"), layers)


def fused(base: str, order: str, layers: str = "") -> tuple[Map, ...]:
    """Interpolations, one a letter, that become one tensor in this order."""

    def at(i: int) -> RowMap:
        def pieces(dims: Dims, source: Shape, xid: int) -> Sequence[Piece]:
            shape = (len(order), 1, 1, dims["hidden"])
            return (piece("time_mix_lerp_fused.weight", shape, 1, i),)

        return pieces

    return tuple(Map(f"{base}{x}", ROW, at(i), layers) for i, x in enumerate(order))


def _five(role: str, order: Sequence[int]) -> RowMap:
    """Five matrices side by side, or one after another: each transposed, in this order."""

    def pieces(dims: Dims, source: Shape, xid: int) -> Sequence[Piece]:
        rank, hidden = dims["mix"], dims["hidden"]
        if len(source) == 2:
            shape: Shape = (5 * rank, hidden)
            n, places = rank, [(0, hidden, x * rank) for x in order]
        else:
            shape = (5, hidden, rank)
            n, places = hidden, [(x * rank, rank, 0) for x in order]
        return [
            piece(role, shape, n, i * n, at, height=height, column=column)
            for i, (at, height, column) in enumerate(places)
        ]

    return pieces


def _halved(role: str) -> RowMap:
    """Halved once more after every so many layers: what is added up stays small."""

    def pieces(dims: Dims, source: Shape, xid: int) -> Sequence[Piece]:
        rows = whole(role)
        if times := dims["halvings"]:
            rows = edited(rows, ("scale", 0.5**times))
        return rows(dims, source, xid)

    return pieces


def _halvings(config: Config) -> list[int]:
    every = config.one("rescale_every")
    return [bid // every if every else 0 for bid in range(config.layers)]


def _mixing6(a: str, names: tuple[str, str, str], order: Sequence[int]) -> tuple[Map, ...]:
    """Time mixing below `a`, but for its output; names of receptance, key and value."""
    r, k, v = names
    return (
        row(f"{a}.time_maa_x", "time_mix_lerp_x"),
        *fused(f"{a}.time_maa_", "wkvrg"),
        Map(f"{a}.time_maa_w1", ("hidden", "5mix"), _five("time_mix_w1.weight", order)),
        Map(f"{a}.time_maa_w2", ("five", "mix", "hidden"), _five("time_mix_w2.weight", order)),
        row(f"{a}.time_decay", "time_mix_decay"),
        Map(f"{a}.time_decay_w1", ("hidden", "decay"), transposed("time_mix_decay_w1.weight")),
        Map(f"{a}.time_decay_w2", ("decay", "hidden"), transposed("time_mix_decay_w2.weight")),
        *linear(f"{a}.{r}", ("hidden", "hidden"), "time_mix_receptance"),
        *linear(f"{a}.{k}", ("kv", "hidden"), "time_mix_key"),
        *linear(f"{a}.{v}", ("kv", "hidden"), "time_mix_value"),
        *linear(f"{a}.gate", ("hidden", "hidden"), "time_mix_gate", bias=False),
    )


def _ranks6(wide: Callable[[int], bool], *names: str) -> tuple[Key, Key]:
    """The two ranks: as config.json names them, or twice as large in `wide` models."""

    def key(name: str, small: int, said: Sequence[str]) -> Key:
        def value(config: Config) -> int:
            n = small * (2 if wide(config.one("hidden_size")) else 1)
            return config.one(*said, default=n)

        return Key(f"{{arch}}.{name}_extra_dim", value)

    return key("time_mix", 32, names[:1]), key("time_decay", 64, names[1:])


SIZES = (
    Key("{arch}.context_length", lambda c: 1048576),  # a state has no end
    Key("{arch}.embedding_length", "hidden_size"),
    Key("{arch}.block_count", lambda c: c.blocks),
)
EPS = Key("{arch}.attention.layer_norm_epsilon", ("layer_norm_epsilon", "norm_eps"), "FLOAT32")
RMS_EPS = Key("{arch}.attention.layer_norm_rms_epsilon", "rms_norm_eps", "FLOAT32")
HEAD = Key("{arch}.wkv.head_size", ("head_size", "head_dim"))
NO_HEADS = Key("{arch}.attention.head_count", lambda c: 0)
ONE_SHIFT = Key("{arch}.token_shift_count", lambda c: 1)


def _ffn6(config: Config) -> int:
    n = config.get("intermediate_size", default=0)
    return n or int(config.one("hidden_size") * 3.5 // 32 * 32)


def _dims6(mix: Key, decay: Key) -> dict[str, Callable[[Config], int]]:
    return {
        "five": lambda c: 5,
        "mix": mix.read,
        "5mix": lambda c: 5 * mix.read(c),
        "decay": decay.read,
    }


B = "rwkv.blocks.{bid}"
RANKS6 = _ranks6(lambda hidden: hidden == 4096)
RWKV6 = Architecture(
    hf_names=("Rwkv6ForCausalLM",),
    gguf_arch="rwkv6",
    keys=(
        *SIZES,
        EPS,
        Key("{arch}.rescale_every_n_layers", "rescale_every"),
        HEAD,
        *RANKS6,
        Key("{arch}.feed_forward_length", _ffn6),
    ),
    late_keys=(NO_HEADS,),
    expects=(),
    dims={
        **WIDTHS,
        **_dims6(*RANKS6),
        "ffn": _ffn6,
        "kv": lambda c: c.get("hidden_size"),
        "head": lambda c: c.get("head_size"),
        "heads": lambda c: c.one("hidden_size") // max(c.one("head_size"), 1),
        "halvings": _halvings,
    },
    maps=(
        Map("rwkv.embeddings.weight", ("vocab", "hidden"), whole("token_embd.weight")),
        *layer_norm("rwkv.blocks.0.pre_ln", "token_embd_norm"),
        *layer_norm("rwkv.ln_out", "output_norm"),
        Map("head.weight", ("vocab", "hidden"), whole("output.weight")),
        *layer_norm(f"{B}.ln1", "attn_norm"),
        *layer_norm(f"{B}.ln2", "attn_norm_2"),
        *_mixing6(f"{B}.attention", ("receptance", "key", "value"), range(5)),
        Map(f"{B}.attention.time_faaaa", ("heads", "head"), whole("time_mix_first.weight")),
        *layer_norm(f"{B}.attention.ln_x", "time_mix_ln"),
        Map(f"{B}.attention.output.weight", ("hidden", "hidden"),
            _halved("time_mix_output.weight")),
        row(f"{B}.feed_forward.time_maa_k", "channel_mix_lerp_k"),
        row(f"{B}.feed_forward.time_maa_r", "channel_mix_lerp_r"),
        *linear(f"{B}.feed_forward.key", ("ffn", "hidden"), "channel_mix_key", bias=False),
        *linear(f"{B}.feed_forward.receptance", ("hidden", "hidden"), "channel_mix_receptance",
                bias=False),
        Map(f"{B}.feed_forward.value.weight", ("hidden", "ffn"),
            _halved("channel_mix_value.weight")),
    ),
)  # fmt: skip

QRANKS = _ranks6(lambda hidden: hidden >= 4096, "lora_rank_tokenshift", "lora_rank_decay")
RWKV6_QWEN2 = replace(
    RWKV6,
    hf_names=("RWKV6Qwen2ForCausalLM",),
    gguf_arch="rwkv6qwen2",
    keys=(
        *SIZES,
        Key("{arch}.wkv.head_size", lambda c: c.one("hidden_size") // c.one("num_attention_heads")),
        *QRANKS,
        Key("{arch}.feed_forward_length", "intermediate_size"),
    ),
    late_keys=(
        RMS_EPS, ONE_SHIFT, Key("{arch}.attention.head_count_kv", "num_key_value_heads"), NO_HEADS,
    ),
    dims={**DIMS, **_dims6(*QRANKS)},
    maps=(
        *EMBEDDINGS,
        *NORMS,
        # its own order of the five is r, k, v, w, g
        *_mixing6(f"{L}.self_attn", ("q_proj", "k_proj", "v_proj"), (3, 1, 2, 0, 4)),
        *linear(f"{L}.self_attn.o_proj", ("hidden", "hidden"), "time_mix_output", bias=False),
        *gated_mlp(),
    ),
)  # fmt: skip

FAMILY = (RWKV6, RWKV6_QWEN2)
