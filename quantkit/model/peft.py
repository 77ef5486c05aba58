"""A LoRA adapter as PEFT saves it: its config, read strictly, and its pairs of matrices.

What a pair cannot hold (DoRA, biases, norms, whole tensors that were trained beside it) has no
counterpart in llama.cpp's adapters, and is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import isfinite
from typing import Any

from quantkit.errors import (
    ConfigError,
    SourceNotFound,
    TensorMissing,
    TensorShape,
    TensorUnknown,
    UnsupportedSource,
)
from quantkit.source.checkpoint import read_weights
from quantkit.source.checkpoint_files import CheckpointFiles
from quantkit.source.tensors import SourceTensor

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
MERGE = "merge it into its base (merge_and_unload of peft), save that and convert it"

# how files are named that are a whole model's
_MODEL = ("model*.safetensors", "pytorch_model*.bin", "consolidated*.safetensors")

# keys of the config that ask for what llama.cpp does not compute -> what it is
_REFUSED = {
    "use_dora": "DoRA, which scales the columns of the sum",
    "use_qalora": "QALoRA, which pools what goes in",
    "use_bdlora": "BD-LoRA, whose matrices are block-diagonal",
    "lora_bias": "LoRA with biases",
    "layer_replication": "LoRA of layers that are repeated",
    "trainable_token_indices": "a table of single tokens that were trained",
    "kasa_config": "KaSA, which has a diagonal between the two",
    "arrow_config": "Arrow, which chooses among adapters",
}
# how the pair began, where the base stayed what it is; the others take their beginning from it
_BEGINNINGS = (None, True, False, "gaussian", "eva", "orthogonal", "mica")

_PAIR = re.compile(r"(?P<module>.+)\.lora_(?P<table>embedding_)?(?P<half>[AB])(?P<rest>(\..*)?)")
# parts of the names of other tensors -> what they are; the first that is found counts
_OTHERS = (
    (r"lora_magnitude_vector", "of DoRA"),
    (r"\.lora_(embedding_)?[AB]\b", "named as a training run keeps it; save the adapter with "
     "save_pretrained of peft"),
    (r"lora_(velora|monteclora)_", "of VeLoRA or MonteCLoRA, which keep more than the pairs"),
    (r"trainable_tokens|token_adapter", "a table of single tokens that were trained"),
    (r"\.(lora_[EN]|ranknum|vera_|hada_|lokr_|ia3_|oft_|boft_)", "of a method other than LoRA"),
    (r"\.bias$", "a bias that was trained beside the pairs (bias of adapter_config.json)"),
    (r"norm", "a norm, which llama.cpp leaves out where it applies an adapter"),
    (r"(embed_tokens|lm_head|wte)\.", "a whole table of tokens, which was trained or made larger "
     "beside the pairs"),
)  # fmt: skip
_TURNS = 19  # peft 0.19
# a module's name, or the end of one, in alpha_pattern
_PATTERN = re.compile(r"\^?[\w.-]+")


@dataclass(frozen=True)
class Pair:
    """The two halves of a change: `a` `[rank, in]` and `b` `[out, rank]`, of which `b` times `a` is
    added to the matrix `module`; to its transpose, where that is a table of tokens. Of experts in
    one tensor the halves of all lie in one another, `a` `[experts * rank, in]`.

    `alpha` over the rank is the factor of the product, over its root where `by_root`. `turns`:
    whether the PEFT that saved it looked which way experts in one tensor lie.
    """

    module: str
    a: SourceTensor
    b: SourceTensor
    is_table: bool
    alpha: float
    by_root: bool = False
    turns: bool = False


def is_adapter(files: CheckpointFiles) -> bool:
    """Whether a directory is an adapter: it has PEFT's config, and no model's weights."""
    return files.has(CONFIG) and not any(
        fnmatchcase(name, pattern) for name in files.weights for pattern in _MODEL
    )


def read_adapter_config(files: CheckpointFiles) -> Mapping[str, Any]:
    """adapter_config.json, of an adapter that llama.cpp computes as PEFT does. Raises ConfigError,
    UnsupportedSource."""
    config, label = files.json(CONFIG), files.label(CONFIG)
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        raise UnsupportedSource(f"{label}: 'peft_type' is {kind!r}; LORA is converted. {_cure()}")
    for key, what in _REFUSED.items():
        if config.get(key):
            raise UnsupportedSource(
                f"{label}: '{key}' asks for {what}; llama.cpp has no such adapters. {_cure()}"
            )
    beginning = config.get("init_lora_weights")
    if not any(beginning is known or beginning == known for known in _BEGINNINGS):
        raise UnsupportedSource(
            f"{label}: 'init_lora_weights' is {beginning!r}: the adapter is for a base that was "
            "changed with it, not for the model of that name; save it with "
            "path_initial_model_for_weight_conversion of peft, or merge it"
        )
    _number(config, "lora_alpha", label)
    return config


def _cure() -> str:
    return MERGE[0].upper() + MERGE[1:]


def _number(config: Mapping[str, Any], key: str, label: str) -> float:
    """A number that is not 0: llama.cpp takes an alpha of 0 for none. Raises ConfigError."""
    if key not in config:
        raise ConfigError(f"{label}: '{key}' is missing")
    value = config[key]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{label}: '{key}' must be a number, not {value!r}")
    if not (isfinite(value) and 1e-30 < abs(value) < 1e30):
        raise ConfigError(f"{label}: '{key}' is {value}, which no adapter has")
    return float(value)


def invocation_tokens(config: Mapping[str, Any], label: str) -> list[int]:
    """The ids of the tokens after which the adapter acts (aLoRA); none for one that always does.
    Raises ConfigError, UnsupportedSource."""
    tokens = config.get("alora_invocation_tokens") or []
    if not isinstance(tokens, list) or not all(
        isinstance(i, int) and not isinstance(i, bool) and 0 <= i < 1 << 31 for i in tokens
    ):
        raise ConfigError(f"{label}: 'alora_invocation_tokens' is no list of token ids")
    if config.get("invocation_string") and not tokens:
        raise UnsupportedSource(
            f"{label}: 'invocation_string' is text, and llama.cpp is given token ids: write those "
            "of the base's tokenizer as 'alora_invocation_tokens'"
        )
    return tokens


def read_pairs(files: CheckpointFiles, config: Mapping[str, Any]) -> list[Pair]:
    """The pairs of an adapter, in the order in which its file has them.

    Raises SourceError, ConfigError, TensorMissing, TensorShape, TensorUnknown.
    """
    path = next((files.weights[name] for name in WEIGHTS if name in files.weights), None)
    if path is None:
        raise SourceNotFound(f"{files.where}: no {' and no '.join(WEIGHTS)} in it")
    tensors = read_weights(path)
    if path.suffix == ".safetensors":
        tensors = sorted(tensors, key=lambda t: t.offset)
    found: dict[str, dict[str, SourceTensor]] = {}
    tables, rest = set(), []
    for t in tensors:
        m = _PAIR.fullmatch(t.name)
        if m is None or m["rest"] != ("" if m["table"] else ".weight"):
            rest.append(t)
            continue
        module = m["module"].replace("base_model.model.", "")
        if m["half"] in found.setdefault(module, {}):
            raise TensorUnknown(f"{path}: tensor {t.name} is a second half of the same kind")
        found[module][m["half"]] = t
        if m["table"]:
            tables.add(module)
    for t in rest:
        _check_rest(t, found)
    if not found:
        raise TensorMissing(f"{path}: there is no lora_A and lora_B in it")
    alphas, by_root = _Alphas(config, files.label(CONFIG)), bool(config.get("use_rslora"))
    version = re.match(r"0\.(\d{1,3})\.|[1-9]", str(config.get("peft_version")))
    turns = version is not None and (version[1] is None or int(version[1]) >= _TURNS)
    return [
        Pair(name, *_halves(halves), name in tables, alphas.of(name), by_root, turns)
        for name, halves in found.items()
    ]


def _check_rest(t: SourceTensor, found: Mapping[str, object]) -> None:
    """A tensor beside the pairs is the base's own, which is there already. Raises TensorUnknown."""
    module = t.name.replace("base_model.model.", "").removesuffix(".base_layer.weight")
    if t.name.endswith(".base_layer.weight") and module in found:
        return
    what = next((w for pattern, w in _OTHERS if re.search(pattern, t.name)), None)
    what = what or "a whole tensor, which was trained beside the pairs (modules_to_save)"
    raise TensorUnknown(
        f"{t.path}: tensor {t.name} is no lora_A or lora_B; it is {what}. {_cure()}"
    )


