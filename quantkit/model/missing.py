"""What a checkpoint lacks of its architecture: named in the spelling that it uses elsewhere."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from quantkit.errors import TensorMissing
from quantkit.gguf.tensor_names import in_block, parse
from quantkit.loading.asked import does_without_head
from quantkit.model.names import NUMBER
from quantkit.plain_text import first_of
from quantkit.source.checkpoint import absent_shards
from quantkit.source.tensors import SourceTensor

if TYPE_CHECKING:
    from quantkit.architectures.rules import Map
    from quantkit.model.placement import Layout


def check_nothing_missing(
    layout: Layout, sources: Mapping[str, SourceTensor], placed: Collection[str]
) -> None:
    """Every tensor that the architecture has is placed, but for a head that is the embedding, or
    that llama.cpp does without, for biases that no layer has, and for layers that predict further
    tokens where all are left out. Raises TensorMissing."""
    config = layout.config
    tied = config.get("tie_word_embeddings", kind="BOOL", default=False)
    tied = tied or does_without_head(layout.arch.gguf_arch)
    ahead = any((parse(name).bid or 0) >= config.layers for name in placed)
    for m in layout.arch.maps:
        if (m.optional and not _has_some(layout, m, placed)) or (
            tied and m.source == "lm_head.weight"
        ):
            continue
        for bid in layout.blocks_of(m):
            predicts = bid is not None and bid >= config.layers
            if predicts and (m.optional or not ahead):
                continue
            for target in {in_block(p.role, bid) for p in layout.pieces(m, bid, 0)}:
                if target in placed or not (missing := _missing(layout, bid, target, sources)):
                    continue
                n_experts = layout.dims[bid or 0].get("experts", 0)
                experts = f" and {n_experts} experts" if n_experts else ""
                hint = " (it is of one that predicts; --no-mtp leaves those out)" * predicts
                lost = absent_shards(t.path.name for t in sources.values())
                also = f"; not there: {first_of(lost)}" if lost else ""
                raise TensorMissing(
                    f"tensor {missing[0]} is not in the checkpoint ({len(missing)} missing for "
                    f"{target}); {config.where} says {config.layers} layers{experts}{hint}{also}"
                )


def _has_some(layout: Layout, m: Map, placed: Collection[str]) -> bool:
    """Whether a bias that not all checkpoints have is there, in a layer of the model's own."""
    return m.source.endswith("_proj.bias") and any(
        in_block(p.role, bid) in placed
        for bid in layout.blocks_of(m)
        if bid is not None and bid < layout.config.layers
        for p in layout.pieces(m, bid, 0)
    )


def _missing(
    layout: Layout, bid: int | None, target: str, sources: Mapping[str, SourceTensor]
) -> list[str]:
    """The source tensors that are missing for `target`, in the spelling that the checkpoint uses
    elsewhere or else misses the smallest part of."""
    present = {layout.names[name] for name in sources}
    templates = {NUMBER.sub("*", name) for name in present}
    spellings: list[tuple[bool, float, int, list[str]]] = []
    for m in layout.arch.maps:
        if layout.has(m, bid) and any(
            in_block(p.role, bid) == target for p in layout.pieces(m, bid, 0)
        ):
            xids = range(layout.dims[bid or 0][m.experts] if "xid" in m.fields else 1)
            mid = (bid or 0) - layout.config.layers
            names = [m.source.format(bid=bid, mid=mid, xid=x, any=0) for x in xids]
            missing = [name for name in names if name not in present]
            unused = m.template not in templates
            spellings.append((unused, len(missing) / len(names), len(spellings), missing))
    return min(spellings)[-1]
