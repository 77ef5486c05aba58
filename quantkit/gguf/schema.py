"""The kinds of the metadata that is read here: checked once, where a file is opened.

A header says of each value what it is, and a stranger may say anything: text for a number, a number
for a list. After `check`, what follows may rely on the kinds below. Keys that are not read pass.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from quantkit.errors import CorruptFile
from quantkit.gguf.container import KeyValue
from quantkit.storage.inputs import File

_INTEGERS = frozenset({"UINT8", "INT8", "UINT16", "INT16", "UINT32", "INT32", "UINT64", "INT64"})
_FLOATS = frozenset({"FLOAT32", "FLOAT64"})
_TEXT, _FLAG = frozenset({"STRING"}), frozenset({"BOOL"})
_NUMBERS = _INTEGERS | _FLOATS | _FLAG
MOST = 1 << 40  # of a number of anything

# (keys, kinds of a single value, kinds of a list's values, what it is); the first that fits
_SCHEMA = tuple(
    (re.compile(pattern, re.DOTALL), single, many, words)
    for pattern, single, many, words in (
        (r"general\.(tags|languages|datasets)", frozenset(), _TEXT, "a list of texts"),
        (r"general\.(file_type|quantization_version|alignment|.*\.count)|split\..*",
         _INTEGERS, frozenset(), "a whole number"),
        (r"general\.sampling\..*", _NUMBERS | _TEXT, frozenset(), "a number or text"),
        (r"general\.license", _TEXT, _TEXT, "text"),
        (r"general\.tensor_extra\.name", frozenset(), _TEXT, "a list of texts"),
        (r"general\.(architecture|type|name|author|version|organization|finetune|description"
         r"|basename|quantized_by|size_label|url|doi|uuid|repo_url|license\..*|source\..*"
         r"|base_model\..*|dataset\..*)", _TEXT, frozenset(), "text"),
        (r"tokenizer\.ggml\.(tokens|merges)|tokenizer\.chat_templates",
         frozenset(), _TEXT, "a list of texts"),
        (r"tokenizer\.ggml\.token_type", frozenset(), _INTEGERS, "a list of whole numbers"),
        (r"tokenizer\.ggml\.scores", frozenset(), _INTEGERS | _FLOATS, "a list of numbers"),
        (r"tokenizer\.ggml\.(model|pre)|tokenizer\.chat_template(\..*)?",
         _TEXT, frozenset(), "text"),
        (r"tokenizer\.ggml\.\w+_token_id", _INTEGERS, frozenset(), "a whole number"),
        (r"tokenizer\.ggml\.add_\w+", _FLAG, frozenset(), "true or false"),
    )
)  # fmt: skip
# of an architecture's own keys: those that are counted with here
_COUNTED = re.compile(
    r"(?:block_count|context_length|embedding_length|feed_forward_length|vocab_size|\w*layers"
    r"|nextn_predict_layers|n_deepstack_layers|expert_\w*(?:count|length|group\w*)"
    r"|attention\.(?:head_count\w*|key_length\w*|value_length\w*|sliding_window|\w+_lora_rank"
    r"|shared_kv_layers|indexer\.\w+)|ssm\.\w+_(?:size|count|kernel|rank)|shortconv\.l_cache"
    r"|kda\.head_dim|rope\.dimension_count)"
)
# of those: one number for all layers
_ONE = frozenset({"block_count", "context_length", "embedding_length", "vocab_size"})


def check(kv: Sequence[KeyValue], file: File) -> None:
    """Raises CorruptFile: a value is not of the kind that its key has."""
    arch = ""
    for item in kv:
        if item.key == "general.architecture" and item.type == "STRING":
            arch = item.value
    for item in kv:
        row = next((row for row in _SCHEMA if row[0].fullmatch(item.key)), None)
        if row is not None:
            _, single, many, words = row
            if _kind(item) not in (many if item.type == "ARRAY" else single):
                raise CorruptFile(f"{file}: {item.key} is {_said(item)}, not {words}")
        elif item.key.startswith(f"{arch}.") and _COUNTED.fullmatch(item.key[len(arch) + 1 :]):
            _check_count(item, file)
            if item.type == "ARRAY" and item.key[len(arch) + 1 :] in _ONE:
                raise CorruptFile(f"{file}: {item.key} is {_said(item)}, not one number")


def _check_count(item: KeyValue, file: File) -> None:
    """A number of something, or one a layer. Raises CorruptFile."""
    if _kind(item) not in _NUMBERS:
        raise CorruptFile(f"{file}: {item.key} is {_said(item)}, not a number")
    values = item.value if item.type == "ARRAY" else [item.value]
    if not values:
        raise CorruptFile(f"{file}: {item.key} is an empty list, not a number")
    if not all(math.isfinite(n) and abs(n) <= MOST for n in values):
        raise CorruptFile(f"{file}: {item.key} has a number that counts nothing: {values[0]}")


def _kind(item: KeyValue) -> str:
    return item.element_type if item.type == "ARRAY" else item.type


def _said(item: KeyValue) -> str:
    kind = _kind(item).lower()
    return f"a list of {kind}" if item.type == "ARRAY" else kind
