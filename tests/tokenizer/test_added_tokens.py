"""Added tokens keep their kind wherever their ids lie, and verify looks at them in llama.cpp."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer

from quantkit.tokenizer.byte_level import is_byte_level
from quantkit.tokenizer.token_types import TokenType
from quantkit.tokenizer.vocabulary import Vocabulary
from quantkit.verification import tokenization
from tests.checkpoints import GOLDEN, from_recipe
from tests.vocabularies import cases, edit_json, read_json, tiny_gguf, vocabulary, write_files

# text -> what it becomes; those of Gemma, some of them pieces as well
TEXTS = {
    "<table>": TokenType.USER_DEFINED, "[multimodal]": TokenType.USER_DEFINED,
    "\n\n": TokenType.USER_DEFINED, "<mask>": TokenType.CONTROL, "<unused0>": TokenType.CONTROL,
    "<|tool|>": TokenType.CONTROL, "the": TokenType.USER_DEFINED,
}  # fmt: skip


def with_added(case: str, tmp_path: Path, texts: Iterable[str] = TEXTS) -> Path:
    """A checkpoint's small files with texts as transformers 5 saves them: added tokens that are in
    the vocabulary, and no added_tokens_decoder."""
    directory = write_files(case, tmp_path)
    data = read_json(directory / "tokenizer.json")
    vocab = data["model"]["vocab"]
    vocab |= {t["content"]: t["id"] for t in data["added_tokens"]}
    free = 1 + max(vocab.values())
    for text in texts:
        if text not in vocab:
            vocab[text], free = free, free + 1
        data["added_tokens"].append(
            {
                "id": vocab[text],
                "content": text,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": False,
            }
        )
    (directory / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    edit_json(directory / "tokenizer_config.json", added_tokens_decoder=None)
    config = read_json(directory / "config.json")
    edit_json(directory / "config.json", vocab_size=max(free, config["vocab_size"]))
    return directory


def kinds(vocab: Vocabulary) -> dict[str, int]:
    return {text: vocab.types[vocab.tokens.index(text)] for text in TEXTS}


@pytest.mark.parametrize("case", ["mixtral-4x-hfvocab", "llama-dense"])
def test_their_kind_does_not_hang_on_their_ids(case: str, tmp_path: Path) -> None:
    directory = with_added(case, tmp_path)
    vocab = vocabulary(directory)
    assert kinds(vocab) == TEXTS
    file = tiny_gguf(vocab, tmp_path / "tiny.gguf")
    reference = tokenization.reference(directory)
    assert reference is not None
    assert {*TEXTS} <= {*reference.added.values()}
    split = tokenization.splitting(file)
    assert tokenization.differences(split, reference, len(vocab.tokens)) == []


def test_beside_a_tokenizer_model(tmp_path: Path) -> None:
    directory = write_files("mixtral-4x", tmp_path)
    other = with_added("mixtral-4x-hfvocab", tmp_path / "json")
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        (directory / name).write_bytes((other / name).read_bytes())
    vocab = vocabulary(directory)
    assert vocab.scores is not None
    assert not any("derived" in note for note in vocab.notes)
    assert kinds(vocab) == TEXTS


@pytest.mark.parametrize("case", ["mixtral-4x-hfvocab", "llama-dense"])
def test_verify_sees_them_cut_to_pieces(case: str, tmp_path: Path) -> None:
    directory = with_added(case, tmp_path)
    vocab = vocabulary(directory)
    for text in ("<table>", "[multimodal]"):
        vocab.types[vocab.tokens.index(text)] = int(TokenType.NORMAL)
    reference = tokenization.reference(directory)
    assert reference is not None
    split = tokenization.splitting(tiny_gguf(vocab, tmp_path / "tiny.gguf"))
    (line,) = tokenization.differences(split, reference, len(vocab.tokens))
    assert line.startswith("2 of ")
    assert "cut to pieces in llama.cpp ('<table>', '[multimodal]')" in line


def test_where_merges_join_the_pieces(tmp_path: Path) -> None:
    """Gemma 4: what merges make is an ordinary piece, and the rest is found in a text first."""
    directory = with_added("mixtral-4x-hfvocab", tmp_path, [*TEXTS, "in"])
    edit_json(directory / "config.json", architectures=["Gemma4ForCausalLM"])
    vocab = vocabulary(directory)
    assert vocab.model == "gemma4"
    assert kinds(vocab) == dict.fromkeys(TEXTS, TokenType.USER_DEFINED)
    assert vocab.types[vocab.tokens.index("in")] == TokenType.NORMAL  # as llama.cpp's converter
    reference = tokenization.reference(directory)
    assert reference is not None
    split = tokenization.splitting(tiny_gguf(vocab, tmp_path / "tiny.gguf"))
    wanted = {i: text for i, text in reference.added.items() if text != "in"}
    found = replace(reference, added=wanted)
    assert not [t for t in tokenization.differences(split, found, len(vocab.tokens)) if "cut" in t]


def test_runs_of_spaces_stay_pieces(tmp_path: Path) -> None:
    """The tokenizer looks for visible spaces before it makes any."""
    runs = ("\u2581\u2581", "\u2581\u2581\u2581")
    vocab = vocabulary(with_added("mixtral-4x-hfvocab", tmp_path, runs))
    assert [vocab.types[vocab.tokens.index(run)] for run in runs] == [TokenType.NORMAL] * 2


@pytest.mark.parametrize("first", [True, False])
def test_runs_of_spaces_whose_merges_come_first(first: bool, tmp_path: Path) -> None:
    """As in Gemma's, where tokenizer.model has them as symbols; and as they never are there."""
    runs = ["\u2581" * n for n in (2, 3, 4)]
    directory = with_added("mixtral-4x-hfvocab", tmp_path, runs)
    data = read_json(directory / "tokenizer.json")
    ways = [[run[:i], run[i:]] for run in runs for i in range(1, len(run))]
    merges = [m if isinstance(m, list) else m.split(" ") for m in data["model"]["merges"]]
    merges = [m for m in merges if m not in ways]
    data["model"]["merges"] = [*ways, *merges] if first else [*merges, *ways]
    data["normalizer"] = data["normalizer"]["normalizers"][-1]  # no space is put before the text
    (directory / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    vocab = vocabulary(directory)
    texts = [run.replace("\u2581", " ") if first else run for run in runs]
    kind = TokenType.USER_DEFINED if first else TokenType.NORMAL
    assert [vocab.types[vocab.tokens.index(text)] for text in texts] == [kind] * 3
    split = tokenization.splitting(tiny_gguf(vocab, tmp_path / "tiny.gguf"))
    draw = random.Random(0)
    samples = [
        "".join(draw.choice(["the", "in"]) + " " * draw.randrange(1, 5) for _ in range(5)) + "a"
        for _ in range(99)
    ]
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    wanted = [tokenizer.encode(text, add_special_tokens=False).ids for text in samples]
    assert split(samples) == wanted


def test_letters_that_the_decoder_takes_for_bytes(tmp_path: Path) -> None:
    directory = write_files("llama-dense", tmp_path)
    path = directory / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.add_tokens([AddedToken("domic\u00edlio", normalized=False)])
    path.write_text(tokenizer.to_str(), encoding="utf-8")
    vocab = vocabulary(directory)
    assert "domic\u00edlio" in vocab.tokens
    assert any("keep their text" in note for note in vocab.notes)
    split = tokenization.splitting(tiny_gguf(vocab, tmp_path / "tiny.gguf"))
    assert split(["ein domic\u00edlio"])[0][-1] == vocab.tokens.index("domic\u00edlio")


# --- which kind of vocabulary -------------------------------------------------------------------


def lone_json_cases() -> list[str]:
    """A case for every BPE tokenizer.json of the goldens."""
    seen: dict[str, str] = {}
    for case, golden in cases().items():
        name = golden["tokenizer_files"].get("tokenizer.json")
        if name and read_json(GOLDEN / "tokenizers" / name)["model"]["type"] == "BPE":
            seen.setdefault(name, case)
    return list(seen.values())


@pytest.mark.parametrize("flag", [True, False, None])
@pytest.mark.parametrize("case", lone_json_cases())
def test_the_kind_follows_from_the_steps(case: str, flag: bool | None, tmp_path: Path) -> None:
    """Not from `byte_fallback`, which trainers leave on and tools leave out."""
    directory = write_files(case, tmp_path)
    (directory / "tokenizer.model").unlink(missing_ok=True)
    data = read_json(directory / "tokenizer.json")
    byte_level = is_byte_level(data)
    assert byte_level is not bool(data["model"].get("byte_fallback"))
    data["model"]["byte_fallback"] = flag
    if flag is None:
        del data["model"]["byte_fallback"]
    (directory / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    vocab = vocabulary(directory, cases()[case]["pre"] if byte_level else None)
    assert (vocab.scores is None) is byte_level


def test_what_tokenizer_json_says_counts_before_added_tokens_json(tmp_path: Path) -> None:
    from_recipe("granite-dense", tmp_path)
    directory = tmp_path / "ckpt"
    tokens = read_json(directory / "tokenizer.json")["added_tokens"]
    (plain,) = (t for t in tokens if t["special"] and t["content"] == "<fim_prefix>")
    ids = {t["content"]: t["id"] for t in tokens}
    (directory / "added_tokens.json").write_text(json.dumps(ids))
    config = read_json(directory / "tokenizer_config.json")
    del config["added_tokens_decoder"]
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    assert vocabulary(directory).types[plain["id"]] == TokenType.CONTROL
