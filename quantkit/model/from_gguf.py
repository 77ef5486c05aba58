"""A GGUF file as a model: taken as it is. Only headers are read here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from quantkit.errors import TensorMissing, TensorShape
from quantkit.gguf.splits import unsplit_name
from quantkit.model.model import Model, ModelTensor
from quantkit.source.gguf_set import open_gguf_set
from quantkit.source.segments import Segment
from quantkit.source.tensors import SourceTensor
from quantkit.storage.inputs import File


def from_gguf(path: File, files: Mapping[str, File] | None = None) -> Model:
    """A GGUF file, or the set of splits that it is one of, taken as it is; but for its alignment,
    since all that is written has one. Raises SourceError.

    `files`: where the other splits are, by name, if not beside it.
    """
    header, tensors = open_gguf_set(path, files)
    return Model(
        name=re.sub(r"[-.](BF16|F16|F32)$", "", unsplit_name(path.name), flags=re.IGNORECASE),
        arch=header.get("general.architecture", ""),
        tensors=_with_stacked_experts(tensors),
        sources={t.name: t for t in tensors},
        kv=tuple(item for item in header.kv if item.key != "general.alignment"),
    )


# as llama.cpp wrote experts before April 2024: `blk.0.ffn_gate.3.weight`
_ONE_EXPERT = re.compile(r"(?P<stem>blk\.\d+\.ffn_(gate|down|up))\.(?P<xid>[0-9]{1,6})\.weight")


def _with_stacked_experts(tensors: Iterable[SourceTensor]) -> tuple[ModelTensor, ...]:
    """The tensors of a GGUF file; experts in tensors of their own are stacked, as llama.cpp wants
    them now. Raises TensorMissing, TensorShape."""
    parts: dict[str, dict[int, SourceTensor]] = {}
    for t in tensors:
        m = _ONE_EXPERT.fullmatch(t.name)
        name, xid = (f"{m['stem']}_exps.weight", int(m["xid"])) if m else (t.name, -1)
        parts.setdefault(name, {})[xid] = t
    out = []
    for name, experts in parts.items():
        if -1 in experts:
            t = experts[-1]
            segments: tuple[Segment, ...] = (Segment(t.name, 0, 0, t.n_rows),)
            out.append(ModelTensor(name, t.shape, t.ggml.name, segments))
            continue
        n = max(experts) + 1
        if n != len(experts):
            lost = next(x for x in range(n) if x not in experts)
            raise TensorMissing(f"expert {lost} of {n} is not there for {name}")
        first = experts[0]
        for t in experts.values():
            if (t.shape, t.ggml) != (first.shape, first.ggml):
                raise TensorShape(f"tensors {first.name} and {t.name} differ in shape or type")
        segments = tuple(Segment(experts[x].name, 0, x * t.n_rows, t.n_rows) for x in range(n))
        out.append(ModelTensor(name, (n, *first.shape), first.ggml.name, segments))
    return tuple(out)
