"""A source as quantkit sees it: the tensors of a GGUF model and the rows that make each of them.

`from_checkpoint` reads a Hugging Face directory through the rows of its architecture;
`from_gguf` takes a GGUF file as it is. Only headers are read here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from quantkit import roles
from quantkit.architectures import find
from quantkit.checkpoint import SourceTensor, open_gguf_set, read_json, safetensors_of
from quantkit.codings import decoded
from quantkit.errors import ConfigError, SourceNotFound, TensorMissing, TensorShape
from quantkit.ggml_types import type_by_name
from quantkit.gguf_file import KeyValue
from quantkit.inputs import File
from quantkit.placement import place, predicting_layers
from quantkit.rules import DEFAULTS, Architecture, Config, Options
from quantkit.segments import Segment
from quantkit.splits import unsplit_name


@dataclass(frozen=True)
class ModelTensor:
    """A tensor of the GGUF model before a format is chosen.

    `shape` in NumPy order; `stored` is the type it has in a file that is converted, not quantized.
    """

    name: str
    shape: tuple[int, ...]
    stored: str
    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class Model:
    """A model that can be written. `tensors` stand in the order of a conversion."""

    name: str
    arch: str
    tensors: tuple[ModelTensor, ...]
    sources: Mapping[str, SourceTensor]
    kv: tuple[KeyValue, ...]
    partial: frozenset[str] = frozenset()  # sources of which not all rows are wanted
    notes: tuple[str, ...] = field(default=(), compare=False)  # for people: choices that were made


# --outtype -> (general.file_type, the format of the weights): llama.h `llama_ftype`
OUTTYPES = {"f32": (0, "F32"), "f16": (1, "F16"), "bf16": (32, "BF16"), "q8_0": (7, "Q8_0")}

MXFP4_FILE = 38  # general.file_type where experts are kept in MXFP4


def from_gguf(path: File, files: Mapping[str, File] | None = None) -> Model:
    """A GGUF file, or the set of splits that it is one of, taken as it is. Raises SourceError.

    `files`: where the other splits are, by name, if not beside it.
    """
    header, tensors = open_gguf_set(path, files)
    return Model(
        name=re.sub(r"[-.](BF16|F16|F32)$", "", unsplit_name(path.name), flags=re.IGNORECASE),
        arch=header.get("general.architecture", ""),
        tensors=_with_stacked_experts(tensors),
        sources={t.name: t for t in tensors},
        kv=header.kv,
    )


# as llama.cpp wrote experts before April 2024: `blk.0.ffn_gate.3.weight`
_ONE_EXPERT = re.compile(r"(?P<stem>blk\.\d+\.ffn_(gate|down|up))\.(?P<xid>\d+)\.weight")


def _with_stacked_experts(tensors: Iterable[SourceTensor]) -> tuple[ModelTensor, ...]:
    """The tensors of a GGUF file; experts in tensors of their own are stacked, as llama.cpp wants
    them now. Raises TensorMissing, TensorShape."""
    parts: dict[str, dict[int, SourceTensor]] = {}
    for t in tensors:
        m = _ONE_EXPERT.fullmatch(t.name)
        name, xid = (f"{m['stem']}_exps.weight", int(m["xid"])) if m else (t.name, -1)
        parts.setdefault(name, {})[xid] = t
    out = []
    for name, found in parts.items():
        if -1 in found:
            t = found[-1]
            segments: tuple[Segment, ...] = (Segment(t.name, 0, 0, t.n_rows),)
            out.append(ModelTensor(name, t.shape, t.ggml.name, segments))
            continue
        n = max(found) + 1
        if lost := [x for x in range(n) if x not in found]:
            raise TensorMissing(f"expert {lost[0]} of {n} is not there for {name}")
        first = found[0]
        for t in found.values():
            if (t.shape, t.ggml) != (first.shape, first.ggml):
                raise TensorShape(f"tensors {first.name} and {t.name} differ in shape or type")
        segments = tuple(Segment(found[x].name, 0, x * t.n_rows, t.n_rows) for x in range(n))
        out.append(ModelTensor(name, (n, *first.shape), first.ggml.name, segments))
    return tuple(out)


def from_checkpoint(
    directory: Path, outtype: str | None = "auto", pre: str | None = None,
    options: Options = DEFAULTS, files: Mapping[str, File] | None = None,
) -> Model:  # fmt: skip
    """A Hugging Face checkpoint directory. `files`: where its weights are, by name, if not in it.

    `outtype` is one of OUTTYPES, or "auto" (bf16 stays, everything else becomes f16, as llama.cpp's
    converter chooses), or None for the widest type of the source: nothing is rounded that a
    quantizer will read. `pre` names the pre-tokenizer where the structure does not tell.
    Raises SourceError, ModelError.
    """
    from quantkit.metadata import checkpoint_metadata

    arch, config = _read_config(directory)
    found = {t.name: t for t in safetensors_of(directory, files)}
    found = {t.name: t for t in decoded(tuple(found.values()), config.values)}
    outtype = _chosen(outtype, found.values())
    config = replace(config, mtp=predicting_layers(arch, config, found, options))
    placed, sources = place(arch, config, found, options)
    for name, compute in reversed(list(arch.computed.items())):
        if (data := compute(config)) is not None:
            source = SourceTensor(name, type_by_name("F32"), data.shape, directory, 0, data)
            sources[name] = source
            placed = {name: (data.shape, (Segment(name, 0, 0, source.n_rows),)), **placed}
    tensors = tuple(
        ModelTensor(
            name,
            shape,
            _stored(name, shape, outtype, arch, options, sources[segments[0].source]),
            segments,
        )
        for name, (shape, segments) in placed.items()
    )
    file_type = OUTTYPES[outtype][0]
    if outtype != "q8_0" and any(t.stored == "MXFP4" for t in tensors):
        file_type = MXFP4_FILE
    kv, notes = checkpoint_metadata(directory, arch, config, tensors, file_type, pre)
    notes = (*filter(None, (e.differs(config) for e in arch.assumes)), *notes)
    name = directory.resolve().name
    return Model(name, arch.gguf_arch, tensors, sources, kv, notes=notes)


def _read_config(directory: Path) -> tuple[Architecture, Config]:
    """The architecture of a checkpoint and its config, checked against what that expects."""
    if not directory.is_dir():
        raise SourceNotFound(f"{directory}: no such directory")
    path = directory / "config.json"
    if not path.is_file():
        raise SourceNotFound(f"{directory}: no config.json in it; not a checkpoint directory")
    raw = read_json(path)
    arch = find(_architecture_name(raw, directory))
    text = raw.get("text_config")  # the text part of a model of several modes
    values = {**arch.defaults, **raw, **(text if isinstance(text, dict) else {})}
    for ours, theirs in arch.aliases.items():
        if (value := Config(values).find(theirs)) is not None:
            values[ours] = value
    config = Config(values, str(path))
    arch = arch.variant(config) or arch
    for expect in arch.expects:
        expect.check(config)
    return arch, config


def _architecture_name(raw: Mapping[str, object], directory: Path) -> str:
    names = raw.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise ConfigError(f"{directory / 'config.json'}: 'architectures' does not name the model")
    return names[0]


def _chosen(outtype: str | None, sources: Iterable[SourceTensor]) -> str:
    dtypes = [t.ggml.name for t in sources if len(t.shape) >= 2]
    if outtype is None:
        return next((d.lower() for d in ("F32", "BF16", "F16") if d in dtypes), "f16")
    if outtype == "auto":
        return next((d.lower() for d in dtypes if d in ("BF16", "F16")), "f16")
    return outtype


def _stored(
    name: str, shape: tuple[int, ...], outtype: str, arch: Architecture, options: Options,
    source: SourceTensor,
) -> str:  # fmt: skip
    wanted, role = type_by_name(OUTTYPES[outtype][1]), roles.parse(name)
    if not source.ggml.is_float:
        return source.ggml.name
    if options.fp8_as_q8 and source.coding == "fp8":
        wanted = type_by_name("Q8_0")
    if role.role not in arch.rounds and roles.stays_f32(role, len(shape)):
        return "F32"
    return wanted.name if shape[-1] % wanted.block_size == 0 else "F16"
