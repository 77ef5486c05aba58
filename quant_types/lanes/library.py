"""The library of kernels that a wheel carries: `python -m quant_types.lanes.library PLATFORM`.

Each kernel is compiled for each level of the platform's processors; `zig cc` (of the `ziglang`
package) links them, for other systems too. What it makes lies in `quant_types/ready`: the library,
and digests of what its kernels have to make.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from quant_types import isolated, kernels, proof, shipped
from quant_types.engines import kernel_name

_PACKAGE = Path(shipped.__file__).parent
_HERE = "quant_types.lanes.library"
_LEVEL = Path(__file__).parent / "level.c"


@dataclass(frozen=True)
class Platform:
    """Where a library runs: LLVM's name and zig's of the target, the suffix of a library there, and
    the wheel's tag."""

    triple: str
    zig: str
    suffix: str
    tag: str


PLATFORMS = {
    "linux-x86_64": Platform(
        "x86_64-unknown-linux-gnu", "x86_64-linux-gnu.2.17", ".so", "manylinux_2_17_x86_64"
    ),
    "musl-x86_64": Platform(
        "x86_64-unknown-linux-musl", "x86_64-linux-musl", ".so", "musllinux_1_1_x86_64"
    ),
    "linux-aarch64": Platform(
        "aarch64-unknown-linux-gnu", "aarch64-linux-gnu.2.17", ".so", "manylinux_2_17_aarch64"
    ),
    "musl-aarch64": Platform(
        "aarch64-unknown-linux-musl", "aarch64-linux-musl", ".so", "musllinux_1_1_aarch64"
    ),
    "macos-arm64": Platform(
        "arm64-apple-macosx11.0.0", "aarch64-macos.11.0", ".dylib", "macosx_11_0_arm64"
    ),
    "windows-x86_64": Platform("x86_64-w64-windows-gnu", "x86_64-windows-gnu", ".dll", "win_amd64"),
}
# level -> the processor and its features, as LLVM knows them. AVX-512 at its full width: left to
# itself, LLVM uses half of it.
LEVELS = {
    "x86_64": {3: ("x86-64-v3", ""), 4: ("x86-64-v4", "-prefer-256-bit")},
    "aarch64": {8: ("generic", "+neon")},
}


def names() -> list[str]:
    """Every kernel that there is."""
    from quant_types import FORMATS

    found = {
        kernel_name(fmt, importance)
        for fmt in FORMATS
        for importance in (False, True)
        if importance or not fmt.needs_importance
    }
    return sorted(found)


def build(platform: Platform, folder: Path = shipped.FOLDER, linker: Sequence[str] = ()) -> Path:
    """The library of a platform, in `folder`; linked by zig, or by another C compiler, for the
    platform that it is of. Raises RuntimeError: a compiler or linker failed."""
    machine = platform.zig.split("-")[0]
    with tempfile.TemporaryDirectory() as work:
        jobs = [
            (name, level, *target, Path(work, f"{shipped.symbol(name, level)}.o"))
            for level, target in LEVELS[machine].items()
            for name in names()
        ]

        def compile_one(job: tuple[str, int, str, str, Path]) -> None:
            name, level, cpu, features, path = job
            arguments = (name, platform.triple, cpu, features, shipped.symbol(name, level))
            _run(isolated.command(_HERE, *arguments, str(path)))

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for done, _ in enumerate(pool.map(compile_one, jobs), 1):
                print(f"kernels {done} of {len(jobs)}", end="\r", file=sys.stderr, flush=True)
        folder.mkdir(exist_ok=True)
        out = folder / f"kernels{platform.suffix}"
        objects = [str(path) for *_, path in jobs]
        zig = isolated.command("ziglang", "cc", "-target", platform.zig)
        options = ("-O2", "-shared", "-fPIC", "-s", "-o", str(out.resolve()))
        _run([*(linker or zig), *options, str(_LEVEL), *objects, "-lm"])
    for left in folder.glob("kernels.*"):
        if left.suffix != platform.suffix:
            left.unlink()
    proofs = {name: proof.made(name, "array") for name in names()}
    digests = {"sources": shipped.sources_digest(_PACKAGE), "proofs": proofs}
    (folder / shipped.DIGESTS).write_text(json.dumps(digests, indent=1) + "\n")
    return out


def _run(command: list[str]) -> None:
    done = subprocess.run(command, cwd=isolated.DIRECTORY, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:6])} ...: {done.stderr.strip()[-2000:]}")


def compile_object(name: str, triple: str, cpu: str, features: str, symbol: str, path: str) -> None:
    """One kernel as an object file for another machine than this may be."""
    # read when Numba is imported; code of another processor's kind has to be made of plain code
    here = triple.startswith("x86_64")
    os.environ["NUMBA_CPU_NAME"] = cpu if here else "x86-64"
    os.environ["NUMBA_CPU_FEATURES"] = features if here else ""
    os.environ.update(kernels.NUMBA)
    import llvmlite.binding as llvm

    from quant_types.lanes.compile import object_code

    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    machine = llvm.Target.from_triple(triple).create_target_machine(
        cpu, features, opt=3, reloc="pic", codemodel="small"
    )
    Path(path).write_bytes(object_code(name, machine, symbol))


if __name__ == "__main__":
    if len(sys.argv) == 2:
        print(build(PLATFORMS[sys.argv[1]]))
    else:
        compile_object(*sys.argv[1:])
