"""A tokenizer.json of a stranger's, tried out in a process of its own where it could run away.

A tokenizer is a program: normalizers that lengthen a text one after another, regular expressions
that look for hours. What nearly all models have is known to end, and is tried where we are; what
else there is goes to a child with limits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.errors import QuantkitError, TokenizerError
from quantkit.source.checkpoint_files import CheckpointFiles
from quantkit.storage import child
from quantkit.tokenizer.pre_tokenizer_patterns import SPLITS

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SECONDS, MEMORY = 60, 6 << 30  # of a vocabulary of a million tokens: 20 s and 3 GB
_MAX_STEPS = 32
_SIMPLE = frozenset({
    "NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Strip", "Nmt", "BertNormalizer",
    "ByteLevel", "Digits", "Whitespace", "WhitespaceSplit", "Punctuation", "BertPreTokenizer",
    "Metaspace", "UnicodeScripts", "CharDelimiterSplit", "Prepend", "Sequence",
    "TemplateProcessing", "RobertaProcessing", "BertProcessing", "Fuse", "ByteFallback",
    "WordPiece", "BPEDecoder", "CTC",
})  # fmt: skip
_KNOWN = frozenset(pattern for split in SPLITS for pattern in split.patterns)
_SENTENCEPIECE = ({"String": " "}, "\u2581"), ({"String": "\u2581"}, " ")


def is_known_to_end(tokenizer: Mapping[str, Any]) -> bool:
    """Whether every step of a tokenizer is one whose time and output grow with the text alone, and
    its merges are of whole pieces: the library cuts a prefix off the second of a pair by bytes, and
    ends the process where that is in a character."""
    model = tokenizer.get("model")
    if isinstance(model, dict) and "merges" in model and model.get("continuing_subword_prefix"):
        return False
    names = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
    steps = [step for name in names for step in _steps(tokenizer.get(name), 0)]
    return len(steps) <= _MAX_STEPS and all(map(_ends, steps))


def _steps(step: Any, depth: int) -> Iterator[Any]:
    """A step and all those in it."""
    if step is None:
        return
    yield step
    if isinstance(step, dict) and depth < _MAX_STEPS:
        for inner in ("normalizers", "pretokenizers", "processors", "decoders"):
            for each in step[inner] if isinstance(step.get(inner), list) else ():
                yield from _steps(each, depth + 1)


def _ends(step: Any) -> bool:
    if not isinstance(step, dict):
        return False
    kind, pattern = step.get("type"), step.get("pattern")
    if kind == "Split":
        regex = pattern.get("Regex") if isinstance(pattern, dict) else None
        return regex in _KNOWN if isinstance(regex, str) else isinstance(pattern, dict)
    if kind == "Replace":
        return (pattern, step.get("content")) in _SENTENCEPIECE
    if kind == "Prepend":
        return len(str(step.get("prepend"))) <= 8
    return kind in _SIMPLE


def in_child(
    files: CheckpointFiles,
    tokenizer: dict[str, Any],
    size: int | None,
    pre: str | None,
    family: str,
    architecture: str,
) -> dict[str, Any]:
    """The fields of `byte_level.read`'s result, from a process with limits. Raises
    TokenizerError."""
    question = {
        "directory": str(files.directory.absolute()),
        "where": files.where,
        "size": size,
        "tokenizer": None if files.has("tokenizer.json") else tokenizer,
        "pre": pre,
        "family": family,
        "architecture": architecture,
    }
    try:
        found: dict[str, Any] = child.ask(__name__, question, SECONDS, MEMORY)
    except child.ChildFailed as e:
        raise TokenizerError(f"{files.label('tokenizer.json')}: it was tried, and {e}") from None
    if "error" in found:
        raise TokenizerError(found["error"])
    return found


def token_ids(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """The token ids of each text, in this process. May raise anything."""
    return [list(tokenizer.encode(t, add_special_tokens=False).ids) for t in texts]


def encoded(directory: Path, texts: Sequence[str]) -> list[list[int]]:
    """The token ids of texts, from a process with limits. Raises TokenizerError."""
    question = {"directory": str(directory.absolute()), "texts": list(texts)}
    try:
        found: list[list[int]] = child.ask(__name__, question, SECONDS, MEMORY)
    except child.ChildFailed as e:
        raise TokenizerError(f"{directory}/tokenizer.json: it was tried, and {e}") from None
    return found


def _answer(question: dict[str, Any]) -> Any:
    from tokenizers import Tokenizer

    from quantkit.tokenizer import byte_level

    if "texts" in question:
        file = Path(question["directory"], "tokenizer.json")
        return token_ids(Tokenizer.from_file(str(file)), question["texts"])
    files = CheckpointFiles(Path(question.pop("directory")), question.pop("where"), {})
    tokenizer = question.pop("tokenizer") or files.json("tokenizer.json")
    try:
        return asdict(byte_level.read(files, tokenizer, **question))
    except QuantkitError as e:
        return {"error": str(e)}


if __name__ == "__main__":
    child.answer(_answer)
