"""What llama.cpp does not do to a text as tokenizer.json does is told, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from quantkit.errors import TokenizerError
from tests.vocabularies import edit_json, read_json, vocabulary, write_files


def told(directory: Path, **tokenizer: Any) -> list[str]:
    """The lines on a tokenizer.json of Qwen's, with steps changed."""
    path = directory / "tokenizer.json"
    path.write_text(json.dumps({**read_json(path), **tokenizer}))
    notes = vocabulary(directory, "qwen2").notes
    return [note.removeprefix("tokenizer.json ") for note in notes if "tokenizer.json" in note]


def around(*names: str, kind: str = "TemplateProcessing") -> dict[str, Any]:
    """A post-processor of names, and "" for the text."""
    if kind != "TemplateProcessing":
        return {"type": kind, "cls": [names[0], 0], "sep": [names[1], 0]}
    single = [
        {"SpecialToken": {"id": n, "type_id": 0}} if n else {"Sequence": {"id": "A", "type_id": 0}}
        for n in names
    ]
    special = {n: {"id": n, "ids": [496], "tokens": [n]} for n in names if n}
    return {"type": kind, "single": single, "pair": [], "special_tokens": special}


BOS, EOS = "<|im_start|>", "<|im_end|>"


@pytest.mark.parametrize(
    ("post", "lines"),
    [
        (around(BOS, ""), []),
        (around("", EOS), []),
        (around(BOS, EOS, ""), [f"puts {BOS} {EOS} before a text; llama.cpp will put {BOS} there"]),
        (around("", EOS, EOS), [f"puts {EOS} {EOS} behind a text; llama.cpp will put {EOS} there"]),
        (around("<|vision_start|>", ""), ["puts <|vision_start|> before a text; llama.cpp will "
                                          f"put {BOS} there"]),
        (around(BOS, EOS, kind="BertProcessing"),
         [f"puts {BOS} before a text; llama.cpp will put nothing there",
          f"puts {EOS} behind a text; llama.cpp will put nothing there"]),
        ({"type": "Sequence", "processors": [around("", EOS), around(BOS, "")]}, []),
        (None, []),
    ],
)  # fmt: skip
def test_what_stands_around_a_text(post: Any, lines: list[str], tmp_path: Path) -> None:
    directory = write_files("qwen3moe", tmp_path)
    config = {"bos_token": BOS, "eos_token": EOS, "add_bos_token": None}
    edit_json(directory / "tokenizer_config.json", **config)
    assert told(directory, post_processor=post) == lines


