"""Talkie: norms without weights, gains in their place. llama.cpp: `conversion/talkie.py`."""

from __future__ import annotations

from collections.abc import Sequence

from quantkit.architectures.common import DIMS, TEXT_KEYS
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
    whole,
)

B = "model.blocks.{bid}"
EPS = 2.0**-23  # torch's, where no epsilon is given


def _reversed(role: str, heads: str) -> RowMap:
    """The second half of each head with its sign turned: it is rotated the other way."""

    def pieces(dims: Dims, source: Shape, xid: int) -> Sequence[Piece]:
        half = dims["head"] // 2
        return [
            piece(role, source, half, at, at, edits=(("scale", -1.0),) if turned else ())
            for head in range(dims[heads])
            for turned in (False, True)
            for at in ((2 * head + turned) * half,)
        ]

    return pieces


def _gain(config: Config) -> float | None:
    found = config.find("lm_head_gain")
    return found[0] if isinstance(found, list) else None


TALKIE = Architecture(
    hf_names=("TalkieForCausalLM",),
    gguf_arch="talkie",
    first_keys=(Key("{arch}.logit_scale", _gain, "FLOAT32"),),
    keys=TEXT_KEYS,
    late_keys=(Key("{arch}.attention.layer_norm_rms_epsilon", lambda c: EPS, "FLOAT32"),),
    expects=(Expect("head_dim", required=True),),
    dims=DIMS,
    maps=(
        Map("model.embed.weight", ("vocab", "hidden"), whole("token_embd.weight")),
        Map("lm_head.weight", ("vocab", "hidden"), whole("output.weight")),
        Map(f"{B}.attn.attn_query.weight", ("q", "hidden"), _reversed("attn_q.weight", "heads")),
        Map(f"{B}.attn.attn_key.weight", ("kv", "hidden"), _reversed("attn_k.weight", "kv_heads")),
        Map(f"{B}.attn.attn_value.weight", ("kv", "hidden"), whole("attn_v.weight")),
        Map(f"{B}.attn.attn_resid.weight", ("hidden", "q"), whole("attn_output.weight")),
        Map(f"{B}.attn.head_gain.head_g", ("heads",), whole("attn_q_norm.weight", "heads", "one"),
            flat=True),
        Map(f"{B}.attn_gain.a_g", ("one",), whole("attn_output.scale")),
        Map(f"{B}.mlp.mlp_gate.weight", ("ffn", "hidden"), whole("ffn_gate.weight")),
        Map(f"{B}.mlp.mlp_linear.weight", ("ffn", "hidden"), whole("ffn_up.weight")),
        Map(f"{B}.mlp.mlp_resid.weight", ("hidden", "ffn"), whole("ffn_down.weight")),
        Map(f"{B}.mlp_gain.a_g", ("one",), whole("ffn_down.scale")),
        Map(f"{B}.embed_skip.a_g", ("one",), whole("layer_output_scale.weight")),
    ),
    renames=((r"^lm_head$", "lm_head.weight"),),
    scalars={"lm_head_gain": "lm_head_gain.w_g"},
)  # fmt: skip

FAMILY = (TALKIE,)
