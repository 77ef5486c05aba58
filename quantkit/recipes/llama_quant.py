"""The mixtures: llama.cpp's rule from what a tensor does to its format, as a table.

Data and pure functions, readable beside `src/llama-quant.cpp` (tensor_get_category,
tensor_allows_quantization, llama_tensor_get_type_impl, tensor_type_fallback). llama.cpp counts
tensors of a kind as it walks the model; here a rule sees that count as `rank`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from quantkit.recipes.facts import ModelFacts


class Subject(NamedTuple):
    """A tensor as the rules see it: its category, its layer, its rank among the `alike`, whether it
    is a stack of matrices, and whether its rows divide into blocks of the recipe's base."""

    name: str
    category: str
    layer: int
    rank: int
    alike: int
    stacked: bool
    fits: bool = True


When = Callable[[ModelFacts, Subject], bool]


class Rule(NamedTuple):
    """A row of the table: in these recipes, tensors of this category get this format, if `when`."""

    category: str  # empty: all
    recipes: tuple[str, ...]  # empty: all
    format: str  # empty: the recipe's base
    when: When = lambda m, t: True


def more_bits(i: int, n: int) -> bool:
    """The layers that matter most: the first and last eighth and every third between."""
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2


def _falcon(m: ModelFacts, t: Subject) -> bool:
    return m.arch == "falcon"


def _eight_experts(m: ModelFacts, t: Subject) -> bool:
    return m.n_experts == 8


def _grouped(m: ModelFacts, t: Subject) -> bool:
    return m.queries_per_kv >= 4


def _first_eighth(m: ModelFacts, t: Subject) -> bool:
    return t.layer < m.n_layers // 8


def _first_sixteenth(m: ModelFacts, t: Subject) -> bool:
    return t.layer < m.n_layers // 16


def _more_bits(m: ModelFacts, t: Subject) -> bool:
    return more_bits(t.layer, m.n_layers)


def _stacked_experts(m: ModelFacts, t: Subject) -> bool:
    return t.stacked and (m.arch != "bailingmoe3" or t.category.startswith("ffn_"))


def _glm5_latent(m: ModelFacts, t: Subject) -> bool:
    parts = ("attn_q_a", "attn_q_b", "nextn.eh_proj")
    return m.arch == "glm5-next" and any(part in t.name for part in parts)


def _first_eighth_by_rank(m: ModelFacts, t: Subject) -> bool:
    return t.rank < m.n_layers // 8


def _middle(m: ModelFacts, t: Subject) -> bool:
    """Between the first and the last eighth of the layers."""
    return m.n_layers // 8 <= t.layer < 7 * m.n_layers // 8


def _grouped_70b(m: ModelFacts, t: Subject) -> bool:
    return m.is_70b and _grouped(m, t)


# the types of about two bits and fewer, for which rules of their own hold; those with more of them
_LOW = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M")
_LOW_MORE = ("IQ2_S", "IQ2_M")

