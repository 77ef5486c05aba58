"""One thing changed in the header of a GGUF file: counts, types, offsets, names, order, alignment,
padding, shapes, lengths. Each change gives words for what it did, or none where it cannot."""

from __future__ import annotations

import contextlib
import random
import re
import struct
from collections.abc import Callable
from dataclasses import replace
from math import prod

from quantkit.gguf.types import TYPES
from quantkit.loading.keys import ARRAYS, GENERAL, KEYS
from tests.attacks.header_parts import Parts, counted

_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_CODES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}

_NAMES = (b"", b"x" * 63, b"x" * 64, b"x" * 65, b"a\0b", b"token_embd.weight", b"output.weight",
          b"blk.0.attn_q.weight", b"blk.1.ffn_norm.weight", b"rope_freqs.weight", b"\xff\xfe",
          b"blk.00.attn_q.weight", b"blk.9.attn_q.weight", b"blk.0.attn_q.bias",
          b"blk.0.attn_q.scale", b"output_norm.bias", b"a\nb", "größe".encode(), b"blk.+0.a",
          b"token_types.weight", b"cls.weight", b"blk.0.attn_norm.weight", b"blk.-1.x")  # fmt: skip
_NUMBERS = (0, 1, 2, 3, 5, 7, 8, 16, 31, 32, 33, 64, 100, 127, 128, 129, 255, 256, 257, 511, 512,
            513, 1000, 1023, 1024, 1025, 4096, 65535, 65536, 1 << 20, (1 << 31) - 1, 1 << 31,
            (1 << 32) - 1, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)  # fmt: skip
_REALS = (0.0, -0.0, 1.0, -1.0, 1e-38, 1e-5, 1e30, float("inf"), float("-inf"), float("nan"), 0.5)
_KEYS = tuple(k.encode() for k in KEYS)
_GENERAL = (*(k.encode() for k in (*GENERAL, *ARRAYS)), *(b"tokenizer.ggml." + k for k in (
    b"bos_token_id", b"eos_token_id", b"suppress_tokens", b"precompiled_charsmap", b"merges",
    b"seperator_token_id", b"mask_token_id", b"fim_pre_token_id", b"eot_token_id", b"scores",
    b"token_type",
)))  # fmt: skip
_WORDS = (b"", b"none", b"linear", b"yarn", b"llama", b"gpt2", b"bert", b"t5", b"no_vocab", b"rwkv",
          b"default", b"qwen2", b"clip", b"qwen3moe", b"\xff", b"longrope", b"mamba")  # fmt: skip


def _value(rng: random.Random, kind: int) -> bytes:
    if kind == 8:
        return counted(rng.choice(_WORDS))
    if kind in (6, 12):
        return struct.pack(f"<{_CODES[kind]}", rng.choice(_REALS))
    n = rng.choice(_NUMBERS) & (1 << 8 * _SIZES[kind]) - 1
    return n.to_bytes(_SIZES[kind], "little")


def _array(rng: random.Random, kind: int, n: int) -> bytes:
    return struct.pack("<IIQ", 9, kind, n) + b"".join(_value(rng, kind) for _ in range(n))


def _kind(rng: random.Random) -> int:
    return rng.choice((0, 1, 2, 3, 4, 4, 4, 5, 6, 6, 7, 7, 8, 8, 10, 11, 12))


def key_twice(p: Parts, rng: random.Random) -> str:
    p.kv.insert(rng.randrange(len(p.kv) + 1), rng.choice(p.kv))
    return "a key twice"


def key_gone(p: Parts, rng: random.Random) -> str:
    key, _ = p.kv.pop(rng.randrange(len(p.kv)))
    return f"without {key.decode('utf-8', 'replace')}"


def key_renamed(p: Parts, rng: random.Random) -> str:
    at = rng.randrange(len(p.kv))
    key, raw = p.kv[at]
    new = rng.choice((key + b"x", key[:-1], b"", key + b"\0", b"x" * 70_000, key.upper(), b"\xff",
                      rng.choice(p.kv)[0]))  # fmt: skip
    p.kv[at] = new, raw
    return "a key renamed"


def key_moved(p: Parts, rng: random.Random) -> str:
    rng.shuffle(p.kv)
    return "keys in another order"


