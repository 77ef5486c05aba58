"""What llama.cpp asks of each architecture whatever its metadata say: keys, and tensors.

`needs.txt` has a line for each of llama.cpp's architectures (b11549, `src/models/*.cpp`): the keys
that `load_arch_hparams` requires beside those of every model; then the tensors that
`load_arch_tensors` requires outside the blocks, in every block, and in the blocks that predict
further tokens. `.weight` is left out there, and a name that ends in a dot has no suffix. What is
required under a condition is not listed.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple


class Needs(NamedTuple):
    """Keys without the architecture before them; tensors by their names in a file, without the
    block."""

    keys: tuple[str, ...]
    tensors: tuple[str, ...]
    in_blocks: tuple[str, ...]
    in_predicting_blocks: tuple[str, ...]


OF_ALL = ("block_count", "context_length", "embedding_length")


@cache
def needs() -> dict[str, Needs]:
    """Architecture -> what it asks."""
    table = {}
    for line in (Path(__file__).parent / "needs.txt").read_text().splitlines():
        arch, *columns = (column.split() for column in line.split(" | "))
        columns += [[]] * (4 - len(columns))
        keys, *tensors = columns
        named = [tuple(map(_whole, names)) for names in tensors]
        table[arch[0]] = Needs((*OF_ALL, *keys), *named)
    return table


def _whole(name: str) -> str:
    return (
        name if name.endswith(".bias") else name.removesuffix(".") + ".weight" * (name[-1] != ".")
    )
