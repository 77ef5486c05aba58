"""What llama.cpp takes a layer for by its number, where metadata give a period and not a list.

Read off `load_arch_hparams` and the graphs of `src/models/*.cpp` (b11549). A layer that moves to
another number is what that number says, unless an array of one value a layer says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Pattern(NamedTuple):
    """`key`: the array that says it of each layer. `period`: the one that holds where the scalar
    `period_key` is not there. `first`: it is the first layer of a period that is another, not the
    last. `window`: how wide the sliding window is where no key says so; None: every model has the
    pattern."""

    key: str
    period_key: str
    period: int
    first: bool = False
    window: int | None = None

    def of_layer(self, i: int, period: int) -> bool:
        """Whether layer `i` slides (or is recurrent)."""
        return i % period != (0 if self.first else period - 1)


def _sliding(period: int, first: bool = False, window: int = 0) -> Pattern:
    key = "attention.sliding_window_pattern"
    return Pattern(key, key, period, first, window)


def _recurrent(period: int) -> Pattern:
    return Pattern("attention.recurrent_layers", "full_attention_interval", period)


PATTERNS = {
    "afmoe": _sliding(4), "cohere2": _sliding(4), "cohere2moe": _sliding(4, True),
    "exaone-moe": _sliding(4, window=128), "gemma-embedding": _sliding(6),
    "gemma-embedding2": _sliding(6), "gemma2": _sliding(2, window=4096), "gemma3": _sliding(6),
    "gpt-oss": _sliding(2), "laguna": _sliding(4, True), "llama4": _sliding(4, window=8192),
    "mellum": _sliding(4), "modern-bert": _sliding(3, True), "muse-glimmer": _sliding(4),
    "olmo2": _sliding(4), "plamo3": _sliding(8), "smallthinker": _sliding(4, True),
    "minimax-01": _recurrent(8), "qwen35": _recurrent(4), "qwen35moe": _recurrent(4),
    "qwen3next": _recurrent(4), "qwen4exp": _recurrent(4),
}  # fmt: skip


# architectures of two kinds of layers whose recurrent ones have no key-value heads
RECURRENT_WITHOUT_KV = {
    "bailingmoe3", "glm5-next", "granitehybrid", "jamba", "kimi-k3", "kimi-linear", "lfm2",
    "lfm2moe", "nemotron_h", "nemotron_h_moe", "plamo2",
}  # fmt: skip
# the number of layers with which attention is scaled by the width of the model, divided by its
# heads; with any other it is by that of a head (gemma2.cpp, gemma3.cpp)
WIDE_SCALE = {"gemma2": 46, "gemma3": 62}
UNNORMED = 128  # the number of experts with which Llama 4's queries and keys are not normed
ALWAYS_SLIDE = {"afmoe"}  # whose graph is built for a window whatever its width


class Step(NamedTuple):
    """What no array can say. `key` gives the step, `step` holds without one; `kind` tells layers
    apart, by their number and the step; `sliding`: only where a window slides."""

    words: str
    key: str | None
    step: int
    kind: Callable[[int, int], int]
    sliding: bool = False


def _last(i: int, step: int) -> int:
    return (i + 1) % step == 0


def _first(i: int, step: int) -> int:
    return i % step == 0


def _unturned(kind: Callable[[int, int], int] = _last, sliding: bool = True) -> Step:
    return Step("has no rotary positions", None, 4, kind, sliding)


_MOE = "interleave_moe_layer_step"
STEPS: dict[str, tuple[Step, ...]] = {
    "afmoe": (_unturned(),),
    "llama4": (_unturned(), Step("has experts", _MOE, 1, _last)),
    "smallthinker": (_unturned(_first),),
    "smollm3": (_unturned(sliding=False),),
    "ernie4_5-moe": (Step("has experts", _MOE, 1, _last),),
    "nomic-bert-moe": (Step("has experts", "moe_every_n_layers", 0, lambda i, n: i % n == 1),),
    "k2-horizon": (Step("has experts", "moe_every_n_layers", 0, _first),),
    "kimi-k3": (Step("sums up those before it", "attn_res.block_size", 0, _first),),
    "rwkv6": (Step("is halved", "rescale_every_n_layers", 0, lambda i, n: i // n),),
    "rwkv6qwen2": (Step("is halved", "rescale_every_n_layers", 0, lambda i, n: i // n),),
}
PARTS = ("dflash", "eagle3", "gemma4-assistant")  # of a model, and run beside it
# architectures without logits: what they give are vectors
ENCODERS = {
    "bert", "eurobert", "gemma-embedding", "jina-bert-v2", "jina-bert-v3",
    "modern-bert", "neo-bert", "nomic-bert", "nomic-bert-moe", "t5encoder",
}  # fmt: skip
# architectures whose first layer gives all others its values
LED_BY_FIRST = {"arwkv7", "rwkv7"}
# architectures of which single layers are addressed in llama.cpp's code, or all of them by one
# tensor, so that none can go
UNPRUNABLE = {
    "deepseek4": "its layers compress by their numbers, and llama.cpp ends at others",
    "gemma3n": "20 layers have keys and values of their own, by their number",
    "t5": "the layers of its encoder and its decoder are counted apart",
    "t5encoder": "its layers are the encoder's of another model",
    "graniteswitch": "its adapters' layers are counted in its code",
    "hrm_text": "its layers are run in two loops of a fixed length",
    "nanbeige": "its layers are run in loops",
    **dict.fromkeys(PARTS, "it is a part of another model"),
}  # fmt: skip
