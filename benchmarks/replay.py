"""The time that a kernel's instructions take when none waits for another: its roofline.

The instructions of a loop, as many of each as it ran (`benchmarks.instructions`), are written into
another of `SLOTS` of them in a random order: sources are registers that nothing writes, results go
to a ring of others, memory is a page in the nearest cache. What bounds this is what bounds the loop
at best on the processor it is run on: the ports that do such instructions, divisions that keep one
busy for many cycles, loads and stores a cycle, instructions decoded a cycle. Nothing is known of a
processor beforehand. A kernel's loops are taken one by one, for they run one after another. What it
takes beyond their times it waits: for a result before, for a cache, after a wrong guess at a jump.
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count

import llvmlite.binding as llvm
import numpy as np

from quant_types import kernels

Unit = tuple[str, ...]
Mix = Counter[Unit]  # how often each ran
SLOTS = 1024  # of the loop: what the processor keeps decoded
PASSES = 1 << 11
PART = 0.01  # of all that runs: what is less is no loop of its own
LEFT_OUT = ("call", "ret", "push", "pop", "div", "idiv", "vzeroupper")  # a few times a call
_TESTS = re.compile(r"cmp|test|bt|v?u?comis|vp?test|kortest|ktest")  # write no register
_FUSED = re.compile(r"cmp|test|add|sub|and|inc|dec")
_MEMORY = re.compile(r"-?(?:0x[0-9a-f]+)?\(([^)]*)\)")
_REGISTER = re.compile(r"%(\w+)")
_PAGE = 4096
_HALF = _PAGE // 2  # loads are of the first, stores to the second: none looks like another's
_OLD = {  # the low byte, two and four bytes of the registers that have names and not numbers
    form: at
    for at, forms in enumerate(("al bl cl dl sil dil bpl spl", "ax bx cx dx si di bp sp"))
    for form in forms.split()
}
_SUFFIX = ("b", "w", "d", "")

# 16 registers of each kind: vectors 0, 2, 3 and mask 1 are sources, vector 1 is zero, and the rest
# take results; %rdi is the page, %rsi zero, %r15 counts
_START = """
.globl kernel
kernel:
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    subq $16, %rsp
    stmxcsr (%rsp)
    stmxcsr 8(%rsp)
    orl $0x8040, 8(%rsp)
    ldmxcsr 8(%rsp)
    movq %rsi, %r15
    movq %r9, %rdi
    xorl %esi, %esi
    movl $1, %ebx
    movl $1, %ecx
    movl $0xbf8ccccd, %eax
    vmovd %eax, %xmm0
    vxorps %xmm1, %xmm1, %xmm1
"""
_SOURCES = {
    True: "vbroadcastss %xmm0, %zmm0\nvmovaps %zmm0, %zmm2\nvmovaps %zmm0, %zmm3\n"
    "kxnorq %k1, %k1, %k1\n",
    False: "vbroadcastss %xmm0, %ymm0\nvmovaps %ymm0, %ymm2\nvmovaps %ymm0, %ymm3\n",
}
_END = """
    decq %r15
    jnz 0b
    ldmxcsr (%rsp)
    addq $16, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    movq $-1, %rax
    vzeroupper
    ret
