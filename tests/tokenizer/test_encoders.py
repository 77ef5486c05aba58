"""WordPiece and Unigram vocabularies: what goldens do not show, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quantkit.errors import TokenizerError
from quantkit.llama.llama_cpp import Llama
from quantkit.source.checkpoint_files import CheckpointFiles
from quantkit.tokenizer.families import rules_for
from quantkit.tokenizer.token_types import TokenType
from quantkit.tokenizer.unigram import is_unigram
from quantkit.tokenizer.vocabulary import Vocabulary, read_vocabulary
from tests.damage import edit_config
from tests.vocabularies import tiny_gguf

Broken = Callable[..., Path]


def read(
    source: Path, architecture: str, size: int | None = None, pre: str | None = None
) -> Vocabulary:
    files = CheckpointFiles.local(source)
    config = files.json("config.json")
    size = size or int(config["vocab_size"])
    return read_vocabulary(files, size, pre, rules_for(architecture, size), architecture)


def edit_tokenizer(source: Path, **changes: Any) -> None:
    path = source / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_words_and_what_goes_on(broken: Broken) -> None:
    vocab = read(broken("bert-bge"), "BertModel")
    assert vocab.model == "bert"
    assert vocab.tokens[0] == "[PAD]"  # a control token as it is
    assert "ing" in vocab.tokens
    assert "\u2581the" in vocab.tokens
    assert not any(token.startswith("##") for token in vocab.tokens)
    assert vocab.merges == []


def test_words_with_another_mark(broken: Broken) -> None:
    source = broken("bert-bge")
    model = json.loads((source / "tokenizer.json").read_text())["model"]
    edit_tokenizer(source, model={**model, "continuing_subword_prefix": "@@"})
    with pytest.raises(
        TokenizerError, match=r"tokenizer\.json: continuing_subword_prefix is '@@'; l"
    ):
        read(source, "BertModel")


def test_what_is_always_done_to_words(broken: Broken) -> None:
    source = broken("bert-bge")
    normalizer = json.loads((source / "tokenizer.json").read_text())["normalizer"]
    before = read(source, "BertModel").notes
    edit_tokenizer(source, normalizer={**normalizer, "handle_chinese_chars": False})
    (line,) = (n for n in read(source, "BertModel").notes if n not in before)
    assert line == (
        "handle_chinese_chars is false in tokenizer.json's normalizer; llama.cpp takes each "
        "Chinese character for a word all the same"
    )


def test_a_vocab_txt_of_other_ids_says_them(broken: Broken) -> None:
    """llama.cpp's converter finds no ids there, and its runtime takes those of BERT's own."""
    own = broken("bert-bge")
    (own / "tokenizer.json").unlink()
    vocab = read(own, "BertModel")
    assert vocab.special.ids == {"bos": 6, "eos": 7, "unk": 5, "sep": 7, "pad": 0, "mask": 8}


def test_a_vocab_txt_of_berts_own_ids_says_none(checkpoint: Callable[[str], Path]) -> None:
    vocab = read(checkpoint("bert-vocab-txt"), "BertForMaskedLM")
    assert vocab.tokens[101] == "[CLS]"
    assert vocab.special.ids == {}


def test_a_vocab_txt_without_its_special_tokens(broken: Broken) -> None:
    source = broken("bert-vocab-txt")
    path = source / "vocab.txt"
    path.write_text(path.read_text().replace("[MASK]\n", ""))
    with pytest.raises(TokenizerError, match=r"vocab\.txt: no token \[MASK\] is in it"):
        read(source, "BertForMaskedLM")


def test_truncation_does_not_cut_the_text_that_is_hashed(broken: Broken) -> None:
    source = broken("bert-minilm")
    edit_tokenizer(source, truncation={"direction": "Right", "max_length": 4,
                                       "strategy": "LongestFirst", "stride": 0})  # fmt: skip
    assert read(source, "BertModel").pre == "jina-v2-en"


def test_pre_tokenizers_of_words(checkpoint: Callable[[str], Path]) -> None:
    source = checkpoint("bert-bge")
    assert read(source, "BertModel", pre="bert-bge-large").pre == "bert-bge-large"
    with pytest.raises(TokenizerError, match=r"llama\.cpp knows no pre-tokenizer 'llama-bpe'"):
        read(source, "BertModel", pre="llama-bpe")


@pytest.mark.parametrize("case", ["bert-bge", "xlmr-e5-hfvocab"])
def test_language_models_have_neither(case: str, checkpoint: Callable[[str], Path]) -> None:
    with pytest.raises(TokenizerError, match="tokenizer; BPE and SentencePiece are read"):
        read(checkpoint(case), "Qwen2ForCausalLM")


def test_the_mask_of_nomic_is_added_where_there_is_room(broken: Broken) -> None:
    source = broken("xlmr-bge-m3")
    vocab = read(source, "NomicBertModel", size=250048)
    assert vocab.tokens[250001] == "<mask>"
    assert vocab.types[250001] == TokenType.CONTROL
    assert read(source, "NomicBertModel").tokens[-1] == read(source, "XLMRobertaModel").tokens[-1]


def test_ids_of_xlm_roberta(checkpoint: Callable[[str], Path]) -> None:
    """From the model and from tokenizer.json alike, but for the mask."""
    model = read(checkpoint("xlmr-bge-m3"), "XLMRobertaModel")
    table = read(checkpoint("xlmr-e5-hfvocab"), "XLMRobertaModel")
    assert model.tokens[:4] == table.tokens[:4] == ["<s>", "<pad>", "</s>", "<unk>"]
    assert model.tokens[4:-1] == table.tokens[4:-1]
    assert model.scores is not None
    assert table.scores is not None
    assert model.scores[4:-1] == pytest.approx(table.scores[4:-1])
    assert model.charsmap == table.charsmap


def test_tokens_added_past_the_pieces(broken: Broken) -> None:
    source = broken("xlmr-e5-hfvocab")
    path = source / "tokenizer.json"
    data = json.loads(path.read_text())
    data["added_tokens"].append({**data["added_tokens"][0], "id": 512, "content": "[Q]"})
    data["added_tokens"].append(
        {**data["added_tokens"][0], "id": 513, "content": "word", "special": False}
    )
    path.write_text(json.dumps(data))
    vocab = read(source, "XLMRobertaModel", size=514)
    assert vocab.tokens[512:] == ["[Q]", "word"]
    assert vocab.types[512:] == [TokenType.CONTROL, TokenType.USER_DEFINED]


def test_a_t5_of_tokenizer_json_alone(broken: Broken) -> None:
    """llama.cpp's converter wants spiece.model."""
    source = broken("xlmr-e5-hfvocab")
    edit_config(source, architectures=["T5EncoderModel"])
    vocab = read(source, "T5EncoderModel")
    assert vocab.model == "t5"
    assert vocab.token_types is None


