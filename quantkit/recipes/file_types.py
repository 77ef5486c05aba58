"""File types: what a `--type` means, by name. Data and look-ups."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches

from quantkit.errors import UsageError


@dataclass(frozen=True)
class Recipe:
    """One `--type`.

    `file_type` is llama.h's `llama_ftype`; `base` the format of whatever no rule names. An empty
    `base` copies: every tensor keeps its format, and the file its source's file_type. `mixture` is
    whose choice it is: llama.cpp's rules, or "moe". `ends`: the format of embedding and output;
    `like`: the type whose rules hold for the rest, if not its own.
    """

    name: str
    file_type: int
    base: str
    use_case: str
    mixture: str = ""
    ends: str = ""
    like: str = ""

    @property
    def rules(self) -> str:
        """The type by whose name llama.cpp's rules know it."""
        return self.like or self.name


RECIPES: tuple[Recipe, ...] = (
    Recipe("Q1_0", 40, "Q1_0", "models trained for one bit only"),
    Recipe("IQ1_S", 24, "IQ1_S", "smallest; very heavy loss; needs an importance matrix"),
    Recipe("TQ1_0", 36, "TQ1_0", "ternary models only (BitNet); smallest"),
    Recipe("IQ1_M", 31, "IQ1_M", "very heavy loss; needs an importance matrix"),
    Recipe("IQ2_XXS", 19, "IQ2_XXS", "heavy loss; needs an importance matrix"),
    Recipe("TQ2_0", 37, "TQ2_0", "ternary models only (BitNet); faster than TQ1_0"),
    Recipe("Q2_0", 41, "Q2_0", "models trained for two bits only"),
    Recipe("IQ2_XS", 20, "IQ2_XS", "heavy loss; needs an importance matrix"),
    Recipe("IQ2_S", 28, "IQ2_XS", "heavy loss; needs an importance matrix"),
    Recipe("IQ2_M", 29, "IQ2_S", "heavy loss, less than Q2_K; needs an importance matrix"),
    Recipe("Q2_K_S", 21, "Q2_K", "heavy loss; IQ2_M is better; needs an importance matrix"),
    Recipe("Q2_K", 10, "Q2_K", "very small; heavy loss"),
    Recipe("Q2_K_L", 10, "Q2_K", "Q2_K with embedding and output in Q8_0", ends="Q8_0",
           like="Q2_K"),
    Recipe("IQ3_XXS", 23, "IQ3_XXS", "high loss; better than Q2_K; needs an importance matrix"),
    Recipe("IQ3_XS", 22, "IQ3_S", "high loss; needs an importance matrix"),
    Recipe("Q3_K_S", 11, "Q3_K", "very small; high loss"),
    Recipe("IQ3_S", 26, "IQ3_S", "better than Q3_K_S at its size; slower on CPUs"),
    Recipe("IQ3_M", 27, "IQ3_S", "between Q3_K_S and Q3_K_M; slower on CPUs"),
    Recipe("Q3_K_M", 12, "Q3_K", "small; noticeable loss"),
    Recipe("Q3_K_L", 13, "Q3_K", "small; less loss than Q3_K_M"),
    Recipe("Q3_K_XL", 13, "Q3_K", "Q3_K_L with embedding and output in Q8_0", ends="Q8_0",
           like="Q3_K_L"),
    Recipe("IQ4_XS", 30, "IQ4_XS", "smaller than Q4_K_S at about its quality; slower on CPUs"),
    Recipe("IQ4_NL", 25, "IQ4_NL", "like IQ4_XS, for rows that 256 does not divide"),
    Recipe("MXFP4_MOE", 38, "MXFP4", "experts in MXFP4, the rest in Q8_0; for models trained so"),
    Recipe("Q4_0", 2, "Q4_0", "legacy; Q4_K_S is better at the same size"),
    Recipe("Q4_K_S", 14, "Q4_K", "small; moderate loss"),
    Recipe("Q4_K_M", 15, "Q4_K", "balanced: the usual choice"),
    Recipe("Q4_K_L", 15, "Q4_K", "Q4_K_M with embedding and output in Q8_0", ends="Q8_0",
           like="Q4_K_M"),
    Recipe("Q4_1", 3, "Q4_1", "legacy; Q4_K_M is better and smaller"),
    Recipe("Q5_0", 8, "Q5_0", "legacy; Q5_K_S is better at the same size"),
    Recipe("Q5_K_S", 16, "Q5_K", "large; low loss"),
    Recipe("Q5_K_M", 17, "Q5_K", "large; very low loss"),
    Recipe("Q5_K_L", 17, "Q5_K", "Q5_K_M with embedding and output in Q8_0", ends="Q8_0",
           like="Q5_K_M"),
    Recipe("Q5_1", 9, "Q5_1", "legacy; Q5_K_M is better and smaller"),
    Recipe("Q6_K", 18, "Q6_K", "very large; hardly any loss"),
    Recipe("Q6_K_L", 18, "Q6_K", "Q6_K with embedding and output in Q8_0", ends="Q8_0",
           like="Q6_K"),
    Recipe("Q8_0", 7, "Q8_0", "nearly lossless; large"),
    Recipe("F16", 1, "F16", "16-bit; for further work"),
    Recipe("BF16", 32, "BF16", "16-bit, the source's range; for further work"),
    Recipe("F32", 0, "F32", "32-bit; for further work"),
    Recipe("COPY", 0, "", "every tensor as it is"),
)  # fmt: skip

