"""What single architectures ask beside the keys and tensors of `needs.txt`: values that belong
together.

Sources: `load_arch_hparams`, `load_arch_tensors` and the graphs of `src/models/*.cpp` (llama.cpp
b11549), each named beside its check.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from quantkit.loading.keys import MAX_LAYERS
from quantkit.loading.values import Info, Values, is_lite, number, of_layers, trunk_of

_TURN_ALL = {"llama", "deci", "falcon", "llama-embed"}
_WITHOUT_ATTENTION = {
    "mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7", "wavtokenizer-dec",
}  # fmt: skip
MAX_ENCODED = 1 << 17  # tokens of an encoder's text, whose states a decoder attends to
Check = Callable[[Values, Sequence[Info]], Iterator[str]]


def faults(arch: str, values: Values, tensors: Sequence[Info]) -> Iterator[str]:
    """What the architecture's own code would end at."""
    yield from _positions(arch, values, tensors)
    yield from _turned(arch, values)
    sections = values.get("rope.dimension_sections")
    if sections is not None and sections.type == "ARRAY" and sections.length != 4:
        yield f"{arch}.rope.dimension_sections has {sections.length} values; llama.cpp reads 4"
    for check in CHECKS.get(arch, ()):
        yield from (f"{arch}: {words}" for words in check(values, tensors))


def _positions(arch: str, values: Values, tensors: Sequence[Info]) -> Iterator[str]:
    """A table of positions has a row for each (bert.cpp, gpt2.cpp, mpt.cpp, starcoder.cpp)."""
    length = number(values, "context_length")
    for t in tensors:
        if t.name == "position_embd.weight" and t.shape[0] != length:
            yield f"{arch}.context_length is {length}, not the {t.shape[0]} of {t.name}"


