"""One text for two tokens, which llama.cpp ends at: padding is renamed, the rest is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from quantkit.gguf.container import array
from quantkit.jobs import convert
from quantkit.loading.values import texts
from quantkit.loading.vocabulary import faults
from quantkit.tokenizer.token_types import TokenType
from quantkit.tokenizer.vocabulary import Vocabulary, _rename_padding


def padded(*tokens: str) -> Vocabulary:
    """A vocabulary whose `[PAD...]` at their own places are padding."""
    kinds = [
        TokenType.UNUSED if text == f"[PAD{i}]" and i > 2 else TokenType.NORMAL
        for i, text in enumerate(tokens)
    ]
    vocab = Vocabulary("gpt2", "gpt-2", list(tokens), [int(kind) for kind in kinds])
    _rename_padding(vocab)
    return vocab


def test_padding_avoids_names_that_are_taken() -> None:
    vocab = padded("a", "[PAD3]", "[[PAD4]]", "[PAD3]", "[PAD4]", "[PAD5]")
    assert vocab.tokens == ["a", "[PAD3]", "[[PAD4]]", "[[PAD3]]", "[PAD4]", "[PAD5]"]
    assert vocab.notes == ["padding 3 is called [[PAD3]]: another token is [PAD3]"]
    vocab = padded("[PAD3]", "[[PAD3]]", "b", "[PAD3]")
    assert vocab.tokens == ["[PAD3]", "[[PAD3]]", "b", "[[[PAD3]]]"]
    assert padded("a", "b", "c", "[PAD3]").notes == []


def test_the_texts_of_an_array() -> None:
    tokens = ["", "a", "▁the", "🙂", "<0x0A>"]
    assert list(texts(array("t", tokens))) == [t.encode() for t in tokens]


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (["a", "b", "a"], "tokens 0 and 2 have the same text, 'a'"),
        (["a", "", "[EMPTY_1]"], "tokens 1 and 2 have the same text"),
        (["", ""], None),  # llama.cpp numbers them
        (["a", "b", "a\0b"], "tokens 0 and 2 have the same text, 'a' (llama.cpp ends a text at"),
        (["\0", "", "a\0"], None),
    ],
)
def test_what_is_the_same(tokens: list[str], words: str | None) -> None:
    from quantkit.gguf.container import string

    arch, kind = string("general.architecture", "llama"), string("tokenizer.ggml.model", "llama")
    kv = [arch, kind, array("tokenizer.ggml.tokens", tokens)]
    found = [f for f in faults({i.key: i for i in kv}, []) if "same text" in f]
    assert len(found) == (words is not None)
    assert words is None or words in found[0]


def test_a_checkpoint_with_one_text_twice(broken: Callable[..., Path], tmp_path: Path) -> None:
    """The tokenizers library gives an added token that is there already no second id; nor do we."""
    source, plain = broken("mixtral-4x-hfvocab"), tmp_path / "plain.gguf"
    path = source / "tokenizer.json"
    (source / "tokenizer_config.json").write_text("{}")
    convert(source, plain)
    tokenizer = json.loads(path.read_text())
    added = tokenizer["added_tokens"]
    free = next(i for i, text in enumerate(sorted(tokenizer["model"]["vocab"].values())) if i > 400)
    tokenizer["added_tokens"] = [*added, {**added[-1], "id": free}]
    path.write_text(json.dumps(tokenizer))
    twice = tmp_path / "twice.gguf"
    convert(source, twice)
    assert twice.read_bytes() == plain.read_bytes()