def key_added(p: Parts, rng: random.Random) -> str:
    arch = _arch(p)
    key = arch + b"." + rng.choice(_KEYS) if rng.random() < 0.7 else rng.choice(_GENERAL)
    if all(k != key for k, _ in p.kv):
        p.kv.append((key, _any(rng)))
    return f"with {key.decode('utf-8', 'replace')}"


def _arch(p: Parts) -> bytes:
    return next((raw[12:] for key, raw in p.kv if key == b"general.architecture"), b"llama")


def _any(rng: random.Random) -> bytes:
    kind = _kind(rng)
    if rng.random() < 0.25:
        return _array(rng, kind, rng.choice((0, 1, 2, 3, 4, 100, 512, 513)))
    return struct.pack("<I", kind) + _value(rng, kind)


def value_other(p: Parts, rng: random.Random) -> str:
    """Another value of the same type."""
    at = rng.randrange(len(p.kv))
    key, raw = p.kv[at]
    (kind,) = struct.unpack_from("<I", raw)
    if kind == 9:
        element, count = struct.unpack_from("<IQ", raw, 4)
        if element == 8 or not count:
            return ""
        size, i = _SIZES[element], rng.randrange(count)
        data = bytearray(raw)
        data[16 + i * size : 16 + (i + 1) * size] = _value(rng, element)
        p.kv[at] = key, bytes(data)
    elif kind in _SIZES and kind not in (6, 12) and rng.random() < 0.4:  # one off
        size = _SIZES[kind]
        n = int.from_bytes(raw[4:], "little") + rng.choice((-1, 1))
        p.kv[at] = key, raw[:4] + (n & (1 << 8 * size) - 1).to_bytes(size, "little")
    else:
        p.kv[at] = key, raw[:4] + _value(rng, kind)
    return f"value of {key.decode('utf-8', 'replace')}"


def value_kind(p: Parts, rng: random.Random) -> str:
    """A value of another type: the same number, or any."""
    at = rng.randrange(len(p.kv))
    key, raw = p.kv[at]
    (kind,) = struct.unpack_from("<I", raw)
    if kind in _SIZES and rng.random() < 0.5:
        (n,) = struct.unpack_from("<" + _CODES[kind], raw, 4)
        new = rng.choice((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12))
        n = float(n) if new in (6, 12) else int(n) if n == n and abs(n) < 1e30 else 0
        if new not in (6, 12):
            data = (int(n) & (1 << 8 * _SIZES[new]) - 1).to_bytes(_SIZES[new], "little")
        else:
            data = struct.pack("<" + _CODES[new], n)
        p.kv[at] = key, struct.pack("<I", new) + data
    else:
        p.kv[at] = key, _any(rng)
    return f"type of {key.decode('utf-8', 'replace')}"


def value_type_id(p: Parts, rng: random.Random) -> str:
    """The number of the type alone, its bytes left as they are."""
    at = rng.randrange(len(p.kv))
    key, raw = p.kv[at]
    new = rng.choice((*range(14), 255, 1 << 31))
    place = 4 if raw[:4] == b"\x09\0\0\0" and rng.random() < 0.5 else 0
    p.kv[at] = key, raw[:place] + struct.pack("<I", new) + raw[place + 4 :]
    return "a type's number"