def _turned(arch: str, values: Values) -> Iterator[str]:
    """Rotary positions turn pairs, and no more than a head has (`load_hparams`, ggml_rope)."""
    heads = max(of_layers(values, "attention.head_count", 1))
    if not heads:
        item = values.get("attention.head_count")
        if item is not None and item.type == "UINT32" and arch not in _WITHOUT_ATTENTION:
            yield f"{arch}.attention.head_count is 0"
        return
    size = number(values, "attention.key_length", number(values, "embedding_length") // heads)
    turned = number(values, "rope.dimension_count", size)
    # none of the first's heads turns, and the second's turn whole whatever is said
    least = 0 if arch in ("glm5-next", "deepseek2-ocr") else 2
    if turned % 2 or not least <= turned <= size or (arch in _TURN_ALL and turned != size):
        yield f"{arch}.rope.dimension_count is {turned}, of heads of {size}"
    size = number(values, "attention.key_length_swa", size)
    n = number(values, "rope.dimension_count_swa", turned)
    if n % 2 or not least <= n <= size:
        yield f"{arch}.rope.dimension_count_swa is {n}, of heads of {size}"


def _pooled(values: Values, _: Sequence[Info]) -> Iterator[str]:
    """The tokens that an indexer takes are whole pools (glm5-next.cpp)."""
    yield from _pools(number(values, "attention.indexer.kpool"), values)


def _compressed(values: Values, _: Sequence[Info]) -> Iterator[str]:
    """The same, where the pools are said by the layers' compress ratios (qwen4exp.cpp)."""
    ratios = sorted({r for r in of_layers(values, "attention.compress_ratios", MAX_LAYERS) if r})
    if len(ratios) > 1:
        yield f"layers compress by {ratios[0]} and {ratios[1]}, and llama.cpp has one ratio for all"
    elif ratios:
        yield from _pools(ratios[0], values)


def _pools(size: int, values: Values) -> Iterator[str]:
    taken = number(values, "attention.indexer.top_k")
    if size < 2 or taken % size:
        yield f"attention.indexer.top_k is {taken}, no multiple of pools of {size} tokens"


def _hashed(values: Values, tensors: Sequence[Info]) -> Iterator[str]:
    """Layers that route by the token have a table of the experts used (deepseek4.cpp)."""
    used = number(values, "expert_used_count")
    for t in tensors:
        if t.name.endswith(".ffn_gate_tid2eid.weight") and t.shape[-1] != used:
            yield f"expert_used_count is {used}, not the {t.shape[-1]} of {t.name}"
            return


def _ranked(values: Values, _: Sequence[Info]) -> Iterator[str]:
    """Queries are compressed, but for models of so many layers that it takes them for a Lite
    (deepseek2.cpp)."""
    if "attention.q_lora_rank" not in values and not is_lite("deepseek2", values):
        trunk = trunk_of(values)
        yield (
            "attention.q_lora_rank is not there, without which llama.cpp loads models of 26 and 27 "
            f"layers, not of {trunk}"
        )


def _switched(values: Values, _: Sequence[Info]) -> Iterator[str]:
    """Each adapter has a token that calls it, and one that is read in its place
    (granite-switch.cpp)."""
    count = number(values, "adapters.count")
    for name in ("adapters.token_ids_activate", "adapters.token_ids_substitute"):
        if name in values and values[name].type == "ARRAY" and values[name].length != count:
            yield f"{name} has {values[name].length} values for {count} adapters"


def _chunked(values: Values, _: Sequence[Info]) -> Iterator[str]:
    """The graph scales attention by position, which only models with a window say (llama4.cpp)."""
    item = values.get("attention.sliding_window")
    if item is not None and item.value == 0:
        yield "attention.sliding_window is 0, and llama.cpp ends at a model without chunks"


def _scaled(values: Values, _: Sequence[Info]) -> Iterator[str]:
    """Attention is scaled by the position of the original context (mistral3.cpp)."""
    item = values.get("attention.temperature_scale")
    if (
        item is not None
        and item.value
        and not number(values, "rope.scaling.original_context_length")
    ):
        yield "attention.temperature_scale without a rope.scaling.original_context_length"


def _predicting(values: Values, tensors: Sequence[Info]) -> Iterator[str]:
    """The tensors of layers that predict are skipped, and one of all layers is counted a second
    time (exaone-moe.cpp)."""
    if number(values, "nextn_predict_layers") and any(
        t.name == "rope_freqs.weight" for t in tensors
    ):
        yield (
            "rope_freqs.weight beside layers that predict further tokens, which llama.cpp does "
            "not load; leave them out with --no-mtp"
        )


def _deciding(values: Values, _: Sequence[Info]) -> Iterator[str]:
    """The last layers may be a head that decides, of an encoder with a type of tokens for each kind
    of question (lfm2.cpp)."""
    head, count = number(values, "decision.block_count"), number(values, "block_count")
    causal = values.get("attention.causal")
    if head and (head >= count or causal is None or causal.value):
        yield f"a head of {head} layers decides; that is for an encoder of more layers"


def _head_behind(values: Values, _: Sequence[Info]) -> Iterator[str]:
    """The last layers may be a head that decides (modern-bert.cpp)."""
    head, count = number(values, "decision.block_count"), number(values, "block_count")
    if head >= count > 0:
        yield f"a head of {head} layers decides, and there are {count} in all"


def _cycled(values: Values, _: Sequence[Info]) -> Iterator[str]:
    """Layers are counted as they are run, in cycles within cycles (hrm-text.cpp)."""
    count = number(values, "block_count")
    stack, high, low = (
        number(values, f"hrm.{name}") for name in ("layers_per_stack", "h_cycles", "l_cycles")
    )
    if count != stack * high * (low + 1):
        yield f"block_count is {count}, not {stack} x {high} x ({low} + 1)"


def _values(values: Values, tensors: Sequence[Info]) -> Iterator[str]:
    """Values of attention have experts of their own (k2-horizon.cpp)."""
    count = number(values, "attention.value_expert_count")
    used = number(values, "attention.value_expert_used_count")
    if not (0 < used <= count or used == count == 0):
        yield f"attention.value_expert_used_count is {used}, of {count} value experts"
    if count and number(values, "expert_gating_func", 2) not in (1, 2):
        yield "expert_gating_func is neither 1 (softmax) nor 2 (sigmoid), as value experts want it"
    for t in tensors:
        if t.name.endswith(".attn_v_exps.weight") and t.shape[0] != count:
            yield f"attention.value_expert_count is {count}, not the {t.shape[0]} of {t.name}"
            return


def _grouped(values: Values, _: Sequence[Info]) -> Iterator[str]:
    """Norms are of groups of channels, all of one size (k2-horizon.cpp)."""
    groups, width = (
        number(values, "attention.group_norm_groups"),
        number(values, "embedding_length"),
    )
    if groups and width % groups:
        yield f"attention.group_norm_groups is {groups}, which does not divide {width} channels"


_BLOCK = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_o", "ffn_norm", "ffn_down", "ffn_up")
_CROSS = tuple(f"cross_attn_{part}" for part in ("norm", "q", "k", "v", "o"))


def _encoded(values: Values, tensors: Sequence[Info]) -> Iterator[str]:
    """Every layer of the encoder is there (t5.cpp, t5encoder.cpp)."""
    yield from _half("enc", number(values, "block_count"), _BLOCK, tensors)


def _decoded(values: Values, tensors: Sequence[Info]) -> Iterator[str]:
    """The same of the decoder, of as many layers unless it is said (t5.cpp), and of no more: the
    cache has room for as many as the encoder has (llama-kv-cache.cpp)."""
    layers = number(values, "block_count")
    count = number(values, "decoder_block_count", layers)
    yield from _half("dec", count, (*_BLOCK, *_CROSS), tensors)
    if count > layers:
        yield f"decoder_block_count is {count}, of {layers} layers that llama.cpp keeps a cache for"


def _roomy(values: Values, _: Sequence[Info]) -> Iterator[str]:
    """Room is made for an encoder's text as long as the context (llama-graph.cpp,
    build_inp_cross_embd)."""
    if (length := number(values, "context_length")) > MAX_ENCODED:
        yield (
            f"context_length is {length}: llama.cpp makes room for an encoder's text of that "
            f"length at once, and {MAX_ENCODED} tokens are taken here"
        )


def _started(values: Values, tensors: Sequence[Info]) -> Iterator[str]:
    """The token that the decoder begins with is in the vocabulary (t5.cpp)."""
    count = next((t.shape[0] for t in tensors if t.name == "token_embd.weight"), 0)
    if count and (start := number(values, "decoder_start_token_id")) >= count:
        yield f"decoder_start_token_id is {start}, of {count} tokens"


def _half(
    half: str, count: int, roles: Sequence[str], tensors: Sequence[Info]
) -> Iterator[str]:  # fmt: skip
    there = {t.name for t in tensors}
    for bid in range(min(count, MAX_LAYERS)):
        for role in roles:
            if (name := f"{half}.blk.{bid}.{role}.weight") not in there:
                yield f"{name} is not there"
                return


def _ends(values: Values, _: Sequence[Info]) -> Iterator[str]:
    """The graph takes the tokens that are asked for behind the last layer's attention, and leaves a
    layer that has no network before that counts (deci.cpp)."""
    layers = number(values, "block_count")
    if layers and not of_layers(values, "feed_forward_length", layers)[-1]:
        yield "the last layer has no feed-forward network, and llama.cpp ends where it computes it"


def _normed(values: Values, _: Sequence[Info]) -> Iterator[str]:
    """Either of the two (cohere2moe.cpp)."""
    either = "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"
    if not any(name in values for name in either):
        yield f"neither {either[0]} nor {either[1]} is there"


def _shared(values: Values, _: Sequence[Info]) -> Iterator[str]:
    """Layers without keys and values take those of the last layer before them of their kind, which
    is known by its place (llama-model.cpp, create_memory; gemma4.cpp)."""
    count, shared = number(values, "block_count"), number(values, "attention.shared_kv_layers")
    slides, own = of_layers(values, "attention.sliding_window_pattern", count), count - shared
    if own < 2:
        yield f"attention.shared_kv_layers is {shared}, of {count} layers; two have their own"
        return
    for i in range(own, count):
        other = own - (2 if slides[i] else 1)
        if bool(slides[other]) != bool(slides[i]):
            yield (
                f"attention.shared_kv_layers is {shared}: layer {i} would take the keys and values "
                f"of layer {other}, and one of the two has a sliding window"
            )
            return


def _unrun(values: Values, _: Sequence[Info]) -> Iterator[str]:
    """Values come to the cache in two axes, which has three (plm.cpp, llama-kv-cache.cpp)."""
    yield "llama.cpp b11549 ends where it keeps its values"


def _drafting(values: Values, _: Sequence[Info]) -> Iterator[str]:
    """Blocks of guesses hold one; layers of DeepSeek-V4 have a window (dflash.cpp)."""
    if (size := number(values, "block_size", 16)) < 1:
        yield f"block_size is {size}"
    window = number(values, "attention.sliding_window")
    if number(values, "hyper_connection.count") and not window:
        yield "attention.sliding_window is 0, without which llama.cpp does not load such layers"


def _assisting(values: Values, _: Sequence[Info]) -> Iterator[str]:
    """Its states are brought to another width, that of its model (gemma4-assistant.cpp)."""
    if number(values, "embedding_length_out") == (n := number(values, "embedding_length")):
        yield f"embedding_length_out is {n} as embedding_length is, which llama.cpp does not load"


CHECKS: dict[str, tuple[Check, ...]] = {
    "cohere2moe": (_normed,),
    "deci": (_ends,),
    "deepseek2": (_ranked,),
    "deepseek4": (_hashed,),
    "dflash": (_drafting,),
    "exaone-moe": (_predicting,),
    "gemma4": (_shared,),
    "gemma4-assistant": (_assisting,),
    "glm5-next": (_pooled,),
    "graniteswitch": (_switched,),
    "hrm_text": (_cycled,),
    "k2-horizon": (_values, _grouped),
    "lfm2": (_deciding,),
    "llama4": (_chunked,),
    "mistral3": (_scaled,),
    "mistral4": (_ranked,),
    "modern-bert": (_head_behind,),
    "plm": (_unrun,),
    "qwen4exp": (_compressed,),
    "t5": (_encoded, _decoded, _roomy, _started),
    "t5encoder": (_encoded,),
}
