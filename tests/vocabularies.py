"""Vocabularies that llama.cpp's converter has converted: small files and their keys.

Those of the whole conversions, and more (`vocab-...`) made with its `--vocab-only` and transformers
5.23 (4.57 for two) from edited files; `pre` was given wherever llama.cpp did not know the hash.
"""

from __future__ import annotations

import functools
import json
import lzma
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from quantkit.source.checkpoint_files import CheckpointFiles
from quantkit.tokenizer.families import rules_for
from quantkit.tokenizer.vocabulary import Vocabulary, read_vocabulary
from tests.checkpoints import GOLDEN


@functools.cache
def cases() -> dict[str, dict[str, Any]]:
    """Name -> dir, pre, files, tokenizer_files, kv (as `golden.fingerprint`), tensors."""
    data = lzma.decompress((GOLDEN / "vocabularies.json.xz").read_bytes())
    return dict(json.loads(data))


def write_files(case: str, parent: Path) -> Path:
    """The small files of a case, in a directory of the name that it had."""
    recipe = cases()[case]
    out = parent / recipe["dir"]
    for name, text in recipe["files"].items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(text, encoding="utf-8")
    for name, source in recipe["tokenizer_files"].items():
        shutil.copy(GOLDEN / "tokenizers" / source, out / name)
    return out


def read_json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def edit_json(path: Path, **values: Any) -> None:
    """Set keys of a JSON file; a value of None takes a key out."""
    data = {**(read_json(path) if path.exists() else {}), **values}
    data = {k: v for k, v in data.items() if v is not None}
    path.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")


def vocabulary(directory: Path, pre: str | None = None) -> Vocabulary:
    """The vocabulary of a checkpoint directory under the rules of its family."""
    config = read_json(directory / "config.json")
    size = {**config, **config.get("text_config", {})}["vocab_size"]
    name = config["architectures"][0]
    return read_vocabulary(CheckpointFiles.local(directory), size, pre, rules_for(name, size), name)


def tiny_gguf(vocab: Vocabulary, path: Path) -> Path:
    """The smallest model that llama.cpp loads, with this vocabulary."""
    from gguf import GGUFWriter

    width = 32
    writer = GGUFWriter(path, "llama")
    for key, value in (
        ("context_length", 128), ("block_count", 1), ("attention.head_count", 1),
        ("embedding_length", width), ("feed_forward_length", width),
        ("rope.dimension_count", width),
    ):  # fmt: skip
        writer.add_uint32(f"llama.{key}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    vocab.write(writer)
    ones = ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm")
    square = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    shapes: dict[str, tuple[int, ...]] = {"token_embd": (len(vocab.tokens), width)}
    shapes |= dict.fromkeys(ones, (width,)) | {f"blk.0.{n}": (width, width) for n in square}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", np.ones(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
