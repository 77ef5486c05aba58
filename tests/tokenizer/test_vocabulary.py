"""Vocabularies against llama.cpp's converter, key by key, and against its tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from quantkit.errors import CorruptFile, TokenizerError
from quantkit.gguf.container import read_header
from quantkit.gguf.key_values import KeyValueWriter
from quantkit.jobs import convert
from quantkit.tokenizer.families import RULES, rules_for
from quantkit.tokenizer.pre_tokenizer import PROBE, find_pre
from quantkit.tokenizer.token_types import TokenType
from quantkit.tokenizer.vocabulary import Vocabulary
from tests.checkpoints import DATA, FRANKENMOE, GOLDEN, from_recipe
from tests.golden import fingerprint
from tests.runtime import Llama
from tests.vocabularies import (
    cases,
    edit_json,
    read_json,
    tiny_gguf,
    vocabulary,
    write_files,
)

# a lone tokenizer.json with byte fallback: what ours does better (docs/tokenizers.md)
LONE = {"tokenizer.ggml.scores", "tokenizer.ggml.token_type"}
DIFFER = {
    "mixtral-4x-hfvocab": LONE,
    "mixtral-4x-hfvocab-pad": {*LONE, "tokenizer.ggml.tokens"},
}


def keys(vocab: Vocabulary) -> dict[str, Any]:
    writer = KeyValueWriter("llama")
    vocab.write(writer)
    return {e.key: fingerprint(e) for e in writer.entries if e.key.startswith("tokenizer.")}


@pytest.mark.parametrize("case", cases())
def test_same_keys_as_llama_cpp(case: str, tmp_path: Path) -> None:
    """Nobody names the pre-tokenizer of a whole conversion: it is found."""
    golden = cases()[case]
    theirs = {k: v for k, v in golden["kv"].items() if k.startswith("tokenizer.")}
    directory = write_files(case, tmp_path)
    ours = keys(vocabulary(directory, golden["pre"] if case.startswith("vocab-") else None))
    differ = DIFFER.get(case, set())
    assert list(ours) == list(theirs)
    assert {k for k in ours if ours[k] != theirs[k]} == differ


# --- the real tokenizer -------------------------------------------------------------------------

TEXTS = [
    *((DATA / "text" / f"held-{n}.txt").read_text()[:8000] for n in ("c", "prose", "python")),
    PROBE.replace("e\u0301a\u0302", ""),  # llama.cpp does not normalize to NFC
    "3 33 333 3333 33333 333333 3333333 1,234.56", "I'VE you'll 'S it'S we'd", "", "\n", "x",
    "a  b   c    d\n\n\ne\r\n\r\nf \n g\t\th", "我想在apple工作1314151天～", "🚀🦙😶\u200d🌫️✅",
]  # fmt: skip


def assert_tokenizes_alike(directory: Path, vocab: Vocabulary, path: Path) -> None:
    llama = Llama(tiny_gguf(vocab, path / "tiny.gguf"))
    source = Tokenizer.from_file(str(directory / "tokenizer.json"))
    for text in TEXTS:
        assert llama.tokenize(text) == source.encode(text, add_special_tokens=False).ids, text


def one_case_a_tokenizer() -> list[str]:
    """A byte-level case for every tokenizer.json whose split llama.cpp has."""
    seen: dict[str, str] = {}
    for case, golden in cases().items():
        name = golden["tokenizer_files"].get("tokenizer.json")
        if name and golden["pre"] and name != "bacf3f692c84-tokenizer.json":
            seen.setdefault(name, case)
    return list(seen.values())


@pytest.mark.parametrize("case", one_case_a_tokenizer())
def test_llama_cpp_tokenizes_byte_level_alike(case: str, tmp_path: Path) -> None:
    """With the name that the split gives, also where a family's name is another."""
    directory = write_files(case, tmp_path)
    name, _ = find_pre(Tokenizer.from_file(str(directory / "tokenizer.json")))
    assert_tokenizes_alike(directory, vocabulary(directory, name), tmp_path)


REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
PREPEND = {"type": "Prepend", "prepend": "\u2581"}
METASPACE = {"type": "Metaspace", "replacement": "\u2581", "split": False}
SPELLINGS: dict[str, tuple[bool | None, dict[str, Any]]] = {
    "prepend": (None, {
        "normalizer": {"type": "Sequence", "normalizers": [PREPEND, REPLACE]},
        "pre_tokenizer": None,
    }),
    "metaspace": (None, {
        "normalizer": None, "pre_tokenizer": {**METASPACE, "prepend_scheme": "first"},
    }),
    "metaspace-never": (False, {
        "normalizer": None, "pre_tokenizer": {**METASPACE, "prepend_scheme": "never"},
    }),
    "gemma": (False, {
        "normalizer": REPLACE,
        "pre_tokenizer": {"type": "Split", "pattern": {"String": " "}, "invert": False,
                          "behavior": "MergedWithPrevious"},
    }),
}  # fmt: skip


