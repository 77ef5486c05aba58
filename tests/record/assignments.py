"""Record which formats llama-quantize's rules give to made-up lists of tensors.

    python -m tests.record.assignments LIBRARY_DIR --type IQ2_M --type IQ3_XS ... --cases 8

LIBRARY_DIR holds libllama.so and libggml-base.so, built from llama.cpp's tree. The rules are asked
through the functions of `src/llama-ext.h` (C++, hence their names), which assume that there is no
importance matrix. New cases are added to tests/data/quantize/assignments.json.gz.
"""

from __future__ import annotations

import argparse
import ctypes
import gzip
import json
import random
from ctypes import c_bool, c_char_p, c_int, c_int64, c_size_t, c_uint32, c_void_p
from pathlib import Path
from typing import Any

from quantkit.gguf.types import type_by_id, type_by_name
from quantkit.recipes.choose import needs_importance
from quantkit.recipes.facts import category, is_quantized
from quantkit.recipes.file_types import find_recipe

TABLE = Path(__file__).parents[1] / "data" / "quantize" / "assignments.json.gz"
ARCHITECTURES = ("llama", "llama", "falcon", "qwen3moe", "glm5-next", "bailingmoe3")
WIDTHS = (256, 512, 2048, 288, 64, 100)
ROLES = (
    "attn_q", "attn_k", "attn_v", "attn_qkv", "attn_output", "attn_kv_b", "attn_q_a", "ffn_gate",
    "ffn_up", "ffn_down", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps", "ssm_in",
)  # fmt: skip


class _Description(ctypes.Structure):
    """llama_quant_model_desc."""

    _fields_ = (("architecture", c_char_p), *((n, c_uint32) for n in (
        "n_embd", "n_ff", "n_layer", "n_head", "n_head_kv", "n_expert", "n_embd_head_k",
        "n_embd_head_v",
    )))  # fmt: skip


class _Parameters(ctypes.Structure):
    """llama_model_quantize_params."""

    _fields_ = (
        *((n, c_int) for n in ("nthread", "ftype", "output_tensor_type", "token_embedding_type")),
        *((n, c_bool) for n in ("allow_requantize", "quantize_output_tensor", "only_copy", "pure",
                                "keep_split", "dry_run")),
        *((n, c_void_p) for n in ("imatrix", "kv_overrides", "tt_overrides", "prune_layers")),
        ("max_buf_size", c_size_t),
    )  # fmt: skip


