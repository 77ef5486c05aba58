"""Special ids past the vocabulary: none is written, and an end token stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from quantkit.errors import TokenizerError
from quantkit.tokenizer.vocabulary import Vocabulary
from tests.vocabularies import edit_json, read_json, vocabulary, write_files

PAST = 504  # llama-dense: <|end_header_id|> and <|eot_id|> are 504 and 505


def cut(directory: Path, **config: Any) -> Path:
    """The embedding ends before the last added tokens."""
    edit_json(directory / "config.json", vocab_size=PAST, **config)
    return directory


def named(vocab: Vocabulary) -> dict[str, int]:
    return {**vocab.special.ids, **vocab.late_ids}


@pytest.mark.parametrize(
    ("config", "generation", "found"),
    [
        ({"eos_token_id": 505}, {"eos_token_id": [505, 501]}, 501),
        ({"eos_token_id": 505}, {"eos_token_id": 501}, 501),
        ({"eos_token_id": [505, 501]}, None, 501),
        ({"eos_token_id": 501}, {"eos_token_id": [505]}, 501),
        ({"eos_token_id": [505, 499]}, {"eos_token_id": [505, 501]}, 501),
    ],
)
def test_another_end_token_is_taken(
    config: dict[str, Any], generation: dict[str, Any] | None, found: int, tmp_path: Path
) -> None:
    directory = cut(write_files("llama-dense", tmp_path), **config)
    (directory / "generation_config.json").unlink(missing_ok=True)
    if generation is not None:
        edit_json(directory / "generation_config.json", **generation)
    edit_json(directory / "tokenizer_config.json", eos_token="<|eot_id|>")
    vocab = vocabulary(directory)
    assert named(vocab)["eos"] == found
    (note,) = (n for n in vocab.notes if "end token" in n)
    assert "<|eot_id|> (505) is past the model's 504 tokens" in note
    assert f"({found})" in note
    assert vocab.tokens[found] in note


def test_a_model_that_would_be_left_without_an_end_token_is_refused(tmp_path: Path) -> None:
    directory = cut(write_files("llama-dense", tmp_path), eos_token_id=505)
    (directory / "generation_config.json").unlink(missing_ok=True)
    edit_json(directory / "tokenizer_config.json", eos_token="<|eot_id|>")
    with pytest.raises(TokenizerError, match=r"<\|eot_id\|> \(505\) is past the model's 504 tok"):
        vocabulary(directory)


@pytest.mark.parametrize("case", ["llama-dense", "mixtral-4x", "kimi-k2", "mixtral-4x-hfvocab"])
@pytest.mark.parametrize("kind", ["bos", "pad", "unk", "sep"])
def test_no_id_past_the_vocabulary(case: str, kind: str, tmp_path: Path) -> None:
    """In vocabularies of every kind, for every token that a config can name."""
    directory = write_files(case, tmp_path)
    edit_json(directory / "tokenizer_config.json", **{f"{kind}_token": "<nowhere>"})
    edit_json(directory / "config.json", **{f"{kind}_token_id": 100000})
    vocab = vocabulary(directory)
    assert kind not in named(vocab)
    assert max(named(vocab).values()) < len(vocab.tokens)
    assert not vocab.special.add.get(kind)
    assert any("<nowhere> (100000) is past" in note for note in vocab.notes)


@pytest.mark.parametrize("lists", [True, False])
def test_the_end_token_of_no_tokenizer_file(lists: bool, tmp_path: Path) -> None:
    """None is written, as by llama.cpp's converter, and that is said."""
    directory = write_files("llama-dense", tmp_path)
    (directory / "generation_config.json").unlink(missing_ok=True)
    config = read_json(directory / "tokenizer_config.json")
    edit_json(directory / "tokenizer_config.json", **dict.fromkeys(config))
    edit_json(directory / "config.json", eos_token_id=[501, 505] if lists else None)
    vocab = vocabulary(directory)
    assert "eos" not in named(vocab)
    (note,) = (n for n in vocab.notes if "no file names one end token" in n)
    assert ("(listed: 501, 505)" in note) is lists
