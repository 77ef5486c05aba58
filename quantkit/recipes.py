"""Recipes (mixtures): from what a tensor does to the format it gets. Pure, and readable beside
llama.cpp's rule (`src/llama-quant.cpp`: tensor_allows_quantization, llama_tensor_get_type).

llama.cpp counts tensors of a kind as it walks the model; the planner supplies those ranks instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import NamedTuple

from quantkit.errors import RecipeError
from quantkit.ggml_types import type_by_name


@dataclass(frozen=True)
class Recipe:
    """One `--type`. `file_type` is llama.h's `llama_ftype`; `bits` the nominal bits per weight."""

    name: str
    file_type: int
    base: str
    use_case: str


RECIPES: tuple[Recipe, ...] = (
    Recipe("Q4_K_M", 15, "Q4_K", "balanced: the usual choice"),
    Recipe("Q8_0", 7, "Q8_0", "nearly lossless; large"),
    Recipe("F16", 1, "F16", "16-bit; for further work"),
    Recipe("BF16", 32, "BF16", "16-bit, the source's range; for further work"),
    Recipe("F32", 0, "F32", "32-bit; for further work"),
)


@dataclass(frozen=True)
class Facts:
    """What the rules ask of a model. `tied`: no output.weight, the embedding serves as both."""

    arch: str
    n_layers: int
    n_experts: int
    n_heads: int
    n_kv_heads: int
    tied: bool

    @property
    def is_70b(self) -> bool:
        """Llama's grouped-query 70B, the one size that llama.cpp's rule knows by name."""
        return self.arch == "llama" and self.n_layers == 80 and self.n_heads != self.n_kv_heads


class Subject(NamedTuple):
    """A tensor as the rules see it: its category, its layer, its rank among the `alike`."""

    category: str
    layer: int
    rank: int
    alike: int
    n_per_row: int


When = Callable[[Facts, Subject], bool]


class Rule(NamedTuple):
    """A row of the table: in these recipes, tensors of this category get this format, if `when`."""

    category: str
    recipes: tuple[str, ...]  # empty: all
    format: str
    when: When = lambda facts, t: True


def more_bits(i: int, n: int) -> bool:
    """The layers that matter most: the first and last eighth and every third between."""
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2


def _eight_experts(facts: Facts, t: Subject) -> bool:
    return facts.n_experts == 8


# The first row that fits decides; none: the recipe's base.
RULES: tuple[Rule, ...] = (
    Rule("output", ("Q8_0",), "Q8_0"),
    Rule("output", (), "Q8_0", lambda facts, t: t.n_per_row % 256 != 0),
    Rule("output", (), "Q6_K"),
    Rule("attn_v", (), "Q8_0", _eight_experts),
    Rule("attn_v", ("Q4_K_M",), "Q6_K", lambda facts, t: more_bits(t.rank, t.alike)),
    Rule("attn_v", ("Q4_K_M",), "Q5_K", lambda facts, t: facts.is_70b),
    Rule("attn_k", (), "Q8_0", _eight_experts),
    Rule("attn_output", ("Q4_K_M",), "Q5_K", _eight_experts),
    Rule("ffn_down", ("Q4_K_M",), "Q6_K", lambda facts, t: more_bits(t.layer, facts.n_layers)),
)

# where a row does not divide into blocks of 256
FALLBACKS: Mapping[str, str] = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}

# the first of these that is part of a tensor's name is its category
_CATEGORIES = (
    ("attn_qkv.weight", "attn_v"), ("attn_kv_b.weight", "attn_v"), ("attn_v.weight", "attn_v"),
    ("attn_k.weight", "attn_k"), ("attn_q.weight", "attn_q"), ("attn_output.weight", "attn_output"),
    ("ffn_up", "ffn_up"), ("ffn_gate", "ffn_gate"), ("ffn_down", "ffn_down"),
)  # fmt: skip

# parts of the names of matrices that are never quantized
_KEPT = (
    "_norm.weight", "ffn_gate_inp.weight", "ffn_gate_tid2eid.weight", "altup", "laurel",
    "per_layer_model_proj", "ssm_conv1d", "shortconv.conv.weight", "indexer.k_proj.weight",
    "indexer.q_proj.weight", "time_mix_first.weight", "time_mix_w0.weight", "time_mix_w1.weight",
    "time_mix_w2.weight", "time_mix_v0.weight", "time_mix_v1.weight", "time_mix_v2.weight",
    "time_mix_a0.weight", "time_mix_a1.weight", "time_mix_a2.weight", "time_mix_g1.weight",
    "time_mix_g2.weight", "time_mix_decay_w1.weight", "time_mix_decay_w2.weight",
    "time_mix_lerp_fused.weight", "attn_rel_b.weight", "position_embd", "token_types.weight",
    "sam.pos_embd", "sam.neck.", "sam.net_", ".rel_pos", ".patch_embd", ".patch_merger",
    "a.rvq.codebook", "mm.a.code_embd",
)  # fmt: skip


def find_recipe(name: str) -> Recipe:
    """The recipe of a `--type`, case ignored. Raises RecipeError with near names."""
    by_name = {r.name: r for r in RECIPES}
    if found := by_name.get(name.upper()):
        return found
    near = get_close_matches(name.upper(), by_name, n=2, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise RecipeError(f"unknown type {name!r}; {hint}types: {', '.join(by_name)}")


def category(name: str) -> str:
    """llama.cpp's tensor category: broad, by parts of the name."""
    if name == "output.weight":
        return "output"
    if name in ("token_embd.weight", "per_layer_token_embd.weight"):
        return "token_embd"
    return next((found for part, found in _CATEGORIES if part in name), "other")


def is_quantized(name: str, shape: Sequence[int]) -> bool:
    """Whether llama.cpp quantizes the tensor at all. `shape` in NumPy order."""
    leading_ones = next((i for i, n in enumerate(shape) if n != 1), len(shape))
    if len(shape) - leading_ones < 2 or not name.endswith("weight"):
        return False
    return not any(part in name for part in _KEPT)


def choose(
    recipe: Recipe, facts: Facts, tensors: Sequence[tuple[str, tuple[int, ...], str]]
) -> list[str]:
    """A format for each tensor, given as (name, shape in NumPy order, format it is stored in), in
    the order of llama-quantize."""
    categories = [category(name) for name, _, _ in tensors]
    ranks: dict[str, int] = {}
    out = []
    for (name, shape, stored), kind in zip(tensors, categories, strict=True):
        if not is_quantized(name, shape):
            out.append(stored)
            continue
        if type_by_name(recipe.base).is_float:
            out.append(recipe.base)
            continue
        rank = ranks[kind] = ranks.get(kind, -1) + 1
        layer = rank
        if facts.n_experts > 1 and name.startswith("blk."):
            layer = int(name.split(".")[1])
        subject = Subject(kind, layer, rank, categories.count(kind), shape[-1])
        out.append(_fitting(_wanted(recipe, facts, subject), shape[-1]))
    return out


def _wanted(recipe: Recipe, facts: Facts, t: Subject) -> str:
    kind = "output" if t.category == "token_embd" and facts.tied else t.category
    for rule in RULES:
        applies = not rule.recipes or recipe.name in rule.recipes
        if rule.category == kind and applies and rule.when(facts, t):
            return rule.format
    return recipe.base


def _fitting(wanted: str, n_per_row: int) -> str:
    """`wanted`, or what llama.cpp falls back to where a row does not divide into its blocks."""
    for name in (wanted, FALLBACKS.get(wanted)):
        if name and n_per_row % type_by_name(name).block_size == 0:
            return name
    return "F16"