@pytest.mark.parametrize("source", ["golden", "trained"])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_llama_cpp_tokenizes_lone_json_alike(source: str, spelling: str, tmp_path: Path) -> None:
    directory = write_files("mixtral-4x-hfvocab", tmp_path)
    if source == "trained":
        for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
            shutil.copy(FRANKENMOE / name, directory / name)
        edit_json(directory / "tokenizer_config.json", add_prefix_space=None)
    prefix, steps = SPELLINGS[spelling]
    tokenizer = read_json(directory / "tokenizer.json")
    (directory / "tokenizer.json").write_text(json.dumps({**tokenizer, **steps}))
    vocab = vocabulary(directory)
    assert vocab.space_prefix is prefix
    assert "derived from the merges" in vocab.notes[0]
    assert_tokenizes_alike(directory, vocab, tmp_path)


# --- extended and merged vocabularies -----------------------------------------------------------


def extend(directory: Path, *texts: str) -> None:
    """Add tokens as `add_tokens` and `resize_token_embeddings` do."""
    path = directory / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.add_tokens(list(texts))
    path.write_text(tokenizer.to_str(), encoding="utf-8")


def merge(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """The first tokenizer with the second's pieces and merges after its own, as merge tools do."""
    vocab = first["model"]["vocab"] | {t["content"]: t["id"] for t in first["added_tokens"]}
    free = 1 + max(vocab.values())
    new = [p for p in second["model"]["vocab"] if p not in vocab]
    vocab |= {p: free + n for n, p in enumerate(new)}
    pairs = [
        m if isinstance(m, str) else " ".join(m)
        for t in (first, second)
        for m in t["model"]["merges"]
    ]
    model = {**first["model"], "vocab": vocab, "merges": list(dict.fromkeys(pairs))}
    return {**first, "model": model}


@pytest.mark.parametrize(
    ("case", "pre"), [("llama-dense", "llama-bpe"), ("qwen3moe", "qwen2"), ("qwen35moe", "qwen35")]
)
def test_extended_and_merged(case: str, pre: str, tmp_path: Path) -> None:
    directory = write_files(case, tmp_path)
    extend(directory, "<|tool|>", "<reflect>")
    other = json.loads((GOLDEN / "tokenizers" / "fc71659fc575-tokenizer.json").read_text())
    merged = merge(read_json(directory / "tokenizer.json"), other)
    (directory / "tokenizer.json").write_text(json.dumps(merged), encoding="utf-8")
    size = max(merged["model"]["vocab"].values()) + 10
    config = read_json(directory / "config.json")
    table = config.get("text_config", config)
    table["vocab_size"] = size
    (directory / "config.json").write_text(json.dumps(config))
    vocab = vocabulary(directory)
    assert vocab.pre == pre
    assert vocab.notes[0].startswith(f"pre-tokenizer {pre}: it splits text as tokenizer.json does")
    assert len(vocab.tokens) == size
    i = vocab.tokens.index("<|tool|>")
    assert vocab.tokens[i + 1] == "<reflect>"
    assert vocab.types[i : i + 2] == [TokenType.CONTROL, TokenType.USER_DEFINED]
    assert vocab.tokens[-1] == f"[PAD{size - 1}]"
    assert_tokenizes_alike(directory, vocab, tmp_path)


def test_extended_checkpoint_converts(tmp_path: Path) -> None:
    directory = from_recipe("llama-dense", tmp_path)
    extend(directory, "<|tool|>", "<reflect>")
    convert(directory, tmp_path / "out.gguf")
    header = read_header(tmp_path / "out.gguf")
    assert header.get("tokenizer.ggml.pre") == "llama-bpe"
    assert header.get("tokenizer.ggml.tokens")[506:508] == ["<|tool|>", "<reflect>"]


def test_added_tokens_past_the_embedding_are_left_out(tmp_path: Path) -> None:
    directory = write_files("llama-dense", tmp_path)
    size = read_json(directory / "config.json")["vocab_size"]
    extend(directory, *(f"<extra{i}>" for i in range(size - 506 + 2)))
    vocab = vocabulary(directory)
    assert len(vocab.tokens) == size
    assert "2 added tokens past the model's" in vocab.notes[-1]


def test_base_tokens_past_the_embedding_are_an_error(tmp_path: Path) -> None:
    directory = write_files("llama-dense", tmp_path)
    edit_json(directory / "config.json", vocab_size=400)
    with pytest.raises(TokenizerError, match=r"id 499 is past config\.json's vocab_size 400"):
        vocabulary(directory)


# --- single files and families ------------------------------------------------------------------


def test_given_pre_overrules(tmp_path: Path) -> None:
    directory = write_files("qwen3moe", tmp_path)
    assert vocabulary(directory, "tekken").pre == "tekken"
    with pytest.raises(TokenizerError, match="did you mean qwen2") as caught:
        vocabulary(directory, "qwen-2")
    assert str(directory) in str(caught.value)


def test_given_pre_where_there_is_none(tmp_path: Path) -> None:
    vocab = vocabulary(write_files("mixtral-4x", tmp_path), "qwen2")
    assert vocab.pre == "default"
    assert "of no effect" in vocab.notes[-1]


def templates(directory: Path) -> dict[str, str]:
    return vocabulary(directory).special.templates


def test_chat_template_from_every_place(tmp_path: Path) -> None:
    directory = write_files("qwen3moe", tmp_path)
    config = directory / "tokenizer_config.json"
    edit_json(config, chat_template="config")
    (directory / "chat_template.jinja").write_text("file")
    assert templates(directory) == {"default": "config"}
    edit_json(config, chat_template=None)
    assert templates(directory) == {"default": "file"}
    (directory / "additional_chat_templates").mkdir()
    (directory / "additional_chat_templates" / "tool-use.jinja").write_text("tools")
    assert templates(directory) == {"default": "file", "tool_use": "tools"}
    (directory / "chat_template.jinja").unlink()
    (directory / "chat_template.json").write_text(json.dumps({"chat_template": "json"}))
    assert templates(directory) == {"default": "json"}
    named = [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]
    edit_json(config, chat_template=named)
    assert templates(directory) == {"rag": "r", "default": "d"}
    config.unlink()  # llama.cpp sees no template then
    assert templates(directory) == {"default": "json"}


@pytest.mark.parametrize("case", ["laguna", "plamo3"])
def test_where_the_file_of_a_template_wins(case: str, tmp_path: Path) -> None:
    """chat_template.jinja does, for the template without a name; chat_template.json does not."""
    directory = from_recipe(case, tmp_path)
    named = [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]
    edit_json(directory / "tokenizer_config.json", chat_template=named)
    (directory / "chat_template.json").write_text(json.dumps({"chat_template": "json"}))

    assert templates(directory) == {"rag": "r", "default": "d"}
    (directory / "chat_template.jinja").write_text("file")
    assert templates(directory) == {"rag": "r", "default": "file"}


def test_named_templates_are_listed_in_one_order(tmp_path: Path) -> None:
    directory = write_files("qwen3moe", tmp_path)
    named = [{"name": n, "template": n} for n in ("tool_use", "rag", "default", "chat")]
    edit_json(directory / "tokenizer_config.json", chat_template=named)
    written = keys(vocabulary(directory))
    assert written["tokenizer.chat_templates"]["value"] == ["chat", "rag", "tool_use"]
    assert written["tokenizer.chat_template.rag"]["value"] == "rag"
    assert written["tokenizer.chat_template"]["value"] == "default"


def test_kimis_reserved_tokens(tmp_path: Path) -> None:
    directory = write_files("kimi-k2", tmp_path)
    edit_json(directory / "tokenizer_config.json", tokenizer_class="TikTokenTokenizer")
    vocab = vocabulary(directory)
    assert vocab.tokens[507:510] == ["[PAD]", "<|reserved_token_508|>", "<|reserved_token_509|>"]
    assert set(vocab.types[500:]) == {TokenType.CONTROL}


def test_kimi_linear_takes_its_end_from_the_tokenizer(tmp_path: Path) -> None:
    directory = write_files("kimi-k2", tmp_path)
    edit_json(directory / "config.json", architectures=["KimiLinearForCausalLM"], eos_token_id=502)
    assert keys(vocabulary(directory))["tokenizer.ggml.eos_token_id"]["value"] == 501


def test_hunyuans_tiktoken(tmp_path: Path) -> None:
    directory = write_files("kimi-k2", tmp_path)
    (directory / "tiktoken.model").rename(directory / "hy.tiktoken")
    edit_json(directory / "tokenizer_config.json", added_tokens_decoder=None)
    edit_json(directory / "config.json", architectures=["HunYuanMoEV1ForCausalLM"])
    vocab = vocabulary(directory)
    assert vocab.pre == "hunyuan"
    assert vocab.tokens[500:506] == [
        "<|endoftext|>",
        "<|startoftext|>",
        "<|bos|>",
        "<|eos|>",
        "<|pad|>",
        "<|extra_0|>",
    ]
    assert keys(vocab)["tokenizer.ggml.bos_token_id"]["value"] == 127959


@pytest.mark.parametrize(("width", "bos"), [(4096, 127958), (2048, 7)])
def test_the_7b_of_hunyuan_begins_with_a_token_of_its_own(
    width: int, bos: int, tmp_path: Path
) -> None:
    """Only it comes with tiktoken ranks alone, and its config.json names the wrong token."""
    directory = write_files("kimi-k2", tmp_path)
    (directory / "tiktoken.model").rename(directory / "hy.tiktoken")
    edit_json(directory / "tokenizer_config.json", added_tokens_decoder=None, bos_token=None)
    edit_json(directory / "config.json", architectures=["HunYuanDenseV1ForCausalLM"],
              vocab_size=128167, hidden_size=width, bos_token_id=7)  # fmt: skip
    assert keys(vocabulary(directory))["tokenizer.ggml.bos_token_id"]["value"] == bos


def test_gemma_4_joins_by_merges_and_shows_its_channels(tmp_path: Path) -> None:
    directory = write_files("mixtral-4x-hfvocab", tmp_path)
    edit_json(directory / "config.json", architectures=["Gemma4ForCausalLM"], vocab_size=518)
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.add_special_tokens(["<|channel>", "<other>", "<turn>"])
    (directory / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    edit_json(directory / "tokenizer_config.json", extra_special_tokens={"turn_token": "<turn>"})
    vocab = vocabulary(directory)
    written = keys(vocab)
    assert written["tokenizer.ggml.model"]["value"] == "gemma4"
    assert "tokenizer.ggml.pre" not in written
    assert written["tokenizer.ggml.merges"]["len"] == 224
    assert written["tokenizer.ggml.add_space_prefix"]["value"] is False
    assert written["tokenizer.ggml.add_bos_token"]["value"] is True
    assert set(vocab.scores or ()) == {-1000.0}
    # what tokenizer_config.json does not name is shown
    assert vocab.types[515:] == [TokenType.USER_DEFINED, TokenType.USER_DEFINED, TokenType.CONTROL]


def test_llama_3_ranks_beside_a_tokenizer_json(tmp_path: Path) -> None:
    directory = write_files("llama-dense", tmp_path)
    (directory / "tokenizer.model").write_text("IQ== 0\nIg== 1\n")
    vocab = vocabulary(directory)
    assert (vocab.model, vocab.pre) == ("gpt2", "llama-bpe")


def test_rules_are_of_one_family_each() -> None:
    assert rules_for("LlamaForCausalLM", 32016).late_ids[0] == ("prefix", 32007)
    assert rules_for("LlamaForCausalLM", 32000).late_ids == ()
    assert rules_for("SomeNewForCausalLM", 100) == type(RULES[0])()


@pytest.mark.parametrize(
    ("case", "damage", "words"),
    [
        ("kimi-k2", lambda d: (d / "tiktoken.model").write_text("IQ== 0\nxx\n"), "line 2 is not"),
        ("qwen2-dense-slowtok", lambda d: (d / "merges.txt").unlink(), "neither tokenizer.model"),
        ("llama-dense",
         lambda d: (d / "tokenizer.json").rename(d / "tokenizer.model.v3"),
         r"rename tokenizer\.model\.v3 to tokenizer\.model"),
        ("qwen2-dense-slowtok",
         lambda d: edit_json(d / "tokenizer_config.json", tokenizer_class="WhisperTokenizer"),
         "vocab.json of a WhisperTokenizer"),
        ("llama-dense", lambda d: edit_json(d / "tokenizer.json", model={"type": "WordPiece"}),
         "a WordPiece tokenizer"),
        ("llama-dense", lambda d: edit_json(d / "tokenizer.json", post_processor=[1]),
         "tokenizer.json"),
        ("llama-dense", lambda d: edit_json(d / "config.json", bos_token_id=-5), "ids start at 0"),
    ],
)  # fmt: skip
def test_refused_by_name(case: str, damage: Any, words: str, tmp_path: Path) -> None:
    directory = write_files(case, tmp_path)
    damage(directory)
    with pytest.raises((TokenizerError, CorruptFile), match=words) as caught:
        vocabulary(directory)
    assert "\n" not in str(caught.value)


def test_jamba_puts_no_space_where_tokenizer_json_is_alone(tmp_path: Path) -> None:
    directory = write_files("mixtral-4x-hfvocab", tmp_path)
    edit_json(directory / "config.json", architectures=["JambaForCausalLM"])
    written = keys(vocabulary(directory))
    assert written["tokenizer.ggml.add_space_prefix"]["value"] is False
