"""Mutations that keep a small file's form: a JSON value in the place of another, a key twice, an
encoding, a length of a protobuf message. A few bytes flipped rarely come through a parser."""

from __future__ import annotations

import json
import random
from typing import Any

HUGE, DEEP = 10**30, 3000
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 255, 1 << 31, (1 << 31) - 1, 1 << 63, -(1 << 63), HUGE, 0.5,
    -0.0, 1e308, 1e-320, float("nan"), float("inf"), float("-inf"), "", "0", "1", "x", "\0", "\n",
    "\ud800", "\ufeffa", "\u202e", "▁", "Ġ", "<0x41>", "<s>", "a" * 5000, "../../etc/passwd",
    "/etc/passwd", ".", "model.safetensors", "model-00001-of-00002.safetensors\0", "BPE", "Regex",
    "NFC", "none", "default", "auto", "(a|aa)+$", "(?:" * 200, "(.*)*x", "[", "\\p{L}+" * 50,
    "{{ 1 / 0 }}", "{% for i in range(10**9) %}{% endfor %}", [], {}, [[]], [None], [1, "a"], [{}],
    {"a": None}, {"": 1}, {"type": "Sequence"}, {"type": "Split", "pattern": {"Regex": "(a|a)*$"}},
    {"String": ""}, ["a"] * 1000, [0] * 1000, [[1, 2]] * 3, {"content": "x", "id": -1},
)  # fmt: skip
LINES = (b"", b" ", b"a", b"a b c", b"\xff", b"=", b"9" * 5000, b"x" * 99_999, b"\0", b"a=b=c",
         b"IQ== -1", b"!", b"(a+)+$=q8_0")  # fmt: skip
BYTES = (b"", b"\xff" * 4, b"\0\0\xc0\x7f", b"\0\0\x80\xff", "▁".encode(), b"<0x41>", b"a" * 9999)
_NUMBERS = (b"9" * 5000, b"-0", b"1e999", b"-Infinity", b"NaN", b"0x10", b"01", b"1_000", b"1.")


class _Twice(dict[str, Any]):
    """An object in which a key is twice, as JSON may have it."""

    def __init__(self, of: dict[str, Any], key: str, other: Any) -> None:
        super().__init__(of)
        self.twice = [*of.items(), (key, other)]

    def items(self) -> Any:
        return self.twice


def places(
    data: Any, prefix: tuple[Any, ...] = (), few: int = 8, most: int = 40
) -> list[tuple[Any, ...]]:
    """Every place in a JSON value, a `few` at either end of a list or table of more than `most`."""
    items: list[tuple[Any, Any]] = []
    if isinstance(data, dict):
        items = list(data.items())
    elif isinstance(data, list):
        items = list(enumerate(data))
    found = [prefix] if prefix else []
    for key, value in items[:few] + items[-few:] if len(items) > most else items:
        found += places(value, (*prefix, key), few, most)
    return found


