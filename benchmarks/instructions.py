"""Instructions of kernels for a weight, counted one by one: `python -m benchmarks.instructions`.

A copy of this process calls the kernel and is stopped wherever a jump can lead (ptrace, so Linux on
x86-64): no estimate, and the same on a busy machine. They are told apart by the names that objdump
gives. `--features avx2` counts the kernels of a processor without AVX-512.
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

TRACEME, PEEKTEXT, PEEKUSER, POKEUSER, CONT, SINGLESTEP = 0, 1, 3, 6, 7, 9
BREAK = b"\xcc"  # an instruction that stops
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


def blocks(text: dict[int, str]) -> list[list[int]]:
    """Where a kernel's instructions are that run one after another whenever the first does."""
    jumps = {at for at, one in text.items() if re.match(r"j|call|ret|ud2", one)}
    assert not any("*" in text[at] for at in jumps if text[at][0] == "j"), "a table of jumps"
    targets = {0, *(int(text[at].split()[1], 16) for at in jumps if text[at][0] == "j")}
    found: list[list[int]] = []
    ends = True
    for at in sorted(text):
        if ends or at in targets:
            found.append([])
        found[-1].append(at)
        ends = at in jumps or "nop" in text[at] or "xchg   %ax" in text[at]
    return found


def trace(
    kernel: kernels.Kernel, arguments: tuple[object, ...], text: dict[int, str]
) -> Counter[int]:
    """How often each instruction of `text` is run in one call of a kernel, by offsets in it."""
    entry = ctypes.cast(kernel, ctypes.c_void_p).value  # type: ignore[arg-type]
    assert entry is not None
    pid = os.fork()
    if pid == 0:
        _ptrace(TRACEME, 0)
        os.kill(os.getpid(), signal.SIGSTOP)
        kernel(*arguments)
        os._exit(0)
    _stopped(pid)
    parts = {entry + part[0]: part for part in blocks(text)}
    times: Counter[int] = Counter()
    with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:

        def put(at: int, byte: bytes) -> None:
            memory.seek(at)
            memory.write(byte)

        first = {at: ctypes.string_at(at, 1) for at in parts}
        for at in parts:
            put(at, BREAK)
        _ptrace(CONT, pid)
        _stopped(pid)
        back = _ptrace(PEEKTEXT, pid, _ptrace(PEEKUSER, pid, RSP))
        put(back, BREAK)
        at = entry
        while at != back:
            times[at] += 1
            _ptrace(POKEUSER, pid, RIP, at)
            put(at, first[at])
            _ptrace(SINGLESTEP, pid)
            _stopped(pid)
            put(at, BREAK)
            at = _ptrace(PEEKUSER, pid, RIP)
            if at not in parts:
                _ptrace(CONT, pid)
                _stopped(pid)
                at = _ptrace(PEEKUSER, pid, RIP) - 1
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return Counter({one: n for at, n in times.items() for one in parts[at]})


def disassembled(code: bytes) -> dict[int, str]:
    """Offset in the kernel -> the instruction there, jumps with such an offset."""
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

    def moved(jump: re.Match[str]) -> str:
        return f"{jump[1]}{int(jump[2], 16) - start:x}"

    return {
        int(one[1], 16) - start: re.sub(r"^(j\w+ +)([0-9a-f]+)", moved, one[2]) for one in found
    }


def kind(instruction: str) -> str:
    """What an instruction is counted as."""
    name = instruction.split()[0]
    if "(%rsp)" in instruction and name.startswith(("vmov", "mov")):
        return "spills"
    return next((said for said, names in KINDS.items() if re.match(names, name)), "others")


def ran(fmt: BlockFormat, weighted: bool, code: bytes) -> tuple[dict[int, str], Counter[int]]:
    """A kernel's instructions, and how often it runs each for normal weights, of `BLOCKS` blocks of
    256."""
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
    return text, trace(kernel, arguments, text)


def count(text: dict[int, str], times: Counter[int]) -> Counter[str]:
    """Instructions of each kind that `ran`."""
    found: Counter[str] = Counter()
    for at, n in times.items():
        found[kind(text[at])] += n
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
            found = count(*ran(fmt, weighted, code_here(kernel_name(fmt, weighted))))
            cells = [found[one] / BLOCKS / 256 for one in ["all", *kinds]]
            cells[0] = found.total() / BLOCKS / 256
            label = fmt.name + (", importance" if weighted else "")
            print(f"| {label} | " + " | ".join(f"{cell:.1f}" for cell in cells) + " |", flush=True)


if __name__ == "__main__":
    main()