@pytest.mark.parametrize(
    ("steps", "kinds"),
    [
        ([{"type": "NFC"}], ""),
        ([{"type": "Lowercase"}, {"type": "NFC"}, {"type": "Strip", "strip_left": True,
                                                  "strip_right": True}], "Lowercase, Strip"),
        ([{"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}], ""),
        ([{"type": "Replace", "pattern": {"String": "a"}, "content": "b"}], "Replace"),
    ],
)  # fmt: skip
def test_what_changes_a_text(steps: list[Any], kinds: str, tmp_path: Path) -> None:
    lines = told(write_files("qwen3moe", tmp_path), normalizer={"type": "Sequence",
                                                                "normalizers": steps})  # fmt: skip
    line = f"changes a text before it is split ({kinds}); llama.cpp does not"
    assert lines == ([line] if kinds else [])


def test_tokens_that_are_others(tmp_path: Path) -> None:
    """tokenizer_config.json renames a piece of tokenizer.model, as llama.cpp's converter has it."""
    directory = write_files("mixtral-4x", tmp_path)
    path = directory / "tokenizer_config.json"
    decoder = read_json(path)["added_tokens_decoder"]
    decoder["2"]["content"] = "<|end|>"
    edit_json(path, added_tokens_decoder=decoder)
    vocab = vocabulary(directory)
    assert vocab.tokens[2] == "<|end|>"
    (line,) = (note for note in vocab.notes if "other tokens" in note)
    assert line == "tokenizer.json has 1 other tokens: '</s>' for '<|end|>' (2)"


def test_flags_that_say_the_opposite(tmp_path: Path) -> None:
    directory = write_files("qwen3moe", tmp_path)
    config = {"bos_token": BOS, "add_bos_token": False, "add_eos_token": True}
    edit_json(directory / "tokenizer_config.json", **config)
    behind = f"puts nothing behind a text; llama.cpp will put {EOS} there"
    assert told(directory, post_processor=around(BOS, "")) == [
        "add_bos_token is false in tokenizer_config.json, and true by tokenizer.json, which counts "
        "for llama.cpp's converter too",
        behind,
    ]
    assert told(directory, post_processor=None) == [behind]


@pytest.mark.parametrize("name", ["end_of_word_suffix", "continuing_subword_prefix"])
def test_merges_of_marked_pieces(name: str, tmp_path: Path) -> None:
    directory = write_files("mixtral-4x-hfvocab", tmp_path)
    tokenizer = read_json(directory / "tokenizer.json")
    tokenizer["model"][name] = "</w>"
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(TokenizerError, match=f"{name} is '</w>'; llama.cpp joins pieces without"):
        vocabulary(directory)


def test_a_space_before_a_text(tmp_path: Path) -> None:
    directory = write_files("qwen3moe", tmp_path)
    pre = read_json(directory / "tokenizer.json")["pre_tokenizer"]
    assert told(directory, pre_tokenizer=pre) == []
    pre["pretokenizers"][-1]["add_prefix_space"] = True
    assert told(directory, pre_tokenizer=pre) == ["puts a space before a text; llama.cpp does not"]


def with_added(directory: Path, *tokens: dict[str, Any]) -> None:
    """tokenizer.json and tokenizer_config.json with more tokens, and a vocabulary for them."""
    path, config = directory / "tokenizer.json", directory / "tokenizer_config.json"
    tokenizer, decoder = read_json(path), read_json(config).get("added_tokens_decoder", {})
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    for token in tokens:
        entry = {**flags, **token}
        tokenizer["added_tokens"].append(entry)
        decoder[str(token["id"])] = {k: v for k, v in entry.items() if k != "id"}
    path.write_text(json.dumps(tokenizer))
    edit_json(config, added_tokens_decoder=decoder)
    edit_json(directory / "config.json", vocab_size=544)


@pytest.mark.parametrize(
    ("case", "tokens", "line"),
    [
        ("mixtral-4x", [{"id": 512, "content": "<x>"}], ""),
        ("mixtral-4x", [{"id": 517, "content": "<x>"}],
         "has 1 other tokens: '<x>' for '[PAD512]' (512)"),
        ("mixtral-4x", [{"id": 512, "content": "<x>", "rstrip": True},
                        {"id": 513, "content": "<mask>", "lstrip": True}],
         "1 tokens take the spaces beside them along, or stand for whole words only (<x>); "
         "llama.cpp minds neither, but in models that it knows by name (Phi-3)"),
    ],
)  # fmt: skip
def test_added_tokens(case: str, tokens: list[dict[str, Any]], line: str, tmp_path: Path) -> None:
    """Of 50 vocabularies as merges leave them, those whose texts transformers tokenizes otherwise
    than llama.cpp with our file."""
    directory = write_files(case, tmp_path)
    with_added(directory, *tokens)
    notes = [n.removeprefix("tokenizer.json ") for n in vocabulary(directory).notes]
    assert notes == ([line] if line else [])


def test_tokens_that_another_file_adds(tmp_path: Path) -> None:
    directory = write_files("mixtral-4x", tmp_path)
    with_added(directory)
    (directory / "added_tokens.json").write_text('{"<|old|>": 512}')
    assert vocabulary(directory).notes == [
        "tokenizer.json lacks 1 tokens that other files add: '<|old|>' (512)"
    ]


def test_tokens_that_are_renamed_in_one_file(tmp_path: Path) -> None:
    directory = write_files("qwen3moe", tmp_path)
    decoder = read_json(directory / "tokenizer_config.json")["added_tokens_decoder"]
    decoder["497"]["content"] = "<|begin|>"
    edit_json(directory / "tokenizer_config.json", added_tokens_decoder=decoder)
    vocab = vocabulary(directory, "qwen2")
    assert vocab.tokens[497] == BOS
    assert (
        f"tokenizer_config.json has 1 other tokens ('<|begin|>' for '{BOS}' (497)): those of "
        "tokenizer.json are taken; versions of transformers differ"
    ) in vocab.notes
