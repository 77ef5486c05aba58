"""What llama.cpp's loader would say to a model: every line is a reason not to load it, or to end.

Over key-values and tensor infos alone, so that a plan can be asked as well as a file. Sources, all
of llama.cpp b11549: `ggml/src/gguf.cpp` (gguf_init_from_reader), `src/llama-model-loader.cpp`,
`src/llama-model.cpp` (load_hparams, load_tensors) and `src/models/*.cpp`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from quantkit.gguf import tensor_names
from quantkit.gguf.container import KeyValue
from quantkit.gguf.types import type_by_name
from quantkit.loading import asked, families, layers, vocabulary
from quantkit.loading.keys import (
    ARRAYS,
    ELEMENTS,
    FACTOR,
    GENERAL,
    KEYS,
    MAX_DIMS,
    MAX_LAYERS,
    MAX_NAME,
    RANGES,
    WORDS,
    Key,
)
from quantkit.loading.kinds import ENCODER, kind_of
from quantkit.loading.needs import needs
from quantkit.loading.values import Info, Values, listed, number, of_architecture

_USED_BY_LAYER = {"nemotron_h", "nemotron_h_moe"}
_STACKED = {"ffn_gate_exps", "ffn_up_exps", "ffn_down_exps", "ffn_gate_up_exps"}


def faults(kv: Sequence[KeyValue], tensors: Sequence[Info]) -> list[str]:
    """All that llama.cpp would trip over."""
    found = list(container_faults(kv, tensors))
    ask = kind_of(kv, [t.name for t in tensors]).faults
    if ask is not None:
        return [*found, *ask(kv, tensors)]
    by_key = {item.key: item for item in kv}
    named = by_key.get("general.architecture")
    arch = named.value if named is not None and named.type == "STRING" else None
    if not arch:
        return [*found, "general.architecture is not there: llama.cpp cannot tell what model it is"]
    if arch not in needs():
        return [*found, f"general.architecture is {arch!r}, which llama.cpp does not know"]
    values = of_architecture(arch, kv)
    found += [*_types(arch, by_key, values), *_counts(arch, values), *_precisions(by_key)]
    if number(values, "block_count") > MAX_LAYERS:  # told; the rest goes through every layer
        return found
    return [
        *found,
        *_lengths(arch, values),
        *layers.faults(arch, values, tensors),
        *_width(arch, values, tensors),
        *asked.faults(arch, values, tensors),
        *_experts(arch, values, tensors),
        *families.faults(arch, values, tensors),
        *vocabulary.faults(by_key, tensors),
    ]


def is_known(arch: str) -> bool:
    """Whether llama.cpp has the architecture."""
    return arch in needs() or arch == ENCODER


def container_faults(kv: Sequence[KeyValue], tensors: Sequence[Info]) -> Iterator[str]:
    """What is wrong whatever the model: `gguf_init_from_reader`."""
    for key, n in Counter(item.key for item in kv).items():
        if n > 1:
            yield f"the key {key} is there {n} times"
        if not key or "\0" in key:  # it is read as a C string
            yield f"a key is named {key!r}"
    for item in kv:
        if item.key == "general.alignment" and (item.type != "UINT32" or not _power(item.value)):
            yield f"general.alignment is {item.value!r}, not a power of two of type UINT32"
    for name, n in Counter(t.name for t in tensors).items():
        if n > 1:
            yield f"the tensor {name} is there {n} times"
        if (size := len(name.encode("utf-8", "surrogateescape"))) >= MAX_NAME:
            yield f"the tensor name {name} has {size} bytes; {MAX_NAME - 1} is the most"
    for t in tensors:
        block = type_by_name(t.format).block_size
        if not 0 < len(t.shape) <= MAX_DIMS or 0 in t.shape or t.shape[-1] % block:
            yield f"{t.name}: shape {list(t.shape)} does not fit {t.format}"


def split_faults(kv: Sequence[KeyValue]) -> Iterator[str]:
    """What is wrong with the metadata of one file of a set: `llama_model_loader`."""
    yield from container_faults(kv, ())
    for item in kv:
        if item.key.startswith("split.") and item.type != GENERAL.get(item.key, item.type):
            yield f"{item.key} is {_kind(item)} where llama.cpp reads {GENERAL[item.key]}"


def _power(n: Any) -> bool:
    return isinstance(n, int) and n > 0 and n & (n - 1) == 0


def _precisions(by_key: Mapping[str, KeyValue]) -> Iterator[str]:
    """Which tensors are multiplied with activations of 4 bits: `llama_prec_policy::load`."""
    names, said = (by_key.get(f"general.tensor_extra.{end}") for end in ("name", "prec_a4"))
    if names is None:
        return
    if said is None or said.type != "ARRAY" or said.element_type != "BOOL":
        yield "general.tensor_extra.prec_a4 is no list of true and false, and a list of names is"
    elif len(names.value) != len(said.value):
        yield (
            f"general.tensor_extra.prec_a4 has {len(said.value)} values for "
            f"{len(names.value)} names"
        )


def _types(arch: str, by_key: Mapping[str, KeyValue], values: Values) -> Iterator[str]:
    """Keys that are not there, of another type than is read, or of a value it cannot work with."""
    for name in needs()[arch]:
        if name not in values:
            yield f"{arch}.{name} is not there"
    for name, item in by_key.items():
        wanted = GENERAL.get(name)
        if wanted is None and name.startswith("tokenizer.ggml.") and name.endswith("_token_id"):
            wanted = "UINT32"
        if wanted is not None and item.type != wanted:
            yield f"{name} is {_kind(item)} where llama.cpp reads {wanted}"
    for name, item in values.items():
        if name in ARRAYS and item.type != "ARRAY":
            yield f"{arch}.{name} is {item.type} where llama.cpp reads an array"
        elif (key := KEYS.get(name)) is not None:
            yield from _value(f"{arch}.{name}", name, key, item)


def _value(label: str, name: str, key: Key, item: KeyValue) -> Iterator[str]:
    if item.type == "ARRAY":
        if not key.layers:
            yield f"{label} is an array where llama.cpp reads one {key.type}"
        elif item.element_type not in ELEMENTS[key.type]:
            yield f"{label} is {_kind(item)} where llama.cpp reads {key.type}"
        return
    if item.type != key.type:
        yield f"{label} is {item.type} where llama.cpp reads {key.type}"
        return
    value = item.value
    allowed = RANGES.get(label) or RANGES.get(name, FACTOR if key.type == "FLOAT32" else None)
    if allowed is not None and value not in allowed:
        yield f"{label} is {value:g}; llama.cpp works with {allowed}"
    elif name in WORDS and value not in WORDS[name]:
        yield f"{label} is {value!r}, not one of {', '.join(sorted(WORDS[name]))}"


def _kind(item: KeyValue) -> str:
    return f"an array of {item.element_type}" if item.type == "ARRAY" else item.type


def _counts(arch: str, values: Values) -> Iterator[str]:
    """The asserts of load_hparams: layers, experts, experts used, groups of them."""
    count, ahead = number(values, "block_count"), number(values, "nextn_predict_layers")
    if ahead and ahead >= count and arch != "gemma4-assistant":  # which is all ahead
        yield f"{arch}.nextn_predict_layers is {ahead}, of {count} layers"
    experts = number(values, "expert_count")
    if arch in ("hunyuan_vl", "hunyuan-dense") and experts <= 1:
        return
    item = values.get("expert_used_count")
    used = [0] if item is None else item.value
    used = used if isinstance(used, list) else [used]
    groups = number(values, "expert_group_count")
    taken = number(values, "expert_group_used_count")
    if max(used, default=0) > experts or min(used, default=0) < 0:
        yield f"{arch}.expert_used_count is {_brief(used)}, of {experts} experts"
    elif experts and not max(used, default=0):
        yield f"{arch}.expert_used_count is 0, of {experts} experts"
    elif len(set(used)) > 1 and arch not in _USED_BY_LAYER:
        yield f"{arch}.expert_used_count differs by layer, and llama.cpp has one for all of them"
    each = number(values, "experts_per_group")  # of GroveMoE: they share a smaller one
    if each and (experts % each or max(used, default=0) > experts // each):
        yield f"{arch}: {_brief(used)} of {experts} experts are used; {each} of them share a part"
    if groups and groups >= experts:
        yield f"{arch}.expert_group_count is {groups}, of {experts} experts; a group has 2 or more"
    elif groups > 1 and experts % groups:
        yield f"{arch}.expert_group_count is {groups}, which does not divide {experts} experts"
    elif groups > 1 and not 0 < taken < groups:
        yield f"{arch}.expert_group_used_count is {taken}, of {groups} groups"


def _brief(values: Sequence[Any]) -> str:
    return str(values[0]) if len(set(values)) == 1 else str(list(values[:8]))


def _lengths(arch: str, values: Values) -> Iterator[str]:
    """Arrays of one value a layer have as many as there are layers."""
    count, ahead = number(values, "block_count"), number(values, "nextn_predict_layers")
    for name, item in values.items():
        key = KEYS.get(name)
        if key is None or not key.layers or item.type != "ARRAY":
            continue
        trunk = name == "attention.indexer.types" or name.startswith("xielu.")
        n = count - ahead if trunk else count
        fits = item.length == n if key.counted else count - ahead <= item.length <= count
        if (arch, name) == ("deepseek4", "attention.compress_ratios"):  # more than layers may be
            fits = count <= item.length <= MAX_LAYERS
        if not fits:
            yield f"{arch}.{name} has {item.length} values for {n} layers"


def _width(arch: str, values: Values, tensors: Sequence[Info]) -> Iterator[str]:
    """Rows of the embedding are as wide as the metadata say."""
    width = number(values, "embedding_length")
    for t in tensors:
        if t.name == "token_embd.weight" and t.shape[-1] != width:
            yield f"{arch}.embedding_length is {width}, {t.name} is {t.shape[-1]} wide"


def _experts(arch: str, values: Values, tensors: Sequence[Info]) -> Iterator[str]:
    """Stacked experts, routers and their biases have as many rows as there are experts."""
    count = number(values, "expert_count")
    wrong: dict[int, list[str]] = {}
    for t in tensors:
        name = tensor_names.parse(t.name)
        if name.role in _STACKED and name.suffix:
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
