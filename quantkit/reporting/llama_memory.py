"""How much memory llama.cpp takes for a model, part by part; `docs/memory.md` derives it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from quantkit.gguf import tensor_names
from quantkit.gguf.container import align
from quantkit.gguf.types import tensor_bytes
from quantkit.loading.kinds import ENCODER

UBATCH = 512  # tokens that llama.cpp evaluates at once (n_ubatch)
PROGRAM = 8_000_000  # bytes: its tables and threads, whatever the model
PATCHES = 64  # of a side of an image, whatever size the encoder may take
PIECE = 230  # bytes that a token or a merge of the vocabulary takes

# ggml-cpu/repack.cpp: formats that it keeps a rearranged copy of where there is AVX2
_REPACKED = {"Q4_0", "Q4_K", "IQ4_NL", "MXFP4"}

# llama.cpp `src/models/*.cpp`: every so many layers one sees the whole context, where the metadata
# has a window and does not list the layers (set_swa_pattern); True: the first of them, not the last
_PATTERNS = {
    "afmoe": (4, False), "cohere2": (4, False), "cohere2moe": (4, True), "exaone-moe": (4, False),
    "exaone4": (4, False), "gemma2": (2, False), "gemma3": (6, False), "gpt-oss": (2, False),
    "llama4": (4, False), "olmo2": (4, False), "smallthinker": (4, True),
}  # fmt: skip
_LISTED = ("gemma4", "granite_swa", "mimo2", "step35")  # the metadata always lists the layers
_WINDOWS = {"llama4": 8192, "smallthinker": 4096}  # whatever the metadata says
# roles of tensors: of layers that keep keys and values, and of those that keep a state instead
_CACHED = {"attn_k", "attn_qkv", "attn_kv_a_mqa"}
_RECURRENT = {"ssm_conv1d", "ssm_conv1d_q", "shortconv.conv"}
_UNCACHED = {"llada", "llada-moe", "rnd1", "dream"}  # diffusion: every step sees all tokens anew
_UNFUSED = {"grok"}  # attention that llama.cpp computes score by score


class Weights(NamedTuple):
    """A tensor of a file: `shape` in NumPy order, `format` as ggml names it."""

    name: str
    shape: tuple[int, ...]
    format: str

    @property
    def nbytes(self) -> int:
        """Its size in the file."""
        return tensor_bytes(self.shape, self.format)

    @property
    def role(self) -> str:
        """What it does."""
        return tensor_names.parse(self.name).role

    @property
    def is_repacked(self) -> bool:
        """Whether llama.cpp keeps a rearranged copy of it: matrices, but not embeddings, which
        are looked up."""
        matrix = self.name.endswith(".weight") and len(self.shape) > 1 and self.role != "token_embd"
        stacked = len(self.shape) == 3 and not self.role.endswith("_exps")
        return matrix and not stacked and self.format in _REPACKED and self.shape[-2] % 8 == 0


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes that llama.cpp takes for one model at one context."""

    weights: int  # all tensors
    experts: int  # of them, the routed experts
    largest_experts: int  # the largest tensor of experts
    embeddings: int  # the tables of tokens, which stay in main memory
    copies: int  # of tensors that are rearranged for the CPU
    unmapped: int  # of the file, what nobody needs once they are
    cache: int  # keys and values, and the states of recurrent layers
    compute: int  # the activations of one batch
    rest: int  # vocabulary, and what does not depend on the model
    tied: bool  # the table of tokens is the output's matrix too

    @property
    def required(self) -> int:
        """What must be there to run on the CPU, and all that is resident where the file is read
        rather than mapped."""
        return self.weights + self.cache + self.compute + self.rest

    @property
    def mapped(self) -> int:
        """The peak of what is resident where the file is mapped: pages of the file that the system
        may take back, beside the copies of them."""
        late = max(self.cache + self.compute - self.unmapped, 0)
        return self.weights + self.copies + late + self.rest

    @property
    def experts_on_cpu(self) -> tuple[int, int] | None:
        """Main memory and GPU memory with `--cpu-moe`; None if there are no experts."""
        if not self.experts:
            return None
        ram = self.experts + self.embeddings + self.compute + self.rest
        shared = self.embeddings if self.tied else 0
        weights = self.weights - self.experts - self.embeddings + shared
        # a batch's experts are computed on the GPU, to which they are copied tensor by tensor
        return ram, weights + self.cache + self.compute + self.largest_experts


