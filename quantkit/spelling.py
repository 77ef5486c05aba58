"""How a file splits text, in llama.cpp, and how the tokenizer of its checkpoint does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from quantkit.errors import TokenizerError
from quantkit.llama import Llama
from quantkit.tokenizer import malformed

Split = Callable[[str], list[int]]

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


def reference(directory: Path) -> Split | None:
    """The tokenizer of a checkpoint, by the library that it was made for; None where it is of a
    kind that only its own code reads. Raises TokenizerError."""
    model, fast = directory / "tokenizer.model", directory / "tokenizer.json"
    with malformed(TokenizerError, f"{directory}: malformed tokenizer files"):
        if fast.is_file():
            from tokenizers import Tokenizer

            tokenizer = Tokenizer.from_file(str(fast))
            return lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids)
        if model.is_file():
            from sentencepiece import SentencePieceProcessor

            processor = SentencePieceProcessor(model_file=str(model))
            return lambda text: list(processor.encode(text))
    return None


def splitting(file: Path) -> Split:
    """The vocabulary of a GGUF file, in llama.cpp. Raises LlamaMissing, LlamaError."""
    model = Llama(file, 0)
    return lambda text: model.tokenize(text.encode()).tolist()


def differences(ours: Split, theirs: Split) -> list[str]:
    """Lines on the samples that the file splits otherwise than the source."""
    out = []
    for text in SAMPLES:
        a, b = ours(text), theirs(text)
        if a != b:
            at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), 0)
            out.append(
                f"{text.splitlines()[0][:40]!r} is {len(a)} tokens in llama.cpp, {len(b)} in the "
                f"source's tokenizer; token {at} is the first that differs"
            )
    return out
