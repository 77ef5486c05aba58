"""Vocabularies at which llama.cpp ends when it loads them, splits a text, or spells a token: each
is refused, and nothing that it works with is."""

from __future__ import annotations

import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit.gguf.container import KeyValue, array, header_bytes, string, uint32
from quantkit.gguf.container import scalar as number
from quantkit.llama.llama_cpp import Llama
from quantkit.loading import splitting
from quantkit.loading.vocabulary import faults
from tests.attacks.headers import apart

NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6
BYTES = [f"<0x{b:02X}>" for b in range(256)]
# every byte alone, as text and as none; characters of two to four bytes, some of them cut off
TEXTS = [bytes([b]) for b in range(256)] + [
    b"a  b\n\n c", "é\u3042🙂 \ue000\t".encode(), b"\xf0\x9f", b"x\xc3", b"\xe3\x81" * 3,
]  # fmt: skip
SPACE = "\u2581"
Keys = dict[str, Any]


def pieces() -> Keys:
    """A SentencePiece vocabulary."""
    tokens = ["<unk>", "<s>", "</s>", *BYTES, SPACE, "a", "b", SPACE + "a"]
    types = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * 4]
    return {
        "model": "llama", "tokens": tokens, "token_type": types,
        "scores": [-float(i) for i in range(len(tokens))],
    }  # fmt: skip


def plamo() -> Keys:
    return pieces() | {"model": "plamo2", "add_bos_token": True}


def merged() -> Keys:
    letters = [*map(chr, range(0x21, 0x7F)), "\u0120", "\u010a"]
    return {
        "model": "gpt2", "pre": "gpt-2", "tokens": ["<|endoftext|>", *letters, "ab"],
        "token_type": [CONTROL, *[NORMAL] * (len(letters) + 1)], "merges": ["a b"],
    }  # fmt: skip


def words() -> Keys:
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", SPACE + "a", "b"]
    return {
        "model": "bert", "tokens": tokens, "token_type": [CONTROL] * 4 + [NORMAL] * 2,
        "unknown_token_id": 1, "bos_token_id": 2, "seperator_token_id": 3, "padding_token_id": 0,
    }  # fmt: skip


def unigram() -> Keys:
    tokens = ["<pad>", "</s>", "<unk>", SPACE, "a", SPACE + "a"]
    return {
        "model": "t5", "tokens": tokens, "token_type": [CONTROL, CONTROL, UNKNOWN] + [NORMAL] * 3,
        "scores": [0.0, 0.0, 0.0, -2.0, -3.0, -1.0], "precompiled_charsmap": charsmap(),
    }  # fmt: skip


def rwkv() -> Keys:
    escaped = [f"\\x{b:02x}" for b in range(256)]
    return {"model": "rwkv", "tokens": ["<s>", *escaped, "\\n\\n", "ab\\\\", "\\xe3\\x81"]}


def charsmap(size: int = 512, offset: int = 2, texts: bytes = b"x\0yz\0") -> list[int]:
    """A table in which `a` becomes another text, that at `offset`."""
    nodes = np.zeros(size, "<u4")
    nodes[ord("a")] = ord("a") | 1 << 8 | 256 << 10
    if size > ord("a") + 256:
        nodes[ord("a") + 256] = offset
    return [*np.uint32(nodes.nbytes).tobytes(), *nodes.tobytes(), *texts]


def kv(keys: Keys) -> list[KeyValue]:
    """The metadata of a file of a vocabulary alone."""
    keys = dict(keys)
    out = [string("general.architecture", "llama"), string("general.name", keys.pop("name", "x"))]
    for key, value in keys.items():
        name = f"tokenizer.ggml.{key}"
        if key == "precompiled_charsmap":
            out.append(array(name, value, 0))  # of UINT8
        elif isinstance(value, list):
            out.append(array(name, value))
        elif isinstance(value, bool):
            out.append(number(name, 7, value))
        else:
            out.append(string(name, value) if isinstance(value, str) else uint32(name, value))
    return out


def said(keys: Keys) -> str:
    return "; ".join(faults({item.key: item for item in kv(keys)}, []))


def spells(path: Path) -> str:
    """What llama.cpp says to odd texts; a token that is none; a text that comes back as another."""
    signal.alarm(20)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 28), resource.RLIM_INFINITY))
    try:
        with Llama(path, 0) as model:
            for text in TEXTS:
                for special in (True, False):
                    ids = model.tokenize(text, special)
                    if ids.size and not 0 <= ids.min() <= ids.max() < model.n_vocab:
                        return f"a token {ids.min()}"
    except Exception as e:
        return str(e)
    return ""


def without(make: Callable[[], Keys], *texts: str, **more: Any) -> Keys:
    """A vocabulary less some tokens, with keys that are otherwise; None takes one out."""
    keys = make()
    kept = [i for i, text in enumerate(keys["tokens"]) if text not in texts]
    for name in ("tokens", "token_type", "scores"):
        if name in keys:
            keys[name] = [keys[name][i] for i in kept]
    return {k: v for k, v in (keys | more).items() if v is not None}


def typed(make: Callable[[], Keys], text: str, kind: int, as_: str | None = None) -> Keys:
    """A vocabulary in which a token is of another type, and perhaps of another text."""
    keys = make()
    at = keys["tokens"].index(text)
    keys["token_type"][at] = kind
    keys["tokens"][at] = as_ or text
    return keys


