"""The formats that llama.cpp computes with, by what it does to a tensor.

Rows that are looked up, or multiplied by a matrix, may be of any format that ggml has a dot product
for (`type_traits_cpu` of `ggml-cpu.c`). What is added, multiplied element by element or convolved
is read as float32 (`binary-ops.cpp`, `ops.cpp`): another type ends the process in the middle of a
text. Shown with every kind of tensor of the golden models in eight types (b11549).

A plan is not asked this: what is only copied stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from quantkit.gguf import tensor_names
from quantkit.loading.values import Info

# without a dot product: what a product is made of on the way, and numbers
_NO_WEIGHTS = frozenset({"Q8_1", "Q8_K", "I8", "I16", "I32", "I64", "F64"})
_TABLE = "ffn_gate_tid2eid"  # the experts of each token, I32
# matrices that are no factors of a product of matrices
_ELEMENTS = frozenset({
    "attn_k_norm", "attn_q_norm", "shortconv.conv", "ssm_a", "ssm_conv1d", "ssm_conv1d_k",
    "ssm_conv1d_q", "ssm_conv1d_v", "ssm_d", "ssm_norm",
})  # fmt: skip


def faults(tensors: Sequence[Info]) -> Iterator[str]:
    """A line for the first tensor of a format that llama.cpp cannot use it in."""
    for t in tensors:
        name = tensor_names.parse(t.name)
        if name.role == _TABLE:
            wanted = "I32"
        elif len(t.shape) == 1 or name.suffix == ".bias" or name.role in _ELEMENTS:
            wanted = "F32"
        elif t.format in _NO_WEIGHTS:
            yield f"{t.name} is {t.format}, which llama.cpp has no weights of"
            return
        else:
            continue
        if t.format != wanted:
            yield f"{t.name} is {t.format} where llama.cpp computes with {wanted}"
            return
