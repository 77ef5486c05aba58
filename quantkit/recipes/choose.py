"""Recipes: what a `--type` means, what a person may override, and the format of every tensor.

Pure: names, shapes and facts in, formats out. The rule itself is the table of `mixtures.py`;
`docs/recipes.md` shows it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from typing import NamedTuple

from quantkit.errors import RecipeError, UsageError
from quantkit.gguf import tensor_names
from quantkit.gguf.container import align
from quantkit.gguf.types import tensor_bytes, type_by_name
from quantkit.plain_text import first_of
from quantkit.recipes.facts import ModelFacts, category, is_quantized
from quantkit.recipes.file_types import LOW_FORMATS, MOE_FORMATS, Recipe, find_format, find_recipe
from quantkit.recipes.llama_quant import FALLBACKS, Subject, by_rule, more_bits
from quantkit.recipes.sensitivity import loss, usual_error


@dataclass(frozen=True)
class Overrides:
    """What a person asks for beside the type; llama-quantize's options of the same names.

    `tensor_types` are (regular expression, format) pairs: the first that is found in a tensor's
    name decides, in place of the rules. It does not touch files of a float type, nor
    `output_tensor_type` and `token_embedding_type`, which hold for every type but COPY. `listed`
    are the pairs among them that come from a file: it may be for a whole family, with lines for
    tensors that this model does not have. `formats` are those of single tensors, by name, as
    another file has them.
    """

    pure: bool = False
    output_tensor_type: str | None = None
    token_embedding_type: str | None = None
    leave_output_tensor: bool = False
    tensor_types: tuple[tuple[str, str], ...] = ()
    listed: frozenset[tuple[str, str]] = frozenset()
    formats: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def patterns(self) -> tuple[tuple[re.Pattern[str], str], ...]:
        """`tensor_types`, compiled."""
        return tuple((_compiled(pattern), fmt) for pattern, fmt in self.tensor_types)

    def named(self, name: str) -> str | None:
        """The format that `tensor_types` gives a tensor."""
        return next((fmt for pattern, fmt in self.patterns if pattern.search(name)), None)


NO_OVERRIDES = Overrides()


class Choice(NamedTuple):
    """What a tensor gets. `fallback_from`: the format that its rows do not divide into;
    `overridden`: a person's choice, not the recipe's."""

    format: str
    fallback_from: str | None = None
    overridden: bool = False


def tensor_type(text: str) -> tuple[str, str]:
    """One `--tensor-type PATTERN=FORMAT`; the pattern is lower-cased, as llama-quantize does.

    Raises UsageError.
    """
    pattern, equals, name = text.partition("=")
    if not (pattern and equals and name):
        raise UsageError(f"tensor type {text!r} is not PATTERN=FORMAT, such as ffn_down=Q6_K")
    try:
        _compiled(pattern.lower())
    except re.error as e:
        raise UsageError(f"tensor type {text!r}: not a regular expression ({e})") from None
    return pattern.lower(), find_format(name)


# what llama-quantize's kind of regular expression knows, and Python's would take for characters
_CLASSES = {
    "alnum": "a-z0-9", "alpha": "a-z", "digit": "0-9", "d": "0-9", "lower": "a-z", "w": r"\w",
    "xdigit": "a-f0-9", "punct": r"._\-", "upper": "A-Z", "space": r"\s", "s": r"\s",
}  # fmt: skip


def _compiled(pattern: str) -> re.Pattern[str]:
    """A pattern, `[[:digit:]]` and its kin among it. Raises re.error."""

    def meant(found: re.Match[str]) -> str:
        if found[1] not in _CLASSES:
            raise re.error(f"no class of characters is called {found[1]}")
        return _CLASSES[found[1]]

    return re.compile(re.sub(r"\[:(\w+):\]", meant, pattern))


# formats that llama-quantize refuses to make without importances, but of embedding and output
_WANT_IMPORTANCE = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS")


def needs_importance(name: str, fmt: str, kind: str = "") -> bool:
    """Whether a tensor cannot get this format without importances, in a file of this type:
    llama-quantize refuses it, or ggml has no way to make it."""
    import quant_types

    if category(name) in ("output", "token_embd"):
        return any(f.name == fmt and f.needs_importance for f in quant_types.FORMATS)
    return fmt in _WANT_IMPORTANCE or (kind == "Q2_K_S" and fmt == "Q2_K")


def choose(
    recipe: Recipe,
    facts: ModelFacts,
    tensors: Sequence[tuple[str, tuple[int, ...], str]],
    overrides: Overrides = NO_OVERRIDES,
) -> list[Choice]:
    """A format for each tensor, given as (name, shape in NumPy order, format it is stored in), in
    the order of llama-quantize.

    Raises RecipeError: a pattern that no tensor's name holds, a format that a tensor's rows do not
    divide into, a recipe that needs an importance matrix, or experts.
    """
    if recipe.mixture == "moe":
        return _moe(recipe, facts, tensors, overrides)
    names = [name for name, _, _ in tensors]
    _check_patterns(overrides, names)
    _check_formats(overrides.formats, names)
    ends = recipe.ends if not overrides.pure else ""
    categories = [category(name) for name, _, _ in tensors]
    alike = Counter(categories)
    ranks: dict[str, int] = {}
    out = []
    for (name, shape, stored), kind in zip(tensors, categories, strict=True):
        left = overrides.leave_output_tensor and kind == "output"
        if not recipe.base or left or not is_quantized(name, shape, facts.arch):
            out.append(Choice(stored, overridden=left))
        elif forced := _forced(overrides, name, kind):
            _check_fits(name, shape[-1], forced)
            out.append(Choice(forced, overridden=True))
        elif exact := overrides.formats.get(name):
            _check_makes(name, exact)
            out.append(_fitting(exact, shape[-1], overridden=True))
        elif ends and kind in ("output", "token_embd"):
            out.append(_fitting(ends, shape[-1]))
        elif type_by_name(recipe.base).is_float:
            out.append(Choice(recipe.base))
        elif named := overrides.named(name):
            out.append(_fitting(named, shape[-1], overridden=True))
        elif overrides.pure:
            out.append(_fitting(recipe.base, shape[-1]))
        else:
            tied = facts.tied and kind == "token_embd"
            rank = ranks[kind] = ranks.get(kind, -1) + 1
            block = tensor_names.parse(name).bid
            layer = rank if facts.n_experts < 2 or block is None else block
            stacked = len(shape) > 2 and shape[-3] > 1
            seen_as = "output" if tied else kind
            fits = shape[-1] % type_by_name(recipe.base).block_size == 0
            t = Subject(name, seen_as, layer, rank, alike[kind], stacked, fits)
            by_person = overrides.output_tensor_type if tied else None
            wanted = by_person or by_rule(recipe.rules, facts, t) or recipe.base
            out.append(_fitting(wanted, shape[-1], overridden=by_person is not None))
        if not facts.has_imatrix and needs_importance(name, out[-1].format, recipe.name):
            near = "Q3_K_S" if "IQ3" in recipe.name else "Q2_K"
            raise RecipeError(
                f"{recipe.name} gives {name} {out[-1].format}, which needs an importance matrix; "
                f"give one with --imatrix (auto makes it), or choose {near}"
            )
    return out


def _check_formats(formats: Mapping[str, str], names: Sequence[str]) -> None:
    """Raises RecipeError: a file gives formats, and has none of the tensors."""
    if formats and formats.keys().isdisjoint(names):
        raise RecipeError(
            f"the file of the recipe is of another model: it has {first_of([*formats])}, and none "
            f"of this one's tensors ({first_of([*names])})"
        )


def _check_makes(name: str, fmt: str) -> None:
    """Raises RecipeError for a format that no weights are written in, such as I8."""
    import quant_types

    if fmt not in (f.name for f in quant_types.FORMATS):
        raise RecipeError(
            f"the file of the recipe has {name} in {fmt}, which no weights are made in; give "
            "another file"
        )


def _moe(
    recipe: Recipe,
    facts: ModelFacts,
    tensors: Sequence[tuple[str, tuple[int, ...], str]],
    overrides: Overrides,
) -> list[Choice]:
    """In no more bytes than llama.cpp's mixture of that name, the formats that lose least.

    What experts hold is large, and an error there costs no more than elsewhere; so few bits less
    for them buy many bits for attention, the embedding and the output.
    """
    from quantkit.recipes.knapsack import Option, allocate

    if facts.n_experts < 2:
        raise RecipeError(
            f"{recipe.name} is for mixtures of experts, and the model has none; "
            "leave --recipe out, or choose a size with quantkit fit"
        )
    out = choose(find_recipe(recipe.name.removesuffix("-moe")), facts, tensors, overrides)
    free = [
        i
        for i, (name, shape, _) in enumerate(tensors)
        if is_quantized(name, shape, facts.arch) and not out[i].overridden
    ]
    # of tensors that are alike, those get more bits to whom llama.cpp gives them
    free.sort(
        key=lambda i: not more_bits(tensor_names.parse(tensors[i][0]).bid or 0, facts.n_layers)
    )
    items, budget = [], 0
    for i in free:
        name, shape, _ = tensors[i]
        important = name in facts.importances
        formats = (*LOW_FORMATS, *MOE_FORMATS) if important else MOE_FORMATS
        items.append(
            [
                Option(
                    fmt,
                    align(tensor_bytes(shape, fmt)),
                    loss(name, fmt, usual_error(fmt, important), facts),
                )
                for fmt in candidates(formats, shape[-1])
            ]
        )
        budget += align(tensor_bytes(shape, out[i].format))
    for i, options, j in zip(free, items, allocate(items, budget).chosen, strict=True):
        out[i] = Choice(options[j].format)
    return out


def candidates(formats: Iterable[str], n_per_row: int) -> list[str]:
    """The formats, or where a row does not divide into their blocks, what stands in for them."""
    return list(dict.fromkeys(_fitting(fmt, n_per_row).format for fmt in formats))


def _forced(overrides: Overrides, name: str, kind: str) -> str | None:
    if kind == "output":
        return overrides.output_tensor_type
    # the per-layer embedding is a large table of its own, which a pattern may name
    if kind == "token_embd" and not (name.startswith("per_layer") and overrides.named(name)):
        return overrides.token_embedding_type
    return None


def _fitting(wanted: str, n_per_row: int, overridden: bool = False) -> Choice:
    """`wanted`, or what llama.cpp falls back to where a row does not divide into its blocks. Raises
    RecipeError where it has nothing to fall back to."""
    block = type_by_name(wanted).block_size
    if n_per_row % block and block > 32 and wanted not in FALLBACKS:
        raise RecipeError(
            f"rows of {n_per_row} weights do not divide into {wanted}'s blocks of {block}, and "
            "llama.cpp has no other format for them; choose another type"
        )
    for name in (wanted, FALLBACKS.get(wanted), "F16"):
        if name and n_per_row % type_by_name(name).block_size == 0:
            return Choice(name, wanted if name != wanted else None, overridden)
    raise AssertionError("F16 has blocks of one weight")


def _check_fits(name: str, n_per_row: int, fmt: str) -> None:
    if n_per_row % (block := type_by_name(fmt).block_size):
        raise RecipeError(
            f"tensor {name} cannot be {fmt}: its rows of {n_per_row} weights do not divide into "
            f"blocks of {block}; choose a format with smaller blocks"
        )


def unmatched(overrides: Overrides, names: Sequence[str]) -> list[tuple[str, str]]:
    """The `tensor_types` that no tensor's name holds."""
    pairs = zip(overrides.tensor_types, overrides.patterns, strict=True)
    return [pair for pair, (pattern, _) in pairs if not any(map(pattern.search, names))]


def _check_patterns(overrides: Overrides, names: Sequence[str]) -> None:
    """Raises RecipeError: a pattern that was typed names nothing, or none of a file's does."""
    idle = unmatched(overrides, names)
    if overrides.listed and overrides.listed <= {*idle}:
        lines = [f"{pattern}={fmt}" for pattern, fmt in idle if (pattern, fmt) in overrides.listed]
        raise RecipeError(
            f"the file of tensor types is for another model: no tensor's name holds "
            f"{first_of(lines)}"
        )
    for pattern, fmt in idle:
        if (pattern, fmt) in overrides.listed:
            continue
        known = sorted({*names, *(tensor_names.parse(name).role for name in names)})
        near = get_close_matches(pattern, known, n=3, cutoff=0.5)
        hint = f"; near names: {', '.join(near)}" if near else ""
        raise RecipeError(f"tensor type {pattern}={fmt} matches no tensor{hint}")