GOOD = {
    "pieces": pieces(),
    "pieces, a letter for its byte": without(pieces, "<0x61>"),
    "pieces, whole numbers as scores": pieces() | {"scores": [*range(len(pieces()["tokens"]))]},
    "plamo": plamo(),
    "merged": merged(),
    "merged, Phi-3": merged() | {
        "name": "Phi-3 mini",
        "tokens": [*merged()["tokens"], "<s>", "</s>", "<unk>"],
        "token_type": [*merged()["token_type"], CONTROL, CONTROL, CONTROL],
    },
    "a name of Phi-3's, of nothing it looks for": without(merged, name="Phi-3", pre="jina-v2-de"),
    "words": words(),
    "unigram": unigram(),
    "unigram, no table": without(unigram, precompiled_charsmap=None),
    "rwkv": rwkv(),
    "rwkv, a byte that is unknown": without(rwkv, "\\x7f", unknown_token_id=0),
}  # fmt: skip
# what llama.cpp ends at, and what is said of it here
BAD = {
    "pieces, no byte": (without(pieces, *BYTES), "254 of 256 bytes have no token (<0x00>, <0x01>,"),
    "pieces, not this byte": (without(pieces, "<0xC3>"), "1 of 256 bytes have no token (<0xC3>)"),
    "plamo, not this byte": (without(plamo, "<0x0A>"), "1 of 256 bytes have no token (<0x0A>)"),
    "plamo, a byte that is a word": (typed(plamo, "<0x0A>", NORMAL), "(<0x0A>): llama.cpp does"),
    "plamo, the first is a byte": (
        without(plamo, *["<unk>", "<s>", "</s>"]), "1 of 256 bytes have no token (<0x00>)"),
    "words, a byte": (typed(words, "b", BYTE), "is a byte, which llama.cpp ends at"),
    "words, no separator": (
        without(words, seperator_token_id=None), "may need a seperator_token_id"),
    "words, a separator past the end": (
        words() | {"seperator_token_id": 6}, "may need a seperator_token_id"),
    "words, none unknown": (without(words, unknown_token_id=None), "may need a unknown_token_id"),
    "unigram, none unknown": (
        without(unigram, *["<unk>", SPACE, "a", SPACE + "a"]), "may need a unknown_token_id"),
    "unigram, a table that ends": (
        unigram() | {"precompiled_charsmap": charsmap(300)}, "points past its end"),
    "unigram, a table that is smaller": (
        unigram() | {"precompiled_charsmap": charsmap(128)}, "points past its end"),
    "unigram, a text past the table": (
        unigram() | {"precompiled_charsmap": charsmap(offset=5)}, "points past its texts"),
    "unigram, a text without an end": (
        unigram() | {"precompiled_charsmap": charsmap(texts=b"x\0yz")}, "points past its texts"),
    "unigram, no text": (
        unigram() | {"precompiled_charsmap": charsmap(texts=b"")}, "ends too early"),
    "merged, a name of Phi-3's": (without(merged, name="My-Phi3-merge"), "has no token </s>"),
    "merged, cut at spaces": (merged() | {"pre": "whitespace"}, "llama.cpp ends at two spaces"),
    "merged, no token to begin with": (
        merged() | {"pre": "glm4", "add_bos_token": True}, "texts get a bos_token_id"),
    "merged, a byte misspelled": (typed(merged, "a", BYTE), "is spelled 'a', not <0x0A>"),
    "gemma4, no token to begin with": (merged() | {"model": "gemma4"}, "texts get a bos_token_id"),
    "rwkv, a byte that others begin with": (without(rwkv, "\\x0a"), "(<0x0A>): llama.cpp goes on"),
    "rwkv, no such byte": (without(rwkv, "\\x7f"), "(<0x7F>): llama.cpp goes on"),
    "tokens that are numbers": (without(pieces, tokens=[1, 2]), "is no array of STRING"),
}  # fmt: skip
# what it works with, and does wrongly
WRONG = {
    "no types": (without(pieces, token_type=None), "which tokens are bytes is not known"),
    "a type that there is not": (typed(pieces, "a", 9), "of type 9, which llama.cpp shows nothing"),
    "a byte of no number": (typed(pieces, "<0x41>", BYTE, "<0xZZ>"), "is spelled '<0xZZ>'"),
    "a merge of one": (merged() | {"merges": ["a b", "ab"]}, "merge 'ab' is not two tokens"),
    "a merge with nothing": (merged() | {"merges": ["a "]}, "merge 'a ' is not two tokens"),
    "no scores": (without(unigram, scores=None), "scores is not there"),
    "all scores alike": (unigram() | {"scores": [0.0] * 6}, "scores are all 0"),
}  # fmt: skip


def test_what_llama_cpp_ends_at(tmp_path: Path) -> None:
    """Each is said here, by name; and llama.cpp does end, or gives a token that is none."""
    every = {name: keys for name, (keys, _) in BAD.items()} | GOOD
    paths = []
    for i, keys in enumerate(every.values()):
        paths.append(tmp_path / f"{i}.gguf")
        paths[-1].write_bytes(header_bytes(tuple(kv(keys)), ()))
    answers = dict(zip(every, apart(paths, spells), strict=True))
    assert {name: answers[name] for name in GOOD} == dict.fromkeys(GOOD, "")
    assert [name for name in BAD if not answers[name]] == []


@pytest.mark.parametrize("name", [*BAD, *WRONG])
def test_what_is_said(name: str) -> None:
    keys, words = {**BAD, **WRONG}[name]
    assert words in said(keys)


@pytest.mark.parametrize("name", GOOD)
def test_nothing_is_said_of_what_works(name: str) -> None:
    assert said(GOOD[name]) == ""


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (rb"a\tb\n", b"a\tb\n"), (rb"\x0a\xff", b"\x0a\xff"), (rb"\\\'", b"\\'"),
        (rb"\x4", b""), (b"\\", b""), (rb"\xFF", bytes([(22 * 16 + 22) & 255])),
    ],
)  # fmt: skip
def test_tokens_of_rwkv(text: bytes, found: bytes) -> None:
    assert splitting.unescaped(text) == found