def test_a_model_of_merges_is_no_unigram(broken: Broken, checkpoint: Callable[[str], Path]) -> None:
    source = broken("flan-t5")
    assert is_unigram(CheckpointFiles.local(source), "spiece.model")
    merged = (checkpoint("mamba2") / "tokenizer.model").read_bytes()
    (source / "spiece.model").write_bytes(merged)
    with pytest.raises(TokenizerError, match=r"spiece\.model: it is split by merges"):
        read(source, "T5ForConditionalGeneration")
    (source / "spiece.model").rename(source / "tokenizer.model")  # Pile-T5's
    assert read(source, "T5ForConditionalGeneration").model == "llama"


@pytest.mark.parametrize("vocab", [{"a": 1}, [["a"]], [[1, 2.0]], None])
def test_pieces_of_another_form(vocab: Any, broken: Broken) -> None:
    source = broken("xlmr-e5-hfvocab")
    edit_tokenizer(source, model={"type": "Unigram", "vocab": vocab, "unk_id": 0})
    with pytest.raises(TokenizerError, match="not a list of pieces with scores"):
        read(source, "XLMRobertaModel")


@pytest.mark.parametrize(
    "data", [b"", b"\xff" * 64, b"\x12\xff\xff\xff\xff\x0f", bytes(range(256))]
)
def test_a_sentencepiece_model_that_is_none(data: bytes, broken: Broken) -> None:
    source = broken("xlmr-bge-m3")
    (source / "sentencepiece.bpe.model").write_bytes(data)
    with pytest.raises(TokenizerError, match=r"sentencepiece\.bpe\.model"):
        read(source, "XLMRobertaModel")


@pytest.mark.parametrize(
    ("case", "architecture"),
    [("bert-bge", "BertModel"), ("xlmr-bge-m3", "XLMRobertaModel"),
     ("xlmr-e5-hfvocab", "XLMRobertaModel")],
)  # fmt: skip
def test_an_added_token_is_found_in_a_text(
    case: str, architecture: str, broken: Broken, tmp_path: Path
) -> None:
    """llama.cpp's converter writes a WordPiece token as a piece that begins a word, and padding in
    place of one behind a Unigram model's pieces: no text had it."""
    source = broken(case)
    size = json.loads((source / "config.json").read_text())["vocab_size"]
    added = json.loads((source / "tokenizer.json").read_text())["added_tokens"]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    edit_tokenizer(source, added_tokens=[*added, {"id": size, "content": "<tool>", **flags}])
    vocab = read(source, architecture, size + 1)
    assert (vocab.tokens[size], vocab.types[size]) == ("<tool>", TokenType.USER_DEFINED)
    with Llama(tiny_gguf(vocab, tmp_path / "tiny.gguf"), context=0) as llama:
        assert size in llama.tokenize(b"a<tool>b", parse=True)