def _halves(halves: Mapping[str, SourceTensor]) -> tuple[SourceTensor, SourceTensor]:
    """`a` and `b`, which fit each other. Raises TensorMissing, TensorShape, UnsupportedSource."""
    if len(halves) < 2:
        ((half, t),) = halves.items()
        other = "B" if half == "A" else "A"
        raise TensorMissing(f"{t.path}: tensor {t.name} is there without its lora_{other}")
    a, b = halves["A"], halves["B"]
    for t in (a, b):
        if t.raw:
            raise UnsupportedSource(f"{t.path}: tensor {t.name} is {t.raw}; floats are read")
        if len(t.shape) != 2:
            raise TensorShape(
                f"{t.path}: tensor {t.name}: shape {list(t.shape)} found, a matrix is expected: of "
                "convolutions and of experts in one tensor no adapter is made"
            )
    if a.shape[0] != b.shape[1] or 0 in (*a.shape, *b.shape):
        raise TensorShape(
            f"{b.path}: tensor {b.name}: shape {list(b.shape)} found, {a.shape[0]} columns "
            f"expected, as many as {a.name} has rows"
        )
    return a, b


class _Alphas:
    """The numbers that PEFT divides by the rank: `lora_alpha`, or what `alpha_pattern` says of a
    module."""

    def __init__(self, config: Mapping[str, Any], label: str) -> None:
        self._label = label
        self._alpha = _number(config, "lora_alpha", label)
        pattern = config.get("alpha_pattern") or {}
        if not isinstance(pattern, dict):
            raise ConfigError(f"{label}: 'alpha_pattern' is no table")
        if odd := [key for key in pattern if not _PATTERN.fullmatch(key)]:
            raise UnsupportedSource(
                f"{label}: {odd[0]!r} of 'alpha_pattern' is an expression; names of modules are "
                f"read. {_cure()}"
            )
        self._by_name = {
            re.compile(rf"(.*\.)?({key})"): _number(pattern, key, label) for key in pattern
        }

    def of(self, module: str) -> float:
        """The alpha of a module's pair. Raises UnsupportedSource."""
        if self._by_name and (".base_layer" in module or module.endswith("experts")):
            raise UnsupportedSource(
                f"{self._label}: 'alpha_pattern' is not read beside experts in one tensor. "
                f"{_cure()}"
            )
        found = (alpha for key, alpha in self._by_name.items() if key.fullmatch(module))
        return next(found, self._alpha)
