"""The vocabularies of Mistral's own releases: what is wrong with one is said in a line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quantkit.errors import TokenizerError
from quantkit.source.checkpoint_files import CheckpointFiles
from quantkit.tokenizer import mistral


def tekken(directory: Path, **changes: Any) -> CheckpointFiles:
    """Two special tokens of 22, and all bytes with one joined piece."""
    import base64

    pieces = [*(bytes([b]) for b in range(256)), b"ab"]
    data = {
        "config": {"default_vocab_size": 279, "default_num_special_tokens": 22, "version": "v3"},
        "vocab": [
            {"rank": i, "token_bytes": base64.b64encode(p).decode()} for i, p in enumerate(pieces)
        ],
        **changes,
    }
    (directory / "tekken.json").write_text(json.dumps(data))
    return CheckpointFiles.local(directory)


def test_old_files_do_not_name_their_special_tokens(tmp_path: Path) -> None:
    vocab = mistral.read(tekken(tmp_path), 281, template_file=False)
    assert vocab.tokens[:3] == ["<unk>", "<s>", "</s>"]
    assert vocab.tokens[19:22] == ["[TOOL_CONTENT]", "<SPECIAL_20>", "<SPECIAL_21>"]
    assert vocab.tokens[278:] == ["ab", "[PAD279]", "[PAD280]"]
    assert vocab.merges == ["a b"]
    assert vocab.template == "mistral-v3-tekken"


def test_a_file_that_names_no_padding(tmp_path: Path) -> None:
    named = [{"token_str": text} for text in ("<unk>", "<s>", "</s>")]
    vocab = mistral.read(tekken(tmp_path, special_tokens=named), None, template_file=False)
    assert vocab.ids == {"bos": 1, "eos": 2, "unk": 0}


def test_an_unknown_version_has_no_template(tmp_path: Path) -> None:
    config = {"default_vocab_size": 279, "default_num_special_tokens": 22, "version": "v99"}
    vocab = mistral.read(tekken(tmp_path, config=config), None, template_file=False)
    assert vocab.template is None
    assert "no chat template" in vocab.notes[0]


@pytest.mark.parametrize(
    ("change", "size", "words"),
    [
        (lambda d: d, 200, "279 tokens, and the model has 200"),
        (lambda d: {**d, "vocab": d["vocab"][:100]}, None, "100 others found"),
        (lambda d: {**d, "vocab": [*d["vocab"][:256], {"token_bytes": "YWJj"}]}, None,
         "no two pieces make b'abc'"),
        (lambda d: {**d, "special_tokens": [{"token_str": "<s>"}]}, None,
         "</s> is none of its special tokens"),
    ],
)  # fmt: skip
def test_malformed(
    change: Callable[[dict[str, Any]], dict[str, Any]], size: int | None, words: str, tmp_path: Path
) -> None:
    files = tekken(tmp_path)
    tekken(tmp_path, **change(files.json("tekken.json")))
    with pytest.raises(TokenizerError, match=words):
        mistral.read(CheckpointFiles.local(tmp_path), size, template_file=False)


def test_no_vocabulary(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"neither tekken\.json nor tokenizer\.model"):
        mistral.read(CheckpointFiles.local(tmp_path), None, template_file=False)
