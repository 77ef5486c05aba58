"""What a model is, and what is wrong with it, before anything is made of it."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from quantkit.errors import ModelError
from quantkit.execution.rows import fetch
from quantkit.execution.stages import default_threads, in_threads
from quantkit.gguf import tensor_names
from quantkit.gguf.container import KeyValue
from quantkit.gguf.types import GGMLType
from quantkit.loading.kinds import ADAPTER, MODEL, PROJECTOR, kind_of
from quantkit.loading.model import faults
from quantkit.loading.projector import projectors
from quantkit.model.model import Model, ModelTensor
from quantkit.model.open import open_source
from quantkit.model.provenance import Merge, read_merge
from quantkit.planning.build import laid_out
from quantkit.planning.plan import Plan
from quantkit.planning.schedule import Chunk, Schedule
from quantkit.progress import SILENT, Progress
from quantkit.reporting.numbers import billions, gigabytes, ranges
from quantkit.reporting.table import html_table
from quantkit.source.location import Source, SourceLike
from quantkit.source.tensors import Files
from quantkit.tokenizer import template_findings


@dataclass(frozen=True)
class Parameters:
    """How many weights a model has, and with how many of them one token is computed."""

    total: int
    active: int


@dataclass(frozen=True)
class Experts:
    """Routed experts in a layer, and how many of them a token is given to (None: not said)."""

    count: int
    used: int | None


@dataclass(frozen=True)
class Tokenizer:
    """The vocabulary: `model` and `pre` as GGUF names them, tokens in all and unused ones."""

    model: str | None
    pre: str | None
    tokens: int
    unused: int
    chat_template: bool

    def as_data(self) -> dict[str, Any]:
        """Plain values, as `inspect --json` prints them."""
        return {
            "model": self.model,
            "pre": self.pre,
            "tokens": self.tokens,
            "unused": self.unused,
            "chat_template": self.chat_template,
        }


@dataclass(frozen=True)
class Description:
    """What a model is, from headers alone.

    `layers`, `embedding` (its width) and `context` (tokens) are None where the metadata has no such
    key. `part_bytes`: bytes of the source by what they are for, as `tensor_names.part` has it;
    `dtypes`: tensors of the source by data type; both with the most first.
    """

    name: str
    architecture: str
    parameters: Parameters
    layers: int | None
    embedding: int | None
    context: int | None
    experts: Experts | None
    part_bytes: Mapping[str, int]
    dtypes: Mapping[str, int]
    tied_embeddings: bool
    tokenizer: Tokenizer | None
    notes: tuple[str, ...] = ()
    merge: Merge | None = None
    kind: str = MODEL.words  # what the file is, and what is done with it
    projectors: Mapping[str, str] = field(default_factory=dict)  # of encoders: vision, audio

    def as_data(self) -> dict[str, Any]:
        """Plain values in the order in which they are shown, as `inspect --json` prints them."""
        data: dict[str, Any] = {
            "name": self.name,
            "architecture": self.architecture,
            "parameters": asdict(self.parameters),
            "layers": self.layers,
            "embedding": self.embedding,
            "context": self.context,
        }
        if self.kind != MODEL.words:
            data = {"name": self.name, "kind": self.kind, **data}
        if self.projectors:
            data["projectors"] = dict(self.projectors)
        if self.experts:
            data["experts"] = asdict(self.experts)
        data |= {
            "part_bytes": dict(self.part_bytes),
            "dtypes": dict(self.dtypes),
            "tied_embeddings": self.tied_embeddings,
        }
        if self.tokenizer:
            data["tokenizer"] = self.tokenizer.as_data()
        if self.notes:
            data["notes"] = list(self.notes)
        if self.merge:
            data["merged_from"] = self.merge.as_data()
        return data


@dataclass(frozen=True)
class Inspection:
    """What a model is (None if nothing can be made of it), its problems, and what to know of its
    chat template, each a line."""

    description: Description | None
    problems: Sequence[str]
    template: Sequence[str] = ()

    def as_data(self) -> dict[str, Any]:
        """Plain values, as `inspect --json` prints them."""
        facts = self.description.as_data() if self.description else {}
        return {
            "facts": facts,
            "problems": list(self.problems),
            "chat_template": list(self.template),
        }

    def _repr_html_(self) -> str:
        return html_table(("", ""), _entries(self))


def inspect(source: SourceLike, weights: bool = True, progress: Progress = SILENT) -> Inspection:
    """Look at a checkpoint directory or a GGUF file.

    With `weights`, every weight is read once, to find NaN and infinity, experts that are the same,
    and routers that cannot tell experts apart. Raises SourceError; what is wrong with the model
    itself becomes a problem.
    """
    try:
        source = Source.parse(source)
        model = open_source(source)
    except ModelError as e:
        return Inspection(None, [str(e)])
    problems = faults(model.kv, model.infos)
    if weights:
        problems += _weight_problems(model, progress)
    found = template_findings.of_metadata({item.key: item.value for item in model.kv})
    problems += [f"chat template: {line}" for line in found.wrong]
    return Inspection(describe(model, source), problems, found.notes)


def count_parameters(tensors: Iterable[ModelTensor], values: Mapping[str, Any]) -> Parameters:
    """Count weights, given the architecture's metadata without its prefix. Of routed experts, only
    the share that a token uses is active; rope_freqs is a table, not weights."""
    count, used = values.get("expert_count") or 1, values.get("expert_used_count") or 1
    total = experts = 0
    for t in tensors:
        name = tensor_names.parse(t.name)
        if name.role == "rope_freqs":
            continue
        total += prod(t.shape)
        experts += prod(t.shape) if "_exps" in name.role else 0
    return Parameters(total, total - experts + experts * used // count)


def describe(model: Model, source: Source | None = None, kept: Sequence[int] = ()) -> Description:
    """What a model is, from headers alone; with its `source`, also what it was merged from, whose
    experts it has all, or those that were `kept`."""
    kv = {item.key: item for item in model.kv}
    prefix = f"{model.arch}."
    values = {k.removeprefix(prefix): v.value for k, v in kv.items() if k.startswith(prefix)}
    parts: Counter[str] = Counter()
    for t in model.tensors:
        parts[tensor_names.part(tensor_names.parse(t.name))] += sum(_source_bytes(model, t))
    kind = kind_of(model.kv, [t.name for t in model.tensors])
    if kind is PROJECTOR:  # of the encoder of images, if there is one
        part = "vision" if "vision.block_count" in values else "audio"
        values = {k.removeprefix(f"{part}."): v for k, v in values.items()}
    count = values.get("expert_count")
    return Description(
        name=model.name,
        architecture=model.arch,
        parameters=count_parameters(model.tensors, values),
        layers=values.get("block_count"),
        embedding=values.get("embedding_length"),
        context=values.get("context_length"),
        experts=Experts(count, values.get("expert_used_count")) if count else None,
        part_bytes=dict(parts.most_common()),
        dtypes=dict(Counter(t.ggml.name for t in model.sources.values()).most_common()),
        tied_embeddings=all(t.name != "output.weight" for t in model.tensors),
        tokenizer=_describe_tokenizer(kv),
        notes=tuple(model.notes),
        merge=None if source is None else _merge_of(source, kept, count),
        kind="; ".join(
            filter(None, (kind.words, _rank(model) if kind is ADAPTER else "", kind.use))
        ),
        projectors=projectors(model.kv) if kind is PROJECTOR else {},
    )


def _merge_of(source: Source, kept: Sequence[int], count: int | None) -> Merge | None:
    """What the experts of a model were; None where mergekit tells of as many experts as it does not
    have."""
    merge = read_merge(source)
    if merge and kept and max(kept) < len(merge.experts):
        merge = replace(merge, experts=tuple(merge.experts[x] for x in kept))
    return merge if merge and len(merge.experts) == (count or 0) else None


def _rank(model: Model) -> str:
    """The ranks of an adapter's matrices, and what is divided by them."""
    alpha = next((i.value for i in model.kv if i.key == "adapter.lora.alpha"), None)
    ranks = sorted({t.shape[-1] for t in model.tensors if t.name.endswith(".lora_b")})
    said = f"rank {' and '.join(map(str, ranks))}"
    return said if alpha is None else f"{said}, alpha {alpha:g}"


