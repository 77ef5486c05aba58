"""Small files of strangers, changed in form (`structured.py`), before what reads them:
vocabularies, configs, indexes, importance matrices, manifests, adapters, lists of tensor types.

`python -m tests.attacks.small_files SECONDS [SEED]` goes through all cases that llama.cpp's
converter was recorded with. The oracle is that of `fuzz.py`: a result, or a named error on one
line, within `fuzz.SECONDS` of the processor and `fuzz.MEMORY`, and no file anywhere.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import quantkit
from quantkit.architectures.rules import ConversionOptions
from quantkit.calibration.imatrix import read_imatrix
from quantkit.commands.quantize import _tensor_types
from quantkit.errors import QuantkitError
from quantkit.gguf.key_values import KeyValueWriter
from quantkit.model.adapter import adapter_from_files
from quantkit.model.encoder import encoder_from_checkpoint
from quantkit.model.from_checkpoint import from_checkpoint
from quantkit.model.metadata import with_vocabulary
from quantkit.model.provenance import read_merge
from quantkit.recipes.choose import Overrides, choose
from quantkit.recipes.facts import ModelFacts
from quantkit.recipes.file_types import find_recipe
from quantkit.source.checkpoint_files import CheckpointFiles
from quantkit.source.location import Source
from tests import checkpoints, vocabularies
from tests.attacks import fuzz, structured

Read = Callable[[], object]
_PROTOBUF = ("tokenizer.model", "sentencepiece.bpe.model", "spiece.model")


@dataclass(frozen=True)
class Tried:
    """A file, what it holds, and what reads it where it lies."""

    name: str
    path: Path
    seed: bytes
    read: Read

    def changes(self) -> Callable[[random.Random], bytes]:
        """What changes it, by what it is."""
        try:
            data = json.loads(self.seed)
        except ValueError:
            data = None
        where = structured.places(data) if isinstance(data, dict | list) else []

        def changed(rng: random.Random) -> bytes:
            how = rng.randrange(8)
            if how == 0:
                return structured.encoded(self.seed, rng)
            if how == 1 and self.seed:
                return fuzz.mutated(self.seed, rng)
            if where:
                return structured.in_json(data, where, rng)
            if self.path.name in _PROTOBUF:
                return structured.in_protobuf(self.seed, rng)
            if b"\0" in self.seed:
                return fuzz.mutated(self.seed, rng)
            return structured.in_lines(self.seed, rng)

        return changed


def of_vocabularies(parent: Path, cases: Sequence[str]) -> Iterator[Tried]:
    """Every small file of a vocabulary."""
    for case in cases:
        directory = vocabularies.write_files(case, parent / case)
        config = vocabularies.read_json(directory / "config.json")
        size = {**config, **config.get("text_config", {})}["vocab_size"]
        pre, name = vocabularies.cases()[case].get("pre"), config["architectures"][0]

        def read(
            directory: Path = directory, name: str = name, size: int = size, pre: str | None = pre
        ) -> object:
            files = CheckpointFiles.local(directory)
            return with_vocabulary(KeyValueWriter("llama"), files, name, size, pre)

        for path in sorted(directory.rglob("*")):
            if path.is_file() and path.name != "config.json":
                yield Tried(f"{case}/{path.name}", path, path.read_bytes(), read)


def of_configs(parent: Path, cases: Sequence[str]) -> Iterator[Tried]:
    """The configs, indexes and cards of whole checkpoints, and those of their encoders."""
    for case in cases:
        directory = checkpoints.from_recipe(case, parent / case)
        sees = case in checkpoints.encoders()

        def read(directory: Path = directory, sees: bool = sees) -> object:
            files = CheckpointFiles.local(directory)
            read_merge(Source(path=directory))
            if sees:
                return encoder_from_checkpoint(files, "auto", ConversionOptions(mmproj=True))
            return from_checkpoint(files)

        merge = directory / "mergekit_moe_config.yml"
        if not sees:
            merge.write_text(
                "base_model: a/b\nexperts:\n- source_model: c/d\n  positive_prompts: [x]\n"
            )
        for path in sorted(directory.rglob("*")):
            if path.suffix in (".json", ".md", ".yml") and "token" not in path.name:
                yield Tried(f"{case}/{path.name}", path, path.read_bytes(), read)


def of_adapters(parent: Path, cases: Sequence[str]) -> Iterator[Tried]:
    """What PEFT says of an adapter."""
    for case in cases:
        directory = checkpoints.from_recipe(case, parent / case)
        path = directory / "adapter_config.json"

        def read(directory: Path = directory) -> object:
            return adapter_from_files(CheckpointFiles.local(directory), directory / "base")

        yield Tried(f"{case}/{path.name}", path, path.read_bytes(), read)


def of_matrices(parent: Path) -> Iterator[Tried]:
    """Importance matrices of both forms."""
    for name in ("frankenmoe-4x.dat", "mixtral-4x.gguf"):
        path = parent / name
        seed = (checkpoints.DATA / "imatrix" / name).read_bytes()
        ends = [len(seed)] if path.suffix == ".dat" else [6000, len(seed)]
        for end in ends:  # a header alone is cut, but changed as often as can be

            def read(path: Path = path) -> object:
                found = read_imatrix(path)
                return [found.of(n) for n in found.values], found.key_values

            yield Tried(f"{name}[:{end}]", path, seed[:end], read)


def of_releases(parent: Path) -> Iterator[Tried]:
    """The manifest of a release, whole or in the making, before another run and `verify`."""
    source = checkpoints.from_recipe("mixtral-4x", parent / "source")
    out = parent / "release"
    quantkit.release(source, out, types=["Q8_0"])
    path = out / "manifest.json"

    def again() -> object:
        return quantkit.release(source, out, types=["Q8_0"], dry_run=True)

    def proven() -> object:
        (file,) = out.glob("*.gguf")
        return quantkit.verify(file)

    yield Tried("release/manifest.json", path, path.read_bytes(), again)
    yield Tried(
        "release/manifest.json.partial", out / "manifest.json.partial", path.read_bytes(), again
    )
    yield Tried("verify/manifest.json", path, path.read_bytes(), proven)


def of_tensor_types(parent: Path) -> Iterator[Tried]:
    """Lists for `--tensor-type-file`."""
    path = parent / "types.txt"
    tensors = [(f"blk.{i}.{name}.weight", (256, 256), "F16") for i in range(4)
               for name in ("attn_q", "attn_k", "attn_v", "ffn_down")]  # fmt: skip
    facts = ModelFacts("llama", 4, 0, 8, 8, tied=False)

    def read() -> object:
        typed, listed = _tensor_types(["--tensor-type-file"], [], [path])
        return choose(
            find_recipe("Q4_K_M"), facts, tensors, Overrides(tensor_types=typed, listed=listed)
        )

    yield Tried(
        "types.txt", path, b"attn_q=q8_0\n# all\n^blk\\.0\\.ffn_down=q6_k attn_v=f16\n", read
    )


def run(
    tried: Sequence[Tried],
    seconds: float,
    seed: int,
    rounds: int = 1 << 60,
    keep: Path | None = None,
) -> tuple[Counter[str], list[str]]:
    """How many inputs each file took, and a line on each that was outside the oracle."""
    rng, counts, outside = random.Random(seed), Counter[str](), list[str]()
    changes = {t.name: t.changes() for t in tried}
    end = time.monotonic() + seconds
    for _ in range(rounds):
        for t in tried:
            if time.monotonic() > end:
                return counts, outside
            data = changes[t.name](rng)
            t.path.write_bytes(data)
            counts[t.name] += 1
            if fault := _fault(t.read):
                outside.append(f"{t.name}: {fault}")
                if keep is not None:
                    name = f"{t.name.replace('/', '+')}-{counts[t.name]}"
                    (keep / name).write_bytes(data)
            t.path.write_bytes(t.seed)
    return counts, outside


def _fault(read: Read) -> str:
    """What is wrong with how it ended; empty if nothing is."""
    began = time.process_time()
    said, fault = io.StringIO(), ""
    try:
        with contextlib.redirect_stderr(said):
            read()
    except QuantkitError as e:
        if fuzz.off_the_line(str(e)):
            fault = f"an error that is not one line of text: {str(e)[:200]!r}"
    except KeyboardInterrupt:
        raise
    except BaseException as e:
        fault = f"{type(e).__name__}: {str(e)[:200]!r}"
    if time.process_time() - began > fuzz.SECONDS:
        fault += f" after {time.process_time() - began:.0f} s"
    if said.getvalue():
        fault += f" said: {said.getvalue()[:200]!r}"
    return fault


def everything(parent: Path) -> list[Tried]:
    """All files of all cases."""
    adapters = checkpoints.adapters()
    configs = [
        n for n in (*checkpoints.architectures(), *checkpoints.encoders()) if n not in adapters
    ]
    return [
        *of_vocabularies(parent / "v", sorted(vocabularies.cases())),
        *of_configs(parent / "c", sorted(configs)),
        *of_adapters(parent / "a", sorted(adapters)),
        *of_matrices(parent),
        *of_releases(parent),
        *of_tensor_types(parent),
    ]


def main() -> None:
    """Go through all of them for so many seconds."""
    resource.setrlimit(resource.RLIMIT_AS, (fuzz.MEMORY, fuzz.MEMORY))
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(1 << 32)
    with tempfile.TemporaryDirectory() as parent:
        tried = everything(Path(parent))
        before = sorted(Path(parent).rglob("*"))
        counts, outside = run(tried, float(sys.argv[1]), seed, keep=Path())
        if extra := set(Path(parent).rglob("*")) - set(before):
            outside.append(f"files that nobody asked for: {sorted(extra)[:9]}")
    print(f"seed {seed}: {counts.total()} inputs of {len(counts)} files, {len(outside)} outside")
    print("\n".join(sorted(set(outside))))
    sys.exit(bool(outside))


if __name__ == "__main__":
    main()
