"""Whether a GGUF model holds together by itself: what llama.cpp would trip over, or run wrongly.

Headers only. Every fault is a line that says what is there and what should be.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from quantkit.gguf import tensor_names
from quantkit.gguf.container import Header, align
from quantkit.gguf.splits import split_siblings
from quantkit.gguf.types import tensor_bytes
from quantkit.source.tensors import SourceTensor

# what llama.cpp's loader asks of every architecture (`llama-model.cpp`, load_hparams)
REQUIRED = ("block_count", "context_length", "embedding_length")
_IDS = ("bos", "eos", "unknown", "padding", "eot", "eom")
_STACKED = {"ffn_gate_exps", "ffn_up_exps", "ffn_down_exps", "ffn_gate_up_exps"}


def faults(header: Header, tensors: Sequence[SourceTensor]) -> list[str]:
    """All that is wrong with a model: `header` is the first of its files, `tensors` are those of
    all of them."""
    arch = header.get("general.architecture")
    if not isinstance(arch, str) or not arch:
        return ["general.architecture is not there: llama.cpp cannot tell what model it is"]
    values = {i.key.removeprefix(f"{arch}."): i for i in header.kv if i.key.startswith(f"{arch}.")}
    found = [f"{arch}.{key} is not there" for key in REQUIRED if key not in values]
    numbers = {key: item.value for key, item in values.items() if item.type != "STRING"}
    return [
        *found, *_layout(header, tensors), *_blocks(arch, numbers, tensors),
        *_experts(arch, numbers, tensors), *_vocabulary(header, tensors),
    ]  # fmt: skip


def _layout(header: Header, tensors: Sequence[SourceTensor]) -> Iterator[str]:
    """Tensors tile each file: one begins where the one before it ends, and so does the file."""
    files: dict[Path, list[SourceTensor]] = {}
    for t in tensors:
        assert isinstance(t.path, Path)
        files.setdefault(t.path, []).append(t)
    for path, held in files.items():
        end, before = 0, ""
        for t in sorted(held, key=lambda t: t.offset):
            if before and t.offset < end:
                yield f"{path.name}: tensors {before} and {t.name} overlap"
            elif before and t.offset > end:
                yield f"{path.name}: {t.offset - end} bytes before {t.name} belong to no tensor"
            before, last = t.name, t.offset + tensor_bytes(t.shape, t.ggml.name)
            end = align(last)
        size = path.stat().st_size
        if size not in (last, end):
            yield f"{path.name}: {size} bytes, of which {end} are accounted for"


def _blocks(
    arch: str, numbers: Mapping[str, Any], tensors: Sequence[SourceTensor]
) -> Iterator[str]:
    count = numbers.get("block_count")
    there = {bid for t in tensors if (bid := tensor_names.parse(t.name).bid) is not None}
    if isinstance(count, int) and there:
        first = min(there) if "nextn_predict_layers" in numbers else 0  # of a file of those alone
        if max(there) >= count:
            yield f"{arch}.block_count is {count}, and there are tensors of layer {max(there)}"
        elif lost := sorted(set(range(first, min(count, 1 << 16))) - there):
            yield f"{arch}.block_count is {count}, and layer {lost[0]} has no tensors"
    rows = _by_name(tensors, "token_embd.weight")
    width = numbers.get("embedding_length")
    if rows is None:
        yield "token_embd.weight is not there"
    elif isinstance(width, int) and rows.shape[-1] != width:
        yield f"{arch}.embedding_length is {width}, token_embd.weight is {rows.shape[-1]} wide"


def _experts(
    arch: str, numbers: Mapping[str, Any], tensors: Sequence[SourceTensor]
) -> Iterator[str]:
    count, used = numbers.get("expert_count", 0), numbers.get("expert_used_count", 0)
    wrong: dict[int, list[str]] = {}
    for t in tensors:
        name = tensor_names.parse(t.name)
        if name.role in _STACKED:
            found = t.shape[0] if len(t.shape) > (name.suffix != ".bias") + 1 else 1
        elif name.role == "exp_probs_b":
            found = t.shape[-1]
        elif name.role == "ffn_gate_inp" and len(t.shape) == 2:
            found = t.shape[0]
        else:
            continue
        if found != count:
            wrong.setdefault(found, []).append(t.name)
    for found, names in wrong.items():
        yield f"{arch}.expert_count is {count}, not the {found} of {listed(names)}"
    each = used if isinstance(used, list) else [used]
    if count and not (any(each) and all(0 <= n <= count for n in each)):
        yield f"{arch}.expert_used_count is {used}, of {count} experts"


def _vocabulary(header: Header, tensors: Sequence[SourceTensor]) -> Iterator[str]:
    kv = {i.key: i for i in header.kv if i.key.startswith("tokenizer.ggml.")}

    def value(name: str) -> Any:
        item = kv.get(f"tokenizer.ggml.{name}")
        return None if item is None else item.value

    model, tokens = value("model"), value("tokens")
    if model in (None, "none", "no_vocab"):
        if model is None:
            yield "tokenizer.ggml.model is not there: the file has no vocabulary"
        return
    if not isinstance(tokens, list) or not tokens:
        yield "tokenizer.ggml.tokens is not there"
        return
    for name in ("token_embd.weight", "output.weight"):
        t = _by_name(tensors, name)
        if t is not None and prod(t.shape[:-1]) != len(tokens):
            yield f"the vocabulary has {len(tokens)} tokens, {name} {prod(t.shape[:-1])} rows"
    for name in ("scores", "token_type"):
        found = value(name)
        if found is not None and len(found) != len(tokens):
            yield f"tokenizer.ggml.{name} has {len(found)} entries for {len(tokens)} tokens"
    if model == "llama":
        yield from _scores(value("scores"), value("token_type"))
    elif model == "gpt2" and not value("merges"):
        yield "tokenizer.ggml.merges is not there: text would be split into single bytes"
    for kind in _IDS:
        found = value(f"{kind}_token_id")
        if isinstance(found, int) and found != 0xFFFFFFFF and not 0 <= found < len(tokens):
            yield f"tokenizer.ggml.{kind}_token_id is {found}, of {len(tokens)} tokens"


def _scores(scores: Any, types: Any) -> Iterator[str]:
    """A SentencePiece vocabulary joins the pair with the best score first."""
    if not scores:
        yield "tokenizer.ggml.scores is not there: text would be split at random"
        return
    ordinary = [s for s, kind in zip(scores, types or [1] * len(scores), strict=False) if kind == 1]
    if len(ordinary) > 1 and len(set(ordinary)) == 1:
        yield (
            f"tokenizer.ggml.scores are all {ordinary[0]:g}: they were lost, and text is split "
            "otherwise than the model was trained with"
        )


def first_split(path: Path) -> Path:
    """The file of a set of splits that llama.cpp is given; a file that is not split is its own."""
    return path.with_name(split_siblings(path.name)[0])


def listed(names: Sequence[str]) -> str:
    """The first of some names, and how many more there are."""
    more = len(names) - 1
    return names[0] if not more else f"{names[0]} and {more} more tensor{'s' if more > 1 else ''}"


def _by_name(tensors: Iterable[SourceTensor], name: str) -> SourceTensor | None:
    return next((t for t in tensors if t.name == name), None)
