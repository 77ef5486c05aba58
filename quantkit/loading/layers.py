"""Kinds of layers of which llama.cpp wants one each, or one before the others: with a window of the
text, with a recurrent state, with an indexer of sparse attention.

Sources: `load_arch_hparams` and the graphs of `src/models/*.cpp`, `src/llama-model.cpp`
(create_memory), all of llama.cpp b11549.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from quantkit.loading.needs import needs
from quantkit.loading.patterns import ALWAYS_SLIDE, PATTERNS, RECURRENT_WITHOUT_KV, Pattern
from quantkit.loading.values import Info, Values, number, of_layers, trunk_of

# encoders with two masks, one of a window
_TWO_MASKS = {"gemma-embedding", "gemma-embedding2", "modern-bert"}
# architectures with indexers of their own in some layers, which the layers after them share
_SHARE_INDEXERS = {"glm-dsa", "glm5-next", "hy_v4"}


def faults(arch: str, values: Values, tensors: Sequence[Info]) -> Iterator[str]:
    """A kind of layer that is not there, or stands where none of its kind can."""
    yield from _windows(arch, values, tensors)
    yield from _recurrent(arch, values)
    yield from _indexers(arch, values)


def _windows(arch: str, values: Values, tensors: Sequence[Info]) -> Iterator[str]:
    """Where some layers are to see a window of the text, one has to (llama_kv_cache_iswa)."""
    key, pattern = "attention.sliding_window_pattern", PATTERNS.get(arch)
    if pattern is None:
        if key not in needs()[arch]:
            return
        pattern = Pattern(key, key, 0)
    elif pattern.key != key:
        return
    width = number(values, "attention.sliding_window", pattern.window or 0)
    if not width:
        if arch in ALWAYS_SLIDE:
            yield f"{arch}.attention.sliding_window is 0, which llama.cpp ends at"
        return
    trunk = trunk_of(values)
    item = values.get(key)
    if item is not None and item.type == "ARRAY":
        sliding = [bool(x) for x in item.value[:trunk]]
    else:
        period = number(values, key, pattern.period)
        sliding = [period < 1 or pattern.of_layer(i, period) for i in range(trunk)]
    if not any(sliding) and sliding:
        yield f"{arch}: no layer of {trunk} has the sliding window that it is run with"
    if arch == "llama4" and all(sliding):  # the others scale attention, by an input of the graph
        yield f"{arch}: all {trunk} layers have a sliding window, and llama.cpp wants one without"
    if arch in _TWO_MASKS and all(sliding):  # one is for the others
        yield f"{arch}: all {trunk} layers have a sliding window, and llama.cpp wants one without"
    # the others share the factors that their rotary positions are divided by
    if arch == "gemma4" and sliding:
        factors = any(t.name == "rope_freqs.weight" for t in tensors)
        if all(sliding) and factors:
            yield f"{arch}: all {trunk} layers have a window, and rope_freqs.weight is for others"
        if not all(sliding) and not factors:
            yield f"{arch}: rope_freqs.weight is not there, for the layers without a window"


def recurrent(arch: str, values: Values) -> list[bool] | None:
    """Which layers have a recurrent state, of those that predict no further tokens; None where
    layers are of one kind, or are told apart by what is not known here."""
    trunk = max(trunk_of(values), 0)
    pattern = PATTERNS.get(arch)
    if arch in RECURRENT_WITHOUT_KV:
        heads, widths = (
            of_layers(values, name, trunk)
            for name in ("attention.head_count_kv", "feed_forward_length")
        )
        some = arch.startswith("nemotron")  # whose layers may be feed-forward alone
        return [not n and not (some and width) for n, width in zip(heads, widths, strict=True)]
    if pattern is None or pattern.key != "attention.recurrent_layers":
        return None
    if pattern.key in values:
        return [bool(n) for n in of_layers(values, pattern.key, trunk)]
    period = number(values, pattern.period_key, pattern.period)
    return [period > 0 and pattern.of_layer(i, period) for i in range(trunk)]


def _recurrent(arch: str, values: Values) -> Iterator[str]:
    """Memory of two kinds is made, and both are used (llama_memory_hybrid)."""
    kinds = recurrent(arch, values)
    if not kinds:
        return
    attends = [not kind for kind in kinds]
    if arch.startswith("nemotron"):
        attends = [n > 0 for n in of_layers(values, "attention.head_count_kv", len(kinds))]
    if not any(kinds) or not any(attends):
        kind = "recurrent" if any(kinds) else "of attention"
        yield f"{arch}: all {len(kinds)} layers are {kind}, and llama.cpp wants one of either kind"


def _indexers(arch: str, values: Values) -> Iterator[str]:
    """Sparse attention takes the tokens that an indexer chose: of its own layer, or of one before
    it. MiniMax M3 has one in each layer with experts, and wants one."""
    trunk = trunk_of(values)
    if arch == "minimax-m3" and number(values, "leading_dense_block_count") >= trunk:
        yield f"{arch}: all {trunk} layers are dense, and llama.cpp wants one of sparse attention"
    item = values.get("attention.indexer.types")
    if arch not in _SHARE_INDEXERS or item is None or not number(values, "attention.indexer.top_k"):
        return
    own = [bool(n) for n in of_layers(values, "attention.indexer.types", trunk)]
    attends = [True] * trunk
    if arch in RECURRENT_WITHOUT_KV:
        attends = [n > 0 for n in of_layers(values, "attention.head_count_kv", trunk)]
    first = next((i for i in range(trunk) if attends[i]), None)
    if first is not None and not own[first]:
        yield f"{arch}: layer {first} shares the indexer of a layer before it, and none has one"
