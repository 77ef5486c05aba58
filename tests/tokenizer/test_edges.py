"""The tokens that llama.cpp begins and ends a text with: what is told is what it does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from quantkit.llama.llama_cpp import Llama
from quantkit.tokenizer.edges import edges
from tests.tokenizer.test_not_done import around
from tests.vocabularies import cases, edit_json, read_json, tiny_gguf, vocabulary, write_files

POSTS = {
    "qwen3moe": [around(), around(""), around("<|im_start|>", ""), around("", "<|im_end|>"),
                 {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False,
                  "use_regex": True}],
    "mixtral-4x-hfvocab": [None, around(""), around("<s>", ""), around("<s>", "", "</s>")],
}  # fmt: skip


def put_around(directory: Path, pre: str, tmp_path: Path) -> tuple[list[str], list[str], list[str]]:
    """What is told of a text's edges, what llama.cpp puts there, and the notes."""
    vocab = vocabulary(directory, pre)
    with Llama(tiny_gguf(vocab, tmp_path / "tiny.gguf"), context=0) as llama:
        ids = llama.tokenize(b"foo", special=True).tolist()
        plain = llama.tokenize(b"foo").tolist()
    at = next(n for n in range(len(ids)) if ids[n : n + len(plain)] == plain)
    real = [vocab.tokens[i] for i in (*ids[:at], *ids[at + len(plain) :])]
    return list(edges(vocab).values()), real, vocab.notes


@pytest.mark.parametrize("case", POSTS)
def test_it_is_as_told(case: str, tmp_path: Path) -> None:
    """For 100 vocabularies: the flags of tokenizer_config.json with tokenizer.json's steps."""
    directory, pre = write_files(case, tmp_path), cases()[case]["pre"] or "qwen2"
    path = directory / "tokenizer.json"
    for post in POSTS[case]:
        for bos, eos in ((b, e) for b in (True, False, None) for e in (True, False, None)):
            edit_json(directory / "tokenizer_config.json", add_bos_token=bos, add_eos_token=eos)
            path.write_text(json.dumps({**read_json(path), "post_processor": post}))
            told, real, _ = put_around(directory, pre, tmp_path)
            assert told == real, (post, bos, eos)


@pytest.mark.parametrize(
    ("pre", "config", "kinds"),
    [
        ("llama-bpe", {}, ["begin"]),
        ("qwen2", {"add_bos_token": True, "add_eos_token": True},
         ["begin", "end"]),
        ("qwen2", {}, []),
    ],
)  # fmt: skip
def test_no_comma_begins_a_text(
    pre: str, config: dict[str, Any], kinds: list[str], tmp_path: Path
) -> None:
    """llama.cpp's converter leaves it to the default, 11."""
    directory = write_files("qwen3moe", tmp_path)
    for name in ("tokenizer_config.json", "config.json"):
        values = read_json(directory / name)
        kept = {k: v for k, v in values.items() if not k.startswith(("bos_", "eos_", "add_"))}
        (directory / name).write_text(json.dumps({**kept, **config}))
    path = directory / "tokenizer.json"
    path.write_text(json.dumps({**read_json(path), "post_processor": None}))
    told, real, notes = put_around(directory, pre, tmp_path)
    assert told == real == []
    comma = "a text with, and llama.cpp would take ',' (11): none is added"
    assert [n for n in notes if "no file names a token" in n] == [
        f"no file names a token to {kind} {comma}" for kind in kinds
    ]