def _describe_tokenizer(kv: Mapping[str, KeyValue]) -> Tokenizer | None:
    def value(name: str) -> Any:
        item = kv.get(f"tokenizer.ggml.{name}")
        return None if item is None else item.value

    tokens = value("tokens")
    if tokens is None:
        return None
    return Tokenizer(
        value("model"),
        value("pre"),
        len(tokens),
        (value("token_type") or []).count(5),
        "tokenizer.chat_template" in kv,
    )


def _source_bytes(model: Model, t: ModelTensor) -> Iterable[int]:
    return (s.source_bytes(model.sources[s.source], s.count) for s in t.segments)


def _weight_problems(model: Model, progress: Progress) -> list[str]:
    """Read every weight once; lines on what is wrong."""
    plan = laid_out(model, "", Path("unwritten"))
    bad: dict[str, int] = {}
    digests: dict[str, dict[int, bytes]] = defaultdict(dict)  # of chunks, by their first row
    routers: dict[str, dict[int, bytes]] = defaultdict(dict)
    total, done = plan.source_bytes, 0
    with Files(plan.inputs) as files:

        def examine(chunk: Chunk) -> int:
            rows = fetch(chunk, plan, files)
            if not _finite(rows, plan.sources[chunk.segment.source].ggml):
                bad.setdefault(chunk.tensor, chunk.row)
            role = tensor_names.parse(chunk.tensor).role
            if "_exps" in role:
                digests[chunk.tensor][chunk.row] = hashlib.sha256(rows.view(np.uint8).data).digest()
            elif role == "ffn_gate_inp":
                for i, row in enumerate(rows):
                    routers[chunk.tensor][chunk.row + i] = row.tobytes()
            source = model.sources[chunk.segment.source]
            return chunk.segment.source_bytes(source, chunk.count)

        for size in in_threads(examine, Schedule(plan).chunks(), default_threads()):
            done += size
            progress.update("reading", done, total)
    problems = [
        f"NaN or infinity in {name}, first near row {row}" for name, row in sorted(bad.items())
    ]
    return [*problems, *_same_experts(plan, digests), *_same_routes(routers)]


