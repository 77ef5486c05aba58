"""Files beside the weights that contradict one another, or say things that they cannot mean, as
fine-tunes bring them; held against llama.cpp's converter (b11549) by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quantkit.errors import TokenizerError
from quantkit.gguf.key_values import KeyValueWriter
from quantkit.model.metadata import add_general
from quantkit.source.checkpoint_files import CheckpointFiles
from quantkit.tokenizer.special_tokens import own_template
from tests.vocabularies import edit_json, read_json, vocabulary, write_files

QWEN = "qwen3moe"


def written(directory: Path) -> dict[str, Any]:
    """The keys of `general.*`, by name."""
    writer = KeyValueWriter("llama")
    add_general(writer, CheckpointFiles.local(directory), [])
    return {e.key: e.value for e in writer.entries}


def normalizer_keys(directory: Path, normalizer: Any) -> list[str]:
    tokenizer = read_json(directory / "tokenizer.json")
    tokenizer["normalizer"] = normalizer
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    writer = KeyValueWriter("llama")
    vocabulary(directory, "qwen2").write(writer)
    return [e.key.rpartition(".")[2] for e in writer.entries if ".normalizer." in e.key]


def test_the_normalizers_keys_have_one_order(tmp_path: Path) -> None:
    directory = write_files(QWEN, tmp_path)
    steps: list[dict[str, Any]] = [{"type": "StripAccents"}, {"type": "Lowercase"}]
    sequence = {"type": "Sequence", "normalizers": steps}
    assert normalizer_keys(directory, sequence) == ["lowercase", "strip_accents"]
    berts = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
             "lowercase": False, "strip_accents": None}  # fmt: skip
    sequence["normalizers"] = [*steps, berts]  # null takes a flag back
    assert normalizer_keys(directory, sequence) == ["lowercase"]


def test_an_empty_tokenizer_config_is_none(tmp_path: Path) -> None:
    """The post-processor's tokens are then no names of special tokens; config.json's ids count."""
    directory = write_files(QWEN, tmp_path)
    tokenizer = read_json(directory / "tokenizer.json")
    last = tokenizer["added_tokens"][-1]
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 0}},
                   {"SpecialToken": {"id": last["content"], "type_id": 0}}],
        "pair": [],
        "special_tokens": {last["content"]: {"id": last["content"], "ids": [last["id"]],
                                             "tokens": [last["content"]]}},
    }  # fmt: skip
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    edit_json(directory / "config.json", eos_token_id=7)
    (directory / "tokenizer_config.json").write_text("{}")
    special = vocabulary(directory, "qwen2").special
    assert (special.ids["eos"], special.add["eos"]) == (7, True)
    edit_json(directory / "tokenizer_config.json", model_max_length=8)
    assert vocabulary(directory, "qwen2").special.ids["eos"] == last["id"]


@pytest.mark.parametrize(
    "data", [b"{not json", b"", b"null", b"[]", b'\xef\xbb\xbf{"temperature":0.5}']
)
def test_a_generation_config_that_is_no_json_is_passed_over(data: bytes, tmp_path: Path) -> None:
    directory = write_files(QWEN, tmp_path)
    (directory / "generation_config.json").write_bytes(data)
    assert "general.sampling.temp" not in written(directory)
    (directory / "generation_config.json").write_text('{"temperature": 0.5}')
    assert written(directory)["general.sampling.temp"] == 0.5


def test_a_penalty_of_null_is_none(tmp_path: Path) -> None:
    directory, key = write_files(QWEN, tmp_path), "general.sampling.penalty_repeat"
    path = directory / "generation_config.json"
    path.write_text('{"penalty_repeat": null, "repetition_penalty": 1.5}')
    assert key not in written(directory)
    path.write_text('{"repetition_penalty": 1.5}')
    assert written(directory)[key] == 1.5


@pytest.mark.parametrize("value", [5, ["</s>"], {}, False])
def test_a_special_token_that_is_no_text(value: Any, tmp_path: Path) -> None:
    directory = write_files(QWEN, tmp_path)
    edit_json(directory / "tokenizer_config.json", eos_token=value)
    with pytest.raises(TokenizerError, match=r"eos_token of tokenizer_config\.json is"):
        vocabulary(directory, "qwen2")


@pytest.mark.parametrize("value", ["<a>", [5], {"image_token": 7}])
@pytest.mark.parametrize("name", ["extra_special_tokens", "additional_special_tokens"])
def test_further_special_tokens_that_are_no_texts(name: str, value: Any, tmp_path: Path) -> None:
    """A text would be taken for a list of its letters."""
    directory = write_files(QWEN, tmp_path)
    edit_json(directory / "tokenizer_config.json", additional_special_tokens=None)
    edit_json(directory / "tokenizer_config.json", **{name: value})
    with pytest.raises(TokenizerError, match=f"{name} of tokenizer_config.json is .*no list of"):
        vocabulary(directory, "qwen2")


@pytest.mark.parametrize(("value", "key"), [(1, True), (0, False), (None, None), ("x", None)])
def test_a_space_in_front_by_number(value: Any, key: bool | None, tmp_path: Path) -> None:
    directory = write_files("mixtral-4x", tmp_path)
    edit_json(directory / "tokenizer_config.json", add_prefix_space=value)
    assert vocabulary(directory).space_prefix is key


@pytest.mark.parametrize(
    ("architecture", "key"), [("Ernie4_5_ForCausalLM", False), ("MixtralForCausalLM", None)]
)
def test_a_space_in_front_that_is_null(architecture: str, key: bool | None, tmp_path: Path) -> None:
    """False, but in the Llama family, where the converter asks for a value."""
    directory = write_files("mixtral-4x", tmp_path)
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps({**read_json(path), "add_prefix_space": None}))
    edit_json(directory / "config.json", architectures=[architecture])
    vocab = vocabulary(directory)
    assert vocab.late_space_prefix is key
    assert vocab.space_prefix is None


@pytest.mark.parametrize("model", [None, {"vocab": {"a": 1.5, "b": -1}}])
def test_a_tokenizer_json_that_nobody_needs(model: Any, tmp_path: Path) -> None:
    """Beside a tokenizer.model."""
    directory = write_files("mixtral-4x", tmp_path)
    before = vocabulary(directory).tokens
    tokenizer = {**read_json(directory / "tokenizer.json"), "model": model}
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert vocabulary(directory).tokens == before


def test_an_added_token_before_the_first(tmp_path: Path) -> None:
    directory = write_files("mixtral-4x", tmp_path)
    (directory / "added_tokens.json").write_text('{"<new>": -1}')
    with pytest.raises(TokenizerError, match=r"added_tokens\.json: '<new>' has the id -1"):
        vocabulary(directory)


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"tokenizer_class": "LlamaTokenizerFast"}, ["<s>", "</s>", "<unk>"]),
        (
            {"tokenizer_class": "LlamaTokenizer", "bos_token": "<b>", "unk_token": None},
            ["<b>", "</s>"],
        ),
        ({"tokenizer_class": "PreTrainedTokenizerFast"}, []),
        ({"tokenizer_class": None}, []),  # Qwen's own, all of whose tokens are there
    ],
)
def test_what_a_class_adds(config: dict[str, Any], found: list[str], tmp_path: Path) -> None:
    directory = write_files(QWEN, tmp_path)
    path = directory / "tokenizer_config.json"
    tokenizer = read_json(directory / "tokenizer.json")
    first = max(t["id"] for t in tokenizer["added_tokens"]) + 1
    edit_json(directory / "config.json", vocab_size=first + 8)
    names = ("bos_token", "eos_token", "unk_token", "pad_token", "additional_special_tokens")
    data = {k: v for k, v in read_json(path).items() if k not in names}
    path.write_text(json.dumps({**data, **config}))
    vocab = vocabulary(directory, "qwen2")
    assert vocab.tokens[first : first + len(found)] == found
    assert vocab.tokens[first + len(found)] == f"[PAD{first + len(found)}]"


@pytest.mark.parametrize(
    ("config", "beside", "found"),
    [
        (
            {"additional": ["<a>", "<b>"], "extra": {"image_token": "<e>"}},
            None,
            ["<a>", "<b>", "<e>"],
        ),
        ({"additional": ["<a>"], "extra": ["<e>"]}, None, ["<e>"]),
        ({"additional": ["<a>"]}, ["<s>", "<a>"], ["<a>", "<s>"]),
        ({"extra": {"image_token": "<e>"}}, ["<s>"], ["<s>", "<e>"]),
    ],
)
def test_further_special_tokens_of_several_files(
    config: dict[str, Any], beside: list[str] | None, found: list[str], tmp_path: Path
) -> None:
    """As the converter has them with transformers 4.57, or with 5.23, which alone knows a list of
    extra ones. A special_tokens_map.json counts where there is no decoder."""
    directory = write_files("llama-dense", tmp_path)
    path, more = directory / "tokenizer_config.json", "_special_tokens"
    data = {**read_json(path), **{f"{name}{more}": value for name, value in config.items()}}
    if beside is not None:
        del data["added_tokens_decoder"]
        (directory / "special_tokens_map.json").write_text(
            json.dumps({f"additional{more}": beside})
        )
    path.write_text(json.dumps(data))
    vocab = vocabulary(directory)
    assert vocab.tokens[506 : 506 + len(found)] == found
    assert vocab.tokens[506 + len(found)].startswith("[PAD")


@pytest.mark.parametrize(
    ("model_type", "name"), [("qwen3", "Qwen2Tokenizer"), ("gpt2", "GPT2Tokenizer")]
)
def test_a_class_that_the_model_implies(model_type: str, name: str, tmp_path: Path) -> None:
    """Of vocab.json with merges.txt; a class decides how texts are split."""
    directory = write_files("vocab-slow-nodecoder", tmp_path)
    edit_json(directory / "tokenizer_config.json", tokenizer_class=name)
    expected = vocabulary(directory)
    edit_json(directory / "tokenizer_config.json", tokenizer_class=None)
    edit_json(directory / "config.json", model_type=model_type)
    assert vocabulary(directory) == expected
    edit_json(directory / "config.json", model_type="another")
    with pytest.raises(TokenizerError, match="of a tokenizer_class that no file names, which is"):
        vocabulary(directory)


@pytest.mark.parametrize("architecture", ["MixtralForCausalLM", "Gemma4ForCausalLM"])
def test_ids_of_a_lone_tokenizer_json_are_the_librarys(architecture: str, tmp_path: Path) -> None:
    """What it lists has the ids it states; another text that tokenizer_config.json puts there comes
    behind the last."""
    directory = write_files("mixtral-4x-hfvocab", tmp_path)
    edit_json(directory / "config.json", architectures=[architecture])
    before = vocabulary(directory)
    n = len(before.tokens)
    edit_json(directory / "config.json", vocab_size=n + 3)
    path = directory / "tokenizer_config.json"
    decoder = read_json(path).get("added_tokens_decoder") or {}
    decoder[str(n - 1)] = {"content": "<|other|>", "special": True, "normalized": False}
    edit_json(path, added_tokens_decoder=decoder, pad_token="<|named|>")
    after = vocabulary(directory)
    assert after.tokens[:n] == before.tokens
    assert after.tokens[n:] == ["<|other|>", "<|named|>", f"[PAD{n + 2}]"]
    shown = architecture.startswith("Gemma4")  # there a name alone makes a control token
    assert after.types[n : n + 2] == [4 if shown else 3, 3]


def test_a_model_that_does_not_say_its_type(broken: Callable[..., Path]) -> None:
    """As old files are: what else it has tells."""
    directory = broken("bert-bge")
    before = vocabulary(directory, "bert-bge")
    tokenizer = read_json(directory / "tokenizer.json")
    del tokenizer["model"]["type"]
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    after = vocabulary(directory, "bert-bge")
    assert (after.model, after.tokens) == ("bert", before.tokens)


def carded(directory: Path, front: str) -> dict[str, Any]:
    (directory / "README.md").write_text(f"---\n{front}---\n", encoding="utf-8")
    return written(directory)


def test_entries_of_a_card_that_nobody_reads(tmp_path: Path) -> None:
    """Whatever they hold: forms of gated models, examples, results."""
    front = (
        "license: mit\n5: a\nyes: b\n? \n: c\nextra_gated_fields:\n  Use:\n    type: select\n"
        "    options:\n    - Research\n    - {label: Other, value: other}\n"
        "widget:\n- messages: [{role: user, content: [{type: text}]}]\n"
    )
    assert carded(write_files(QWEN, tmp_path), front)["general.license"] == "mit"


def test_norwegian_is_a_language(tmp_path: Path) -> None:
    """llama.cpp's converter sees it in lists of lines alone, and false or an end in brackets."""
    directory, key = write_files(QWEN, tmp_path), "general.languages"
    assert carded(directory, "language:\n- no\n")[key] == ["no"]
    assert carded(directory, "language: [no]\n")[key] == ["no"]
    assert carded(directory, "language: [en, no]\n")[key] == ["en", "no"]


