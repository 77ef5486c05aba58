"""The tensors of a checkpoint as its rows want them: some are left out or read twice, some are
values, and some are in no checkpoint."""

from __future__ import annotations

import re
from bisect import bisect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from quantkit.architectures.rules import Architecture, Config
from quantkit.errors import CorruptFile, SourceNotFound, TensorMissing, TensorShape
from quantkit.gguf.types import type_by_name
from quantkit.source.checkpoint import read_weights
from quantkit.source.checkpoint_files import CheckpointFiles
from quantkit.source.codings import read
from quantkit.source.tensors import Files, SourceTensor

_AT_ONCE = 1 << 22  # weights that are compared


def computed(name: str, data: Any, files: CheckpointFiles) -> SourceTensor:
    """A tensor of float32 values, or of integers, that are in no checkpoint."""
    kind = "I64" if data.dtype == np.int64 else "F32"
    return SourceTensor(name, type_by_name(kind), data.shape, files.directory, 0, data)


def added(
    arch: Architecture, config: Config, there: Mapping[str, SourceTensor], files: CheckpointFiles
) -> dict[str, SourceTensor]:
    """What the architecture adds, each as if it stood in the file of the tensor that follows."""
    found = {n: computed(n, values, files) for n, values in arch.added(config).items()}
    names = sorted(there)
    for name, t in found.items():
        at = min(bisect(names, name), len(names) - 1)
        if names:
            found[name] = replace(t, path=there[names[at]].path)
    return found


def leave_out_twin(arch: Architecture, by_name: dict[str, SourceTensor]) -> None:
    """Take out the tensor that is the same as another, weight for weight."""
    names = {arch.plain(name): name for name in by_name}
    found = [names[twin] for twin in arch.twins if twin in names]
    if len(found) < 2:
        return
    one, other = (by_name[name] for name in found)
    if one.shape != other.shape:
        return
    step = max(1, _AT_ONCE // one.shape[-1])
    with Files(of.path for t in (one, other) for of in t.parts or (t,)) as opened:
        for at in range(0, one.n_rows, step):
            n = min(step, one.n_rows - at)
            if not np.array_equal(read(opened, one, at, n), read(opened, other, at, n)):
                return
    del by_name[one.name]


def values_of(t: SourceTensor) -> list[Any]:
    """The values of a small tensor."""
    with Files(of.path for of in t.parts or (t,)) as files:
        found: list[Any] = read(files, t, 0, t.n_rows).ravel().tolist()
        return found


def copies(arch: Architecture, sources: Mapping[str, SourceTensor]) -> dict[str, SourceTensor]:
    """Tensors that are read once more, under another name."""
    if not arch.copies:
        return {}
    pattern, end = arch.copies
    wanted = (t for name, t in sources.items() if re.fullmatch(pattern, arch.plain(name)))
    return {t.name + end: replace(t, name=t.name + end) for t in wanted}


def with_scalars(arch: Architecture, config: Config, sources: dict[str, SourceTensor]) -> Config:
    """The config with the values that the checkpoint keeps as tensors of one element, one a layer
    or one in all. They are taken out of `sources`. Raises TensorMissing, TensorShape."""
    if not arch.scalars:
        return config
    by_name = {arch.plain(name): name for name in sources}
    values = dict(config.values)
    wanted = {
        key: [template.format(bid=bid) for bid in range(config.layers if "{" in template else 1)]
        for key, template in arch.scalars.items()
    }
    if lost := [name for names in wanted.values() for name in names if name not in by_name]:
        raise TensorMissing(
            f"tensor {lost[0]} is not in the checkpoint ({len(lost)} such are missing)"
        )
    tensors = {name: sources.pop(by_name[name]) for names in wanted.values() for name in names}
    for name, t in tensors.items():
        if t.n_rows != 1:
            raise TensorShape(f"tensor {name}: shape {list(t.shape)} found, one value expected")
    with Files(t.path for t in tensors.values()) as opened:
        for key, names in wanted.items():
            values[key] = [float(read(opened, tensors[name], 0, 1)[0, 0]) for name in names]
    return replace(config, values=values)


def beside(files: CheckpointFiles, names: str | tuple[str, ...]) -> dict[str, Any]:
    """Another file that the model needs, the first of `names` that is there. Raises SourceNotFound,
    CorruptFile."""
    names = (names,) if isinstance(names, str) else names
    for name in names:
        if files.has(name):
            return files.json(name)
    raise _not_there(files, names[0])


def further(files: CheckpointFiles, arch: Architecture, there: set[str]) -> list[SourceTensor]:
    """The tensors of other files than the model's. Raises SourceNotFound, CorruptFile."""
    found = []
    for name in arch.weights:
        if (file := files.weight(name.rstrip("?"))) is None:
            if name.endswith("?"):
                continue
            raise _not_there(files, name)
        found += read_weights(file)
    if twice := sorted(there & {t.name for t in found}):
        raise CorruptFile(
            f"{files.where}: tensor {twice[0]} is in the model's files and in "
            f"{arch.weights[0].rstrip('?')}"
        )
    return found


def _not_there(files: CheckpointFiles, name: str) -> SourceNotFound:
    return SourceNotFound(
        f"{files.label(name)} is not there, and the model needs it: download the checkpoint whole"
    )