def _finite(rows: np.ndarray[Any, Any], ggml: GGMLType) -> bool:
    import quant_types

    if not ggml.is_float:
        blocks = rows.view(np.uint8).reshape(-1, ggml.type_size)
        return quant_types.invalid_block(blocks, ggml.name) < 0
    try:
        quant_types.check_finite(rows)
    except quant_types.NotFinite:
        return False
    return True


def _same_experts(plan: Plan, chunks: Mapping[str, Mapping[int, bytes]]) -> list[str]:
    """Experts whose every matrix is the same, and the layers where they are. `chunks`: the digest
    of each chunk, by tensor and first row."""
    digests: dict[int, dict[int, list[bytes]]] = defaultdict(lambda: defaultdict(list))
    for name in sorted(chunks):
        shape = plan.outputs[0].by_name[name].shape
        bid, per_expert = tensor_names.parse(name).bid, shape[-2] if len(shape) > 2 else 1
        for row, digest in sorted(chunks[name].items()):
            digests[bid or 0][row // per_expert].append(digest)
    where: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for bid, experts in sorted(digests.items()):
        alike: dict[tuple[bytes, ...], list[int]] = defaultdict(list)
        for xid, of_expert in sorted(experts.items()):
            alike[tuple(of_expert)].append(xid)
        for xids in alike.values():
            if len(xids) > 1:
                where[tuple(xids)].append(bid)
    return [
        f"experts {' and '.join(map(str, xids))} are identical in "
        f"{'every layer' if len(bids) == len(digests) else f'layers {ranges(bids)}'}"
        for xids, bids in where.items()
    ]


def _same_routes(routers: Mapping[str, Mapping[int, bytes]]) -> list[str]:
    """Experts that a router scores alike whatever the token: their rows are the same."""
    problems = []
    for name, rows in sorted(routers.items()):
        alike: dict[bytes, list[int]] = defaultdict(list)
        for xid, row in sorted(rows.items()):
            alike[row].append(xid)
        for xids in alike.values():
            if len(xids) > 1:
                same = " and ".join(map(str, xids))
                problems.append(f"the router {name} cannot tell experts {same} apart")
    return problems


_SHOWN = {"part_bytes": "bytes"}  # keys that people read otherwise


def lines(inspection: Inspection) -> list[str]:
    """The inspection for a terminal."""
    return [f"{name:16} {text}" for name, text in _entries(inspection)]


def _entries(inspection: Inspection) -> list[tuple[str, str]]:
    """Each thing to show: what it is, and the text."""
    data = inspection.description.as_data() if inspection.description else {}
    entries = [(_SHOWN.get(n, n.replace("_", " ")), _as_text(n, v)) for n, v in data.items()]
    entries += [("its template", note) for note in inspection.template]
    entries += [("problem", problem) for problem in inspection.problems]
    return entries if inspection.problems else [*entries, ("problems", "none found")]


def _as_text(name: str, value: Any) -> str:
    if name == "parameters":
        return f"{billions(value['total'])} total, {billions(value['active'])} active"
    if name == "part_bytes":
        whole = sum(value.values()) or 1
        return ", ".join(
            f"{part} {gigabytes(n)} ({100 * n / whole:.0f}%)" for part, n in value.items()
        )
    if name == "dtypes":
        return ", ".join(f"{dtype} {count}" for dtype, count in value.items())
    if isinstance(value, dict):
        return ", ".join(f"{k.replace('_', ' ')} {_as_word(v)}" for k, v in value.items())
    return "; ".join(value) if isinstance(value, list) else _as_word(value)


def _as_word(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if value is None or isinstance(value, bool):
        return {True: "yes", False: "no", None: "-"}[value]
    return str(value)