"""


def _operands(text: str) -> list[str]:
    """Operands in their order, those in memory with what is in their parentheses."""
    return [one.strip() for one in re.split(r",(?![^(]*\))", text) if one.strip()]


def _general(form: str, number: int | None) -> str:
    """A register in place of a general one, as wide: %rbx, or that of a number."""
    if form[0] == "r" and form[1].isdigit():
        size = {"b": 0, "w": 1, "d": 2}.get(form[-1], 3)
    else:
        size = _OLD.get(form, 2 if form[0] == "e" else 3)
    if number is None:
        return "%" + ("bl", "bx", "ebx", "rbx")[size]
    return f"%r{number}{_SUFFIX[size]}"


def independent(instruction: str, ring: count[int]) -> str:
    """An instruction as objdump writes it, with other operands: it waits for nothing."""
    instruction = instruction.partition("#")[0].partition("<")[0].removeprefix("{vex} ").strip()
    name, _, rest = instruction.partition(" ")
    if name in ("cs", "data16", "nopw", "nopl", "xchg", "nop"):
        return "nop"
    if name.startswith("j"):
        return f"{name} 1f\n1:"
    turn = next(ring)
    given = _operands(rest)
    wide = "zmm" in rest
    gathers = "gather" in name or "scatter" in name  # they clear their mask
    found = []
    for i, operand in enumerate(given):
        result = i == len(given) - 1 and not _TESTS.match(name)
        if "(" in operand:
            inner = _MEMORY.search(operand)
            assert inner is not None
            at = turn % (_HALF // 64) * 64 + (_HALF if result else 0)
            index = "" if "," not in inner[1] else inner[1].split(",", 1)[1]
            index = re.sub(r"%([xyz]mm)\d+", r"%\g<1>1", index)
            index = re.sub(r"%r\w+", "%rsi", index)
            new = f"{at}(%rdi,{index})" if index else f"{at}(%rdi)"
            new += operand[inner.end() :]
        elif (register := _REGISTER.match(operand)) is None:
            new = operand
        else:
            form, tail = register[1], operand[register.end() :]
            if "mm" in form:
                kept = not result and not gathers
                chosen = (0, 2, 3)[i % 3] if kept else 4 + (turn + i) % (28 if wide else 12)
                new = f"%{form[:3]}{chosen}{tail}"
            elif form[0] == "k":
                new = f"%k{2 + turn % 5 if result else 1}{tail}"
            elif form == "cl" and name[:3] in ("shl", "shr", "sar", "rol", "ror"):
                new = operand
            else:
                new = _general(form, 8 + turn % 6 if result else None) + tail
        found.append(re.sub(r"\{%k\d\}", "{%k7}" if gathers else "{%k1}", new))
    line = f"{name} {', '.join(found)}"
    return f"kmovq %k1, %k7\n{line}" if gathers else line


def _units(text: dict[int, str], times: Counter[int]) -> Iterator[tuple[int, Unit]]:
    """Instructions that ran, and where: one by one, or a comparison with the jump behind it, which
    the processor does as one."""
    order = sorted(times)
    for at, behind in zip(order, [*order[1:], 0], strict=True):
        if text[at][0] == "j":
            continue
        fused = times[at] == times[behind] and text[behind][0] == "j" and text[behind][:3] != "jmp"
        if fused and _FUSED.match(text[at]):
            yield at, (text[at], text[behind])
            continue
        yield at, (text[at],)
        if text[behind][0] == "j":
            yield behind, (text[behind],)


def loops(text: dict[int, str], times: Counter[int]) -> list[Mix]:
    """The units of each innermost loop of a kernel, those of lesser loops and of none together."""
    ends = [(int(text[at].split()[1], 16), at) for at in times if text[at][0] == "j"]
    spans = sorted((first, last) for first, last in ends if first <= last)
    found: dict[tuple[int, int], Mix] = defaultdict(Counter)
    for at, unit in _units(text, times):
        if unit[0].split()[0] not in LEFT_OUT:
            within = [(last - first, first) for first, last in spans if first <= at <= last]
            found[min(within, default=(0, 0))][unit] += times[at]
    least = PART * sum(mix.total() for mix in found.values())
    rest = sum((mix for mix in found.values() if mix.total() < least), Counter())
    return [*(mix for mix in found.values() if mix.total() >= least), *([rest] if rest else [])]


@dataclass(frozen=True)
class Replay:
    """A kernel's loops, each to be run by itself, and all that it ran."""

    calls: list[Callable[[], object]]
    times: list[float]  # that each call's time is to be taken, for that of the kernel
    ran: int


def replay(text: dict[int, str], times: Counter[int]) -> Replay:
    """What `instructions.trace` counted of a kernel, to be run without waiting."""
    page = np.zeros(2 * _PAGE, np.uint8)
    at = page.ctypes.data + -page.ctypes.data % _PAGE

    def call(mix: Mix) -> Callable[[], object]:
        kernels.use("replay", code(mix))
        kernel = kernels.load("replay")
        return lambda: kernel(None, PASSES, 0, page.ctypes.data, page.size, at, None)

    mixes = loops(text, times)
    scales = [mix.total() / SLOTS / PASSES for mix in mixes]
    return Replay([call(mix) for mix in mixes], scales, times.total())


def code(mix: Mix) -> bytes:
    """Object code of the loop of instructions, which goes through it as often as its second
    argument says, with the page at its sixth."""
    total, done = mix.total(), 0
    slots: list[Unit] = []
    for unit, n in mix.items():  # as many slots as its part of all, none more than one off
        first, done = done * SLOTS // total, done + n
        slots += [unit] * (done * SLOTS // total - first)
    random.Random(0).shuffle(slots)
    ring = count()
    lines = [independent(one, ring) for unit in slots for one in unit]
    wide = "+avx512f" in kernels.target()[1].split(",")
    text = _START + _SOURCES[wide] + ".p2align 6\n0:\n" + "\n".join(lines) + _END
    llvm.initialize_native_asmparser()
    module = llvm.parse_assembly(
        f'target triple = "{llvm.get_process_triple()}"\n'
        + "".join(f'module asm "{line}"\n' for line in text.splitlines() if line)
    )
    found: bytes = kernels.machine().emit_object(module)
    return found