def test_tokens_to_fill_in_that_the_files_name(tmp_path: Path) -> None:
    """Gemma has five by their numbers, but for those that a checkpoint's own files give."""
    directory = write_files("mixtral-4x", tmp_path)
    edit_json(directory / "config.json", architectures=["GemmaForCausalLM"])
    late = {"prefix": 67, "suffix": 69, "middle": 68, "fsep": 70, "eot": 107}
    assert vocabulary(directory).late_ids == late
    edit_json(directory / "config.json", eot_token_id=1, middle_token_id=9)
    assert vocabulary(directory).late_ids == {**late, "eot": 1, "middle": 9}


def test_word_pieces_whose_special_tokens_nobody_names(broken: Callable[..., Path]) -> None:
    """llama.cpp's runtime would take BERT's own ids."""
    directory = broken("bert-bge")
    (directory / "tokenizer_config.json").unlink()
    vocab = vocabulary(directory, "bert-bge")
    first, last = (vocab.tokens.index(text) for text in ("[CLS]", "[SEP]"))
    assert (vocab.special.ids["bos"], vocab.special.ids["eos"]) == (first, last)


@pytest.mark.parametrize("pad", ["null", "left out"])
def test_vocab_txt_beside_a_map_of_special_tokens(pad: str, broken: Callable[..., Path]) -> None:
    """`null` is an answer: the piece that a class calls [PAD] is an ordinary one."""
    directory = broken("bert-vocab-txt")
    path = directory / "special_tokens_map.json"
    names = {**read_json(path), "pad_token": None}
    if pad != "null":
        del names["pad_token"]
    path.write_text(json.dumps(names))
    config = {k: v for k, v in read_json(directory / "tokenizer_config.json").items()
              if k not in ("pad_token", "added_tokens_decoder")}  # fmt: skip
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    token, kind = ("\u2581[PAD]", 1) if pad == "null" else ("[PAD]", 3)
    vocab = vocabulary(directory, "bert-bge")
    assert (vocab.tokens[0], vocab.types[0]) == (token, kind)


