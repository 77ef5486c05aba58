"""What a model is, on one screen, and what is wrong with it, before anything is made of it."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from quantkit.errors import ModelError
from quantkit.execution.rows import fetch
from quantkit.execution.stages import default_threads, in_threads
from quantkit.gguf import tensor_names
from quantkit.gguf.types import GGMLType
from quantkit.loading.model import Info, faults
from quantkit.model.model import Model, ModelTensor
from quantkit.model.open import open_source
from quantkit.model.provenance import merged_from
from quantkit.planning.build import laid_out
from quantkit.planning.plan import Plan
from quantkit.planning.schedule import Chunk, Schedule
from quantkit.progress import SILENT, Progress
from quantkit.reporting.numbers import billions, ranges
from quantkit.source.tensors import Files


@dataclass
class Inspection:
    """Facts in the order in which they are shown, and problems, each a line."""

    facts: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def inspect(source: str | Path, weights: bool = True, progress: Progress = SILENT) -> Inspection:
    """Look at a checkpoint directory or a GGUF file.

    With `weights`, every weight is read once: NaN and infinity, experts that are the same, routers
    that cannot choose. Raises SourceError; what is
    wrong with the model itself becomes a problem.
    """
    out = Inspection()
    try:
        model = open_source(source)
    except ModelError as e:
        out.problems.append(str(e))
        return out
    out.facts = {**describe(model), **merged_from(source)}
    infos = [Info(t.name, t.shape, t.stored) for t in model.tensors]
    out.problems += faults(model.kv, infos)
    if weights:
        out.problems += _of_the_weights(model, progress)
    return out


def parameters(tensors: Iterable[ModelTensor], values: Mapping[str, Any]) -> tuple[int, int]:
    """Weights in all, and weights that one token is computed with."""
    count, used = values.get("expert_count") or 1, values.get("expert_used_count") or 1
    total = experts = 0
    for t in tensors:
        name = tensor_names.parse(t.name)
        if name.role == "rope_freqs":
            continue
        total += prod(t.shape)
        experts += prod(t.shape) if "_exps" in name.role else 0
    return total, total - experts + experts * used // count


def describe(model: Model) -> dict[str, Any]:
    """The facts of a model, from headers alone."""
    kv = {item.key: item for item in model.kv}
    prefix = f"{model.arch}."
    values = {k.removeprefix(prefix): v.value for k, v in kv.items() if k.startswith(prefix)}
    total, active = parameters(model.tensors, values)
    groups: Counter[str] = Counter()
    for t in model.tensors:
        groups[tensor_names.part(tensor_names.parse(t.name))] += sum(_source_bytes(model, t))
    dtypes = Counter(t.ggml.name for t in model.sources.values())
    facts: dict[str, Any] = {
        "name": model.name,
        "architecture": model.arch,
        "parameters": {"total": total, "active": active},
        "layers": values.get("block_count"),
        "embedding": values.get("embedding_length"),
        "context": values.get("context_length"),
    }
    if values.get("expert_count"):
        facts["experts"] = {
            "count": values["expert_count"], "used": values.get("expert_used_count"),
        }  # fmt: skip
    facts["bytes"] = dict(groups.most_common())
    facts["dtypes"] = dict(dtypes.most_common())
    facts["tied embeddings"] = all(t.name != "output.weight" for t in model.tensors)
    if "tokenizer.ggml.tokens" in kv:
        tokens = kv["tokenizer.ggml.tokens"].value
        types = kv["tokenizer.ggml.token_type"].value if "tokenizer.ggml.token_type" in kv else []
        facts["tokenizer"] = {
            "model": kv["tokenizer.ggml.model"].value,
            "pre": kv["tokenizer.ggml.pre"].value if "tokenizer.ggml.pre" in kv else None,
            "tokens": len(tokens), "unused": types.count(5),
            "chat template": "tokenizer.chat_template" in kv,
        }  # fmt: skip
    if model.notes:
        facts["notes"] = list(model.notes)
    return facts


def _source_bytes(model: Model, t: ModelTensor) -> Iterable[int]:
    return (s.source_bytes(model.sources[s.source], s.count) for s in t.segments)


def _of_the_weights(model: Model, progress: Progress) -> list[str]:
    """Read everything once and say what is not as it should be."""
    plan = laid_out(model, "", Path("unwritten"))
    bad: dict[str, int] = {}
    parts: dict[str, dict[int, bytes]] = defaultdict(dict)
    routers: dict[str, dict[int, bytes]] = defaultdict(dict)
    total, done = plan.source_bytes, 0
    with Files(plan.inputs) as files:

        def look(chunk: Chunk) -> int:
            rows = fetch(chunk, plan, files)
            if not _finite(rows, plan.sources[chunk.segment.source].ggml):
                bad.setdefault(chunk.tensor, chunk.row)
            role = tensor_names.parse(chunk.tensor).role
            if "_exps" in role:
                parts[chunk.tensor][chunk.row] = hashlib.sha256(rows.view(np.uint8).data).digest()
            elif role == "ffn_gate_inp":
                for i, row in enumerate(rows):
                    routers[chunk.tensor][chunk.row + i] = row.tobytes()
            source = model.sources[chunk.segment.source]
            return chunk.segment.source_bytes(source, chunk.count)

        for size in in_threads(look, Schedule(plan).chunks(), default_threads()):
            done += size
            progress.update("reading", done, total)
    problems = [
        f"NaN or infinity in {name}, first near row {row}" for name, row in sorted(bad.items())
    ]
    return [*problems, *_same_experts(plan, parts), *_routers(routers)]


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


def _same_experts(plan: Plan, parts: Mapping[str, Mapping[int, bytes]]) -> list[str]:
    """Experts whose every matrix is the same, and the layers where they are."""
    digests: dict[int, dict[int, list[bytes]]] = defaultdict(lambda: defaultdict(list))
    for name in sorted(parts):
        shape = plan.outputs[0].by_name[name].shape
        bid, per_expert = tensor_names.parse(name).bid, shape[-2] if len(shape) > 2 else 1
        for row, digest in sorted(parts[name].items()):
            digests[bid or 0][row // per_expert].append(digest)
    where: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for bid, experts in sorted(digests.items()):
        alike: dict[tuple[bytes, ...], list[int]] = defaultdict(list)
        for xid, found in sorted(experts.items()):
            alike[tuple(found)].append(xid)
        for xids in alike.values():
            if len(xids) > 1:
                where[tuple(xids)].append(bid)
    return [
        f"experts {' and '.join(map(str, xids))} are identical in "
        f"{'every layer' if len(bids) == len(digests) else f'layers {ranges(bids)}'}"
        for xids, bids in where.items()
    ]


def _routers(routers: Mapping[str, Mapping[int, bytes]]) -> list[str]:
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


def lines(found: Inspection) -> list[str]:
    """The inspection for people."""
    from quantkit.reporting.numbers import gigabytes

    out = []
    for name, value in found.facts.items():
        if name == "parameters":
            text = f"{billions(value['total'])} total, {billions(value['active'])} active"
        elif name == "bytes":
            whole = sum(value.values()) or 1
            text = ", ".join(
                f"{group} {gigabytes(n)} ({100 * n / whole:.0f}%)" for group, n in value.items()
            )
        elif isinstance(value, dict):
            text = ", ".join(f"{k} {_said(v)}" for k, v in value.items())
        elif isinstance(value, list):
            text = "; ".join(value)
        else:
            text = _said(value)
        out.append(f"{name:16} {text}")
    out += [f"{'problem':16} {problem}" for problem in found.problems]
    return out if found.problems else [*out, f"{'problems':16} none found"]


def _said(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if value is None or isinstance(value, bool):
        return {True: "yes", False: "no", None: "-"}[value]
    return str(value)
