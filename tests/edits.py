"""Every edit that quantkit offers, of every golden architecture; and whether what comes of it
loads. `python -m tests.edits` tries them all, and counts; `python -m tests.edits combined N` tries
N combinations of several at once of each architecture."""

from __future__ import annotations

import itertools
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from quantkit.architectures.rules import ConversionOptions
from quantkit.errors import QuantkitError
from quantkit.gguf import tensor_names
from quantkit.gguf.container import KeyValue, read_header
from quantkit.gguf.splits import Splits
from quantkit.jobs import convert, merge, quantize, split
from quantkit.model.open import Reading
from quantkit.planning.build import PLAIN, Request
from tests.checkpoints import architectures, from_recipe
from tests.real_loader import Judge

SPLIT = Splits(max_tensors=9)


@dataclass(frozen=True)
class Edit:
    """What is asked of `quantize`, beside a type; `words` name it."""

    words: str
    prune: tuple[int, ...] = ()
    override: str = ""
    reading: Reading = field(default=Reading())
    request: Request = PLAIN
    job: str = "quantize"


def edits(source: Path) -> list[Edit]:
    """Every edit of a golden architecture: of its checkpoint, and of `source`, its GGUF file."""
    return list({edit.words: edit for edit in _edits(source)}.values())


def _edits(source: Path) -> Iterator[Edit]:
    header = read_header(source)
    arch = header.get("general.architecture")
    for mtp in ("with", "without", "only"):
        reading = Reading(options=ConversionOptions(mtp=mtp))
        yield Edit(f"convert, layers that predict: {mtp}", reading=reading, job="convert")
    yield from _layers([t.name for t in header.tensors])
    yield from _experts(header.get(f"{arch}.expert_count", 0))
    for item in header.kv:
        if item.type != "ARRAY" and not item.key.startswith(("general.name", "general.sampling")):
            for value in _values(item):
                yield Edit(f"--override-kv {item.key}={value}", override=f"{item.key}={value}")
    for text in (
        "general.alignment=int:64",
        "general.alignment=int:33",
        "split.count=int:4",
        f"{arch}.expert_group_count=int:3",
        f"{arch}.nextn_predict_layers=int:1",
        f"{arch}.rope.freq_base=int:5",
        f"{'k' * 63}=int:1",
        f"{'k' * 64}=int:1",
        f"{arch}.leading_dense_block_count=int:1",
        f"{arch}.pooling_type=str:x",
        f"{arch}.classifier.activation=str:x",
    ):
        yield Edit(f"--override-kv {text}", override=text)
    yield Edit("splits", request=Request(splits=SPLIT))
    yield Edit("--keep-split", request=Request(keep_split=True))
    yield Edit("split", job="split")
    yield Edit("merge", job="merge")


def combined(source: Path, case: str, n: int) -> list[Edit]:
    """`n` of the combinations of edits of a golden architecture, each of the checkpoint: layers
    that predict, layers pruned, experts kept and used, splits; two of them at least. Others for
    every case, the same each time."""
    header = read_header(source)
    names = [t.name for t in header.tensors]
    arch = header.get("general.architecture")
    count = header.get(f"{arch}.expert_count", 0)
    ahead = ("with", "without", "only")[: 3 if header.get(f"{arch}.nextn_predict_layers") else 2]
    layers: list[tuple[int, ...]] = [(), *(e.prune for e in _layers(names))]
    kept = [(), *dict.fromkeys(e.reading.keep_experts for e in _experts(count))]
    used = [None, *((1, 2, count) if count else ())]
    of_experts = [(k, u) for k in dict.fromkeys(kept) for u in used if not k or (u or 1) <= len(k)]
    every = [
        (*mtp_layers, *experts, splits)
        for mtp_layers in itertools.product(ahead, layers)
        for experts in of_experts
        for splits in (PLAIN, Request(splits=SPLIT))
    ]
    plain = ("with", (), (), None, PLAIN)
    every = [c for c in every if sum(a != b for a, b in zip(c, plain, strict=True)) > 1]
    return [_combination(*c) for c in random.Random(case).sample(every, min(n, len(every)))]


def _combination(
    mtp: str,
    prune: tuple[int, ...],
    keep: tuple[int, ...],
    used: int | None,
    request: Request,
) -> Edit:
    words = f"predict: {mtp}, pruned: {prune}, kept: {keep}, used: {used}"
    reading = Reading(options=ConversionOptions(mtp=mtp), keep_experts=keep, experts_used=used)
    words += ", splits" * (request != PLAIN)
    return Edit(words, prune, reading=reading, request=request, job="quantize the checkpoint")


