"""How a file splits text, in llama.cpp, and how the tokenizer of its checkpoint does."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from quantkit.errors import LlamaError, LlamaMissing, TokenizerError, malformed
from quantkit.llama import apart
from quantkit.llama.llama_cpp import library
from quantkit.storage.os_files import muted
from quantkit.storage.parse import parse_json
from quantkit.tokenizer import trial

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Tokenize = Callable[[Sequence[str]], list[list[int]]]  # texts -> the token ids of each


@dataclass(frozen=True)
class Reference:
    """The tokenizer of a checkpoint: how it splits texts, its added tokens by id, and letters of
    which it makes pieces."""

    tokenize: Tokenize
    added: Mapping[int, str] = field(default_factory=dict)
    alphabet: str = "abc"


VISIBLE_SPACES = {"\u2581", "\u0120"}  # SentencePiece's and the byte-level one

# ordinary text of the kinds that vocabularies treat differently
SAMPLES = (
    "The quick brown fox jumps over the lazy dog.",
    "It's 12:34 on 2024-05-06, and 1234567 things cost $3.50 each; aren't they?",
    "def area(radius):\n    return 3.14159 * radius ** 2  # not exact\n\n\nprint(area(2))",
    "for (int i = 0; i < n; ++i) {\n\tsum += values[i];\n}",
    "Größe, façade, naïve, Ελληνικά, русский язык",
    "今日は良い天気です。你好，世界！안녕하세요",
    "Emoji 🙂👍🏽 and symbols ≤ ∑ → ½",
    "two spaces  here, a tab\there, and three   more",
)


def reference(directory: Path) -> Reference | None:
    """The tokenizer of a checkpoint, by the library that it was made for; None where it is of a
    kind that only its own code reads. Raises TokenizerError."""
    model, fast = directory / "tokenizer.model", directory / "tokenizer.json"
    with muted(), malformed(TokenizerError, f"{directory}: malformed tokenizer files"):
        if fast.is_file():
            if not trial.is_known_to_end(parse_json(fast.read_bytes(), str(fast))):
                return Reference(lambda texts: trial.encoded(directory, texts))
            from tokenizers import Tokenizer

            return _of_tokenizer_json(Tokenizer.from_file(str(fast)))
        if model.is_file():
            from sentencepiece import SentencePieceProcessor

            processor = SentencePieceProcessor(model_file=str(model))
            return Reference(lambda texts: [list(processor.encode(text)) for text in texts])
    return None


def _of_tokenizer_json(tokenizer: Tokenizer) -> Reference:
    tokenize = partial(trial.token_ids, tokenizer)
    # llama.cpp finds a token inside a word, too, whatever its flags say; and one that is spelled
    # with visible spaces where there are spaces
    texts = {
        i: token.content
        for i, token in tokenizer.get_added_tokens_decoder().items()
        if not token.single_word and not VISIBLE_SPACES & {*token.content}
    }
    alone = dict(zip(texts, tokenize([*texts.values()]), strict=True))
    letters = "".join(c for c in map(chr, range(97, 123)) if tokenizer.token_to_id(c) is not None)
    return Reference(
        tokenize, {i: text for i, text in texts.items() if alone[i] == [i]}, letters or "abc"
    )


def splitting(file: Path) -> Tokenize:
    """The vocabulary of a GGUF file, in llama.cpp. Raises LlamaMissing; and LlamaError when used.

    In a process of its own: a damaged vocabulary makes llama.cpp end the process it is in.
    """
    library()

    def split(texts: Sequence[str]) -> list[list[int]]:
        try:
            ids: list[list[int]] = apart.ask(file, {"texts": texts})
        except LlamaMissing:
            raise
        except LlamaError as e:
            raise LlamaError(f"{file}: llama.cpp does not read its vocabulary: {e}") from None
        return ids

    return split


def differences(ours: Tokenize, theirs: Reference, n_vocab: int) -> list[str]:
    """Lines on the samples that a file of `n_vocab` tokens splits otherwise than the source, and on
    added tokens that it does not find in a text."""
    added = {i: text for i, text in theirs.added.items() if i < n_vocab}
    samples = [*SAMPLES, *_around(added, theirs.alphabet)]
    out, lost = [], dict[int, None]()
    for n, (text, a, b) in enumerate(
        zip(samples, ours(samples), theirs.tokenize(samples), strict=True)
    ):
        if n >= len(SAMPLES):  # of the text around them, spaces at its ends may differ
            missing = _missing([i for i in a if i in added], [i for i in b if i in added])
            lost |= dict.fromkeys(missing)
        elif a != b:
            at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), 0)
            out.append(
                f"{text.splitlines()[0][:40]!r} is {len(a)} tokens in llama.cpp, {len(b)} in the "
                f"source's tokenizer; token {at} is the first that differs"
            )
    if lost:
        names = ", ".join(repr(added[i]) for i in [*lost][:3])
        out.append(
            f"{len(lost)} of {len(added)} added tokens are cut to pieces in llama.cpp ({names})"
        )
    return out


TOGETHER = 16  # added tokens in one text


def _around(added: Mapping[int, str], alphabet: str) -> list[str]:
    """Texts with all added tokens in them, each between random strings of letters."""
    draw = random.Random(0)
    tokens = [*added.values()]
    return [
        "".join(
            "".join(draw.choices(alphabet, k=draw.randrange(1, 9))) + token
            for token in tokens[start : start + TOGETHER]
        )
        + alphabet[:1]
        for start in range(0, len(tokens), TOGETHER)
    ]


def _missing(found: Sequence[int], wanted: Sequence[int]) -> list[int]:
    """What of `wanted` is not in `found`, as often as it should be."""
    return [i for i in dict.fromkeys(wanted) if found.count(i) < wanted.count(i)]
