"""Which layers that predict further tokens a calibration run can go through (`llama/ahead.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quantkit.errors import LlamaError
from quantkit.gguf import tensor_names
from quantkit.gguf.container import KeyValue
from quantkit.loading.ahead import ALONE, unrun
from quantkit.loading.values import Info, number, of_architecture, trunk_of
from quantkit.source.gguf_set import open_gguf_set

COUNT = "nextn_predict_layers"
_HEAD = "nextn.shared_head_head.weight"
# whose graphs leave out, before the experts, tokens whose logits nobody wants
_CROPPED = {"glm5-next", "nemotron_h", "nemotron_h_moe", "qwen3next"}


@dataclass(frozen=True)
class Found:
    """Such layers of a model: how many llama.cpp runs, or `why` it runs none; whether all of the
    one that it runs is only gone through if logits are wanted of it."""

    count: int = 0
    why: str = ""
    outputs: bool = False


def found(arch: str, kv: Sequence[KeyValue], tensors: Sequence[Info]) -> Found:
    """What a model has of them."""
    values = of_architecture(arch, kv)
    first, count = trunk_of(values), number(values, COUNT)
    names = {t.name for t in tensors}
    there = {i for name in names if (i := tensor_names.parse(name).bid) is not None}
    if not count or not any(i >= first for i in there):
        return Found(why="the model has no layers that predict further tokens")
    if not any(i < first for i in there):
        return Found(why="it has nothing but layers that predict further tokens")
    if arch not in ALONE:
        return Found(why=f"llama.cpp does not run those of {arch}")
    if count > 1:
        return Found(why=f"there are {count} layers that predict further tokens; it runs one")
    if whys := list(unrun(arch, values, tensors)):
        return Found(why=whys[0])
    return Found(count, outputs=arch in _CROPPED or tensor_names.in_block(_HEAD, first) in names)


def unseen(arch: str, kv: Sequence[KeyValue], tensors: Sequence[Info]) -> set[str]:
    """Tensors of such layers that no calibration has data for: all of them, where they are not run;
    or the table of tokens that one has for itself, which nothing is multiplied with."""
    values = of_architecture(arch, kv)
    if not number(values, COUNT):
        return set()
    first = trunk_of(values)
    parts = {t.name: tensor_names.parse(t.name) for t in tensors}
    ahead = {name for name, p in parts.items() if p.bid is not None and p.bid >= first}
    if found(arch, kv, tensors).why:
        return ahead
    return {name for name in ahead if parts[name].role == "nextn.embed_tokens"}


def of_file(path: Path) -> Found:
    """What the model of a GGUF file, or of a set of which it is the first, has of them."""
    header, tensors = open_gguf_set(path)
    arch = str(header.get("general.architecture", ""))
    return found(arch, header.kv, [Info(t.name, t.shape, t.ggml.name) for t in tensors])


def wanted(there: Found, source: object) -> Found:
    """The same. Raises LlamaError: llama.cpp runs none of them."""
    if there.why:
        raise LlamaError(f"{source}: {there.why}; leave out --nextn")
    return there
