"""Checkpoints for the tests: from recipes (seeds), and the trained frankenMoE in its two spellings.

A recipe's values depend on each tensor's name alone: 8 bytes of SHAKE-256 a weight, summed as four
16-bit integers (close to a normal), scaled in float64, rounded once to the stored dtype.
"""

from __future__ import annotations

import functools
import hashlib
import json
import lzma
import shutil
import struct
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

DATA = Path(__file__).parent / "data"
GOLDEN = DATA / "golden"
FRANKENMOE = DATA / "frankenmoe-mergekit"  # as mergekit writes it: fused experts, tokenizer.json
DTYPES: dict[str, Any] = {
    "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
    "F64": np.float64, "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2,
    "F8_E8M0": np.uint8, "U8": np.uint8, "I8": np.int8,
    "I32": np.int32, "I64": np.int64,
}  # fmt: skip


def values(name: str, dtype: str, shape: list[int], how: dict[str, Any]) -> np.ndarray:
    """The values of one tensor of a recipe."""
    n = int(np.prod(shape, dtype=np.int64))
    if "data" in how:
        return np.array(how["data"]).astype(DTYPES[dtype]).reshape(shape)
    raw = hashlib.shake_256(name.encode()).digest(8 * n)
    if "low" in how:  # integers from low up to high
        u = np.frombuffer(raw, "<u8") % np.uint64(how["high"] - how["low"])
        return (u.astype(np.int64) + how["low"]).astype(DTYPES[dtype]).reshape(shape)
    u = np.frombuffer(raw, "<u2").reshape(n, 4).sum(axis=1, dtype=np.int64)
    x = how["mean"] + how["std"] * ((u - 131070) / 37837.2)
    if n > 4096:
        x = np.where(u % 2003 == 0, x * 6, x)
    if dtype == "F8_E4M3":
        x = np.clip(x, -448, 448)  # the format has no infinity
    return x.astype(np.float32).astype(DTYPES[dtype]).reshape(shape)


