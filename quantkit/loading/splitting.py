"""What llama.cpp asks of a vocabulary when it splits a text, or spells a token: where it would end,
go on for ever, or give a token that there is none of.

Of b11549's `src/llama-vocab.cpp`: the sessions of the tokenizers, `byte_to_token`,
`token_to_piece`, and what `load` does by a model's name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache

import numpy as np

from quantkit.gguf.container import KeyValue
from quantkit.loading.values import texts

_SPELLED = re.compile(rb"<0x[0-9A-Fa-f]{2}>")
_BYTE, _KINDS = 6, range(1, 7)  # the types of tokens
PLAMO = ("plamo2", "plamo3")
# the unknown token and the separator of vocabularies that cannot do without, where no key names
# them
_NEEDED = {
    "bert": (("unknown_token_id", 100), ("seperator_token_id", 102)),
    "t5": (("unknown_token_id", 2),),
}
# names of models that it takes to be Phi-3, whose tokens it then looks for
_PHI3 = ("phi-3", "phi3")
_OF_PHI3 = (b"</s>", b"<unk>", b"<s>", b"<|endoftext|>")
_OTHERS = re.compile("jina-v2-(de|es|code)|mmbert")  # values of `pre` that are asked for before


def faults(kv: Mapping[str, KeyValue], model: str, name: str, arch: str) -> Iterator[str]:
    """What is wrong with a vocabulary of the kind `model`; `kv` are its keys. `name` is that of the
    whole model."""
    tokens, types = kv["tokens"], kv.get("token_type")
    count = tokens.length
    if types is not None and (types.element_type != "INT32" or types.length != count):
        types = None  # said already
    elif types is None and model in ("llama", *PLAMO):
        yield "tokenizer.ggml.token_type is not there: which tokens are bytes is not known"
    if types is not None and (odd := set(types.value) - {*_KINDS}):
        yield f"a token is of type {min(odd)}, which llama.cpp shows nothing of"
    for key, usual in _NEEDED.get(model, ()):
        item = kv.get(key)
        if item is not None and item.type != "UINT32":
            continue  # said already
        if usual >= count and (item is None or item.value >= count):
            yield f"texts may need a {key}, and none of the {count} tokens is named"
    if model == "bert":
        if types is not None and _BYTE in types.value:
            yield "a token of a WordPiece vocabulary is a byte, which llama.cpp ends at"
    elif types is not None and model != "rwkv" and (text := _misspelled(tokens, types)) is not None:
        yield f"a token of one byte is spelled {_shown(text)}, not <0x0A>"
    yield from _bytes(kv, model, types)
    yield from _phi3(kv, name, arch)
    if kv.get("merges") is not None and model not in ("llama", "bert", "t5", "rwkv", *PLAMO):
        merges = kv["merges"]
        if merges.element_type == "STRING" and (text := _unjoined(merges)) is not None:
            yield f"the merge {_shown(text)} is not two tokens with a space between them"


def _shown(text: bytes) -> str:
    return repr(text.decode("utf-8", "replace"))


def _bytes(kv: Mapping[str, KeyValue], model: str, types: KeyValue | None) -> Iterator[str]:
    """Characters that are no tokens are written as their bytes, and each of those is one."""
    tokens = kv["tokens"]
    if model == "llama":
        missing = _without_bytes(tokens)
        why = "llama.cpp ends at a text with a character that is no token"
    elif model in PLAMO and types is not None:
        missing = _without_typed(tokens, types)
        why = "llama.cpp does not load it"
    elif model == "rwkv":
        item = kv.get("unknown_token_id")
        unknown = item is not None and item.value < tokens.length
        missing = _unreachable(tokens, unknown)
        why = "llama.cpp goes on for ever, or ends, at a text that has them"
    else:
        return
    if missing:
        some = ", ".join(f"<0x{b:02X}>" for b in missing[:3]) + ", ..." * (len(missing) > 3)
        yield f"{len(missing)} of 256 bytes have no token ({some}): {why}"


def _phi3(kv: Mapping[str, KeyValue], name: str, arch: str) -> Iterator[str]:
    pre = kv["pre"].value if "pre" in kv else ""
    if _OTHERS.search(str(pre)) or "nomic-bert-moe" in arch or "jina-bert-v3" in arch:
        return
    if not any(word in name.lower() for word in _PHI3):
        return
    there = {*texts(kv["tokens"])}
    if missing := [t.decode() for t in _OF_PHI3 if t not in there]:
        yield (
            f"general.name is {name!r}, which llama.cpp takes to be Phi-3, and it has no token "
            f"{missing[0]}: name the directory otherwise, or set general.name with --override-kv"
        )


# what follows is asked of every output of a run, and its vocabulary is one object in all of them
@lru_cache(maxsize=4)
def _misspelled(tokens: KeyValue, types: KeyValue) -> bytes | None:
    """The text of the first token that is a byte and not spelled as one; None without."""
    kinds = types.value
    pairs = zip(kinds, texts(tokens), strict=True) if _BYTE in kinds else ()
    return next((t for kind, t in pairs if kind == _BYTE and not _SPELLED.fullmatch(t)), None)


@lru_cache(maxsize=4)
def _without_bytes(tokens: KeyValue) -> tuple[int, ...]:
    """Bytes that are no token of a SentencePiece vocabulary, in either spelling."""
    there = {text for text in texts(tokens) if len(text) in (1, 6)}
    return tuple(b for b in range(256) if b"<0x%02X>" % b not in there and b"%c" % b not in there)


@lru_cache(maxsize=4)
def _without_typed(tokens: KeyValue, types: KeyValue) -> tuple[int, ...]:
    """Bytes that are no token of PLaMo's; the first token is none to it."""
    pairs = enumerate(zip(types.value, texts(tokens), strict=True))
    there = {
        int(text[3:5], 16)
        for i, (kind, text) in pairs
        if i and kind == _BYTE and _SPELLED.fullmatch(text)
    }
    return tuple(b for b in range(256) if b not in there)