# The first row that fits decides; none: the recipe's base.
RULES: tuple[Rule, ...] = (
    Rule("", (), "Q8_0", _glm5_latent),

    Rule("output", ("MXFP4_MOE", "Q8_0"), "Q8_0"),
    Rule("output", (), "Q8_0", lambda m, t: _falcon(m, t) or not t.fits),
    Rule("output", (*_LOW, "IQ3_XXS"), "Q5_K"),
    Rule("output", (), "Q6_K"),

    Rule("", ("MXFP4_MOE",), "MXFP4", _stacked_experts),
    Rule("", ("MXFP4_MOE",), "Q8_0"),

    Rule("token_embd", ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS"), "Q2_K"),
    Rule("token_embd", ("IQ2_S", "IQ2_M", "IQ3_XXS"), "IQ3_S"),
    Rule("token_embd", ("TQ1_0", "TQ2_0", "Q2_0"), "Q4_K"),

    Rule("attn_v", _LOW, "Q4_K", lambda m, t: _grouped(m, t) or m.n_experts >= 4),
    Rule("attn_v", _LOW_MORE, "IQ3_S"),
    Rule("attn_v", _LOW, "Q2_K"),
    Rule("attn_k", _LOW, "Q4_K", _eight_experts),
    Rule("ffn_down", _LOW_MORE, "IQ3_S", _first_eighth_by_rank),
    Rule("ffn_down", _LOW, "Q2_K", _first_eighth_by_rank),
    Rule("attn_output", _LOW, "Q5_K", _eight_experts),
    Rule("attn_output", ("IQ1_S", "IQ1_M"), "IQ2_XXS"),
    Rule("attn_output", _LOW_MORE, "IQ3_S"),

    Rule("attn_v", (), "Q8_0", _eight_experts),
    Rule("attn_v", ("Q4_K_M", "Q5_K_M"), "Q6_K", lambda m, t: more_bits(t.rank, t.alike)),
    Rule("attn_v", ("Q2_K", "Q3_K_S", "Q3_K_M", "Q4_K_S", "Q4_K_M"), "Q5_K",
         lambda m, t: m.is_70b),
    Rule("attn_v", ("IQ3_M",), "Q5_K", lambda m, t: m.is_70b),
    Rule("attn_v", ("Q2_K_S", "IQ3_XXS", "IQ3_XS", "IQ3_S"), "Q5_K", _grouped_70b),
    Rule("attn_v", ("Q2_K", "Q2_K_S", "IQ3_XXS", "IQ3_XS", "IQ3_S"), "Q4_K", _grouped),
    Rule("attn_v", ("IQ3_XXS",), "IQ3_S", lambda m, t: not m.has_imatrix),
    Rule("attn_v", ("IQ3_M",), "Q4_K"),
    Rule("attn_v", ("Q2_K",), "Q3_K"),
    Rule("attn_v", ("Q3_K_M",), "Q5_K", lambda m, t: t.rank < 2),
    Rule("attn_v", ("Q3_K_M",), "Q4_K"),
    Rule("attn_v", ("Q3_K_L",), "Q5_K"),
    Rule("attn_v", ("IQ4_NL", "IQ4_XS"), "Q5_K", _grouped),
    Rule("attn_v", ("Q4_K_S",), "Q5_K", lambda m, t: t.rank < 4),

    Rule("attn_k", (), "Q8_0", _eight_experts),
    Rule("attn_k", ("IQ3_XS",), "IQ3_XXS"),
    Rule("attn_k", ("IQ3_XXS",), "IQ2_S"),
    Rule("attn_q", ("IQ3_XS",), "IQ3_XXS"),
    Rule("attn_q", ("IQ3_XXS",), "IQ2_S"),

    Rule("attn_output", ("Q3_K_L",), "Q4_K", _falcon),
    Rule("attn_output", (), "", _falcon),
    Rule("attn_output", ("Q2_K", "IQ3_XXS", "IQ3_XS", "Q3_K_S", "IQ3_S", "IQ3_M", "Q3_K_M",
                         "IQ4_NL", "IQ4_XS", "Q4_K_S", "Q4_K_M"), "Q5_K", _eight_experts),
    Rule("attn_output", (), "", _eight_experts),
    Rule("attn_output", ("Q2_K",), "Q3_K"),
    Rule("attn_output", ("IQ3_XXS",), "IQ3_S"),
    Rule("attn_output", ("Q3_K_M", "IQ3_M"), "Q4_K"),
    Rule("attn_output", ("Q3_K_L",), "Q5_K"),

    Rule("ffn_down", ("Q2_K",), "Q3_K"),
    Rule("ffn_down", ("Q2_K_S",), "Q4_K", _first_eighth),
    Rule("ffn_down", ("IQ3_XXS",), "Q4_K", lambda m, t: not m.has_imatrix and _first_eighth(m, t)),
    Rule("ffn_down", ("IQ3_XXS",), "Q3_K", lambda m, t: not m.has_imatrix),
    Rule("ffn_down", ("IQ3_M",), "Q4_K",
         lambda m, t: _first_eighth(m, t) or (_eight_experts(m, t) and _more_bits(m, t))),
    Rule("ffn_gate", ("IQ3_XS",), "IQ3_XXS", _middle),
    Rule("ffn_up", ("IQ3_XS",), "IQ3_XXS", _middle),
    Rule("ffn_down", ("Q3_K_M",), "Q5_K", _first_sixteenth),
    Rule("ffn_down", ("Q3_K_M",), "Q4_K", lambda m, t: not _falcon(m, t) or _more_bits(m, t)),
    Rule("ffn_down", ("Q3_K_L",), "Q4_K", _falcon),
    Rule("ffn_down", ("Q3_K_L",), "Q5_K"),
    Rule("ffn_down", ("Q4_K_S",), "Q5_K",
         lambda m, t: not _falcon(m, t) and _first_eighth(m, t)),
    Rule("ffn_down", ("Q4_K_M",), "Q6_K",
         lambda m, t: _first_sixteenth(m, t) if _falcon(m, t) else _more_bits(m, t)),
    Rule("ffn_down", ("Q4_K_M",), "Q5_K", lambda m, t: _falcon(m, t) and _more_bits(m, t)),
    Rule("ffn_down", ("Q5_K_M",), "Q6_K", _more_bits),
    Rule("ffn_down", ("IQ4_NL", "IQ4_XS"), "Q5_K",
         lambda m, t: not m.has_imatrix and _first_eighth(m, t)),
    Rule("ffn_down", ("Q4_0",), "Q4_1", lambda m, t: m.has_imatrix and _first_eighth(m, t)),
    Rule("ffn_down", ("Q5_0",), "Q5_1", lambda m, t: m.has_imatrix and _first_eighth(m, t)),
)  # fmt: skip

# where a row does not divide into the format's blocks; where it does not into these either: F16
FALLBACKS: Mapping[str, str] = {
    "TQ1_0": "Q4_0", "TQ2_0": "Q4_0", "Q2_0": "Q4_0", "Q2_K": "Q4_0", "Q3_K": "Q4_0",
    "IQ1_S": "IQ4_NL", "IQ1_M": "IQ4_NL", "IQ2_XXS": "IQ4_NL", "IQ2_XS": "IQ4_NL",
    "IQ2_S": "IQ4_NL", "IQ3_XXS": "IQ4_NL", "IQ3_S": "IQ4_NL", "IQ4_XS": "IQ4_NL",
    "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0",
}  # fmt: skip


def by_rule(recipe: str, facts: ModelFacts, t: Subject) -> str:
    """The format that the table gives a tensor in the recipe of that name; empty: its base."""
    for rule in RULES:
        named = rule.category in ("", t.category) and (not rule.recipes or recipe in rule.recipes)
        if named and rule.when(facts, t):
            return rule.format
    return ""