def write_safetensors(
    path: Path, tensors: dict[str, tuple[str, list[int], bytes]], metadata: Any = None
) -> None:
    """A safetensors file with its header in the order of `tensors` (dtype, shape, bytes)."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    offset = 0
    for name, (dtype, shape, data) in tensors.items():
        ends = [offset, offset := offset + len(data)]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": ends}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    blobs = b"".join(data for _, _, data in tensors.values())
    path.write_bytes(struct.pack("<Q", len(text)) + text + blobs)


def read_safetensors(path: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """The inverse of `write_safetensors`, in header order."""
    data = path.read_bytes()
    (size,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + size])
    header.pop("__metadata__", None)
    return {
        name: (
            t["dtype"],
            t["shape"],
            data[8 + size + t["data_offsets"][0] : 8 + size + t["data_offsets"][1]],
        )
        for name, t in header.items()
    }


def write_torch(path: Path, tensors: dict[str, tuple[str, list[int], bytes]]) -> None:
    """A file as `torch.save` writes a state dict: a zip with a pickle, and each tensor's bytes."""
    storages = {"F32": "FloatStorage", "F16": "HalfStorage", "BF16": "BFloat16Storage",
                "I64": "LongStorage", "U8": "ByteStorage"}  # fmt: skip

    def text(value: str) -> bytes:
        data = value.encode()
        return b"X" + struct.pack("<I", len(data)) + data

    def ints(values: list[int]) -> bytes:
        return b"(" + b"".join(b"J" + struct.pack("<i", v) for v in values) + b"t"

    out = b"\x80\x02ccollections\nOrderedDict\n)R("
    for i, (name, (dtype, shape, _)) in enumerate(tensors.items()):
        n = int(np.prod(shape))
        stride = [int(np.prod(shape[d + 1 :])) for d in range(len(shape))]
        out += text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n(("
        out += text("storage") + f"ctorch\n{storages[dtype]}\n".encode() + text(str(i))
        out += text("cpu") + b"J" + struct.pack("<i", n) + b"tQJ" + struct.pack("<i", 0)
        out += ints(shape) + ints(stride) + b"\x89ccollections\nOrderedDict\n)RtR"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", out + b"u.")
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/version", "3\n")
        for i, (_, _, data) in enumerate(tensors.values()):
            archive.writestr(f"archive/data/{i}", data)


@functools.cache
def architectures() -> dict[str, dict[str, Any]]:
    """Case -> its recipe and its golden, for every architecture but the Llama family."""
    return _tables("architectures*.json.xz")


@functools.cache
def encoders() -> dict[str, dict[str, Any]]:
    """Case -> its recipe and its golden, for encoders of images and sound (`--mmproj`)."""
    return _tables("encoders*.json.xz")


@functools.cache
def adapters() -> dict[str, dict[str, Any]]:
    """Case -> its recipe and its golden, for LoRA adapters: `base_case` is the case of the model
    that it is for, and `base` the folder in it that has that model's config."""
    return _tables("adapters*.json.xz")


def _tables(pattern: str) -> dict[str, dict[str, Any]]:
    tables = [json.loads(lzma.decompress(p.read_bytes())) for p in sorted(GOLDEN.glob(pattern))]
    return {case: data for table in tables for case, data in table.items()}


def from_recipe(case: str, parent: Path) -> Path:
    """Write the checkpoint of a golden case below `parent`."""
    if packed := architectures().get(case) or encoders().get(case) or adapters().get(case):
        recipe = packed["recipe"]
    else:
        recipe = json.loads((GOLDEN / "recipes" / f"{case}.json").read_text())
    out = parent / recipe["dir"]
    out.mkdir(parents=True)
    for name, text in recipe["files"].items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(text, encoding="utf-8")
    for name, source in recipe["tokenizer_files"].items():
        shutil.copy(GOLDEN / "tokenizers" / source, out / name)
    for name, f in recipe["weights"].items():
        tensors = {
            t["name"]: (
                t["dtype"],
                t["shape"],
                values(t["name"], t["dtype"], t["shape"], t["how"]).tobytes(),
            )
            for t in f["tensors"]
        }
        if name.endswith(".bin"):
            write_torch(out / name, tensors)
        else:
            write_safetensors(out / name, tensors, f.get("metadata"))
    return out


def classic_frankenmoe(parent: Path) -> Path:
    """The trained frankenMoE respelled as older tools write it: one tensor an expert, and
    `tokenizer.model`. The very bytes of the original are restored."""
    out = parent / "frankenmoe-4x"
    shutil.copytree(FRANKENMOE, out)
    shutil.copy(DATA / "frankenmoe-classic-tokenizer.model", out / "tokenizer.model")
    tensors: dict[str, tuple[str, list[int], bytes]] = {}
    for name, (dtype, shape, data) in read_safetensors(FRANKENMOE / "model.safetensors").items():
        block = name.rpartition(".mlp.")[0] + ".block_sparse_moe"
        if name.endswith("mlp.gate.weight"):
            tensors[f"{block}.gate.weight"] = (dtype, shape, data)
        elif ".mlp.experts." not in name:
            tensors[name] = (dtype, shape, data)
        else:
            x = np.frombuffer(data, np.uint16).reshape(shape)
            for i, expert in enumerate(x):
                if name.endswith("down_proj"):
                    parts = {"w2": expert}
                else:
                    parts = dict(zip(("w1", "w3"), np.split(expert, 2), strict=True))
                for wid, part in parts.items():
                    tensors[f"{block}.experts.{i}.{wid}.weight"] = (
                        dtype,
                        list(part.shape),
                        part.tobytes(),
                    )
    ordered = dict(sorted(tensors.items()))
    write_safetensors(out / "model.safetensors", ordered, {"format": "pt"})
    return out
