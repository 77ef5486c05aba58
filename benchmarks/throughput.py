"""What vector units do at best: independent additions and multiplications in a loop."""

from __future__ import annotations

import time
from collections.abc import Callable

import llvmlite.binding as llvm
import llvmlite.ir as ir
import numpy as np

from quant_types import kernels

TURNS = 8  # of each chain in one pass: what counts passes takes nothing of note
PASSES = 1 << 14
SUMS = ("fadd", "fmul")
_I64, _F32 = ir.IntType(64), ir.FloatType()
_NAME = "throughput"


def vector_width() -> int:
    """float32 in the widest vector of the processor that kernels are compiled for."""
    features = kernels.target()[1].split(",")
    return 16 if "+avx512f" in features else 8 if "+avx2" in features else 4


def chains() -> int:
    """Chains under way together: as many as there are registers, less one for what is added."""
    return 28 if vector_width() == 16 else 14


def code(does: tuple[str, ...]) -> bytes:
    """A kernel that goes through its loop `n` times and leaves the chains in its memory. `does`:
    what LLVM calls the operations that the chains are of, by turns."""
    width = vector_width()
    address = ir.IntType(8).as_pointer()
    kind = ir.FunctionType(_I64, [address, _I64, _I64, address, _I64, address, address])
    module = ir.Module()
    function = ir.Function(module, kind, kernels.SYMBOL)
    start, loop, end = (function.append_basic_block(name) for name in ("start", "loop", "end"))
    builder = ir.IRBuilder(start)
    vector = ir.VectorType(_F32, width)
    memory = builder.bitcast(function.args[5], vector.as_pointer())
    step = builder.load(memory)  # not a constant, or LLVM would know what comes of it
    builder.branch(loop)
    builder.position_at_end(loop)
    done = builder.phi(_I64)
    under_way = [builder.phi(vector) for _ in range(chains())]
    following = builder.add(done, _I64(1))
    results = list(under_way)
    for _ in range(TURNS):
        results = [
            getattr(builder, does[i % len(does)])(result, step) for i, result in enumerate(results)
        ]
    more = builder.icmp_signed("<", following, function.args[1])
    builder.cbranch(more, loop, end)
    done.add_incoming(_I64(0), start)
    done.add_incoming(following, loop)
    for chain, result in zip(under_way, results, strict=True):
        chain.add_incoming(step, start)
        chain.add_incoming(result, loop)
    builder.position_at_end(end)
    for i, result in enumerate(results):
        builder.store(result, builder.gep(memory, [_I64(i)]))
    builder.ret(_I64(-1))
    module.triple = llvm.get_process_triple()
    found: bytes = kernels.machine().emit_object(llvm.parse_assembly(str(module)))
    return found


def calls(does: tuple[str, ...]) -> tuple[kernels.Kernel, Callable[[int], tuple[object, ...]]]:
    """The kernel of `code`, and its arguments for so many times through its loop."""
    memory = np.ones(kernels.MEMORY // 4 + kernels.LINE, np.float32)
    memory = memory[-memory.ctypes.data % kernels.LINE // 4 :]
    kernels.use(_NAME, code(does))
    return kernels.load(_NAME), lambda n: (None, n, 0, None, 0, memory.ctypes.data, None)


def operations() -> float:
    """Vector operations a second of one thread, in thousands of millions: the best of 30 runs by
    the thread's own time."""
    kernel, arguments = calls(SUMS)
    best = 0.0
    for _ in range(30):
        begin = time.thread_time()
        kernel(*arguments(PASSES))
        best = max(best, PASSES * TURNS * chains() / (time.thread_time() - begin) / 1e9)
    return best