def memory(
    arch: str,
    values: Mapping[str, Any],
    tensors: Sequence[Weights],
    context: int,
    pieces: int,
    batch: int = UBATCH,
) -> MemoryNeed:
    """What a model takes at a context of so many tokens, of which `batch` are evaluated at once.

    `values`: its metadata, without the architecture's name in the keys; `tensors` in the order of
    the file; `pieces`: tokens and merges of the vocabulary.
    """
    facts = Hyperparameters(arch, values)
    experts = [t.nbytes for t in tensors if t.role.endswith("_exps")]
    tables = [t for t in tensors if t.role in ("token_embd", "per_layer_token_embd")]
    tied = all(t.role != "output" for t in tensors)
    # a table that is the output's matrix too is used as one
    matrices = [t._replace(name="output.weight") for t in tables[:1]] if tied else []
    copies = [t.nbytes for t in (*tensors, *matrices) if t.is_repacked]
    return MemoryNeed(
        weights=sum(t.nbytes for t in tensors),
        experts=sum(experts),
        largest_experts=max(experts, default=0),
        embeddings=sum(t.nbytes for t in tables),
        copies=sum(copies),
        unmapped=_leading(tensors) + _leading(tensors[::-1]),
        cache=_cache(facts, tensors, context),
        compute=_image(facts) if arch == ENCODER else _compute(facts, tensors, context, batch),
        rest=PROGRAM + PIECE * pieces,
        tied=tied,
    )


def _leading(tensors: Sequence[Weights]) -> int:
    """Bytes of the tensors before the first that is not copied; none if all are."""
    total = 0
    for t in tensors:
        if not t.is_repacked:
            return total
        total += t.nbytes
    return 0


