"""Pre-tokenizers: found by hash, family and split; and that llama.cpp splits as the rows say."""

from __future__ import annotations

import json
import random
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from quantkit.errors import TokenizerError
from quantkit.tokenizer.pre_tokenizer import PROBE, find_pre, known_pre
from quantkit.tokenizer.pre_tokenizer_hashes import CHECK_TEXT, HASHES
from quantkit.tokenizer.pre_tokenizer_patterns import NAMES, OTHER_NAMES, SPLITS, SplitPattern
from quantkit.tokenizer.special_tokens import SpecialTokens, read_merges
from quantkit.tokenizer.vocabulary import Vocabulary
from quantkit.tokenizer.wordpiece import PRE_NAMES
from tests.checkpoints import DATA
from tests.runtime import Llama
from tests.vocabularies import tiny_gguf

PIECES = (
    "'s 'S I we 'll ( ) // / ! ... - -- foo Bar BAZ fooBar 12 345 6 é 我 中文 日本 カタ 한국 🦙 ✅ "
    "$ + = < _ 。 ， ½ ² कि ภา"
)
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}


def split_step(pattern: str, **values: Any) -> dict[str, Any]:
    step = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}
    return {**step, "invert": False, **values}


def with_steps(base: dict[str, Any], *steps: dict[str, Any], **model: Any) -> Tokenizer:
    """The tokenizer with these pre-tokenizing steps before the bytes."""
    last = {**BYTE_LEVEL, "use_regex": False}
    pre = {"type": "Sequence", "pretokenizers": [*steps, last]}
    return Tokenizer.from_str(
        json.dumps({**base, "pre_tokenizer": pre, "model": {**base["model"], **model}})
    )


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    rng = random.Random(1)
    numbers = (str(rng.randrange(10 ** rng.randrange(1, 10))) for _ in range(3000))
    pieces = [*PIECES.split(), " ", "  ", "   ", "\n", "\n\n", "\r\n", "\t"]
    held = {n: (DATA / "text" / f"held-{n}.txt").read_text()[:8000] for n in ("c", "prose")}
    mixed = "".join(rng.choice(pieces) for _ in range(4000))
    return {**held, "digits": " ".join(numbers)[:8000], "mixed": mixed, "probe": PROBE}


