"""`--outtype auto`: which tensors the type is chosen by."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from quantkit.model.from_checkpoint import from_checkpoint
from quantkit.source.checkpoint_files import CheckpointFiles
from tests.architectures.test_architectures import options
from tests.checkpoints import architectures
from tests.damage import edit_tensors


def _types(source: Path, case: str) -> dict[str, str]:
    golden = architectures()[case]["golden"]
    files, asked = CheckpointFiles.local(source), options(golden["args"], source)
    return {t.name: t.stored for t in from_checkpoint(files, "auto", golden["pre"], asked).tensors}


def _half(tensors: dict[str, Any], name: str, of: str) -> None:
    """`name` as the bytes of another tensor, said to be float16."""
    tensors[name] = ("F16", *tensors[of][1:])


def test_a_head_that_is_passed_over_chooses_no_type(broken: Callable[..., Path]) -> None:
    """Gemma 2's; that of Gemma 3 counts, and comes first in the file."""
    embedding = "model.embed_tokens.weight"
    source = broken("gemma2-dense")
    edit_tensors(source, lambda tensors: _half(tensors, "lm_head.weight", embedding))
    assert _types(source, "gemma2-dense")["token_embd.weight"] == "BF16"


def test_a_head_that_is_kept_chooses_the_type(broken: Callable[..., Path]) -> None:
    source = broken("gemma3-head")
    edit_tensors(source, lambda tensors: _half(tensors, "lm_head.weight", "lm_head.weight"))
    assert _types(source, "gemma3-head")["blk.0.attn_q.weight"] == "F16"