@pytest.mark.parametrize(
    ("case", "begins"),
    [("deepseek-v4", "{%- if not add_gen"), ("kimi-k3", "{%- macro escape_attr"),
     ("rwkv7", "{%- if not add_gen"), ("minimax-m1", "{{ '<begin_of_document>' -}}")],
)  # fmt: skip
def test_a_template_of_llama_cpps_own(case: str, begins: str, broken: Callable[..., Path]) -> None:
    """Where the checkpoint has none."""
    directory = broken(case)
    (directory / "chat_template.jinja").unlink(missing_ok=True)
    config = read_json(directory / "tokenizer_config.json")
    config.pop("chat_template", None)
    (directory / "tokenizer_config.json").write_text(json.dumps({**config, "x": 1}))
    pre = {"kimi-k3": "kimi-k2", "rwkv7": None, "minimax-m1": "minimax-m2"}.get(case, "qwen2")
    template = vocabulary(directory, pre).special.templates["default"]
    assert template.startswith(begins)
    (directory / "chat_template.jinja").write_text("own")
    assert vocabulary(directory, pre).special.templates["default"] == "own"


def test_a_template_by_the_date_of_a_model() -> None:
    newer = own_template("deepseek-v4.jinja", "DeepSeek-V4-Flash-0731")
    assert newer != own_template("deepseek-v4.jinja", "DeepSeek-V4-Flash")


def test_another_models_vocabulary_in_gemma_4(tmp_path: Path) -> None:
    """Bytes written as characters, which Gemma's own merges do not join: llama.cpp's converter
    stops, and a file of the family's kind would lose every space."""
    directory = write_files(QWEN, tmp_path)
    found = []
    for architecture in "Qwen3MoeForCausalLM", "Gemma4ForCausalLM":
        edit_json(directory / "config.json", architectures=[architecture])
        writer = KeyValueWriter("llama")
        vocabulary(directory, "qwen2").write(writer)
        found.append([(e.key, e.value) for e in writer.entries if e.key.startswith("tokenizer.")])
    assert found[0] == found[1]
    assert ("tokenizer.ggml.model", "gpt2") in found[0]
