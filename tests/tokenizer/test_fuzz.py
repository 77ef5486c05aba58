"""Small files in which anything may stand: read, or refused by name in one line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from quantkit.errors import QuantkitError, TokenizerError
from quantkit.gguf.key_values import KeyValueWriter
from quantkit.model.metadata import add_general, with_vocabulary
from quantkit.source.checkpoint_files import CheckpointFiles
from tests.attacks.structured import places, replaced
from tests.vocabularies import write_files

COMMON = settings(
    max_examples=60, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 600), st.just(1 << 70), st.floats(), st.text(),
    st.sampled_from(["<s>", "▁", "Ġ", "BPE", "NFC", "\ud800", "a b", "<0x41>"]),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def paths(data: Any) -> list[tuple[Any, ...]]:
    return places(data, few=3, most=30)


def attempt(directory: Path) -> None:
    """Write a vocabulary's keys; what is refused is refused by name, in one line."""
    refused(with_vocabulary, directory, "LlamaForCausalLM", 520, None)


def refused(write: Callable[..., Any], directory: Path, *rest: Any) -> None:
    message = ""
    try:
        write(KeyValueWriter("llama"), CheckpointFiles.local(directory), *rest)
    except QuantkitError as e:
        message = str(e)
    assert "\n" not in message


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    names = (
        "llama-dense",
        "mixtral-4x-hfvocab",
        "mixtral-4x",
        "phimoe",
        "qwen2-dense-slowtok",
        "kimi-k2",
        "meta-llama3-4x8b-instruct-v2",
    )
    return {n: write_files(n, tmp_path_factory.mktemp(n)) for n in names}


@contextmanager
def instead(path: Path, data: bytes) -> Iterator[None]:
    """Other bytes in a file, for a while."""
    original = path.read_bytes() if path.exists() else None
    path.write_bytes(data)
    try:
        yield
    finally:
        path.unlink() if original is None else path.write_bytes(original)


@pytest.mark.parametrize(
    ("case", "name"),
    [
        ("llama-dense", "tokenizer.json"),
        ("llama-dense", "tokenizer_config.json"),
        ("mixtral-4x-hfvocab", "tokenizer.json"),
        ("mixtral-4x", "tokenizer_config.json"),
        ("phimoe", "added_tokens.json"),
        ("qwen2-dense-slowtok", "vocab.json"),
        ("kimi-k2", "tokenizer_config.json"),
    ],
)
def test_any_value_in_json(case: str, name: str, directories: dict[str, Path]) -> None:
    path = directories[case] / name
    original = json.loads(path.read_text(encoding="utf-8"))
    where = st.sampled_from(paths(original))

    @COMMON
    @given(where, VALUES)
    @example(next(iter(paths(original))), "\n")  # which a library quotes in what it says
    def check(place: tuple[Any, ...], value: Any) -> None:
        text = json.dumps(replaced(original, place, value))
        with instead(path, text.encode()):
            attempt(directories[case])

    check()


@pytest.mark.parametrize(
    ("case", "name"),
    [
        ("mixtral-4x", "tokenizer.model"),
        ("kimi-k2", "tiktoken.model"),
        ("qwen2-dense-slowtok", "merges.txt"),
        ("llama-dense", "tokenizer.json"),
    ],
)
def test_any_bytes(case: str, name: str, directories: dict[str, Path]) -> None:
    path = directories[case] / name
    original = path.read_bytes()
    at = st.integers(0, len(original) - 1)

    @COMMON
    @given(at, st.binary(max_size=8), st.booleans())
    def check(i: int, data: bytes, cut: bool) -> None:
        rest = b"" if cut else original[i + len(data) :]
        with instead(path, original[:i] + data + rest):
            attempt(directories[case])

    check()


def test_nesting_without_end(directories: dict[str, Path]) -> None:
    directory = directories["mixtral-4x"]
    with instead(directory / "tokenizer_config.json", b'{"a":' * 100_000):
        attempt(directory)


FRONT_MATTER = st.dictionaries(
    st.sampled_from(["license", "tags", "language", "base_model", "datasets", "name", "version",
                     "model_name", "size_label", "license_name", "pipeline_tag"]),
    VALUES, max_size=4,
)  # fmt: skip


def test_any_model_card(directories: dict[str, Path]) -> None:
    directory = directories["meta-llama3-4x8b-instruct-v2"]

    @COMMON
    @given(st.one_of(FRONT_MATTER.map(json.dumps), st.text()))
    def check(front: str) -> None:
        text = f"---\n{front}\n---\n# A model\n"
        with instead(directory / "README.md", text.encode("utf-8", "surrogatepass")):
            refused(add_general, directory, [])

    check()


def test_any_generation_config(directories: dict[str, Path]) -> None:
    directory = directories["meta-llama3-4x8b-instruct-v2"]
    keys = st.sampled_from(["temperature", "top_k", "top_p", "repetition_penalty", "mirostat"])

    @COMMON
    @given(st.dictionaries(keys, VALUES, max_size=3) | VALUES)
    def check(config: Any) -> None:
        with instead(directory / "generation_config.json", json.dumps(config).encode()):
            refused(add_general, directory, [])

    check()


def test_a_panic_of_the_library_is_one_line(
    directories: dict[str, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    """It cuts a prefix off the second half of a merge, which is shorter; and by bytes, where the
    panic ends the process."""
    directory = directories["llama-dense"]
    path = directory / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    told = {"x" * 16: "out of (range|bounds)", "x": "(it was tried, and|a char boundary)"}
    for prefix, words in told.items():  # as this version of the library has it, or an older one
        tokenizer["model"]["continuing_subword_prefix"] = prefix
        with instead(path, json.dumps(tokenizer).encode()):
            files = CheckpointFiles.local(directory)
            with pytest.raises(TokenizerError, match=rf"tokenizer\.json: .*{words}"):
                with_vocabulary(KeyValueWriter("llama"), files, "LlamaForCausalLM", 520, None)
    assert capfd.readouterr().err == ""
