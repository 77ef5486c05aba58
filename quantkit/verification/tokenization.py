"""How a file splits text, in llama.cpp, and how the tokenizer of its checkpoint does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from quantkit.errors import LlamaError, LlamaMissing, TokenizerError
from quantkit.tokenizer.vocabulary import malformed
from quantkit.verification import apart
from quantkit.verification.llama_cpp import library

Tokenize = Callable[[Sequence[str]], list[list[int]]]  # texts -> the token ids of each

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


def reference(directory: Path) -> Tokenize | None:
    """The tokenizer of a checkpoint, by the library that it was made for; None where it is of a
    kind that only its own code reads. Raises TokenizerError."""
    model, fast = directory / "tokenizer.model", directory / "tokenizer.json"
    with malformed(TokenizerError, f"{directory}: malformed tokenizer files"):
        if fast.is_file():
            from tokenizers import Tokenizer

            tokenizer = Tokenizer.from_file(str(fast))
            return lambda texts: [
                list(tokenizer.encode(text, add_special_tokens=False).ids) for text in texts
            ]
        if model.is_file():
            from sentencepiece import SentencePieceProcessor

            processor = SentencePieceProcessor(model_file=str(model))
            return lambda texts: [list(processor.encode(text)) for text in texts]
    return None


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


def differences(ours: Tokenize, theirs: Tokenize) -> list[str]:
    """Lines on the samples that the file splits otherwise than the source."""
    out = []
    for text, a, b in zip(SAMPLES, ours(SAMPLES), theirs(SAMPLES), strict=True):
        if a != b:
            at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), 0)
            out.append(
                f"{text.splitlines()[0][:40]!r} is {len(a)} tokens in llama.cpp, {len(b)} in the "
                f"source's tokenizer; token {at} is the first that differs"
            )
    return out
