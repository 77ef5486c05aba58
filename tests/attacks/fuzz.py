"""Mutated files for every reader of outside bytes: `python -m tests.attacks.fuzz SECONDS [SEED]`.

The oracle: a result, or a named error on one line, within MEMORY and SECONDS each; never another
exception. An input that is outside is written to `fuzz-READER-N` and the exit code is 1.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from quantkit.architectures.config import Config
from quantkit.errors import QuantkitError
from quantkit.execution.journal import Identity, Journal
from quantkit.model.adapter import adapter_from_files
from quantkit.releases import manifest
from quantkit.reporting.table import read_rows
from quantkit.source.checkpoint_files import CheckpointFiles
from quantkit.source.gguf_set import open_gguf_set
from quantkit.source.safetensors import read_entries
from quantkit.source.torch_pickle import read_pickle
from quantkit.source.torch_zip import read_torch_entries
from quantkit.storage import os_files
from quantkit.storage.parse import parse_json, parse_yaml
from tests.attacks import small
from tests.checkpoints import adapters
from tests.record import recipes

SECONDS = 10  # an input
MEMORY = 3 << 30  # bytes of address space of the process, its libraries among them
_OFF_THE_LINE = {"Cc", "Cs", "Zl", "Zp"}  # controls, halves of characters, ends of lines
_TENSOR = (
    b"\x80\x02}(X\x01\0\0\0actorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\n"
    b"FloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x20tQK\0K\x20\x85K\x01\x85\x89ccollections\n"
    b"OrderedDict\n)RtRu."
)
_KV = [
    small.ARCH, (b"llama.block_count", small.number(1)), (b"llama.context_length", small.number(8)),
    (b"llama.embedding_length", small.number(32)), (b"split.count", small.number(1)),
    (b"llama.attention.head_count", small.number(2)),
    (b"tokenizer.ggml.model", small.text(b"gpt2")),
    (b"tokenizer.ggml.tokens", small.texts(b"a", b"b")), (b"general.file_type", small.number(1)),
]  # fmt: skip
_WORDS = (
    b"\xff" * 8, bytes(8), b"\x7f", b"nan", b"Infinity", b"1e999", b"null", b"[]", b"{}", b"-1",
    b'"x"', b"\xc0\x80", b"*a", b"&a ", b"!!int ", b"9" * 30, (1 << 63).to_bytes(8, "little"),
    (1 << 20).to_bytes(8, "little"), *(bytes([n, 0, 0, 0]) for n in range(13)), b")\x85\x86R.",
)  # fmt: skip


def mutated(seed: bytes, rng: random.Random) -> bytes:
    """A few bytes flipped, words put in, spans copied, cut or repeated."""
    data = bytearray(seed)
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        at, how = rng.randrange(len(data) + 1), rng.randrange(6)
        span = rng.randrange(1, 24)
        if how == 0 and at < len(data):
            data[at] = rng.randrange(256)
        elif how == 1:
            word = rng.choice(_WORDS)
            data[at : at + len(word)] = word
        elif how == 2:
            data[at:at] = rng.choice(_WORDS)
        elif how == 3:
            del data[at : at + span]
        elif how == 4:
            start = rng.randrange(len(data) + 1)
            data[at:at] = data[start : start + span] * rng.choice((1, 1, 3, 200))
        else:
            start = rng.randrange(len(data) + 1)
            data[at : at + span] = data[start : start + span]
    return bytes(data)


def readers(directory: Path) -> dict[str, tuple[bytes, Callable[[Path], object]]]:
    """Name -> a file that is right, and what reads it."""
    whole = small.gguf(directory / "seed.gguf", _KV, b"blk.0.attn_q.weight").read_bytes()
    head = json.dumps({"a": {"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 32]}}).encode()
    archive = small.pickled(directory / "seed.bin", _TENSOR, **{"data/0": bytes(128)}).read_bytes()
    record = {
        "quantkit": "0",
        "name": "a",
        "source": "a",
        "architecture": "llama",
        "parameters": {"total": 1, "active": 1},
        "experts": None,
        "made_from": {"source": "", "importance": ""},
        "files": [
            {
                "name": "f",
                "type": "x",
                "bytes": 1,
                "sha256": "",
                "plan": "",
                "tensors": [
                    {
                        "name": "x",
                        "format": "F32",
                        "shape": [1],
                        "offset": 0,
                        "bytes": 4,
                        "sha256": "",
                    }
                ],
            }
        ],
    }
    identity = Identity("0", "2:a", "b", "c")
    line = json.dumps({"quantkit": "0", "plan": "2:a", "source": "b", "importance": "c"})
    config = json.dumps({"num_hidden_layers": 2, "head_dim": 8, "rope_scaling": {"type": "yarn"}})

    def journal(path: Path) -> None:
        fd = os_files.open_there(path)
        try:
            Journal.resume(path, fd, identity)
        finally:
            os.close(fd)

    def configured(path: Path) -> object:
        values = parse_json(path.read_bytes(), "f")
        read = Config(values if isinstance(values, dict) else {})
        return read.layers, read.head_dim, read.rope

    made = adapters()["lora-mixtral-attention"]["recipe"]
    adapter = recipes.write(made, directory, directory)

    def adapted(path: Path) -> object:
        (adapter / "adapter_model.safetensors").write_bytes(path.read_bytes())
        return adapter_from_files(CheckpointFiles.local(adapter), adapter / "base")

    return {
        "adapter": ((adapter / "adapter_model.safetensors").read_bytes()[:4000], adapted),
        "gguf": (whole, open_gguf_set),
        "report": (whole, lambda path: read_rows([path])),
        "safetensors": (len(head).to_bytes(8, "little") + head + bytes(32), read_entries),
        "bin": (archive, read_torch_entries),
        "pickle": (_TENSOR, lambda path: _pickle(path.read_bytes())),
        "yaml": (
            b"a: &a [1, 2.5, x]\nb: {c: *a, d: 2024-01-02}\n? e\n: |\n  f\n",
            lambda path: parse_yaml(path.read_bytes(), "f"),
        ),
        "config": (config.encode(), configured),
        "manifest": (json.dumps(record).encode(), manifest.read),
        "journal": (line.encode() + b"\n0 0 4\n1 0 2\ncomplete\n", journal),
    }


def _pickle(data: bytes) -> None:
    """What `read_torch_entries` does to what its pickle raises."""
    from quantkit.source.torch_pickle import Code
    from quantkit.source.torch_zip import _MALFORMED

    with contextlib.suppress(Code, *_MALFORMED):
        read_pickle(data)


def off_the_line(text: str) -> bool:
    """Whether an error says what is not one line of text."""
    return any(unicodedata.category(c) in _OFF_THE_LINE for c in text)


class _Late(BaseException):
    pass


def _late(*_: object) -> None:
    raise _Late


def run(seconds: float, seed: int, keep: Path | None = None) -> tuple[Counter[str], list[str]]:
    """How many inputs each reader took, and a line on each that was outside the oracle."""
    rng, counts, outside = random.Random(seed), Counter[str](), list[str]()
    signal.signal(signal.SIGALRM, _late)
    with tempfile.TemporaryDirectory() as parent:
        tried = readers(Path(parent))
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for name, (right, read) in tried.items():
                data = mutated(right, rng)
                path = Path(parent) / f"x.{'gguf' if name in ('gguf', 'report') else name}"
                path.write_bytes(data)
                counts[name] += 1
                signal.alarm(SECONDS)
                fault = ""
                try:
                    read(path)
                except QuantkitError as e:
                    if off_the_line(str(e)):
                        fault = "an error that is not one line of text"
                except BaseException as e:
                    if isinstance(e, KeyboardInterrupt):
                        raise
                    fault = f"{type(e).__name__}: {str(e)[:100]!r}"
                finally:
                    signal.alarm(0)
                if fault:
                    outside.append(f"{name}: {fault}")
                    if keep is not None:
                        (keep / f"fuzz-{name}-{counts[name]}").write_bytes(data)
    return counts, outside


def main() -> None:
    """Fuzz for so many seconds."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(1 << 32)
    counts, outside = run(float(sys.argv[1]), seed, Path())
    print(f"seed {seed}: {counts.total()} inputs {dict(counts)}, {len(outside)} outside")
    print("\n".join(sorted(set(outside))))
    sys.exit(bool(outside))


if __name__ == "__main__":
    main()