def replaced(data: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy with another value in a place."""
    if not path:
        return value
    copy = dict(data) if isinstance(data, dict) else list(data)
    copy[path[0]] = replaced(data[path[0]], path[1:], value)
    return copy


def at(data: Any, path: tuple[Any, ...]) -> Any:
    """What is in a place."""
    for key in path:
        data = data[key]
    return data


def in_json(data: Any, where: list[tuple[Any, ...]], rng: random.Random) -> bytes:
    """A JSON file of a value with one thing changed; `where` are its places."""
    path = rng.choice(where)
    inside = at(data, path[:-1])
    how = rng.randrange(10)
    if how == 0 and isinstance(inside, dict):  # gone
        data = replaced(data, path[:-1], {k: v for k, v in inside.items() if k != path[-1]})
    elif how == 1 and isinstance(inside, dict):  # twice
        data = replaced(data, path[:-1], _Twice(inside, path[-1], rng.choice(VALUES)))
    elif how == 2 and isinstance(inside, dict):  # renamed
        name = rng.choice((*inside, path[-1].upper(), "", "x" * 9000, "\ud800", "\0"))
        data = replaced(data, path[:-1], {(name if k == path[-1] else k): v
                                          for k, v in inside.items()})  # fmt: skip
    elif how == 3:  # what stands elsewhere
        data = replaced(data, path, at(data, rng.choice(where)))
    elif how == 4 and isinstance(at(data, path), list):
        data = replaced(data, path, at(data, path) * rng.choice((2, 50)))
    elif how == 5:
        data = replaced(data, path, "@@")
        number = rng.choice((*_NUMBERS, b"[" * DEEP + b"]" * DEEP, b'{"a":' * DEEP + b"}" * DEEP))
        return json.dumps(data).encode().replace(b'"@@"', number)
    else:
        data = replaced(data, path, rng.choice(VALUES))
    return json.dumps(data, ensure_ascii=rng.random() < 0.9).encode("utf-8", "surrogatepass")


def encoded(data: bytes, rng: random.Random) -> bytes:
    """The same text in another encoding, cut, with what no text has, or another file in its
    place."""
    text = data.decode("utf-8", "replace")
    return rng.choice((
        lambda: b"\xef\xbb\xbf" + data,
        lambda: text.encode("utf-16"),
        lambda: text.encode("utf-32-le"),
        lambda: data[: rng.randrange(len(data) + 1)],
        lambda: data + b"\0" * rng.randrange(1, 64),
        lambda: bytes(len(data)),
        lambda: b"",
        lambda: data + data,
        lambda: data.replace(b"\n", b"\r\n"),
        lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        lambda: b"<!doctype html><html>",
        lambda: data[:9] + b"\xed\xa0\x80\xff" + data[9:],
    ))()  # fmt: skip


def in_lines(data: bytes, rng: random.Random) -> bytes:
    """Lines of a text moved, doubled, gone, or others."""
    lines = data.split(b"\n")
    for _ in range(rng.choice((1, 1, 3))):
        i, j = rng.randrange(len(lines)), rng.randrange(len(lines))
        how = rng.randrange(6)
        if how == 0:
            lines[i] = rng.choice(LINES)
        elif how == 1:
            lines.insert(i, lines[j])
        elif how == 2:
            lines[i], lines[j] = lines[j], lines[i]
        elif how == 3 and len(lines) > 1:
            del lines[i]
        elif how == 4:
            lines[i] = lines[i] + lines[j]
        else:
            lines[i] = lines[i][::-1]
    return b"\n".join(lines)


def _varint(n: int) -> bytes:
    out = bytearray()
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    return bytes([*out, n])


def _fields(data: bytes) -> list[tuple[int, int, bytes | int]]:
    """The fields of a protobuf message, as (number, wire type, value)."""
    found: list[tuple[int, int, bytes | int]] = []
    i = 0

    def varint() -> int:
        nonlocal i
        n = shift = 0
        while True:
            n |= (data[i] & 127) << shift
            shift, i = shift + 7, i + 1
            if data[i - 1] < 128:
                return n

    while i < len(data):
        key = varint()
        if key & 7 == 0:
            found.append((key >> 3, 0, varint()))
            continue
        size = {1: 8, 5: 4}.get(key & 7) or varint()
        found.append((key >> 3, key & 7, data[i : i + size]))
        i += size
    return found


def _message(fields: list[tuple[int, int, bytes | int]]) -> bytes:
    out = b""
    for number, wire, value in fields:
        out += _varint(number << 3 | wire)
        if isinstance(value, int):
            out += _varint(value & (1 << 64) - 1)
        else:
            out += (_varint(len(value)) if wire == 2 else b"") + value
    return out


def in_protobuf(data: bytes, rng: random.Random, depth: int = 0) -> bytes:
    """A message with one field changed, in it or in a message that it holds."""
    try:
        fields = _fields(data)
    except IndexError:
        return data[::-1]
    if not fields:
        return b"\x08\x01"
    # the few fields after the pieces of a vocabulary as often as all of these
    late = len(fields) - 1 - rng.randrange(min(len(fields), 3))
    i = rng.choice((rng.randrange(len(fields)), late))
    number, wire, value = fields[i]
    how = rng.randrange(8)
    if how < 4 and isinstance(value, bytes) and wire == 2 and depth < 3 and value:
        fields[i] = number, wire, in_protobuf(value, rng, depth + 1)
    elif how == 4:
        del fields[i]
    elif how == 5:
        fields.insert(i, rng.choice(fields))
    elif how == 6:
        fields[i] = rng.choice((number, 0, 1, 2, 3, 1000, (1 << 29) - 1)), wire, value
    elif isinstance(value, int):
        fields[i] = number, wire, rng.choice((0, 1, 2, 6, 99, 1 << 31, (1 << 64) - 1))
    else:
        other = rng.choice(BYTES)
        fields[i] = number, wire, other[:4].ljust(4, b"\0") if wire == 5 else other
    return _message(fields)
