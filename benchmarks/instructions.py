"""Instructions of kernels for a weight, counted one by one: `python -m benchmarks.instructions`.

A copy of this process calls the kernel and is stopped after each of its instructions (ptrace, so
Linux on x86-64): no estimate, and the same on a busy machine. They are told apart by the names that
objdump gives. `--features avx2` counts the kernels of a processor without AVX-512.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import re
import signal
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np

import quant_types
from benchmarks.formats import code_here, compile_for_avx2
from quant_types import BlockFormat, kernels
from quant_types.engines import kernel_name
from quant_types.grids import grid

TRACEME, CONT, SINGLESTEP, PEEKUSER, PEEKTEXT, POKETEXT = 0, 7, 9, 3, 1, 4
RIP, RSP = 16 * 8, 19 * 8  # in what the kernel keeps of a process that is traced
BLOCKS = 16  # of 256 weights: whole tiles of every kernel
KINDS = {  # what an instruction does, by its name
    "moves": r"v?mov|kmov|vp?broadcast|vinsert|vextract|vmaskmov|lea|push|pop",
    "shuffles": r"vp?erm|vp?shuf|vp?unpck|vpack|vpalign|vp?gather",
    "conversions": r"vcvt|vround|vrndscale|vpmov",
    "choices": r"vp?blend|vp?cmp|vp?min|vp?max|vp?test",
    "arithmetic": r"vadd|vsub|vmul|vfn?m|vdiv|vsqrt",
    "bits": r"vp|vand|vor|vxor|k",
}
_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


def _ptrace(request: int, pid: int, address: int = 0, data: int = 0) -> int:
    return int(_libc.ptrace(request, pid, address, data)) & (2**64 - 1)


def _stopped(pid: int) -> None:
    _, status = os.waitpid(pid, 0)
    assert os.WIFSTOPPED(status), f"the traced process ended: {status}"


def trace(kernel: kernels.Kernel, arguments: tuple[object, ...]) -> Counter[int]:
    """How often each address is run in one call of a kernel."""
    entry = ctypes.cast(kernel, ctypes.c_void_p).value  # type: ignore[arg-type]
    assert entry is not None
    pid = os.fork()
    if pid == 0:
        _ptrace(TRACEME, 0)
        os.kill(os.getpid(), signal.SIGSTOP)
        kernel(*arguments)
        os._exit(0)
    _stopped(pid)
    code = _ptrace(PEEKTEXT, pid, entry)
    _ptrace(POKETEXT, pid, entry, code & ~0xFF | 0xCC)  # a breakpoint
    _ptrace(CONT, pid)
    _stopped(pid)
    _ptrace(POKETEXT, pid, entry, code)
    _libc.ptrace(6, pid, RIP, entry)
    back = _ptrace(PEEKTEXT, pid, _ptrace(PEEKUSER, pid, RSP))
    counts: Counter[int] = Counter()
    at = entry
    while at != back:
        counts[at - entry] += 1
        _ptrace(SINGLESTEP, pid)
        _stopped(pid)
        at = _ptrace(PEEKUSER, pid, RIP)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return counts


def disassembled(code: bytes) -> dict[int, str]:
    """Offset in the kernel -> the instruction there."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.o")
        path.write_bytes(code)
        command = ("objdump", "-d", "--no-show-raw-insn", str(path))
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        command = ("nm", str(path))
        symbols = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    start = next(
        int(line.split()[0], 16) for line in symbols.splitlines() if line.endswith(" T kernel")
    )
    found = re.finditer(r"^ *([0-9a-f]+):\t(.*)$", listed, re.MULTILINE)
    return {int(one[1], 16) - start: one[2] for one in found}


def kind(instruction: str) -> str:
    """What an instruction is counted as."""
    name = instruction.split()[0]
    if "(%rsp)" in instruction and name.startswith(("vmov", "mov")):
        return "spills"
    return next((said for said, names in KINDS.items() if re.match(names, name)), "others")


def count(fmt: BlockFormat, weighted: bool, code: bytes) -> Counter[str]:
    """Instructions of each kind for normal weights, of `BLOCKS` blocks of 256."""
    rng = np.random.default_rng(0)
    size = BLOCKS * 256
    x = (rng.standard_normal(size) * 0.02).astype(np.float32)
    importance = np.square(rng.standard_normal((1, size))).astype(np.float32)
    rows = np.zeros(1, np.int64)
    name = kernel_name(fmt, weighted)
    kernels.use(name, code)
    out = np.empty(fmt.row_bytes(size), np.uint8)
    memory = np.empty(kernels.MEMORY + kernels.LINE, np.uint8)
    memory = memory[-memory.ctypes.data % kernels.LINE :]
    points = grid(fmt.grid).table.ctypes.data if fmt.grid else None
    arguments: tuple[object, ...] = (
        x.ctypes.data, size, 0, out.ctypes.data, out.size, memory.ctypes.data, points,
    )  # fmt: skip
    if weighted:
        arguments += (importance.ctypes.data, 1, size, rows.ctypes.data, 1)
    kernel = kernels.load(name)
    kernel(*arguments)  # what is found at the first call
    text = disassembled(code)
    found: Counter[str] = Counter()
    for at, times in trace(kernel, arguments).items():
        if at in text:  # not what clears memory, once a call
            found[kind(text[at])] += times
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help="formats, all of them by default")
    parser.add_argument("--features", choices=["host", "avx2"], default="host")
    options = parser.parse_args()
    names = options.names or [fmt.name for fmt in quant_types.FORMATS]
    formats = [quant_types.get_format(name) for name in names]
    if options.features == "avx2":
        compile_for_avx2([])
    kinds = ["spills", *KINDS, "others"]
    print(f"Instructions a weight, for {kernels.target()[0]}.\n")
    print("| format | all | " + " | ".join(kinds) + " |")
    print("|---|---|" + "---|" * len(kinds))
    for fmt in formats:
        for weighted in (False, True):
            if (weighted and not fmt.takes_importance) or (fmt.needs_importance and not weighted):
                continue
            found = count(fmt, weighted, code_here(kernel_name(fmt, weighted)))
            cells = [found[one] / BLOCKS / 256 for one in ["all", *kinds]]
            cells[0] = found.total() / BLOCKS / 256
            label = fmt.name + (", importance" if weighted else "")
            print(f"| {label} | " + " | ".join(f"{cell:.1f}" for cell in cells) + " |", flush=True)


if __name__ == "__main__":
    main()
