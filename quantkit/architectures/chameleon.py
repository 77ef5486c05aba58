"""Chameleon, without what makes tokens of images. llama.cpp: `conversion/chameleon.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from quantkit.architectures.common import EMBEDDINGS, NORMS, TEXT_KEYS, L, attention, gated_mlp
from quantkit.architectures.llama import LLAMA
from quantkit.architectures.rules import Config, Dims, Expect, Key, Map, Piece, RowMap, Shape, piece
from quantkit.errors import ConfigError


def _turned(role: str) -> RowMap:
    """A row for each head, whose two halves take turns."""

    def pieces(dims: Dims, source: Shape, xid: int) -> Sequence[Piece]:
        edit = ("heads_across", 2, dims["head"] // 2)
        return (piece(role, source, source[0], edits=(edit,)),)

    return pieces


def _vocab(config: Config) -> int:
    """Pieces of images are the tokens 4 to 8195, which llama.cpp never lets a text have."""
    n: int = config.get("vocab_size")
    if n < 8196:
        raise ConfigError(f"{config.where}: 'vocab_size' is {n}, and 8192 tokens are of images")
    return n


CHAMELEON = replace(
    LLAMA,
    hf_names=("ChameleonForConditionalGeneration", "ChameleonForCausalLM"),
    gguf_arch="chameleon",
    keys=TEXT_KEYS,
    late_keys=(Key("{arch}.swin_norm", "swin_norm", "BOOL", default=False),),
    expects=(*LLAMA.expects, Expect("mlp_bias", (False,))),
    dims={**LLAMA.dims, "vocab": _vocab},
    maps=(
        *EMBEDDINGS,
        *NORMS,
        *attention(rotated=True, bias=None, out_bias=None),
        *(
            Map(f"{L}.self_attn.{x}_norm.{part}", (heads, "head"), _turned(f"attn_{x}_norm.{part}"))
            for x, heads in (("q", "heads"), ("k", "kv_heads"))
            for part in ("weight", "bias")
        ),
        *gated_mlp(),
    ),
    renames=(),
    drops=(r"model\.vqmodel\..*",),
    defaults={},
    computed={},
)  # fmt: skip

FAMILY = (CHAMELEON,)
