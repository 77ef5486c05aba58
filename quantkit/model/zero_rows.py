"""Added tokens that were never trained: their rows of the embedding are zero, and llama.cpp is told
never to write them (`conversion/minimax.py`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from quantkit.architectures.rules import Architecture, Config
from quantkit.source.checkpoint_files import CheckpointFiles
from quantkit.source.codings import read
from quantkit.source.tensors import Files, SourceTensor

_AT_ONCE = 4096  # rows


def with_zero_rows(
    files: CheckpointFiles,
    arch: Architecture,
    config: Config,
    sources: Mapping[str, SourceTensor],
) -> Config:
    """The config with the ids of such tokens as `zero rows`, if the family asks for them."""
    if not arch.suppresses_zeros:
        return config
    tables = (t for n, t in sources.items() if arch.plain(n).endswith("embed_tokens.weight"))
    table, first = next(tables, None), _plain_tokens(files)
    if table is None or first is None:
        return config
    found: list[int] = []
    with Files((table.path,)) as opened:
        for at in range(first, table.n_rows, _AT_ONCE):
            rows = read(opened, table, at, min(_AT_ONCE, table.n_rows - at))
            found += (at + np.flatnonzero(~rows.any(axis=1))).tolist()
    return replace(config, values={**config.values, "zero rows": found or None})


def _plain_tokens(files: CheckpointFiles) -> int | None:
    """How many tokens stand before those that were added, where their files say it."""
    model = (files.optional("tokenizer.json") or {}).get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else files.optional("vocab.json")
    return len(vocab) if isinstance(vocab, dict) else None
