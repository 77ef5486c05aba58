"""Carry a plan out: read each row once, make every output's rows from it, write them in place.

Chunks go through three stages, each with threads of its own: those that compute wait neither for
the source nor for the disk. What happens to a chunk depends on no other, so memory is bounded by
the chunks under way, and a run that died goes on with those that are not on disk.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from functools import partial
from itertools import groupby
from operator import itemgetter
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from quantkit.calibration.imatrix import Importance
from quantkit.errors import NonFiniteWeight, WeightTooLarge
from quantkit.execution.outputs import OutputFile, open_outputs
from quantkit.execution.rows import bounded, dequantize, fetch, source_row, source_rows
from quantkit.execution.stages import Stage, in_stages
from quantkit.execution.sums import NoteSums, Piece, Stream, SumsInPassing, add
from quantkit.gguf.types import type_by_name
from quantkit.planning.plan import Plan
from quantkit.planning.schedule import Chunk, Schedule
from quantkit.progress import SILENT, Progress
from quantkit.source.tensors import Files, SourceTensor, numpy_dtype
from quantkit.storage import direct_io, os_files
from quantkit.storage.whole import made_directories

Destination = tuple[str, OutputFile]  # a tensor's format, and the file that it goes to
# no block holds a weight past it: float16 is the scale of most, E4M3 that of NVFP4
_MOST = {"NVFP4": 448.0 * 6}
_MOST_OF_OTHERS, _UNBOUNDED = 1e12, ("F32", "BF16", "F16", "MXFP4")
_MOST_BF16 = 3.38953139e38
Made = tuple[list[OutputFile], memoryview]  # bytes, and the files that they go to


class Work(NamedTuple):
    """A chunk between two stages."""

    chunk: Chunk
    targets: list[Destination]  # the files that do not have it yet
    rows: Any = None  # as they were read, where that took long
    made: tuple[Made, ...] = ()
    pieces: tuple[Piece, ...] = ()  # that are still to be added up


def execute(
    order: Schedule,
    progress: Progress = SILENT,
    importance: Importance = MappingProxyType({}),
    force: bool = False,
    note: NoteSums | None = None,
) -> None:
    """Write every file of the plan, or go on with what an earlier run left of them. If somebody
    wants to `note` them, sums are taken of files that are begun here, as they are written.

    `importance` holds float32 `[experts, n]` (one row for a plain matrix) by tensor name. Raises
    NonFiniteWeight, SourceError, OutputError.
    """
    plan = order.plan
    with ExitStack() as opened:
        beside = opened.enter_context(ThreadPoolExecutor(1))
        kernels = beside.submit(_prepare, plan, importance, order.threads)  # while files are opened
        files = opened.enter_context(Files(plan.inputs))
        opened.enter_context(made_directories({os_files.real(f.path.parent) for f in plan.files}))
        outputs = opened.enter_context(open_outputs(plan, importance, force, kernels.result))
        sums = SumsInPassing([o.planned for o in outputs if note and not o.resumed])
        targets = _targets(outputs)
        room = max(order.room, order.least_memory)
        memory = direct_io.BlockPool(room, order.most_made() + direct_io.PAGE * len(plan.outputs))

        def read(chunk: Chunk) -> Work:
            return _read(chunk, plan, files, targets.get(chunk.tensor, []))

        def make(work: Work) -> Work:
            if not work.targets:
                return work
            return _make(work, plan, files, importance.get(work.chunk.tensor), memory)

        def write(work: Work) -> Work:
            _write(work, plan, files)
            return Work(work.chunk, [], pieces=_pieces(work, sums))

        at_once = order.stages
        stages = [Stage(read, at_once.read), Stage(make, at_once.make), Stage(write, at_once.write)]
        stages += [
            Stage(partial(_add_up, share), in_order=True) for share in sums.shares(at_once.make)
        ]
        with closing(
            in_stages(order.chunks(), stages, order.chunk_bytes, room, files.stop)
        ) as done:
            step = " ".join(o.type for o in plan.outputs) or "copy"
            total, so_far = plan.source_bytes, 0
            progress.update(step, 0, total)
            for work in done:
                so_far += _source_bytes(work.chunk, plan)
                progress.update(step, so_far, total)
    if note:
        for path, found in sums.digests():
            note(path, found)


def _targets(outputs: list[OutputFile]) -> dict[str, list[Destination]]:
    """Where each tensor goes, equal formats side by side so that each is made once."""
    targets: dict[str, list[Destination]] = {}
    for output in outputs:
        for name, (_, t) in output.tensors.items():
            targets.setdefault(name, []).append((t.format, output))
    for found in targets.values():
        found.sort(key=lambda target: target[0])
    return targets


def _prepare(plan: Plan, importance: Importance, threads: int) -> None:
    """Have the kernels ready of the formats that will be made; of floats they are seldom wanted."""
    import quant_types

    wanted = {
        (t.format, name in importance)
        for output in plan.outputs
        for name, t in output.by_name.items()
        if not (plan.verbatim or type_by_name(t.format).is_float)
        and any(plan.sources[s.source].ggml.name != t.format for s in plan.segments[name])
    }
    if wanted:
        quant_types.prepare(wanted, threads)


def _read(chunk: Chunk, plan: Plan, files: Files, targets: list[Destination]) -> Work:
    """The rows of a chunk, if a file does not have it and they are slow to come. The system is
    asked to have others ready, and who works on them takes them from its memory: it works on what
    it has just copied."""
    lacking = [t for t in targets if not t[1].has(chunk.tensor, chunk.row, chunk.count)]
    source = plan.sources[chunk.segment.source]
    if not lacking or _copied(chunk, plan, files) or files.expect(source, *source_rows(chunk)):
        return Work(chunk, lacking)
    return Work(chunk, lacking, fetch(chunk, plan, files))


def _make(
    work: Work, plan: Plan, files: Files, importance: Any, memory: direct_io.BlockPool
) -> Work:
    """The rows of a chunk in every format that is wanted."""
    chunk, targets, rows = work.chunk, work.targets, work.rows
    if _copied(chunk, plan, files):
        return work
    rows = fetch(chunk, plan, files) if rows is None else rows
    source = plan.sources[chunk.segment.source]
    floats = rows if source.ggml.is_float and not plan.verbatim else None
    if importance is not None:  # of each expert, where each has its own
        n_rows = targets[0][1].tensors[chunk.tensor][1].weights // chunk.segment.row_length(source)
        importance = importance[chunk.row // (n_rows // len(importance))]
    made: list[Made] = []
    wanted: list[tuple[str, list[OutputFile]]] = []
    for fmt, group in groupby(targets, key=itemgetter(0)):
        outputs = [output for _, output in group]
        if plan.verbatim or (fmt == source.ggml.name and not source.ggml.is_float):
            if not plan.verbatim:
                _check_copied(rows, source, chunk)
            made.append((outputs, _bytes(rows)))
            continue
        floats = dequantize(rows, source) if floats is None else floats
        kind = type_by_name(fmt)
        if kind.is_float and (fmt == "F32" or floats.dtype == numpy_dtype(kind)):  # not rounded
            same = floats.astype(np.float32, copy=False) if fmt == "F32" else floats
            made.append((outputs, _bytes(same)))
        else:
            wanted.append((fmt, outputs))
    if floats is not None:
        made += _quantized(floats, wanted, importance, chunk, source, memory)
    return Work(chunk, targets, made=tuple(made))


def _check_copied(rows: np.ndarray[Any, Any], source: SourceTensor, chunk: Chunk) -> None:
    """Blocks that are copied are finite. Raises NonFiniteWeight."""
    import quant_types

    kind = source.ggml
    block = quant_types.invalid_block(rows.view(np.uint8).reshape(-1, kind.type_size), kind.name)
    if block >= 0:
        row = source_row(chunk, block * kind.block_size // chunk.segment.row_length(source))
        raise NonFiniteWeight(
            f"{source.path.name}: tensor {source.name} has NaN or infinity in row {row}; "
            "the file is damaged, or was made of weights past what its format holds"
        )


def _check_blocks(data: np.ndarray[Any, Any], fmt: str, rows: Any, chunk: Chunk) -> None:
    """Blocks of a format, `rows` of weights made them, are finite. Raises WeightTooLarge."""
    import quant_types

    kind = type_by_name(fmt)
    block = quant_types.invalid_block(data.reshape(-1, kind.type_size), fmt)
    if block >= 0:
        raise _too_large(block * kind.block_size // rows.shape[-1], fmt, rows, chunk)
    if fmt not in _UNBOUNDED:  # a search whose sums of squares overflow gives zeros
        largest = np.abs(rows.astype(np.float32)).max(axis=1)
        if largest[row := int(largest.argmax())] > _MOST.get(fmt, _MOST_OF_OTHERS):
            raise _too_large(row, fmt, rows, chunk)


def _too_large(row: int, fmt: str, rows: Any, chunk: Chunk) -> WeightTooLarge:
    """The error of a row whose largest weight is past what a format holds."""
    value = rows[row][np.abs(rows[row].astype(np.float32)).argmax()]
    is_float = fmt in ("F16", "BF16", "F32")
    others = ["F32"] if abs(float(value)) > _MOST_BF16 else ["BF16", "F32"]
    instance = "" if is_float else f", for instance --tensor-type {chunk.tensor}={others[0]}"
    return WeightTooLarge(
        f"tensor {chunk.tensor}, row {chunk.row + row}: {float(value):g} is past what {fmt} holds; "
        f"choose {' or '.join(others)} for it{instance}"
    )


def _bytes(rows: np.ndarray[Any, Any]) -> memoryview:
    return np.ascontiguousarray(rows).view(np.uint8).data.cast("B")


def _write(work: Work, plan: Plan, files: Files) -> None:
    """A chunk into every file that wants it."""
    chunk = work.chunk
    place = (chunk.tensor, chunk.row, chunk.count)
    for outputs, data in work.made:
        for output in outputs:
            output.write(*place, data)
    if not work.made and (found := _copied(chunk, plan, files)):
        for _, output in work.targets:
            output.copy(*place, *found, _source_bytes(chunk, plan))


def _source_bytes(chunk: Chunk, plan: Plan) -> int:
    """The bytes of the source that a chunk is."""
    return chunk.segment.source_bytes(plan.sources[chunk.segment.source], chunk.count)


def _pieces(work: Work, sums: SumsInPassing) -> tuple[Piece, ...]:
    """What was written of a chunk, as it is to be added up."""
    tensor, row, count = work.chunk.tensor, work.chunk.row, work.chunk.count
    pieces = []
    for outputs, data in work.made:
        row_bytes = len(data) // count
        offsets = {o.planned.path: o.offset(tensor, row, row_bytes) for o in outputs}
        kind = outputs[0].tensors[tensor][1].format
        if takers := sums.takers(tensor, kind, row * row_bytes, offsets):
            pieces.append((takers, data))
    return tuple(pieces)


def _add_up(share: Container[Stream], work: Work) -> Work:
    return work._replace(pieces=add(share, work.pieces))


def _copied(chunk: Chunk, plan: Plan, files: Files) -> tuple[int, int] | None:
    """Where the rows of a chunk are, if the system copies them from file to file as they are."""
    if not plan.verbatim:
        return None
    return files.locate(plan.sources[chunk.segment.source], source_rows(chunk)[0])


def _quantized(
    rows: Any,
    wanted: list[tuple[str, list[OutputFile]]],
    importance: Any,
    chunk: Chunk,
    source: SourceTensor,
    memory: direct_io.BlockPool,
) -> Iterator[Made]:
    """The rows in each format, in memory from which they can be written directly. If none is
    wanted, they are looked at all the same."""
    import quant_types

    sizes = [type_by_name(fmt).row_bytes(rows.size) for fmt, _ in wanted]
    offsets = [
        outputs[0].offset(chunk.tensor, chunk.row, size // chunk.count)
        for size, (_, outputs) in zip(sizes, wanted, strict=True)
    ]
    rooms = direct_io.rooms(list(zip(sizes, offsets, strict=True)), memory)
    try:
        if wanted:
            formats = [fmt for fmt, _ in wanted]
            if quant_types.quantize_into(rows, zip(formats, rooms, strict=True), importance):
                for fmt, room in zip(formats, rooms, strict=True):
                    _check_blocks(room, fmt, rows, chunk)
        else:
            quant_types.check_finite(bounded(rows, chunk.tensor))
    except quant_types.NotFinite as e:
        raise NonFiniteWeight(
            f"{source.path.name}: tensor {source.name} has NaN or infinity "
            f"in row {source_row(chunk, e.row)}; the checkpoint is damaged"
        ) from None
    except quant_types.OutOfRange:  # finite, and past what the search of a format computes with
        grids = [fmt for fmt, _ in wanted if quant_types.get_format(fmt).grid]
        row = int(np.abs(rows.astype(np.float32)).max(axis=1).argmax())
        raise _too_large(row, " and ".join(grids), rows, chunk) from None
    for room, (_, outputs) in zip(rooms, wanted, strict=True):
        yield outputs, room.data
