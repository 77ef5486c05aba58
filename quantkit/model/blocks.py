"""Which weights stay in the blocks that they are released in: NVFP4 and MXFP4.

MXFP4 does wherever rows stay rows. NVFP4 has a scale for the whole tensor beside its blocks, and
llama.cpp's converter keeps it in every architecture; but where the graph of one does not multiply
with that scale, the file computes nonsense (a DeepSeek-R1 of NVFP4: NaN). There, it is dequantized.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

from quantkit.gguf.tensor_names import parse, stays_f32
from quantkit.source.segments import Segment
from quantkit.source.tensors import SourceTensor

BLOCKS = ("mxfp4", "mxfp4_pairs", "nvfp4")  # codings

_QKV = ("attn_q", "attn_k", "attn_v", "attn_qkv")
_ATTENTION = (*_QKV, "attn_output")
_DENSE = ("ffn_gate", "ffn_up", "ffn_down")
_SHARED = ("ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp")
_EXPERTS = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")
_LINEAR = ("attn_gate", "ssm_out", "ssm_alpha", "ssm_beta")
_NEXT = ("nextn.eh_proj", "nextn.shared_head_head")
_SPARSE = ("attn_output", *_DENSE, *_EXPERTS, *_SHARED)

# GGUF architecture -> the roles whose scales its graph in llama.cpp uses (src/models/*.cpp, b11549)
SCALED: dict[str, tuple[str, ...]] = {
    "cohere2": (*_ATTENTION, *_DENSE, "output"),
    "cohere2moe": (*_QKV, *_SPARSE, *_NEXT),
    "deepseek32": (*_SPARSE, *_NEXT),
    "dots3note": _SPARSE,
    "gemma4": (*_ATTENTION, *_DENSE, *_EXPERTS, "output"),
    "glm-dsa": (*_SPARSE, *_NEXT),
    "hy_v3": (*_QKV, *_SPARSE, "nextn.shared_head_head", "output"),
    "llama": (*_ATTENTION, *_DENSE, *_EXPERTS, "output"),
    "mellum": (*_ATTENTION, *_EXPERTS, "output"),
    "mistral3": (*_ATTENTION, *_DENSE, *_EXPERTS, "output"),
    "nanbeige": (*_ATTENTION, *_DENSE, "output"),
    "nemotron_h": (*_QKV, *_SPARSE, "ssm_in", "ssm_out", "output"),
    "nemotron_h_moe": (*_QKV, *_SPARSE, "ssm_in", "ssm_out", *_NEXT, "output"),
    "qwen3": (*_ATTENTION, *_DENSE, "output"),
    "qwen35": (*_ATTENTION, *_DENSE, *_LINEAR, *_NEXT, "output"),
    "qwen35moe": (*_ATTENTION, *_EXPERTS, *_SHARED, *_LINEAR, *_NEXT, "output"),
    "qwen3moe": (*_ATTENTION, *_EXPERTS, "output"),
    "qwen3next": ("attn_q", "attn_k", "attn_v", "attn_output", *_EXPERTS, *_SHARED, *_NEXT,
                  "output"),
    "qwen4exp": (*_ATTENTION, *_EXPERTS, *_SHARED, *_LINEAR, "output"),
}  # fmt: skip


def leaving(
    uses: Sequence[tuple[SourceTensor, Mapping[str, Segment]]], arch: str, layers: int
) -> set[str]:
    """The sources in blocks that have to become float32, by name. `uses`: every source, and which
    of its rows each tensor takes; `layers`: how many do not predict further tokens.

    No tensor is of blocks in part.
    """
    scaled = SCALED.get(arch, ())
    free = {
        name
        for source, rows in uses
        for name, segment in rows.items()
        if not _stays(source, segment, name, layers, scaled)
    }
    while True:
        more = {
            name
            for source, rows in uses
            if source.coding in BLOCKS and not free.isdisjoint(rows)
            for name in rows
        }
        if more <= free:
            break
        free |= more
    return {s.name for s, rows in uses if s.coding in BLOCKS and not free.isdisjoint(rows)}


def _stays(
    source: SourceTensor, rows: Segment, name: str, layers: int, scaled: Container[str]
) -> bool:
    """Whether rows of `source` can be rows of tensor `name` as they are stored: no row is taken
    apart, and llama.cpp computes with them as they are meant.

    It loads no scales of layers that predict further tokens, unless it predicts with them, and
    then refuses the file for having them.
    """
    role = parse(name)
    if source.coding not in BLOCKS or rows.height or stays_f32(role, len(source.shape)):
        return False
    if source.coding == "nvfp4" and (role.role not in scaled or (role.bid or 0) >= layers):
        return False
    return all(_moves_blocks(source, *edit) for edit in rows.edits)


def _moves_blocks(source: SourceTensor, name: str | float, *values: str | float) -> bool:
    """Whether an edit of values moves whole blocks."""
    if name != "heads_across":
        return False
    groups, heads = map(int, values)
    return source.n_per_row % (groups * heads * source.ggml.block_size) == 0
