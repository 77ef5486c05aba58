"""Rotary settings as GGUF keys, in the order of llama.cpp's converter (`conversion/base.py`,
TextModel.set_gguf_parameters)."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

from quantkit.architectures.rules import Config, Key
from quantkit.errors import ConfigError

_SCALING = {"linear": "linear", "yarn": "yarn", "su": "longrope", "longrope": "longrope"}
_UNSCALED = (None, "default", "llama3", "dynamic", "mrope", "xdrope")


def rope_of(config: Config) -> dict[str, Any]:
    """The rotary settings of the layers with full attention."""
    found: dict[str, Any] = config.rope.get("full_attention", config.rope)
    return found


def always_based(config: Config) -> Any:
    """The rotary base, also where config.json is silent, of a family whose converter says it
    then."""
    return config.rope.get("rope_theta", 10000.0)


def _scaling_type(config: Config) -> str | None:
    rope = rope_of(config)
    kind = rope.get("rope_type")
    if kind in _UNSCALED:
        return None
    if kind not in _SCALING:
        raise ConfigError(f"{config.where}: rope_type {kind!r} is not one that llama.cpp runs")
    if kind in ("linear", "yarn") and rope.get("factor") is None:
        _check_unscaled(config, rope)
        return None
    return _SCALING[kind]


def _check_unscaled(config: Config, rope: Mapping[str, Any]) -> None:
    """Scaling without a factor is none to llama.cpp's converter; to transformers YaRN's is what the
    context grew by. Raises ConfigError where that is more than one."""
    old, new = rope.get("original_max_position_embeddings"), config.find("max_position_embeddings")
    if rope["rope_type"] == "yarn" and old and new and new > old:
        raise ConfigError(
            f"{config.where}: rope scaling says yarn and no 'factor': llama.cpp would not scale "
            f"positions at all, and the context grew from {old} to {new}; write the factor there"
        )


def check_said_once(config: Config) -> None:
    """Raises ConfigError where `rope_scaling` stands beside `rope_parameters` and says otherwise:
    transformers 5 goes by the former, llama.cpp's converter with transformers 4 by the latter."""
    new, old = config.values.get("rope_parameters"), config.values.get("rope_scaling")
    if not (isinstance(new, dict) and isinstance(old, dict) and new and old):
        return
    new = new.get("full_attention", new)
    if not isinstance(new, dict) or _scaling(new) != _scaling(old):
        raise ConfigError(
            f"{config.where}: 'rope_scaling' says otherwise than 'rope_parameters', and software "
            "differs in which it goes by; write one table, with the base in it"
        )


def _scaling(rope: Mapping[str, Any]) -> dict[str, Any] | None:
    """How positions are scaled, or None."""
    kind = rope.get("rope_type", rope.get("type"))
    if kind in (None, "default", "mrope", "xdrope"):
        return None
    aside = ("rope_type", "type", "rope_theta", "partial_rotary_factor", "mrope_section")
    return {"kind": kind, **{name: rope[name] for name in rope if name not in aside}}


# what a file has to hold beside the type
_FACTORS = {
    "llama3": "rope_freqs.weight",
    "longrope": "rope_factors_long.weight",
    "su": "rope_factors_long.weight",
}


# whose graphs do not rotate at all (`llama_model_rope_type`)
_UNROTATED = {
    "arwkv7", "bloom", "gpt2", "jais", "jamba", "mamba", "mamba2", "mpt", "refact", "rwkv6",
    "rwkv6qwen2", "rwkv7", "starcoder", "t5", "t5encoder",
}  # fmt: skip


def check_factors(
    config: Config, arch: str, computed: Collection[str], keys: Collection[Key]
) -> None:
    """Raises ConfigError where positions are scaled channel by channel, and the family has no
    tensor that says how much, or all alike, and it has no key that does, or by a factor whose type
    is null, or a `type` where only `rope_type` is read: llama.cpp would not scale them at all."""
    rope = rope_of(config)
    kind, factor = rope.get("rope_type"), rope.get("factor")
    scales = isinstance(factor, int | float) and factor != 1
    if kind is None and scales and {"rope_type", "type"} & rope.keys():
        raise ConfigError(
            f"{config.where}: rope scaling has a 'factor' of {factor} and no 'rope_type': "
            "positions would not be scaled"
        )
    unsaid = isinstance(kind, str) and kind in _FACTORS and _FACTORS[kind] not in computed
    if kind in ("linear", "yarn") and scales and "long_factor" not in rope:
        said = any(key.name.endswith(".rope.scaling.type") for key in keys)
        unsaid = not said and arch not in _UNROTATED
    if unsaid:
        raise ConfigError(
            f"{config.where}: rope_type {kind!r} is not one that llama.cpp runs with {arch}: "
            "positions would not be scaled"
        )


def _scaled(name: str, *kinds: str) -> Callable[[Config], Any]:
    """A value of the rotary settings, for the scaling types that write it."""

    def read(config: Config) -> Any:
        rope = rope_of(config)
        if _scaling_type(config) not in kinds:
            return None
        if name == "original_max_position_embeddings" and rope.get(name) is None:
            raise ConfigError(f"{config.where}: rope scaling needs '{name}'")
        return rope.get(name)

    return read


