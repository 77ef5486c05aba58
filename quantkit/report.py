"""The table of a model card: what each file is, how large, and how much memory it takes to run."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.checkpoint import SourceTensor, open_gguf_set
from quantkit.gguf_file import Header
from quantkit.recipes import RECIPES
from quantkit.splits import split_siblings, unsplit_name

if TYPE_CHECKING:
    from rich.table import Table

COLUMNS = ("Name", "Quant method", "Bits", "Size", "Max RAM required", "Use case")
BATCH = 512  # tokens that llama.cpp evaluates at once (n_ubatch)


@dataclass(frozen=True)
class Row:
    """One file. Sizes in bytes; `context` is the number of tokens that `max_ram_bytes` is for."""

    name: str
    type: str
    bits_per_weight: float
    size_bytes: int
    max_ram_bytes: int
    context: int
    use_case: str

    def cells(self) -> tuple[str, ...]:
        """The row as text, in the order of COLUMNS."""
        nominal = re.search(r"\d+", self.type)
        bits = f"{nominal[0] if nominal else '?'} ({self.bits_per_weight:.2f} bpw)"
        return (
            self.name, self.type, bits, gigabytes(self.size_bytes),
            gigabytes(self.max_ram_bytes), self.use_case,
        )  # fmt: skip


def gigabytes(n: int) -> str:
    """Bytes as people write them on model cards: GB of 10^9, MB below one."""
    return f"{n / 1e9:.2f} GB" if n >= 1e9 else f"{n / 1e6:.2f} MB"


def read_rows(paths: Sequence[Path], context: int | None = None) -> list[Row]:
    """A row for each GGUF file, and one for each set of splits of which any is given.

    `context` defaults to what the model was trained for, at most 4096 tokens. Raises SourceError.
    """
    models = {(path.parent, unsplit_name(path.name)): path for path in reversed(paths)}
    return [_read_row(path, context) for path in reversed(models.values())]


def _read_row(path: Path, context: int | None) -> Row:
    header, tensors = open_gguf_set(path)
    files = split_siblings(path.name) if header.get("split.count", 0) > 1 else [path.name]
    recipe = next((r for r in RECIPES if r.file_type == header.get("general.file_type")), None)
    arch = header.get("general.architecture", "")
    context = context or min(header.get(f"{arch}.context_length", 4096), 4096)
    tensor_bytes = sum(t.row_bytes * t.n_rows for t in tensors)
    weights = sum(prod(t.shape) for t in tensors)
    rows = next((t.shape[0] for t in tensors if t.name == "token_embd.weight"), 0)
    return Row(
        name=path.name if len(files) == 1 else f"{unsplit_name(path.name)} ({len(files)} files)",
        type=recipe.name if recipe else _main_type(tensors),
        bits_per_weight=round(8 * tensor_bytes / weights, 4) if weights else 0.0,
        size_bytes=sum((path.parent / name).stat().st_size for name in files),
        max_ram_bytes=tensor_bytes + runtime_bytes(header, rows, context),
        context=context,
        use_case=recipe.use_case if recipe else "",
    )


def runtime_bytes(header: Header, vocab: int, context: int) -> int:
    """An estimate of what llama.cpp needs beside the weights: the float16 keys and values of
    `context` tokens, and the float32 logits and widest activations of one batch."""
    arch = header.get("general.architecture", "")

    def number(key: str, default: int) -> int:
        value = header.get(f"{arch}.{key}", default)
        return int(value[0] if isinstance(value, list) else value)

    width, heads = number("embedding_length", 0), max(number("attention.head_count", 1), 1)
    head = width // heads
    channels = number("attention.key_length", head) + number("attention.value_length", head)
    kv_heads = number("attention.head_count_kv", heads)
    cache = number("block_count", 0) * kv_heads * channels * 2 * context
    ffn = number("feed_forward_length", 0) * max(number("expert_used_count", 1), 1)
    widest = max(vocab + width, 3 * ffn + width, heads * context)
    return cache + 4 * BATCH * widest


def _main_type(tensors: Sequence[SourceTensor]) -> str:
    """The format that holds the most weights, for files whose label we do not know."""
    held: Counter[str] = Counter()
    for t in tensors:
        held[t.ggml.name] += prod(t.shape)
    return held.most_common(1)[0][0] if held else "?"


def as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows as plain values."""
    return [asdict(row) for row in rows]


def as_markdown(rows: Sequence[Row]) -> str:
    """The table as it goes into a model card."""
    lines = [COLUMNS, tuple("---" for _ in COLUMNS), *(row.cells() for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def as_table(rows: Sequence[Row]) -> Table:
    """The table for a terminal."""
    from rich.table import Table

    table = Table(*COLUMNS)
    for row in rows:
        table.add_row(*row.cells())
    return table