@pytest.fixture(scope="module")
def unsplit(texts: dict[str, str]) -> dict[str, Any]:
    """A vocabulary trained across all boundaries, so that every cut shows in what it encodes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    corpus = [t[i : i + 200] for t in texts.values() for i in range(0, len(t), 200)]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=5000, initial_alphabet=alphabet, show_progress=False, min_frequency=2
    )
    tokenizer.train_from_iterator(corpus * 2, trainer)
    return dict(json.loads(tokenizer.to_str()))


# where llama.cpp does not split as the tokenizers that a name stands for: the texts that show it
DIFFER = {
    "gpt-4o": {"mixed", "probe"},
    "tekken": {"mixed", "probe"},
    "kimi-k2": {"c", "prose", "mixed", "probe"},
    "tiny_aya": {"c", "prose", "mixed", "probe"},
    "youtu": {"c", "prose", "mixed"},
    "afmoe": {"mixed", "probe"},
    "deepseek-llm": {"c", "prose", "digits", "mixed", "probe"},
    "deepseek-coder": {"probe"},
    "superbpe": {"probe"},
}


@pytest.mark.parametrize("split", SPLITS, ids=lambda s: s.names[0])
def test_llama_cpp_splits_as_the_row_says(
    split: SplitPattern, texts: dict[str, str], unsplit: dict[str, Any], tmp_path: Path
) -> None:
    steps = (split_step(p) for p in split.patterns)
    source = with_steps(unsplit, *steps, ignore_merges=split.ignore_merges)
    assert find_pre(source)[0] == split.names[0]
    tokens = [source.id_to_token(i) for i in range(source.get_vocab_size())]
    types, merges = [1] * len(tokens), read_merges(unsplit)
    special = SpecialTokens(ids={"eos": 1})
    vocab = Vocabulary("gpt2", split.names[0], tokens, types, merges=merges, special=special)
    llama = Llama(tiny_gguf(vocab, tmp_path / "tiny.gguf"))
    differ = {
        name
        for name, text in texts.items()
        if llama.tokenize(text) != source.encode(text, add_special_tokens=False).ids
    }
    assert differ == DIFFER.get(split.names[0], set())


def test_every_name_is_in_one_row_and_every_hash_has_a_row() -> None:
    assert len(NAMES) == len(set(NAMES)) == 88
    assert not set(NAMES) & set(OTHER_NAMES)
    assert set(HASHES.values()) <= {*NAMES, *OTHER_NAMES, *PRE_NAMES}


def test_hash_that_llama_cpp_knows(
    unsplit: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = with_steps(unsplit, split_step(r"\p{N}"))
    ids = tokenizer.encode(CHECK_TEXT).ids
    monkeypatch.setitem(HASHES, sha256(str(ids).encode()).hexdigest(), "smaug-bpe")
    assert find_pre(tokenizer, "glm4", "A")[0] == "smaug-bpe"


def test_hash_with_the_special_token_that_transformers_puts_first(
    unsplit: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = with_steps(unsplit, split_step(r"\p{N}"))
    tokenizer.add_special_tokens(["<other>", "<s>"])
    ids = [tokenizer.token_to_id("<s>"), *tokenizer.encode(CHECK_TEXT).ids]
    monkeypatch.setitem(HASHES, sha256(str(ids).encode()).hexdigest(), "deepseek-v3")
    assert find_pre(tokenizer)[0] == "deepseek-v3"


QWEN2 = next(s.patterns[0] for s in SPLITS if s.names[0] == "qwen2")


@pytest.mark.parametrize(
    ("steps", "name"),
    [
        ([split_step(QWEN2.replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)",
                                   "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"))],
         "qwen2"),
        ([split_step(QWEN2, behavior="Removed", invert=True)], "qwen2"),
        ([split_step(QWEN2.replace(r"\p{N}|", r"\p{N}{1,3}|"))], "dbrx"),
        ([{"type": "Digits", "individual_digits": True}, {**BYTE_LEVEL, "use_regex": True}],
         "starcoder"),
        ([{**BYTE_LEVEL, "use_regex": True}], "gpt-2"),
    ],
)  # fmt: skip
def test_split_that_is_spelled_otherwise(
    steps: list[dict[str, Any]], name: str, unsplit: dict[str, Any]
) -> None:
    pre, why = find_pre(with_steps(unsplit, *steps))
    assert pre == name
    assert "splits text as tokenizer.json does" in why


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("|'re", ""), ("|'ll", ""), ("|'d)", ")"), ("(?i:", "(?:"), (r"\p{N}|", r"\p{N}{1,2}|"),
        (r"[^\r\n\p{L}\p{N}]?", r"[^\n\p{L}\p{N}]?"), (r"\p{N}", r"\d"), (r"\p{N}", "[0-9]"),
        (r"[\r\n]*", r"\n*"), (r"[\r\n]*", r"[\r\n]?"), (r"[\r\n]*", r"[\r\n/]*"),
        (r"\s*[\r\n]+", r"\s*\n+"), (r"\s+(?!\S)|", ""), (r"\p{L}+", r"[\p{L}\p{N}]+"),
    ],
)  # fmt: skip
def test_a_split_that_is_a_little_different(old: str, new: str, unsplit: dict[str, Any]) -> None:
    """It is not taken for the one that it was made of."""
    assert old in QWEN2
    with pytest.raises(TokenizerError, match=r"no pre-tokenizer of llama\.cpp splits text as"):
        find_pre(with_steps(unsplit, split_step(QWEN2.replace(old, new))))


@pytest.mark.parametrize(("pattern", "name"), [(None, "olmo"), (r"\p{N}", "command-r")])
def test_normalization_tells_names_apart(
    pattern: str | None, name: str, unsplit: dict[str, Any]
) -> None:
    steps = [split_step(pattern)] if pattern else []
    base = {**unsplit, "normalizer": {"type": "NFC"}}
    assert find_pre(with_steps(base, *steps, {**BYTE_LEVEL, "use_regex": True}))[0] == name


def test_family_decides_and_says_when_the_split_is_another(unsplit: dict[str, Any]) -> None:
    qwen = with_steps(unsplit, split_step(QWEN2))
    assert find_pre(qwen, "grok-2", "Grok1ForCausalLM") == (
        "grok-2",
        "llama.cpp's for Grok1ForCausalLM",
    )
    name, why = find_pre(qwen, "refact", "GraniteMoeForCausalLM")
    assert name == "refact"
    assert "splits as qwen2 does (--pre qwen2 follows it)" in why


def test_unknown_split_names_the_nearest(unsplit: dict[str, Any]) -> None:
    unknown = with_steps(unsplit, split_step(QWEN2), split_step("q"))
    with pytest.raises(TokenizerError, match=r"nearest is qwen2 \(9\d% .*--pre"):
        find_pre(unknown)


def test_given_name_is_checked() -> None:
    assert known_pre("tekken") == "tekken"
    with pytest.raises(TokenizerError, match="did you mean llama-bpe"):
        known_pre("lama-bpe")
    with pytest.raises(TokenizerError, match="it knows llama-bpe, "):
        known_pre("zzzz")
    with pytest.raises(TokenizerError, match="not one for byte-level"):
        known_pre("gemma4")


RARE = {
    "qwen2": (r"\p{L}+", r"[\p{L}\u0300]+", "U+0300"),
    "gpt-4o": (r"\p{Lm}", "", "U+02B0"),
    "deepseek-v3": ("\u4e00-\u9fa5", "\u4e00-\u9fa3", "U+9FA5"),
    "afmoe": ("\u3400-\u4dbf", "\u3400-\u4db0", "U+4DB5"),
}


@pytest.mark.parametrize("name", RARE)
def test_a_split_that_leaves_out_rare_letters(name: str, unsplit: dict[str, Any]) -> None:
    """The text that shows what the rows do differently does not have them all."""
    split = next(s for s in SPLITS if name in s.names)
    old, new, code = RARE[name]
    changed = [p.replace(old, new) for p in split.patterns]
    assert changed != [*split.patterns]
    with pytest.raises(TokenizerError) as e:
        find_pre(with_steps(unsplit, *map(split_step, changed)))
    assert f"the nearest is {name} (which cuts otherwise at {code}); name one" in str(e.value)


def test_a_known_split_in_other_words(unsplit: dict[str, Any]) -> None:
    """Classes that are spelled letter by letter are tried at every character."""
    other = QWEN2.replace(r"\p{N}", r"[\p{Nd}\p{Nl}\p{No}]").replace(r"\p{L}+", r"\p{L}\p{L}*")
    assert find_pre(with_steps(unsplit, split_step(other)))[0] == "qwen2"
