"""What recipes ask of a model and of its tensors: pure functions of names, shapes and metadata.

Facts of `src/llama-quant.cpp` (tensor_get_category, tensor_allows_quantization).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# (architecture, layers) of the models that llama.cpp's rule knows as "70B"
_SEVENTY_B = frozenset({
    ("llama", 80), ("llama-embed", 80), ("qwen2", 80), ("deci", 80), ("olmo", 80), ("jais2", 68),
})  # fmt: skip


@dataclass(frozen=True)
class ModelFacts:
    """What the rules ask of a model, and of the run: heads are those of the first layer; `tied`:
    no output.weight, the embedding serves as both; `has_imatrix`: an importance matrix is at hand,
    which has data for the tensors of `importances`."""

    arch: str
    n_layers: int
    n_experts: int
    n_heads: int
    n_kv_heads: int
    tied: bool
    has_imatrix: bool = False
    importances: frozenset[str] = frozenset()

    @property
    def queries_per_kv(self) -> int:
        """Query heads that share a key-value head (llama.cpp's `n_gqa`)."""
        return self.n_heads // self.n_kv_heads if self.n_kv_heads else 0

    @property
    def is_70b(self) -> bool:
        """Whether llama.cpp calls the model 70B; Llama's 65B has as many layers."""
        full_attention = self.arch.startswith("llama") and self.n_heads == self.n_kv_heads
        return (self.arch, self.n_layers) in _SEVENTY_B and not full_attention


# the first of these that is part of a tensor's name is its category
_CATEGORIES = (
    ("attn_qkv.weight", "attn_v"), ("attn_kv_b.weight", "attn_v"), ("attn_v.weight", "attn_v"),
    ("attn_k.weight", "attn_k"), ("attn_q.weight", "attn_q"), ("attn_output.weight", "attn_output"),
    ("ffn_up", "ffn_up"), ("ffn_gate", "ffn_gate"), ("ffn_down", "ffn_down"),
)  # fmt: skip


# parts of the names of matrices that are never quantized
_KEPT = (
    "_norm.weight", "ffn_gate_inp.weight", "ffn_gate_tid2eid.weight", "altup", "laurel",
    "per_layer_model_proj", "ssm_conv1d", "shortconv.conv.weight", "indexer.k_proj.weight",
    "indexer.q_proj.weight", "time_mix_first.weight", "time_mix_w0.weight", "time_mix_w1.weight",
    "time_mix_w2.weight", "time_mix_v0.weight", "time_mix_v1.weight", "time_mix_v2.weight",
    "time_mix_a0.weight", "time_mix_a1.weight", "time_mix_a2.weight", "time_mix_g1.weight",
    "time_mix_g2.weight", "time_mix_decay_w1.weight", "time_mix_decay_w2.weight",
    "time_mix_lerp_fused.weight", "attn_rel_b.weight", "position_embd", "token_types.weight",
    "sam.pos_embd", "sam.neck.", "sam.net_", ".rel_pos", ".patch_embd", ".patch_merger",
    "a.rvq.codebook", "mm.a.code_embd",
)  # fmt: skip


_KEPT_IN: Mapping[str, tuple[str, ...]] = {  # by architecture
    "glm5-next": (
        "hc_", "indexer.attn_q_b", "indexer.attn_k", "indexer.proj", "indexer_compressor_gate",
        "indexer_compressor_ape", "ssm_f_a.weight", "ssm_f_b.weight", "ssm_g_a.weight",
        "ssm_g_b.weight", "ssm_beta.weight", "attn_kv_a_mqa.weight", "attn_k_b.weight",
        "attn_v_b.weight",
    ),
}  # fmt: skip


def category(name: str) -> str:
    """llama.cpp's tensor category: broad, by parts of the name."""
    if name == "output.weight":
        return "output"
    if name in ("token_embd.weight", "per_layer_token_embd.weight"):
        return "token_embd"
    return next((found for part, found in _CATEGORIES if part in name), "other")


def is_quantized(name: str, shape: Sequence[int], arch: str = "") -> bool:
    """Whether llama.cpp quantizes the tensor at all. `shape` in NumPy order."""
    leading_ones = next((i for i, n in enumerate(shape) if n != 1), len(shape))
    if len(shape) - leading_ones < 2 or not name.endswith("weight"):
        return False
    return not any(part in name for part in (*_KEPT, *_KEPT_IN.get(arch, ())))
