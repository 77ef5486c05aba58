"""The vocabularies of Mistral's own releases: `tekken.json`, and SentencePiece models whose version
is part of their name (`tokenizer.model.v3`).

llama.cpp `conversion/base.py`, _set_vocab_mistral, and gguf-py's MistralVocab; what a tekken.json
holds is documented in Mistral's `mistral-common`. Such a release has no chat template in a file
that llama.cpp could read: it takes one by the tokenizer's version. The two that it keeps as files
(`models/templates`, MIT) are in `templates/`.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from quantkit.errors import TokenizerError
from quantkit.source.checkpoint_files import CheckpointFiles
from quantkit.tokenizer.special_tokens import own_template
from quantkit.tokenizer.token_types import TokenType, byte_text

FORMAT = "params.json"  # the "architecture" of a checkpoint in Mistral's own format

# special tokens of files that do not name them, by id
_SPECIAL = (
    "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]",
    "[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]",
    "[TOOL_CONTENT]",
)  # fmt: skip
# (kind, version) -> the name that llama.cpp knows a template by, or the file that holds it
_TEMPLATES = {
    ("spm", "v1"): "mistral-v1",
    ("spm", "v3"): "mistral-v3",
    ("spm", "v7"): "mistral-v7",
    ("tekken", "v3"): "mistral-v3-tekken",
    ("tekken", "v7"): "mistral-v7-tekken",
    ("tekken", "v11"): "mistral-v11.jinja",
    ("tekken", "v13"): "mistral-v13.jinja",
}


@dataclass
class MistralVocabulary:
    """Every id's text, score and type; `merges` and `pre` where it is a tekken.json."""

    tokens: list[str]
    scores: list[float]
    types: list[int]
    ids: dict[str, int]  # of bos, eos, unk and pad
    template: str | None
    merges: list[str] | None = None
    pre: str = ""
    notes: list[str] = field(default_factory=list)


def alone(files: CheckpointFiles) -> bool:
    """Whether a checkpoint of another format has a tekken.json and no tokenizer.json."""
    return files.has("tekken.json") and not files.has("tokenizer.json")


def find(files: CheckpointFiles) -> str | None:
    """The file that mistral-common would take: tekken.json, or the SentencePiece model of the
    highest version."""
    models = sorted(p.name for p in files.directory.glob("tokenizer.model*") if p.is_file())
    return "tekken.json" if files.has("tekken.json") else models[-1] if models else None


def read(files: CheckpointFiles, size: int | None, template_file: bool) -> MistralVocabulary:
    """The vocabulary of a checkpoint, padded to `size`. `template_file`: chat_template.jinja
    counts, where it is there. Raises TokenizerError, CorruptFile."""
    name = find(files)
    if name is None:
        raise TokenizerError(f"{files.where}: neither tekken.json nor tokenizer.model is there")
    vocab, kind, version = (_tekken if name.endswith(".json") else _sentencepiece)(files, name)
    found = len(vocab.tokens)
    if size is not None and found > size:
        raise TokenizerError(f"{files.label(name)}: {found} tokens, and the model has {size}")
    for i in range(found, size or 0):
        vocab.tokens.append(f"[PAD{i}]")
        vocab.scores.append(0)
        vocab.types.append(int(TokenType.UNUSED))
    if template_file and files.has("chat_template.jinja"):
        vocab.template = files.text("chat_template.jinja")
    else:
        vocab.template = _template(kind, version)
        if vocab.template is None:
            vocab.notes.append(f"no chat template is known for {name} of version {version}")
    return vocab


def _template(kind: str, version: str) -> str | None:
    name = _TEMPLATES.get((kind, version))
    if name is None or not name.endswith(".jinja"):
        return name
    return own_template(name)


def _tekken(files: CheckpointFiles, name: str) -> tuple[MistralVocabulary, str, str]:
    data, path = files.json(name), files.label(name)
    config: Mapping[str, Any] = data["config"]
    size, n_special = config["default_vocab_size"], config["default_num_special_tokens"]
    named = [t["token_str"] for t in data.get("special_tokens") or ()] or list(_SPECIAL)
    special = [*named, *(f"<SPECIAL_{i}>" for i in range(len(named), n_special))]
    entries = data["vocab"][: size - n_special]
    pieces = [base64.b64decode(entry["token_bytes"]) for entry in entries]
    if len(special) != n_special or len(special) + len(pieces) != size:
        raise TokenizerError(
            f"{path}: {len(special)} special tokens and {len(pieces)} others found, "
            f"{n_special} and {size - n_special} expected"
        )
    for text in ("<s>", "</s>"):
        if text not in special:
            raise TokenizerError(f"{path}: {text} is none of its special tokens; download it again")
    ids = (("bos", "<s>"), ("eos", "</s>"), ("unk", "<unk>"), ("pad", "<pad>"))
    vocab = MistralVocabulary(
        [*special, *map(byte_text, pieces)],
        [0] * size,  # whole numbers in llama.cpp's files, too
        [int(TokenType.CONTROL)] * n_special + [int(TokenType.NORMAL)] * len(pieces),
        {kind: special.index(text) for kind, text in ids if text in special},
        None,
        _merges(path, pieces),
        "tekken",
    )
    return vocab, "tekken", str(config.get("version", ""))


def _merges(path: str, pieces: list[bytes]) -> list[str]:
    """Every way to make a piece of two others, piece after piece, the lowest ranks first."""
    ranks = {piece: rank for rank, piece in enumerate(pieces)}
    out = []
    for piece in pieces[256:]:
        cuts = ((piece[:i], piece[i:]) for i in range(1, len(piece)))
        ways = sorted((ranks[a], ranks[b]) for a, b in cuts if a in ranks and b in ranks)
        if not ways:
            raise TokenizerError(f"{path}: no two pieces make {piece!r}")
        out += [f"{byte_text(pieces[a])} {byte_text(pieces[b])}" for a, b in ways]
    return out


def _sentencepiece(files: CheckpointFiles, name: str) -> tuple[MistralVocabulary, str, str]:
    from quantkit.tokenizer.sentencepiece import read_pieces

    pieces, sp = read_pieces(files, name)
    ids = {"bos": sp.bos_id(), "eos": sp.eos_id(), "unk": sp.unk_id(), "pad": sp.pad_id()}
    if ids["pad"] < 0:
        ids["pad"] = ids["eos"]
    tokens, scores, types = (list(column) for column in zip(*pieces, strict=True))
    version = name.removeprefix("tokenizer.model").removeprefix(".").partition("m")[0] or "v1"
    vocab = MistralVocabulary(tokens, scores, [int(t) for t in types], ids, None)
    return vocab, "spm", version
