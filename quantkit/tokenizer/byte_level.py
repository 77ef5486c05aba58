"""Byte-level BPE vocabularies: a tokenizer.json, `vocab.json` with `merges.txt`, or tiktoken ranks.

The tokens are those that transformers' tokenizer has once it is loaded, which llama.cpp's converter
asks (`conversion/base.py`, get_vocab_base): what tokenizer.json holds, and what the configuration
beside it adds.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.errors import TokenizerError
from quantkit.storage.json_files import read_json
from quantkit.tokenizer.pre_tokenizer import find_pre, known_pre
from quantkit.tokenizer.pre_tokenizer_patterns import SPLITS
from quantkit.tokenizer.special_tokens import TYPES, read_config, read_merges
from quantkit.tokenizer.token_types import TokenType, added

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass
class ByteLevel:
    """Every id's text and type, the merges, and llama.cpp's name for the split."""

    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    notes: list[str] = field(default_factory=list)


def from_json(
    directory: Path, tokenizer: dict[str, Any], size: int | None, pre: str | None,
    family: str, architecture: str,
) -> ByteLevel:  # fmt: skip
    """A byte-level BPE tokenizer.json (or its like, made of other files), as transformers loads it.

    `size` tokens, padded; added tokens past them are left out. `pre` overrules what is found;
    `family` is the one name that llama.cpp knows for the `architecture`. Raises TokenizerError.
    """
    from tokenizers import Tokenizer

    path = directory / "tokenizer.json"
    try:
        if path.is_file():
            hf = Tokenizer.from_file(str(path))
        else:
            hf = Tokenizer.from_str(json.dumps(tokenizer))
        if pre is not None:
            name, why = known_pre(pre), "given"
        else:
            name, why = find_pre(hf, family, architecture)
        _add_configured(hf, directory)
    except TokenizerError as e:
        raise TokenizerError(f"{directory}: {e}") from None
    except Exception as e:  # the library raises bare Exception
        raise TokenizerError(f"{path}: {' '.join(str(e).split())}") from None

    base = max(hf.get_vocab(with_added_tokens=False).values(), default=-1) + 1
    by_id = {i: token for token, i in hf.get_vocab(with_added_tokens=True).items()}
    size = max(by_id, default=-1) + 1 if size is None else size
    if base > size:
        raise TokenizerError(f"{path}: token id {base - 1} is past config.json's vocab_size {size}")
    extra = hf.get_added_tokens_decoder()
    out = ByteLevel(name, [], [], read_merges(tokenizer), [f"pre-tokenizer {name}: {why}"])
    for i in range(size):
        token, kind = by_id.get(i), TokenType.NORMAL
        if token is None:
            token, kind = f"[PAD{i}]", TokenType.UNUSED
        elif i in extra:
            if not extra[i].normalized:
                ids = hf.encode(token, add_special_tokens=False).ids
                token = hf.decode(ids, skip_special_tokens=False)
            token, kind = added(token, extra[i].special)
        out.tokens.append(token)
        out.types.append(int(kind))
    if beyond := sorted(i for i in by_id if i >= size):
        names = ", ".join(by_id[i] for i in beyond[:3])
        out.notes.append(
            f"{len(beyond)} added tokens past the model's {size} are left out ({names})"
        )
    return out


def _add_configured(hf: Tokenizer, directory: Path) -> None:
    """Add what the files beside tokenizer.json hold, in transformers' order: tokens by id, then
    special tokens by name (`TokenizersBackend`, `_from_pretrained`)."""
    from tokenizers import AddedToken

    config = read_config(directory)
    decoder = config.get("added_tokens_decoder")
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    present = {repr(t) for t in hf.get_added_tokens_decoder().values()}
    if isinstance(decoder, dict):
        entries = sorted(decoder.items(), key=lambda item: int(item[0]))
        tokens = [
            AddedToken(e["content"], **{f: bool(e[f]) for f in flags if f in e}) for _, e in entries
        ]
        hf.add_tokens([t for t in tokens if repr(t) not in present])
    else:
        config = {**config, **_optional(directory / "special_tokens_map.json")}
        old = sorted(_optional(directory / "added_tokens.json").items(), key=lambda item: item[1])
        names = {*_named(config)}
        hf.add_tokens([AddedToken(t, normalized=t not in names, special=t in names)
                       for t, _ in old])  # fmt: skip
    known = {t.content for t in hf.get_added_tokens_decoder().values()}
    new = dict.fromkeys(t for t in _named(config) if t not in known)
    hf.add_tokens([AddedToken(t, special=True) for t in new])


def _named(config: dict[str, Any]) -> list[str]:
    """The texts of all special tokens that a tokenizer_config.json names."""
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    entries = [config.get(f"{kind}_token") for kind in TYPES]
    entries += extra.values() if isinstance(extra, dict) else extra
    texts = (e.get("content") if isinstance(e, dict) else e for e in entries)
    return [t for t in texts if isinstance(t, str) and t]


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


# --- vocab.json and merges.txt ----------------------------------------------------------------

# transformers' classes that have no tokenizer.json -> (the split they make, NFC)
_CLASSES = {"Qwen2Tokenizer": ("qwen2", True), "GPT2Tokenizer": ("gpt-2", False)}


def from_vocab_and_merges(directory: Path) -> dict[str, Any]:
    """What `vocab.json` and `merges.txt` would be as a tokenizer.json. Raises TokenizerError."""
    kind = str(read_config(directory).get("tokenizer_class", "GPT2Tokenizer")).removesuffix("Fast")
    if kind not in _CLASSES:
        raise TokenizerError(
            f"{directory}: vocab.json of a {kind}, which is not read without tokenizer.json "
            f"(those of {' and '.join(_CLASSES)} are)"
        )
    split, nfc = _CLASSES[kind]
    (row,) = (s for s in SPLITS if split in s.names)
    steps: list[dict[str, Any]] = [
        {"type": "Split", "pattern": {"Regex": p}, "behavior": "Isolated", "invert": False}
        for p in row.patterns
    ]
    steps.append({"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                  "use_regex": False})  # fmt: skip
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [],
        "normalizer": {"type": "NFC"} if nfc else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True,
                    "use_regex": True},
        "model": {"type": "BPE", "vocab": read_json(directory / "vocab.json"),
                  "merges": _read_merges_txt(directory / "merges.txt")},
    }  # fmt: skip


def _read_merges_txt(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").split("\n")
    if lines[0].startswith("#"):
        lines = lines[1:]
    pairs = (line.split() for line in lines)
    return [" ".join(pair) for pair in pairs if len(pair) == 2]
