"""What a checkpoint says of how its weights are kept: `quantization_config`, or ModelOpt's file.

Which tensors are kept so is seen from the tensors; the settings tell what those do not show: the
size of blocks and groups, and how many bits a packed integer has.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from quantkit.errors import ConfigError

# keys under which tools say that they rotate (GPTQModel's `rotation`, AutoRound's)
_ROTATION = re.compile(r"hadamard|rotat|quarot|spinquant")


@dataclass(frozen=True)
class Settings:
    """`method` is the `quant_method`, in lower case and "" if none is named; `where` the file.

    `layers` has ModelOpt's algorithm by module, `algorithm` that of all others.
    """

    method: str
    values: Mapping[str, Any]
    where: str

    @property
    def algorithm(self) -> str:
        """ModelOpt's name of the coding."""
        return str(self.values.get("quant_algo") or "")

    @property
    def packing(self) -> str:
        """Whose way of packing AutoRound uses."""
        return str(self.values.get("packing_format") or "")

    @property
    def as_it_runs(self) -> bool:
        """Whether weights are BitNet's before they are rounded to its three values."""
        return self.method == "bitnet" and self.values.get("quantization_mode") == "online"

    @property
    def rotated(self) -> str:
        """The key that says that activations are rotated as the model runs, so that the weights are
        not those of the model: compressed-tensors' transforms of anything but weights, Quark's
        rotations, what others call so. "" if there are none."""
        stated = self.values.get("transform_config")
        groups = stated.get("config_groups") if isinstance(stated, dict) else None
        for group in groups.values() if isinstance(groups, dict) else ():
            applied = group.get("apply") if isinstance(group, dict) else None
            for step in applied if isinstance(applied, list) else ():
                place = step.get("location") if isinstance(step, dict) else None
                if not str(place).startswith("weight_"):
                    return "transform_config"
        steps = self.values.get("algo_config")
        steps = steps if isinstance(steps, list) else [steps]
        names = [step.get("name") for step in steps if isinstance(step, dict)]
        if any("rot" in str(name) for name in names):
            return "algo_config"
        return next((k for k, v in self.values.items() if v and _ROTATION.search(str(k))), "")

    @property
    def layers(self) -> Mapping[str, str]:
        """ModelOpt's name of the coding of single modules."""
        found = self.values.get("quantized_layers")
        items = found.items() if isinstance(found, dict) else ()
        return {k: str(v.get("quant_algo")) for k, v in items if isinstance(v, dict)}

    @property
    def _groups(self) -> list[Mapping[str, Any]]:
        found = self.values.get("config_groups")
        groups = found.values() if isinstance(found, dict) else ()
        return [group for group in groups if isinstance(group, dict)]

    def weights(self, name: str) -> Mapping[str, Any]:
        """The settings of a weight in compressed-tensors: of the group that names its module, or
        else of the first that takes modules by their class. Raises ConfigError."""
        module = name.removesuffix(".weight")
        groups = self._groups
        for exact in (True, False):
            for group in groups:
                if any(self._matches(target, module, exact) for target in _targets(group)):
                    return _weights(group)
        by_class = [g for g in groups if len(groups) == 1 or any(map(_is_class, _targets(g)))]
        return _weights(by_class[0]) if by_class else {}

    def _matches(self, target: str, module: str, exact: bool) -> bool:
        """Whether a target names the module: in full, or by a regular expression."""
        if exact or not target.startswith("re:"):
            return target == module
        try:
            return re.match(target[3:], module) is not None
        except re.error as e:
            raise ConfigError(
                f"{self.where}: {target!r} of quantization_config is no regular expression ({e})"
            ) from None

    def block(self, name: str) -> tuple[int, int] | None:
        """Rows and columns that have one scale, where the settings say so. Raises ConfigError."""
        weights = self.weights(name)
        found: Any = self.values.get("weight_block_size") or weights.get("block_structure")
        if isinstance(found, str):  # "128x128"
            found = [int(n) for n in found.split("x") if n.isdecimal()]
        if found is None and isinstance(weights.get("group_size"), int):
            found = [1, weights["group_size"]] if weights["group_size"] > 0 else None
        if found is None:
            return None
        if not isinstance(found, list) or len(found) != 2 or not all(map(_is_size, found)):
            raise ConfigError(f"{self.where}: blocks of {found!r} in quantization_config")
        height, width = found
        return height, width


def read_settings(
    config: Mapping[str, Any], modelopt: Mapping[str, Any] | None, where: str
) -> Settings:
    """The settings of a checkpoint. `modelopt`: `hf_quant_config.json`, if there is one.

    As in llama.cpp's converter, ModelOpt's file tells what `quantization_config` does not.
    Raises ConfigError.
    """
    stated = config.get("quantization_config") or config.get("compression_config")
    values = dict(stated) if isinstance(stated, dict) else {}
    if modelopt and not (values.get("quant_algo") and values.get("quantized_layers")):
        producer, told = modelopt.get("producer"), modelopt.get("quantization")
        if isinstance(producer, dict) and not values.get("quant_method"):
            values["quant_method"] = producer.get("name")
        for key in ("quant_algo", "quantized_layers", "config_groups", "format"):
            if isinstance(told, dict) and told.get(key):
                values[key] = told[key]
    signs = {"config_groups": "compressed-tensors", "quant_algo": "modelopt"}
    found = (method for key, method in signs.items() if values.get(key) is not None)
    name = str(values.get("quant_method") or next(found, "")).lower()
    if name.startswith("modelopt_"):  # `modelopt_fp4` and others, which vLLM and SGLang write
        name = "modelopt"
    return Settings(name, values, where)


def _targets(group: Mapping[str, Any]) -> Iterator[str]:
    targets = group.get("targets")
    yield from (t for t in targets if isinstance(t, str)) if isinstance(targets, list) else ()


def _is_class(target: str) -> bool:
    return not target.startswith("re:") and "." not in target


def _weights(group: Mapping[str, Any]) -> Mapping[str, Any]:
    found = group.get("weights")
    return found if isinstance(found, dict) else {}


def _is_size(n: Any) -> bool:
    return type(n) is int and n > 0