def array_length(p: Parts, rng: random.Random) -> str:
    """An array that is longer or shorter, and right in itself."""
    found = [i for i, (_, raw) in enumerate(p.kv) if raw[:4] == b"\x09\0\0\0"]
    if not found:
        return ""
    at = rng.choice(found)
    key, raw = p.kv[at]
    element, count = struct.unpack_from("<IQ", raw, 4)
    items = _items(raw)
    how = rng.randrange(5)
    if how == 0 and items:
        items.pop(rng.randrange(len(items)))
    elif how == 1 and items:
        items.insert(rng.randrange(len(items)), rng.choice(items))
    elif how == 2 and items:
        items[rng.randrange(len(items))] = rng.choice(items)
    elif how == 3:
        items = items[: rng.choice((0, 1, count // 2))]
    elif items:
        i = rng.randrange(len(items))
        items[i] = _value(rng, element)
    p.kv[at] = key, raw[:8] + struct.pack("<Q", len(items)) + b"".join(items)
    return f"items of {key.decode('utf-8', 'replace')}"


def _items(raw: bytes) -> list[bytes]:
    element, count = struct.unpack_from("<IQ", raw, 4)
    count = min(count, len(raw))  # it may have been changed before
    if element != 8:
        size = _SIZES.get(element, 1)
        return [raw[16 + i * size : 16 + (i + 1) * size] for i in range(count)]
    out, at = [], 16
    for _ in range(count):
        end = at + 8 + int.from_bytes(raw[at : at + 8], "little")
        out.append(raw[at:end])
        at = end
    return out


def array_count(p: Parts, rng: random.Random) -> str:
    """The count alone."""
    found = [i for i, (_, raw) in enumerate(p.kv) if raw[:4] == b"\x09\0\0\0"]
    if not found:
        return ""
    at = rng.choice(found)
    key, raw = p.kv[at]
    (count,) = struct.unpack_from("<Q", raw, 8)
    new = rng.choice((count + 1, count - 1, *_NUMBERS)) & (1 << 64) - 1
    p.kv[at] = key, raw[:8] + struct.pack("<Q", new) + raw[16:]
    return "an array's count"


def tensor_twice(p: Parts, rng: random.Random) -> str:
    p.tensors.insert(rng.randrange(len(p.tensors) + 1), replace(rng.choice(p.tensors)))
    return "a tensor twice"


def tensor_gone(p: Parts, rng: random.Random) -> str:
    t = p.tensors.pop(rng.randrange(len(p.tensors)))
    return f"without {_role(t.name)}"


def _role(name: bytes) -> str:
    return re.sub(r"\d+", "N", name.decode("utf-8", "replace"))


def tensor_named(p: Parts, rng: random.Random) -> str:
    t = rng.choice(p.tensors)
    base, _, _ = t.name.rpartition(b".")
    t.name = rng.choice((t.name + b"x", t.name.upper(), base, base + b".bias", base + b".scale",
                         base + b".input_scale", t.name.replace(b"0", b"1"), t.name + b"\0",
                         t.name.ljust(63, b"x"), t.name.ljust(64, b"x"),
                         *rng.sample(_NAMES, 3)))  # fmt: skip
    return "a tensor renamed"


def tensor_added(p: Parts, rng: random.Random) -> str:
    t = replace(rng.choice(p.tensors), name=rng.choice(_NAMES))
    if rng.random() < 0.5:
        t.dims, t.kind = [32], 0
    p.tensors.insert(rng.randrange(len(p.tensors) + 1), t)
    return "a tensor more"


def tensor_order(p: Parts, rng: random.Random) -> str:
    rng.shuffle(p.tensors)
    return "tensors in another order"


def tensor_swapped(p: Parts, rng: random.Random) -> str:
    """Two names change places."""
    a, b = rng.choice(p.tensors), rng.choice(p.tensors)
    a.name, b.name = b.name, a.name
    return "names swapped"


def tensor_dims(p: Parts, rng: random.Random) -> str:
    t = rng.choice(p.tensors)
    how = rng.randrange(8)
    i = rng.randrange(len(t.dims))
    if how == 0:
        rng.shuffle(t.dims)
    elif how == 1:
        t.dims[i] += rng.choice((-1, 1, 32, -32))
    elif how == 2:
        t.dims[i] = rng.choice(_NUMBERS)
    elif how == 3:
        t.dims.append(rng.choice((1, 1, 2, 0)))
    elif how == 4:
        t.dims = [prod(t.dims)]
    elif how == 5 and len(t.dims) > 1 and t.dims[0] % 2 == 0:
        t.dims[:2] = [t.dims[0] // 2, t.dims[1] * 2]
    elif how == 6:
        t.dims = rng.choice(([], [1], [1] * 4, [1] * 5, [0], [32, 0], [1 << 32] * 4))[:]
    else:
        t.dims = [*t.dims[:i], 1, *t.dims[i:]]
    return f"shape of {_role(t.name)}"


def tensor_type(p: Parts, rng: random.Random) -> str:
    t = rng.choice(p.tensors)
    t.kind = rng.choice((rng.choice(TYPES).id, rng.choice(TYPES).id, rng.randrange(48), 1 << 31))
    return f"type of {_role(t.name)}"


def tensor_offset(p: Parts, rng: random.Random) -> str:
    step = rng.choice((1, 8, 16, 32, -32, 64, 4096, 1 << 63, -1))
    if rng.random() < 0.3:
        for t in p.tensors:
            t.offset += step
    else:
        rng.choice(p.tensors).offset += step
    return "offsets"


def offsets_swapped(p: Parts, rng: random.Random) -> str:
    a, b = rng.choice(p.tensors), rng.choice(p.tensors)
    a.offset, b.offset = b.offset, a.offset
    return "offsets swapped"


def alignment(p: Parts, rng: random.Random) -> str:
    n = rng.choice((0, 1, 2, 4, 8, 16, 32, 64, 128, 4096, 1 << 20, 48, 33, 1 << 31))
    kind = rng.choice((4, 4, 4, 4, 10, 5, 2))
    data = (n & (1 << 8 * _SIZES[kind]) - 1).to_bytes(_SIZES[kind], "little")
    p.kv.insert(
        rng.randrange(len(p.kv) + 1), (b"general.alignment", struct.pack("<I", kind) + data)
    )
    if n and rng.random() < 0.8:
        p.alignment = min(n, 1 << 16)
    return "an alignment"


def padding(p: Parts, rng: random.Random) -> str:
    right = p.head()
    p.padding = b""
    bare = len(p.head())
    p.padding = rng.choice((b"", bytes(max(len(right) - bare + rng.choice((1, 32, -1)), 0)),
                            b"\xff" * (len(right) - bare)))  # fmt: skip
    return "padding"


def counts(p: Parts, rng: random.Random) -> str:
    by = rng.choice((-1, 1, 2, -2, 1 << 31, 1 << 32, 1 << 62, 1 << 63, -1000))
    if rng.random() < 0.5:
        p.more_keys = by
    else:
        p.more_tensors = by
    return "a count"


def version(p: Parts, rng: random.Random) -> str:
    p.version = rng.choice((0, 1, 2, 2, 4, 5, 3 << 24, 3 << 16, 0x10003, 1 << 31))
    return "the version"


def magic(p: Parts, rng: random.Random) -> str:
    p.magic = rng.choice((b"GGUf", b"", b"GGML", b"\0\0\0\0", b"FUGG"))
    return "the magic"


def cut(p: Parts, rng: random.Random) -> str:
    p.cut = rng.choice((1, 4, 16, 31, 32, 33, 1000, rng.randrange(1, 1 << 22)))
    return "cut"


def longer(p: Parts, rng: random.Random) -> str:
    p.cut = -rng.choice((1, 4, 31, 32, 4096))
    return "longer"


def split_keys(p: Parts, rng: random.Random) -> str:
    """Keys of splits in a file that is none, or is one of another number."""
    for key, kind, n in (
        (b"split.no", 2, rng.choice((0, 0, 1, 5))),
        (b"split.count", 2, rng.choice((0, 1, 1, 2, 3, 65535))),
        (b"split.tensors.count", 5, rng.choice((len(p.tensors), 0, 1 << 31, 5))),
    ):
        if rng.random() < 0.8:
            if rng.random() < 0.2:
                kind = rng.choice((0, 2, 4, 5, 10))
            data = (n & (1 << 8 * _SIZES[kind]) - 1).to_bytes(_SIZES[kind], "little")
            p.kv.append((key, struct.pack("<I", kind) + data))
    return "keys of splits"


CHANGES: tuple[Callable[[Parts, random.Random], str], ...] = (
    key_twice, key_gone, key_gone, key_renamed, key_moved, key_added, key_added, value_other,
    value_other, value_other, value_kind, value_kind, value_type_id, array_length, array_length,
    array_count, tensor_twice, tensor_gone, tensor_named, tensor_named, tensor_added, tensor_order,
    tensor_swapped, tensor_dims, tensor_dims, tensor_type, tensor_type, tensor_offset,
    offsets_swapped, alignment, padding, counts, version, magic, cut, longer, split_keys,
)  # fmt: skip


_OF_OFFSETS = (tensor_offset, offsets_swapped, tensor_order)


def mutated(seed: Parts, rng: random.Random) -> Parts:
    """A copy with one thing changed, or a few; mostly laid out anew, so that nothing else is."""
    while True:
        p = seed.copy()
        for _ in range(rng.choice((1, 1, 1, 1, 2, 3))):
            if not p.kv or not p.tensors:
                break
            change, word = rng.choice(CHANGES), ""
            with contextlib.suppress(struct.error, KeyError, OverflowError):  # broken before
                word = change(p, rng)
            if word:
                p.done.append(word)
            if change not in _OF_OFFSETS and rng.random() < 0.9:
                p.lay_out()
        if p.done:
            return p
