"""The keys that llama.cpp asks of each architecture whatever else its metadata say.

`needs.txt` has a line for each of llama.cpp's architectures (b11549, `src/models/*.cpp`): the keys
that `load_arch_hparams` requires beside those of every model. What is required under a condition is
not listed. Tensors are in `asked.txt`.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

OF_ALL = ("block_count", "context_length", "embedding_length")


@cache
def needs() -> dict[str, tuple[str, ...]]:
    """Architecture -> the keys it asks for, without the architecture before them."""
    table = {}
    for line in (Path(__file__).parent / "needs.txt").read_text().splitlines():
        arch, _, keys = line.partition(" |")
        table[arch] = (*OF_ALL, *keys.split())
    return table