class _Memory(ctypes.Structure):
    """ggml_init_params."""

    _fields_ = (("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool))


class Oracle:
    """llama.cpp's rules."""

    def __init__(self, directory: Path) -> None:
        self.ggml = ctypes.CDLL(str(directory / "libggml-base.so"), ctypes.RTLD_GLOBAL)
        llama = ctypes.CDLL(str(directory / "libllama.so"), ctypes.RTLD_GLOBAL)
        self.ggml.ggml_init.restype, self.ggml.ggml_init.argtypes = c_void_p, (_Memory,)
        self.ggml.ggml_new_tensor.restype = c_void_p
        self.ggml.ggml_new_tensor.argtypes = (c_void_p, c_int, c_int, ctypes.POINTER(c_int64))
        self.ggml.ggml_set_name.restype = c_void_p
        self.ggml.ggml_set_name.argtypes = (c_void_p, c_char_p)
        self.ggml.ggml_free.argtypes = (c_void_p,)
        self.model = llama._Z31llama_quant_model_from_metadataPK22llama_quant_model_desc
        self.model.restype, self.model.argtypes = c_void_p, (c_void_p,)
        self.state = llama._Z16llama_quant_initPK11llama_modelPK27llama_model_quantize_params
        self.state.restype, self.state.argtypes = c_void_p, (c_void_p, c_void_p)
        self.types = llama[
            "_Z25llama_quant_compute_typesP19quantize_state_impl11llama_ftypePP11ggml_tensor"
            "P9ggml_typem"
        ]
        self.types.argtypes = (c_void_p, c_int, c_void_p, c_void_p, c_size_t)
        self.defaults = llama.llama_model_quantize_default_params
        self.defaults.restype = _Parameters

    def formats(self, case: dict[str, Any], tensors: list[list[Any]]) -> list[str]:
        """The format of each tensor, all of them such as are quantized."""
        model = self.model(
            ctypes.byref(
                _Description(
                    case["arch"].encode(),
                    256,
                    256,
                    case["n_layers"],
                    case["n_heads"],
                    case["n_kv_heads"],
                    case["n_experts"],
                    64,
                    64,
                )
            )
        )
        parameters = self.defaults()
        state = self.state(model, ctypes.byref(parameters))
        memory = self.ggml.ggml_init(_Memory(512 * (len(tensors) + 8), None, True))
        made = (c_void_p * len(tensors))()
        for i, (name, shape, stored, _) in enumerate(tensors):
            dims = (c_int64 * len(shape))(*shape[::-1])
            made[i] = self.ggml.ggml_new_tensor(memory, type_by_name(stored).id, len(shape), dims)
            self.ggml.ggml_set_name(made[i], name.encode())
        found = (c_int * len(tensors))()
        self.types(state, find_recipe(case["recipe"]).file_type, made, found, len(tensors))
        self.ggml.ggml_free(memory)
        names = [type_by_id(kind) for kind in found]
        return [kind.name for kind in names if kind is not None]


def make_case(oracle: Oracle, kind: str, seed: int) -> dict[str, Any]:
    """A case of one type, from a seed."""
    rng = random.Random(f"{kind} {seed}")
    heads = rng.choice((8, 16, 64))
    case: dict[str, Any] = {
        "arch": rng.choice(ARCHITECTURES),
        "n_layers": rng.choice((8, 16, 20, 80)),
        "n_experts": rng.choice((0, 0, 4, 8)),
        "n_heads": heads,
        "n_kv_heads": rng.choice((heads, heads // 2, heads // 8)),
        "has_imatrix": False,
        "recipe": kind,
        "overrides": {
            "pure": False,
            "output_tensor_type": None,
            "token_embedding_type": None,
            "leave_output_tensor": False,
            "tensor_types": [],
        },
    }
    roles = [role for role in ROLES if rng.random() < 0.7]
    names = [f"blk.{i}.{role}.weight" for i in range(case["n_layers"]) for role in roles]
    names = rng.sample(["output.weight", "token_embd.weight"], rng.choice((1, 2))) + names
    tensors: list[list[Any]] = []
    usual = rng.choice(WIDTHS[:3])
    for name in names:
        width = usual if rng.random() < 0.8 else rng.choice(WIDTHS)
        lead = [4] if name.split(".")[-2].endswith("_exps") else []
        tensors.append([name, [*lead, 64, width], "BF16", ""])
    tensors = [t for t in tensors if is_quantized(t[0], t[1], case["arch"])]
    if kind == "IQ3_XXS" and seed % 2:  # what does not depend on whether there is a matrix
        tensors = [t for t in tensors if category(t[0]) not in ("attn_v", "ffn_down")]
    for t, fmt in zip(tensors, oracle.formats(case, tensors), strict=True):
        t[3] = fmt
    recipe = find_recipe(kind)
    # the functions assume no matrix, with which some formats are refused
    case["tensors"] = [t for t in tensors if not needs_importance(t[0], t[3], recipe.name)]
    if (kind != "IQ3_XXS" or seed % 2) and len(case["tensors"]) < len(tensors):
        case["has_imatrix"], case["tensors"] = True, tensors  # of which these rules know nothing
    elif len(case["tensors"]) < len(tensors):
        formats = oracle.formats(case, case["tensors"])
        case["tensors"] = [[*t[:3], f] for t, f in zip(case["tensors"], formats, strict=True)]
        assert not any(needs_importance(t[0], t[3], recipe.name) for t in case["tensors"])
    return {**case, "refused": None}


def main() -> None:
    """Add cases to the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("library_dir", type=Path)
    parser.add_argument("--type", action="append", required=True)
    parser.add_argument("--cases", type=int, default=8)
    options = parser.parse_args()
    oracle = Oracle(options.library_dir)
    table = json.loads(gzip.decompress(TABLE.read_bytes()))
    for kind in options.type:
        table["cases"] += [make_case(oracle, kind, seed) for seed in range(options.cases)]
    table["about"] = table["about"].rstrip() + (
        f" Cases of {', '.join(options.type)}: b11549, through llama_quant_compute_types."
    )
    data = json.dumps(table, separators=(",", ":")).encode()
    TABLE.write_bytes(gzip.compress(data, 9, mtime=0))


if __name__ == "__main__":
    main()