class Hyperparameters:
    """A model's metadata, as llama.cpp reads its hyperparameters (`llama-model.cpp`, load_hparams).

    `layers` leaves out those that predict further tokens: they have a context of their own.
    """

    def __init__(self, arch: str, values: Mapping[str, Any]) -> None:
        self.arch, self.values = arch, values
        self.layers = self.number("block_count") - self.number("nextn_predict_layers")
        self.width = self.number("embedding_length")

    def number(self, key: str, default: int = 0) -> int:
        """A number; the largest where there is one a layer."""
        value = self.values.get(key, default)
        return int(max(value, default=default) if isinstance(value, list) else value)

    def of_layer(self, key: str, bid: int, default: int = 0) -> int:
        """A number, of one layer where there is one a layer."""
        value = self.values.get(key, default)
        if isinstance(value, list):
            return int(value[bid]) if bid < len(value) else default
        return int(value)

    def window(self, bid: int) -> int:
        """The tokens that a layer looks back; 0 for all."""
        window = self.number("attention.sliding_window", 8192 if self.arch == "llama4" else 0)
        if not window or (self.arch not in _PATTERNS and self.arch not in _LISTED):
            return 0
        window = _WINDOWS.get(self.arch, window)
        pattern = self.values.get("attention.sliding_window_pattern")
        if isinstance(pattern, list):
            return window if bid < len(pattern) and pattern[bid] else 0
        every, first = _PATTERNS.get(self.arch, (0, False))
        every = pattern or every
        sees_all = not every or bid % every == (0 if first else every - 1)
        return 0 if sees_all else window

    def cells(self, bid: int, context: int) -> int:
        """How many tokens a layer keeps keys and values of (`llama-kv-cache-iswa.cpp`)."""
        window = self.window(bid)
        return align(min(context, window + UBATCH), 256) if window else context

    def cached(self, bid: int, context: int) -> int:
        """Bytes of a layer's keys and values, in float16."""
        heads = max(self.of_layer("attention.head_count", bid), 1)
        kv_heads = self.of_layer("attention.head_count_kv", bid, heads)
        key = self.number("attention.key_length", self.width // heads)
        value = self.number("attention.value_length", self.width // heads)
        if self.window(bid):
            key = self.number("attention.key_length_swa", key)
            value = self.number("attention.value_length_swa", value)
        if "attention.key_length_mla" in self.values:
            value = 0  # one latent vector serves as both
        return 2 * self.cells(bid, context) * kv_heads * (key + value)

    def state(self) -> int:
        """Bytes of a recurrent layer's state, in float32 (`llama-hparams.cpp`, n_embd_r and
        n_embd_s)."""
        heads = self.number("attention.head_count")
        inner, size = self.number("ssm.inner_size"), self.number("ssm.state_size")
        kernel = max(self.number("ssm.conv_kernel") - 1, 0)
        if length := self.number("shortconv.l_cache"):
            return 4 * self.width * (length - 1)
        if head := self.number("kda.head_dim"):
            return 4 * heads * head * (head + 3 * kernel)
        if self.arch == "minimax-01":
            return 4 * heads * self.number("attention.key_length") ** 2
        return 4 * (kernel * (inner + 2 * self.number("ssm.group_count") * size) + inner * size)


def _cache(facts: Hyperparameters, tensors: Sequence[Weights], context: int) -> int:
    """Keys, values and states of all layers, by the tensors that each has."""
    if facts.arch in _UNCACHED:
        return 0
    found: dict[int, set[str]] = {}
    for t in tensors:
        name = tensor_names.parse(t.name)
        if name.bid is not None and name.bid < facts.layers:
            found.setdefault(name.bid, set()).add(name.role)
    own = facts.layers - facts.number("attention.shared_kv_layers")
    total = 0
    for bid, has in found.items():
        if has & _RECURRENT or (facts.arch == "minimax-01" and "attn_k" not in has):
            total += facts.state()
        elif has & _CACHED and bid < own:
            total += facts.cached(bid, context)
    return total


def _image(facts: Hyperparameters) -> int:
    """The buffer of the graph that looks at an image of the encoder's own size: eight activations
    of every patch, and what its MLP computes."""
    side, patch = (facts.number(f"vision.{name}") for name in ("image_size", "patch_size"))
    patches = min(side // max(patch, 1), PATCHES) ** 2
    width, ffn = (
        facts.number(f"vision.{name}") for name in ("embedding_length", "feed_forward_length")
    )
    return 4 * patches * (8 * width + 2 * ffn)


def _compute(facts: Hyperparameters, tensors: Sequence[Weights], context: int, batch: int) -> int:
    """The buffer of the graph that evaluates a whole batch, at the widest of its places, with the
    masks of what is seen, and the place where a matrix product keeps its input rounded."""
    n, width = facts.number, facts.width
    heads = max(n("attention.head_count"), 1)
    key = n("attention.key_length", width // heads)
    kv_heads, value = n("attention.head_count_kv", heads), n("attention.value_length", key)
    if latent := n("attention.kv_lora_rank"):
        attention = heads * (latent + key + n("attention.key_length_mla"))
    else:
        attention = 2 * heads * key + kv_heads * (key + value) - width
    if facts.arch == "minimax-01":  # scores of every token of the batch, thrice
        attention = max(attention, 3 * heads * batch)
    mixer = max((t.shape[0] for t in tensors if t.role == "ssm_in"), default=0)
    dense, used = n("feed_forward_length"), n("expert_used_count")
    experts = n("expert_feed_forward_length", dense) * used
    # what experts give is as wide as all of them; it may fit where gate and up were
    given = width * used if width * used > 2 * experts else 0
    if facts.layers < 2:  # the last layer goes on with the tokens that are asked for only
        dense = experts = given = 0
    widest = max(
        attention, 3 * dense, 3 * experts + given, 2 * mixer + 2 * n("ssm.inner_size") - width
    )
    bids = {bid for t in tensors if (bid := tensor_names.parse(t.name).bid) is not None}
    windows = [
        facts.cells(bid, context) for bid in bids if bid < facts.layers and facts.window(bid)
    ]
    seen = batch if facts.arch in _UNCACHED else context + max(windows, default=0)
    scores = heads * context + seen / 2 if facts.arch in _UNFUSED else 0
    floats = widest + (5 + n("n_deepstack_layers")) * width + seen / 2 + scores
    rounded = max(heads * value, dense, experts) * 9 / 8  # bytes, Q8_K
    return int(min(context, batch) * (4 * floats + rounded))