def _sharpened(config: Config) -> Any:
    """By how much YaRN sharpens attention; a null is there, and leaves the key out."""
    given = "attention_factor" in rope_of(config)
    return _scaled("attention_factor" if given else "attn_factor", "yarn")(config)


# whose graphs have a factor of their own, and those that read the ends of the ramp
_OWN_SHARPENING = {"grok", "deepseek4"}
_READS_RAMP = {"grok", "k2-horizon", "mistral3"}
_RAMP = {"beta_fast": 32, "beta_slow": 1}


def yarn_note(config: Config, arch: str, written: Collection[str]) -> str | None:
    """A line for people where YaRN is another in the checkpoint than in llama.cpp, most of whose
    graphs read its `factor` alone; `written`: the file's keys."""
    rope = rope_of(config)
    prefix, factor = f"{arch}.rope.scaling.", rope.get("factor")
    if rope.get("rope_type") != "yarn" or f"{prefix}factor" not in written:
        return None
    if not isinstance(factor, int | float):
        return None
    said = []
    if arch not in _OWN_SHARPENING and f"{prefix}yarn_log_multiplier" not in written:
        theirs, ours = _sharpening(rope, factor), _scale(factor)
        if theirs is not None and abs(theirs - ours) > 1e-3:
            said.append(f"queries and keys are multiplied by {ours:.4g}, not {theirs:.4g}")
    if arch not in _READS_RAMP:
        said += [
            f"{name} is {usual}, not {value:g}"
            for name, usual in _RAMP.items()
            if isinstance(value := rope.get(name), int | float) and value not in (0, usual)
        ]
    if not said:
        return None
    return f"YaRN in llama.cpp is not the checkpoint's, whatever the file says: {'; '.join(said)}"


def _scale(factor: float, by: float = 1) -> float:
    return 1 + 0.1 * by * math.log(max(factor, 1))


def _sharpening(rope: Mapping[str, Any], factor: float) -> float | None:
    """What transformers multiplies queries and keys by, where that is not of `factor` alone."""
    said, above, below = (rope.get(k) for k in ("attention_factor", "mscale", "mscale_all_dim"))
    if isinstance(said, int | float):
        return float(said)
    if said is None and isinstance(above, int | float) and isinstance(below, int | float):
        return _scale(factor, above) / _scale(factor, below) if above and below else None
    return None


def rope_factors(config: Config, name: str, channels: int) -> Any:
    """`short_factor` or `long_factor` of the rotary settings, float32 `[channels / 2]`."""
    import numpy as np

    values = rope_of(config).get(name)
    if values is None:
        return None
    if not isinstance(values, list) or len(values) != channels // 2:
        raise ConfigError(f"{config.where}: '{name}' must hold {channels // 2} numbers")
    return np.array(values, np.float32)


def _sections(config: Config) -> list[int] | None:
    """Channels of multi-axis rotary embedding: time, height, width, and one more."""
    found = config.rope.get("mrope_section")
    return None if found is None else [*found, 0, 0, 0, 0][:4]


def rope_of_class(full: float, sliding: float, rotated: float = 1.0) -> Callable[[Config], Any]:
    """The rotary settings of a class that has a base for each kind of layer, and the part of a head
    that turns in layers with full attention, for a config.json that has none of them."""

    def read(config: Config) -> Any:
        if config.first(("rope_parameters", "rope_scaling", "rope_theta")) is not None:
            return None
        return {
            "full_attention": {"rope_theta": full, "partial_rotary_factor": rotated},
            "sliding_attention": {"rope_theta": sliding, "partial_rotary_factor": 1.0},
        }

    return read


ROPE_KEYS = (
    Key("{arch}.rope.scaling.type", _scaling_type, "STRING"),
    Key("{arch}.rope.scaling.factor", _scaled("factor", "linear", "yarn"), "FLOAT32"),
    Key("{arch}.rope.scaling.original_context_length",
        _scaled("original_max_position_embeddings", "yarn")),
    Key("{arch}.rope.scaling.yarn_ext_factor", _scaled("extrapolation_factor", "yarn"), "FLOAT32"),
    Key("{arch}.rope.scaling.yarn_attn_factor", _sharpened, "FLOAT32"),
    Key("{arch}.rope.scaling.yarn_beta_fast", _scaled("beta_fast", "yarn"), "FLOAT32"),
    Key("{arch}.rope.scaling.yarn_beta_slow", _scaled("beta_slow", "yarn"), "FLOAT32"),
    Key("{arch}.rope.dimension_sections", _sections, "INT32"),
    Key("{arch}.rope.freq_base", lambda c: rope_of(c).get("rope_theta"), "FLOAT32"),
    Key("{arch}.rope.freq_base_swa",
        lambda c: c.rope.get("sliding_attention", {}).get("rope_theta"), "FLOAT32"),
)  # fmt: skip
