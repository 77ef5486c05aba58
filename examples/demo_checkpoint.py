"""Make a small Mixtral-style checkpoint with four experts from seeds: `demo_checkpoint.py OUT_DIR`.

It has the shape of a merged model (config, tokenizer, safetensors) and random weights, so that the
whole way from checkpoint to GGUF can be walked in seconds. What it says is noise.
"""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, trainers

HIDDEN, FFN, HEADS, KV_HEADS, LAYERS, EXPERTS = 256, 512, 4, 2, 4, 4
TEXT = "the quick brown fox jumps over the lazy dog and then the dog sleeps under the tree"


def make_tokenizer(path: Path) -> int:
    """A byte-fallback BPE vocabulary, as Llama's and Mistral's are. Returns its size."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=specials,
        show_progress=False,
        initial_alphabet=[chr(c) for c in range(33, 127)],
    )
    tokenizer.train_from_iterator([TEXT] * 10, trainer)
    saved = json.loads(tokenizer.to_str())
    saved["added_tokens"] = saved["added_tokens"][:3]  # the bytes are pieces, not added tokens
    path.write_text(json.dumps(saved, ensure_ascii=False), encoding="utf-8")
    return len(saved["model"]["vocab"])


def make_weights(path: Path, vocab: int) -> None:
    """bfloat16 weights from a seed, one tensor an expert."""
    rng = np.random.default_rng(7)
    head = HIDDEN // HEADS

    def weight(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape, np.float32) * 0.05).astype(ml_dtypes.bfloat16)

    def ones(n: int) -> np.ndarray:
        return np.ones(n, ml_dtypes.bfloat16)

    tensors = {
        "model.embed_tokens.weight": weight(vocab, HIDDEN),
        "model.norm.weight": ones(HIDDEN),
        "lm_head.weight": weight(vocab, HIDDEN),
    }
    for i in range(LAYERS):
        layer = f"model.layers.{i}"
        moe = f"{layer}.block_sparse_moe"
        tensors |= {
            f"{layer}.input_layernorm.weight": ones(HIDDEN),
            f"{layer}.post_attention_layernorm.weight": ones(HIDDEN),
            f"{layer}.self_attn.q_proj.weight": weight(HEADS * head, HIDDEN),
            f"{layer}.self_attn.k_proj.weight": weight(KV_HEADS * head, HIDDEN),
            f"{layer}.self_attn.v_proj.weight": weight(KV_HEADS * head, HIDDEN),
            f"{layer}.self_attn.o_proj.weight": weight(HIDDEN, HEADS * head),
            f"{moe}.gate.weight": weight(EXPERTS, HIDDEN),
        }
        for x in range(EXPERTS):
            tensors |= {
                f"{moe}.experts.{x}.w1.weight": weight(FFN, HIDDEN),
                f"{moe}.experts.{x}.w2.weight": weight(HIDDEN, FFN),
                f"{moe}.experts.{x}.w3.weight": weight(FFN, HIDDEN),
            }
    write_safetensors(path, tensors)


def write_safetensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """bfloat16 tensors as a safetensors file: the length of a header in JSON, the header, bytes."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, data in tensors.items():
        start, end = end, end + data.nbytes
        header[name] = {"dtype": "BF16", "shape": data.shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for data in tensors.values():
            f.write(data.tobytes())


def main(out: Path) -> None:
    """Write the checkpoint."""
    out.mkdir(parents=True, exist_ok=True)
    vocab = make_tokenizer(out / "tokenizer.json")
    config = {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "intermediate_size": FFN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "vocab_size": vocab,
        "num_local_experts": EXPERTS,
        "num_experts_per_tok": 2,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    (out / "config.json").write_text(json.dumps(config, indent=2))
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (out / "tokenizer_config.json").write_text(json.dumps({**names, "add_bos_token": True}))
    make_weights(out / "model.safetensors", vocab)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