def _layers(names: list[str]) -> Iterator[Edit]:
    """Each single layer pruned, the first two, and all but one."""
    blocks = sorted({b for n in names if (b := tensor_names.parse(n).bid) is not None})
    for layers in ([b] for b in blocks):
        yield Edit(f"--prune-layers {layers}", prune=tuple(layers))
    for layers in (blocks[:2], blocks[-2:], blocks[1:], blocks[:-1]):
        yield Edit(f"--prune-layers {layers}", prune=tuple(layers))


def _experts(count: int) -> Iterator[Edit]:
    if not count:
        return
    for used in (1, count, count + 1):
        yield Edit(f"--experts-used {used}", reading=Reading(experts_used=used))
    for n in dict.fromkeys((1, 2, 3, count - 1)):
        for kept in dict.fromkeys((tuple(range(n)), tuple(range(count - 1, count - 1 - n, -1)))):
            if 0 < n <= count:
                words = f"--keep-experts {','.join(map(str, kept))}"
                yield Edit(words, reading=Reading(keep_experts=kept))
                yield Edit(
                    f"{words} --experts-used 1", reading=Reading(keep_experts=kept, experts_used=1)
                )


def _values(item: KeyValue) -> list[str]:
    """Values that a key may be set to: near what it is, and far from it."""
    value: Any = item.value
    if item.type == "STRING":
        return ["str:", "str:nonsense"]
    if item.type == "BOOL":
        return [f"bool:{str(not value).lower()}"]
    if item.type.startswith("FLOAT"):
        return [f"float:{v}" for v in (0, -1, 1e30, "nan", "inf")]
    near = {0, 1, 3, value - 1, value + 1, 2 * value, 2**31 - 1} - {value}
    return [f"int:{v}" for v in sorted(near) if v >= 0]


def outcome(edit: Edit, checkpoint: Path, source: Path, judge: Judge, directory: Path) -> str:
    """`loads`, or `refused: ...`; anything else is a fault. `directory` is empty, before and after.
    Whatever quantkit does not name is raised."""
    out = directory / "out.gguf"
    try:
        if edit.job == "convert":
            plan = convert(checkpoint, out, reading=edit.reading)
        elif edit.job.startswith("quantize"):
            kv = [edit.override] if edit.override else []
            request = replace(edit.request, allow_requantize=True)
            plan = quantize(
                source if edit.job == "quantize" else checkpoint,
                ["F16"],
                out,
                prune=edit.prune,
                override_kv=kv,
                reading=edit.reading,
                request=request,
            )
        else:
            plan = split(source, out, SPLIT)
            if edit.job == "merge":
                plan = merge(plan.files[0].path, directory / "merged.gguf")
    except QuantkitError as e:
        if left := list(directory.iterdir()):
            return f"left behind by a refusal: {left}"
        return f"refused: {type(e).__name__}: {e}"
    try:
        return judge.complaint(plan.files[0].path) or "loads"
    finally:
        shutil.rmtree(directory)
        directory.mkdir()


def main() -> None:
    """Every edit of the cases that are named, or of all."""
    counts: Counter[str] = Counter()
    cases, n = sys.argv[1:], 0
    if cases[:1] == ["combined"]:
        n, cases = int(cases[1]), cases[2:]
    with tempfile.TemporaryDirectory() as directory, Judge() as judge:
        for case in cases or architectures():
            checkpoint = from_recipe(case, Path(directory, case))
            source, out = Path(directory, f"{case}.gguf"), Path(directory, "out")
            out.mkdir(exist_ok=True)
            try:
                convert(checkpoint, source)
            except QuantkitError as e:
                counts["conversions refused"] += 1
                print(f"{case}: {e}", flush=True)
                continue
            for edit in combined(source, case, n) if n else edits(source):
                found = outcome(edit, checkpoint, source, judge, out)
                counts[found.partition(":")[0] if found.startswith("refused") else found] += 1
                if found != "loads" and not found.startswith("refused"):
                    print(f"{case} {edit.words}: {found}", flush=True)
            source.unlink()
            shutil.rmtree(Path(directory, case))
    print(f"{counts.total()} combinations: {dict(counts)}")


if __name__ == "__main__":
    main()
