"""Directories and tensors that are mistaken for a model: what they are, and what to do."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from quantkit.source.checkpoint_files import CheckpointFiles
from quantkit.storage.substitutes import UNFINISHED, piece

# endings of weights that only other programs read -> what to do
_OTHERS = {
    (
        ".h5",
        ".msgpack",
        ".ckpt.index",
    ): "load it in transformers (from_tf or from_flax) and save it",
    (
        ".pt",
        ".pth",
        ".ckpt",
    ): "load it in PyTorch and save it as model.safetensors, or get the release in safetensors",
    (".onnx", ".npz", ".tflite"): "get the release of the model in safetensors",
}


def no_model(files: CheckpointFiles) -> str | None:
    """What a directory without config.json or without weights is."""
    if files.has("adapter_config.json"):
        return (
            "it is an adapter (LoRA), not a model; convert makes the file of it that llama.cpp "
            "takes with --lora, or merge it into its base (merge_and_unload of peft) and save that"
        )
    if files.has("model_index.json") or "model_index.json" in files.weights:
        return (
            "it is a diffusers pipeline (for pictures, video or sound); language models are "
            "converted, and of a pipeline none but its text encoder, which is a directory of "
            "its own"
        )
    names = sorted(files.weights)
    if ggufs := [name for name in names if name.lower().endswith(".gguf")]:
        return f"it is a directory of GGUF files; name one of them, for instance {ggufs[0]}"
    if inner := models_in(files.directory):
        one = "one of them, for instance " if len(inner) > 1 else ""
        models = f"{len(inner)} model{'s' * (len(inner) > 1)}"
        return f"it is a directory of {models}; name {one}{inner[0]}"
    links = sorted(p for p in files.directory.iterdir() if p.is_symlink() and not p.exists())
    if links:
        return f"{links[0].name} is a link to a file that is not there; download it again"
    if what := next(filter(None, map(piece, names)), None):
        return f"it has {what}"
    held = files.directory / ".cache/huggingface/download"
    for name in [*names, *(sorted(p.name for p in held.iterdir()) if held.is_dir() else ())]:
        if name.endswith(UNFINISHED):
            return f"{name} is of a download that is not finished; finish it"
    for endings, what in _OTHERS.items():
        if found := [name for name in names if name.endswith(endings)]:
            return f"{found[0]} is not read; {what}"
    return None


def models_in(directory: Path) -> list[Path]:
    """The directories in a directory that are models (or adapters)."""
    names = ("config.json", "params.json", "adapter_config.json")
    inner = sorted(p for p in directory.iterdir() if p.is_dir())
    return [p for p in inner if any((p / name).is_file() for name in names)]


# how a file's name ends -> what it is
_FILES = (
    (".safetensors", "weights of a checkpoint"),
    (".index.json", "the index of a checkpoint"),
    (".json", "a part of a checkpoint"),
    ((".bin", ".pt", ".pth", ".ckpt"), "weights of PyTorch"),
    ((".zip", ".tar", ".gz", ".xz", ".zst", ".7z"), "an archive; unpack it first"),
)


def no_gguf(path: Path) -> str | None:
    """What a file is that does not begin as a GGUF file; None for others, and those not known."""
    found = next((what for end, what in _FILES if path.name.lower().endswith(end)), None)
    if found is None or not path.is_file():
        return None
    with path.open("rb") as f:
        if f.read(4) == b"GGUF":
            return None
    if "archive" in found:
        return found
    parent = path.parent
    if any((parent / name).is_file() for name in ("config.json", "params.json")):
        return f"{found}; the model is its directory, {parent}"
    return f"{found}, of which config.json and the tokenizer are missing beside it"


# parts of names -> whose tensors they are, and what to do
_STRANGERS = (
    (r"\.lora_(A|B|embedding)|\.base_layer\.|^base_model\.",
     "it is of an adapter (LoRA) that is not merged; merge it (merge_and_unload of peft) and save "
     "the model"),
    (r"\.(absmax|quant_map|nested_absmax|nested_quant_map|SCB|weight_format)$|quant_state\.bits",
     "it is what bitsandbytes keeps beside 4- and 8-bit weights; convert the 16-bit release, or "
     "dequantize the model and save it"),
    (r"\.switch_mlp\.",
     "it is named as mlx names experts; convert the checkpoint that was given to mlx"),
    (r"\.(scales|biases)$",
     "it is of weights that mlx quantized; convert the 16-bit release"),
    (r"^v_head\.|^value_head\.|\.v_head\.",
     "it is the value head of a training run; remove it from the checkpoint"),
)  # fmt: skip


def stranger(name: str, others: Collection[str] = ()) -> str:
    """Why a tensor that no row places is there; one of `others` may tell it for all."""
    for pattern, why in _STRANGERS:
        if re.search(pattern, name) or any(re.search(pattern, other) for other in others):
            return why
    return "is the checkpoint of another architecture?"
