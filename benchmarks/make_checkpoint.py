"""Write a Mixtral-shaped checkpoint of real widths: `make_checkpoint.py OUT [LAYERS] [EXPERTS]`.

Mistral-7B's sizes (4096 wide, 14336 in the experts, vocabulary 32,000) with few layers: one layer
of four experts has about a billion weights, 2 GB in bfloat16. Values are normal, from a seed.
"""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from typing import BinaryIO

import numpy as np

HIDDEN, FFN, VOCAB, HEADS, KV_HEADS = 4096, 14336, 32000, 32, 8


def shapes(layers: int, experts: int) -> dict[str, tuple[int, ...]]:
    """Every tensor of the checkpoint, sorted by name."""
    out: dict[str, tuple[int, ...]] = {
        "lm_head.weight": (VOCAB, HIDDEN),
        "model.embed_tokens.weight": (VOCAB, HIDDEN),
        "model.norm.weight": (HIDDEN,),
    }
    kv = HIDDEN // HEADS * KV_HEADS
    for i in range(layers):
        layer = f"model.layers.{i}"
        moe = f"{layer}.block_sparse_moe"
        out |= {
            f"{layer}.input_layernorm.weight": (HIDDEN,),
            f"{layer}.post_attention_layernorm.weight": (HIDDEN,),
            f"{layer}.self_attn.q_proj.weight": (HIDDEN, HIDDEN),
            f"{layer}.self_attn.k_proj.weight": (kv, HIDDEN),
            f"{layer}.self_attn.v_proj.weight": (kv, HIDDEN),
            f"{layer}.self_attn.o_proj.weight": (HIDDEN, HIDDEN),
            f"{moe}.gate.weight": (experts, HIDDEN),
        }
        for x in range(experts):
            out |= {
                f"{moe}.experts.{x}.w1.weight": (FFN, HIDDEN),
                f"{moe}.experts.{x}.w2.weight": (HIDDEN, FFN),
                f"{moe}.experts.{x}.w3.weight": (FFN, HIDDEN),
            }
    return dict(sorted(out.items()))


def write(out: Path, layers: int = 1, experts: int = 4) -> None:
    """Write the checkpoint, a tensor at a time."""
    rng = np.random.default_rng(1)
    with begin(out, layers, experts) as f:
        for shape in shapes(layers, experts).values():
            for _ in range(shape[0] if len(shape) > 1 else 1):
                x = rng.standard_normal(shape[-1], np.float32) * np.float32(0.02)
                f.write((x.view(np.uint32) >> 16).astype(np.uint16).tobytes())


def hollow(out: Path, layers: int = 1, experts: int = 4) -> None:
    """Write the checkpoint with a hole for its weights: they are zeros, and take no disk."""
    with begin(out, layers, experts) as f:
        f.truncate(f.tell() + sum(2 * int(np.prod(s)) for s in shapes(layers, experts).values()))


def begin(out: Path, layers: int, experts: int) -> BinaryIO:
    """Write all but the weights. They are to be written to the file that is returned."""
    out.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["MixtralForCausalLM"],
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "intermediate_size": FFN,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "vocab_size": VOCAB,
        "num_local_experts": experts,
        "num_experts_per_tok": min(2, experts),
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    (out / "config.json").write_text(json.dumps(config))
    (out / "tokenizer.json").write_text(json.dumps(_tokenizer()))
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (out / "tokenizer_config.json").write_text(json.dumps({**names, "add_bos_token": True}))
    header, offset = {}, 0
    for name, shape in shapes(layers, experts).items():
        end = offset + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    f = (out / "model.safetensors").open("wb")
    f.write(struct.pack("<Q", len(text)) + text)
    return f


def _tokenizer() -> dict[str, object]:
    """Bytes and single characters: enough for llama.cpp to load and tokenize."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "\u2581"]
    pieces += [chr(c) for c in range(33, 127)]
    added = [{"id": i, "content": p, "special": True} for i, p in enumerate(pieces[:3])]
    return {
        "added_tokens": added,
        "normalizer": {"type": "Prepend", "prepend": "\u2581"},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}]},
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "byte_fallback": True,
            "fuse_unk": True,
            "vocab": {p: i for i, p in enumerate(pieces)},
            "merges": [],
        },
    }


if __name__ == "__main__":
    write(Path(sys.argv[1]), *map(int, sys.argv[2:4]))
