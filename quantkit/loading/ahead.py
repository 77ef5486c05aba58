"""Layers that predict further tokens: whether llama.cpp runs them, in a whole model or alone.

It loads them when it drafts with them (`load_mtp`), and runs them in a context of their own; what
the graphs of `src/models/*.cpp` (b11549) assert there is asked here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from quantkit.gguf import tensor_names
from quantkit.loading.values import Info, Values, number, trunk_of

# those whose layers that predict further tokens may be a file of their own (`nextn_flags`)
ALONE = {
    "bailingmoe3", "cohere2moe", "deepseek2", "deepseek32", "deepseek4", "glm-dsa", "glm4moe",
    "glm5-next", "hy_v3", "mimo2", "nemotron_h", "nemotron_h_moe", "qwen35", "qwen35moe",
    "qwen3next", "qwen4exp", "step35",
}  # fmt: skip
_SEVERAL = {"hy_v3", "mimo2", "step35"}  # which run more than one
_LOADED = "nextn.eh_proj.weight"  # without it none of the others is asked for
_JOINED = ("mimo2", "attn_qkv.weight")  # whose queries, keys and values are one matrix there


def are_alone(values: Values, names: Iterable[str]) -> bool:
    """Whether a file has layers that predict further tokens, and none of those before them."""
    first = trunk_of(values)
    found = {tensor_names.parse(name).bid for name in names} - {None}
    return first > 0 and bool(found) and all(bid is not None and bid >= first for bid in found)


def unrun(arch: str, values: Values, tensors: Sequence[Info]) -> Iterator[str]:
    """Why llama.cpp does not run them, where it has code for those of the architecture."""
    count, ahead = number(values, "block_count"), number(values, "nextn_predict_layers")
    if arch not in ALONE or not ahead:
        return
    there: dict[int, set[str]] = {}
    for t in tensors:
        name = tensor_names.parse(t.name)
        if name.bid is not None and name.bid >= count - ahead:
            there.setdefault(name.bid, set()).add(name.role + name.suffix)
    if not there:
        return  # left out
    if ahead > 1 and arch not in _SEVERAL:
        yield f"{arch}: {ahead} layers predict further tokens, and llama.cpp runs one"
    for bid, names in sorted(there.items()):
        if _LOADED not in names:
            yield f"{tensor_names.in_block(_LOADED, bid)} is not there"
            return
        if arch == _JOINED[0] and _JOINED[1] not in names:
            yield (
                f"{arch}: the queries, keys and values of layer {bid}, which predicts further "
                "tokens, are three matrices; llama.cpp runs it where they are one"
            )
            return