@lru_cache(maxsize=4)
def _unreachable(tokens: KeyValue, unknown: bool) -> tuple[int, ...]:
    """Bytes that RWKV's tokenizer cannot go past: they are no token, and another begins with them,
    or there is no unknown token to take their place."""
    spelled = [unescaped(text) for text in texts(tokens)]
    alone = {text[0] for text in spelled if len(text) == 1}
    first = {text[0] for text in spelled if text}
    return tuple(b for b in range(256) if b not in alone and (b in first or not unknown))


def unescaped(text: bytes) -> bytes:
    """A token of RWKV's as its bytes: `llama_unescape_rwkv_token`, whose hexadecimal digits are
    small letters."""
    out, i = bytearray(), 0
    short = {ord("t"): 9, ord("n"): 10, ord("r"): 13}
    while i < len(text):
        c = text[i]
        i += 1
        if c != 0x5C:
            out.append(c)
        elif i < len(text) and text[i] == ord("x"):
            digits = [d - 87 if d >= 97 else d - 48 for d in text[i + 1 : i + 3]]
            i += 3
            if len(digits) == 2:
                out.append((digits[0] * 16 + digits[1]) & 255)
        elif i < len(text):
            out.append(short.get(text[i], text[i]))
            i += 1
    return bytes(out)


@lru_cache(maxsize=4)
def _unjoined(merges: KeyValue) -> bytes | None:
    """The first merge that is not two texts with a space between them; None without."""
    return next(
        (text for text in texts(merges) if not 0 < text.find(b" ", 1) < len(text) - 1), None
    )


def charsmap_fault(data: bytes) -> str:
    """What llama.cpp ends at in a table of replaced characters (`normalize_prefix`): a size of four
    bytes, so many bytes of a double array, texts that end with a NUL. Empty if there is nothing."""
    size = int.from_bytes(data[:4], "little")
    if len(data) < 4 or size + 4 >= len(data):
        return "ends too early"
    array = np.frombuffer(data, "<u4", size // 4, 4).astype(np.int64)
    if not size // 4:
        return ""
    last = data.rfind(b"\0", 4 + size) - 4 - size  # a text from there on has no end
    offset = (array >> 10) << ((array & 512) >> 6)
    seen = np.zeros(len(array), bool)
    at = offset[:1]
    letters = np.arange(1, 256)
    while len(at):
        children = at[:, None] ^ letters  # [nodes, letters]
        if (children >= len(array)).any():
            return "points past its end"
        held = (array[children] & (1 << 31 | 0xFF)) == letters
        nodes = np.unique(children[held])
        nodes = nodes[~seen[nodes]]
        seen[nodes] = True
        at = nodes ^ offset[nodes]
        leaves = at[(array[nodes] >> 8) & 1 == 1]
        if (at >= len(array)).any():
            return "points past its end"
        if len(leaves) and int((array[leaves] & 0x7FFFFFFF).max()) > last:
            return "points past its texts"
    return ""