# what a release holds, if nobody says otherwise
RELEASE_TYPES = ("Q2_K", "Q3_K_M", "Q4_0", "Q4_K_M", "Q5_0", "Q5_K_M", "Q6_K", "Q8_0")

# names of sets, as they are published: without an importance matrix, and with one
SETS: Mapping[str, tuple[str, ...]] = {
    "default": RELEASE_TYPES,
    "static": ("Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "IQ4_XS", "Q4_K_S", "Q4_K_M", "Q5_K_S",
               "Q5_K_M", "Q6_K", "Q8_0"),
    "i1": ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "Q2_K_S", "Q2_K", "IQ3_XXS",
           "IQ3_XS", "Q3_K_S", "IQ3_S", "IQ3_M", "Q3_K_M", "Q3_K_L", "IQ4_XS", "IQ4_NL", "Q4_0",
           "Q4_K_S", "Q4_K_M", "Q4_1", "Q5_K_S", "Q5_K_M", "Q6_K"),
}  # fmt: skip

ALIASES: Mapping[str, str] = {
    "Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M",
    "FP16": "F16", "FP32": "F32", "FLOAT16": "F16", "FLOAT32": "F32", "BFLOAT16": "BF16",
}  # fmt: skip

MIXTURES = ("moe",)
# what `--recipe moe` and `fit` choose from, the second where there are importances
MOE_FORMATS = ("Q2_K", "IQ3_S", "Q3_K", "IQ4_XS", "Q4_K", "Q5_K", "Q6_K", "Q8_0")
LOW_FORMATS = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS")

_GUESSED = 1024  # llama.h LLAMA_FTYPE_GUESSED


def find_recipe(name: str) -> Recipe:
    """The recipe of a `--type`, case and underscores ignored (`q4km` is Q4_K_M); `Q4_K_M-moe` is
    Q4_K_M of the mixture "moe". Raises UsageError with near names."""
    upper = name.upper()
    by_name = {r.name: r for r in RECIPES}
    bare = {_bare(known): known for known in (*ALIASES, *by_name)}
    known = bare.get(_bare(upper), "")
    if found := by_name.get(ALIASES.get(known, known)):
        return found
    if upper.endswith("-MOE"):
        plain = find_recipe(upper.removesuffix("-MOE"))
        known_formats = (*LOW_FORMATS, *MOE_FORMATS[:-1])
        if plain.base not in known_formats or plain.name == "Q2_K_S" or plain.ends:
            raise UsageError(f"recipe moe is for the types from IQ1_S to Q6_K, not {plain.name}")
        return replace(plain, name=f"{plain.name}-moe", mixture="moe")
    near = get_close_matches(upper, [*by_name, *map(str.upper, SETS)], n=2, cutoff=0.5)
    near = [name.lower() if name.lower() in SETS else name for name in near]
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise UsageError(f"unknown type {name!r}; {hint}types: {', '.join(by_name)}")


def _bare(name: str) -> str:
    """A name as it may be typed in haste."""
    return re.sub(r"[_ -]", "", name.upper())


def with_mixture(types: Iterable[str], mixture: str | None) -> list[str]:
    """The types in a `--recipe`: `Q4_K_M` becomes `Q4_K_M-moe`. Raises UsageError."""
    if mixture is None or mixture.lower() == "default":
        return list(types)
    if mixture.lower() not in MIXTURES:
        known = ", ".join(MIXTURES)
        raise UsageError(
            f"unknown recipe {mixture!r}; recipes: default, {known}, or a GGUF file (FILE.gguf), "
            "whose formats are taken"
        )
    return [f"{name}-{mixture.lower()}" for name in types]


def find_format(name: str) -> str:
    """The name of a format as ggml spells it, case ignored. Raises UsageError with near names."""
    import quant_types

    upper, names = name.upper(), [f.name for f in quant_types.FORMATS]
    bare = {_bare(known): known for known in names}
    if found := bare.get(_bare(upper)) or bare.get(ALIASES.get(upper, "")):
        return found
    near = get_close_matches(upper, names, n=2, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise UsageError(f"unknown format {name!r}; {hint}formats: {', '.join(names)}")


def guessed_file_type(formats: Iterable[str]) -> int:
    """The file_type of a copy whose source names none: by the format that most tensors have, in
    llama-quantize's order (llama.cpp `llama_model_loader`: the first to reach that count)."""
    counts: Counter[str] = Counter()
    top = "F32"
    for name in formats:
        counts[name] += 1
        top = name if counts[name] > counts[top] else top
    by_name = {r.name: r.file_type for r in RECIPES if not r.like}
    return by_name.get(ALIASES.get(top, top), 0) | _GUESSED


def release_types(mixture: str | None) -> list[str]:
    """The types of a release in a `--recipe`; those that it is not for are as they always are."""
    names = []
    for plain, name in zip(RELEASE_TYPES, with_mixture(RELEASE_TYPES, mixture), strict=True):
        try:
            names.append(find_recipe(name).name)
        except UsageError:
            names.append(plain)
    return names


def named_types(names: Iterable[str]) -> list[str]:
    """Types by name, with the names of sets (`static`, `i1`, `default`) replaced by what is in
    them."""
    return [kind for name in names for kind in SETS.get(name.lower(), (name,))]
