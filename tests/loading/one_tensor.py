"""A tensor more, a tensor less: what is said of it here, and what llama.cpp says that loads the
headers. `python -m tests.loading.one_tensor [CASE ...]` tries the golden architectures, and prints
what only one of the two refuses."""

from __future__ import annotations

import random
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from quantkit.errors import QuantkitError
from quantkit.gguf import tensor_names
from quantkit.gguf.container import read_header
from quantkit.jobs import convert
from quantkit.loading.asked import lines, table
from quantkit.model.open import Reading
from tests.architectures.test_architectures import options
from tests.attacks.header_parts import Parts, Tensor, parts
from tests.attacks.headers import apart, asked, ours
from tests.checkpoints import architectures, from_recipe

# of none of its tensors, of those of another shape than are asked for, of those that are not there
_SURPLUS, _SHAPE, _MISSING = "wrong number of tensors", "has wrong shape", "not found"


@dataclass
class Found:
    """Files by what was said of them; `dangerous`: good here, and refused there."""

    agreed: Counter[str] = field(default_factory=Counter)
    dangerous: list[str] = field(default_factory=list)
    strict: list[str] = field(default_factory=list)


def changed(seed: Parts, arch: str, rng: random.Random, surplus: int) -> Iterator[Parts]:
    """One tensor less, each in turn of the first and the last block and of those outside; then one
    more: of each name that the architecture may ask for in a block, and of `surplus` others."""
    names = {t.name.decode() for t in seed.tensors}
    blocks = sorted({b for n in names if (b := tensor_names.parse(n).bid) is not None})
    for i, t in enumerate(seed.tensors):
        if tensor_names.parse(t.name.decode()).bid in (None, *blocks[:1], *blocks[-1:]):
            p = seed.copy()
            p.done.append(f"without {p.tensors.pop(i).name.decode()}")
            yield p
    every = sorted({n for a in lines() for g in table(a).groups for n in g.in_block.may})
    own = sorted({n for g in table(arch).groups for n in g.in_block.may | g.outside.may})
    for name in [*own, *rng.sample(every, surplus)]:
        for bid in {*blocks[:1], *blocks[-1:]}:
            for whole in (f"blk.{bid}.{name}", name):
                if whole not in names and "#" not in name:
                    p = seed.copy()
                    p.tensors.append(Tensor(whole.encode(), [32], 0, 0))
                    p.done.append(f"with {whole}")
                    yield p


def compare(case: str, seed: Parts, arch: str, found: Found, surplus: int = 8) -> None:
    """Judge what comes of one architecture's file."""
    rng = random.Random(case)
    with tempfile.TemporaryDirectory() as parent:
        said, paths = [], []
        for i, p in enumerate(changed(seed, arch, rng, surplus)):
            p.lay_out()
            p.write(path := Path(parent, f"{i}.gguf"))
            paths.append(path)
            said.append(p.done[0])
        here = [ours(path) for path in paths]
        for words, us, them in zip(said, here, apart(paths, asked), strict=True):
            if words.startswith("with ") and not us and _SHAPE in them:
                found.agreed["asked for, of another shape"] += 1
            elif bool(us) == bool(them):
                found.agreed["refused by both" if us else "good to both"] += 1
            elif us:
                found.strict.append(f"{case} {words}: {us}")
            else:
                found.dangerous.append(f"{case} {words}: {them[-160:]}")


def main() -> None:
    """Every golden architecture, or those that are named."""
    found = Found()
    for case in sys.argv[1:] or architectures():
        golden = architectures()[case]["golden"]
        with tempfile.TemporaryDirectory() as parent:
            path = Path(parent, "m.gguf")
            source = from_recipe(case, Path(parent, "c"))
            reading = Reading(golden["pre"], options(golden["args"], source))
            try:
                convert(source, path, reading=reading)
            except QuantkitError:
                continue
            arch = read_header(path).get("general.architecture")
            before = len(found.dangerous), len(found.strict)
            compare(case, parts(path), arch, found)
            for line in found.dangerous[before[0] :]:
                print("dangerous", line, flush=True)
            for line in found.strict[before[1] :]:
                print("strict", line, flush=True)
    print(f"{dict(found.agreed)}, {len(found.dangerous)} dangerous, {len(found.strict)} strict")
    sys.exit(bool(found.dangerous))


if __name__ == "__main__":
    main()
