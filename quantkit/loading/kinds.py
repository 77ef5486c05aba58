"""What a GGUF file is: a model, or what llama.cpp takes beside one. Each kind is judged by what is
asked of its own; sources, all of llama.cpp b11549, are named beside the questions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from quantkit.gguf.container import KeyValue
from quantkit.loading import projector
from quantkit.loading.values import Info

ENCODER = "clip"  # the architecture of encoders of images or sound
PREFIX = "mmproj-"  # of the names of their files, and of their types in a release
_DRAFTS = ("eagle3", "dflash", "gemma4-assistant")  # run beside the model that they draft for
_ADAPTED = "graniteswitch"  # a model whose adapters are among its own tensors
_ALPHA = "adapter.lora.alpha"
_TOKENS = "adapter.alora.invocation_tokens"


class Kind(NamedTuple):
    """What a file is, in words, and what it is there for. `is_quantized`: whether other types can
    be made of it. `faults`: what llama.cpp would trip over in it, None where it is asked what a
    model is."""

    words: str
    use: str
    is_quantized: bool
    faults: Callable[[Sequence[KeyValue], Sequence[Info]], Iterator[str]] | None


def kind_of(kv: Sequence[KeyValue], names: Sequence[str]) -> Kind:
    """What a file is, by its keys and the names of its tensors."""
    items = {item.key: item for item in kv}  # two of them are decoded: others are vocabularies
    arch, said = (
        items[key].value if key in items else None
        for key in ("general.architecture", "general.type")
    )
    if arch == ENCODER or said == "mmproj":
        return PROJECTOR
    halves = arch != _ADAPTED and any(name.endswith((".lora_a", ".lora_b")) for name in names)
    if said == "adapter" or halves:
        return ADAPTER
    if said == "imatrix" or any(name.endswith(".in_sum2") for name in names):
        return IMATRIX
    if arch == "controlvector":
        return CONTROL_VECTOR
    if not names and "tokenizer.ggml.tokens" in items and "split.count" not in items:
        return VOCABULARY
    return DRAFT if arch in _DRAFTS else MODEL


def _adapter_faults(kv: Sequence[KeyValue], tensors: Sequence[Info]) -> Iterator[str]:
    """`src/llama-adapter.cpp`, llama_adapter_lora_init_impl."""
    items = {item.key: item for item in kv}
    for key, wanted in (("general.type", "adapter"), ("adapter.type", "lora")):
        item = items.get(key)
        found = None if item is None else item.value
        if found != wanted:
            yield f"{key} is {found!r}, not {wanted!r}"
    if not isinstance(getattr(items.get("general.architecture"), "value", None), str):
        yield "general.architecture, that of the model it is for, is not there"
    alpha, tokens = items.get(_ALPHA), items.get(_TOKENS)
    if alpha is not None and alpha.type != "FLOAT32":
        yield f"{_ALPHA} is {alpha.type} where llama.cpp reads FLOAT32"
    if tokens is not None and (tokens.type, tokens.element_type) != ("ARRAY", "UINT32"):
        yield f"{_TOKENS} is no array of UINT32"
    halves: dict[str, dict[str, Info]] = {}
    for t in tensors:
        stem, _, half = t.name.rpartition(".")
        if half in ("lora_a", "lora_b"):
            halves.setdefault(stem, {})[half] = t
        elif not t.name.endswith("_norm.weight"):
            yield f"{t.name} is neither a lora_a nor a lora_b"
    if not halves:
        yield "there is no lora_a and lora_b"
    for stem, found in halves.items():
        if len(found) < 2:
            yield f"{stem} has a {next(iter(found))} and not the other half"
            continue
        a, b = found["lora_a"].shape, found["lora_b"].shape
        # of a table of tokens, A is kept turned
        if a[-2:-1] != b[-1:] and not (stem == "token_embd.weight" and a[-1:] == b[-1:]):
            yield f"{stem}: lora_a {list(a)} and lora_b {list(b)} do not make a matrix"


def _imatrix_faults(kv: Sequence[KeyValue], tensors: Sequence[Info]) -> Iterator[str]:
    """`tools/imatrix/imatrix.cpp`, load_imatrix."""
    keys = {item.key for item in kv}
    for key in ("imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"):
        if key not in keys:
            yield f"{key} is not there"
    names = {t.name for t in tensors}
    for name in names:
        stem, _, half = name.rpartition(".")
        other = {"in_sum2": "counts", "counts": "in_sum2"}.get(half)
        if other is not None and f"{stem}.{other}" not in names:
            yield f"{name} is there without {stem}.{other}"
    if not names:
        yield "there are no importances"


def _vocabulary_faults(kv: Sequence[KeyValue], tensors: Sequence[Info]) -> Iterator[str]:
    from quantkit.loading import vocabulary

    yield from vocabulary.faults({item.key: item for item in kv}, tensors)


def _vector_faults(kv: Sequence[KeyValue], tensors: Sequence[Info]) -> Iterator[str]:
    """`common/common.cpp`, common_control_vector_load_one."""
    lengths = {t.shape for t in tensors if t.name.startswith("direction.")}
    if not lengths:
        yield "there is no direction.N"
    if len(lengths) > 1:
        yield "the directions of its layers differ in length"
    for t in tensors:
        if t.name.startswith("direction.") and (t.format != "F32" or len(t.shape) != 1):
            yield f"{t.name} is no vector of F32"


MODEL = Kind("a model", "", True, None)
DRAFT = Kind("a draft model", "llama.cpp takes it beside a model, with --model-draft", True, None)
PROJECTOR = Kind(
    "a projector (encoders of images or sound)",
    "llama.cpp takes it beside a model, with --mmproj",
    True,
    projector.faults,
)
ADAPTER = Kind(
    "a LoRA adapter", "llama.cpp takes it beside a model, with --lora", False, _adapter_faults
)
IMATRIX = Kind(
    "an importance matrix", "--imatrix of quantize and release takes it", False, _imatrix_faults
)
VOCABULARY = Kind(
    "a vocabulary without a model", "llama.cpp tests tokenizers with such", False,
    _vocabulary_faults,
)  # fmt: skip
CONTROL_VECTOR = Kind(
    "a control vector", "llama.cpp takes it beside a model, with --control-vector", False,
    _vector_faults,
)  # fmt: skip
