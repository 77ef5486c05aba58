"""Byte-level BPE vocabularies, from tokenizer.json or from `vocab.json` with `merges.txt`.

llama.cpp's converter takes the tokens from transformers' tokenizer (`conversion/base.py`,
get_vocab_base), so they are what that one loads: the tokens of tokenizer.json and those that the
files beside it add.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from quantkit.errors import SourceError, TokenizerError
from quantkit.source.checkpoint_files import CheckpointFiles
from quantkit.storage.os_files import muted
from quantkit.tokenizer import trial, wordpiece
from quantkit.tokenizer.added_tokens import add_configured
from quantkit.tokenizer.class_tokens import class_name
from quantkit.tokenizer.pre_tokenizer import find_pre, find_words_pre, known_pre
from quantkit.tokenizer.pre_tokenizer_patterns import SPLITS
from quantkit.tokenizer.special_tokens import kind_of, read_merges, tokenizer_config
from quantkit.tokenizer.token_types import SPACE, TokenType, added

if TYPE_CHECKING:
    pass


MMBERT, WHITESPACE = "mmbert", "whitespace"  # two of llama.cpp's pre-tokenizers


@dataclass
class ByteLevel:
    """Text and type of every token id, and the merges."""

    pre: str  # llama.cpp's name for the split
    tokens: list[str]
    types: list[int]
    merges: list[str]
    notes: list[str] = field(default_factory=list)
    model: str = "gpt2"  # tokenizer.ggml.model
    ids: dict[str, int] = field(default_factory=dict)  # of special tokens that no other file names


def is_byte_level(tokenizer: dict[str, Any]) -> bool:
    """Whether the steps of a tokenizer.json write bytes as characters, whatever flags stand in its
    model."""
    steps = [tokenizer.get(name) for name in ("normalizer", "pre_tokenizer", "decoder")]
    for step in steps:
        if isinstance(step, dict):
            steps += [*step.get("normalizers", ()), *step.get("pretokenizers", ())]
            steps += step.get("decoders", ())
            if step.get("type") == "ByteLevel":
                return True
    return False


def from_json(
    files: CheckpointFiles,
    tokenizer: dict[str, Any],
    size: int | None,
    pre: str | None,
    family: str,
    architecture: str,
) -> ByteLevel:
    """A byte-level BPE tokenizer.json, or what older files would be as one, as transformers loads
    it.

    `size` tokens, padded; added tokens past them are left out. `pre` names the pre-tokenizer, which
    is recognised otherwise; `family` is the one that llama.cpp knows for the `architecture`.
    Raises TokenizerError.
    """
    if trial.is_known_to_end(tokenizer):
        return read(files, tokenizer, size, pre, family, architecture)
    return ByteLevel(**trial.in_child(files, tokenizer, size, pre, family, architecture))


@muted()
def read(
    files: CheckpointFiles,
    tokenizer: dict[str, Any],
    size: int | None,
    pre: str | None,
    family: str,
    architecture: str,
) -> ByteLevel:
    """The same in this process, whatever the tokenizer does to it."""
    from tokenizers import Tokenizer

    label = files.label("tokenizer.json")
    words = kind_of(tokenizer["model"]) == "WordPiece"
    if words:
        wordpiece.check_mark(tokenizer, label)
    try:
        if files.has("tokenizer.json"):
            hf = Tokenizer.from_buffer(files.data("tokenizer.json"))
        else:
            hf = Tokenizer.from_str(json.dumps(tokenizer))
        hf.no_truncation()
        hf.no_padding()
        if pre is not None:
            name, why = known_pre(pre, words, bool(is_byte_level(tokenizer))), "given"
        elif words:
            name, why = find_words_pre(hf)
        else:
            name, why = find_pre(hf, family, architecture)
        add_configured(hf, files)
    except TokenizerError as e:
        raise TokenizerError(f"{files.where}: {e}") from None
    except (SourceError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as e:  # the library raises bare Exception, and panics that are not even it
        raise TokenizerError(f"{label}: {' '.join(str(e).split())}") from None

    base = max(tokenizer["model"]["vocab"].values(), default=-1) + 1
    by_id = {i: token for token, i in hf.get_vocab(with_added_tokens=True).items()}
    size = max(by_id, default=-1) + 1 if size is None else size
    if base > size:
        raise TokenizerError(
            f"{label}: token id {base - 1} is past config.json's vocab_size {size}"
        )
    extra = hf.get_added_tokens_decoder()
    merges = [] if words else read_merges(tokenizer, label)
    vocab = ByteLevel(name, [], [], merges, [f"pre-tokenizer {name}: {why}"])
    kept: list[str] = []
    for i in range(size):
        token, kind = by_id.get(i), TokenType.NORMAL
        if token is None:
            token, kind = f"[PAD{i}]", TokenType.UNUSED
        elif i in extra:
            if not extra[i].normalized:
                ids = hf.encode(token, add_special_tokens=False).ids
                text = hf.decode(ids, skip_special_tokens=False)
                if "\ufffd" in text and "\ufffd" not in token:
                    kept.append(token)  # letters beyond ASCII, taken for bytes by the decoder
                else:
                    token = text
            token, kind = added(token, extra[i].special)
        vocab.tokens.append(token)
        vocab.types.append(int(kind))
    if kept:
        vocab.notes.append(
            f"{len(kept)} added tokens keep their text, which the decoder does not give back "
            f"({', '.join(kept[:3])})"
        )
    if beyond := sorted(i for i in by_id if i >= size):
        names = ", ".join(by_id[i] for i in beyond[:3])
        vocab.notes.append(
            f"{len(beyond)} added tokens past the model's {size} are left out ({names})"
        )
    if words:
        vocab.model, vocab.tokens = "bert", wordpiece.spelled(vocab.tokens, vocab.types)
        vocab.notes += wordpiece.not_done(tokenizer)
    elif name == MMBERT:
        _spaces_are_pieces(vocab)
    return vocab


def _spaces_are_pieces(vocab: ByteLevel) -> None:
    """Added runs of spaces, which the tokenizer never finds, are pieces that merges make
    (llama.cpp `conversion/bert.py`, ModernBertModel.get_vocab_base)."""
    for i, text in enumerate(vocab.tokens):
        if vocab.types[i] == TokenType.USER_DEFINED and text and not text.strip(" "):
            vocab.tokens[i], vocab.types[i] = SPACE * len(text), int(TokenType.NORMAL)


def whitespace(files: CheckpointFiles, tokenizer: dict[str, Any], size: int | None) -> ByteLevel:
    """BPE of words as they stand between spaces. Raises TokenizerError."""
    vocab = from_json(files, tokenizer, size, WHITESPACE, "", "")
    vocab.model = WHITESPACE
    return vocab


# --- vocab.json and merges.txt ----------------------------------------------------------------

# transformers' tokenizer classes of vocab.json -> (their pre-tokenizer, whether they apply NFC)
_CLASSES = {"Qwen2Tokenizer": ("qwen2", True), "GPT2Tokenizer": ("gpt-2", False),
            "CodeGenTokenizer": ("gpt-2", False)}  # fmt: skip


def from_vocab_and_merges(files: CheckpointFiles) -> dict[str, Any]:
    """What `vocab.json` and `merges.txt` would be as a tokenizer.json. Raises TokenizerError,
    CorruptFile."""
    config = tokenizer_config(files)
    kind = class_name(config, files.optional("config.json") or {})
    if kind not in _CLASSES:
        whose = f"a {kind}" if kind else "a tokenizer_class that no file names"
        raise TokenizerError(
            f"{files.where}: vocab.json of {whose}, which is not read without tokenizer.json "
            f"(those of {' and '.join(_CLASSES)} are)"
        )
    split, nfc = _CLASSES[kind]
    (row,) = (s for s in SPLITS if split in s.names)
    steps: list[dict[str, Any]] = [
        {"type": "Split", "pattern": {"Regex": p}, "behavior": "Isolated", "invert": False}
        for p in row.patterns
    ]
    steps.append(
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    )
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": {"type": "NFC"} if nfc else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "post_processor": None,
        "decoder": {
            "type": "ByteLevel",
            "add_prefix_space": True,
            "trim_offsets": True,
            "use_regex": True,
        },
        "model": {
            "type": "BPE",
            "vocab": files.json("vocab.json"),
            "merges": _read_merges_txt(files.text("merges.txt")),
        },
    }


def _read_merges_txt(text: str) -> list[str]:
    lines = text.split("\n")
    if lines[0].startswith("#"):
        lines = lines[1:]
    pairs = (line.split() for line in lines)
    return [" ".join(pair) for pair in pairs if len(pair) == 2]
