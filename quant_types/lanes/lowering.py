"""Numba as far as kernels need it: functions become LLVM's code, which is put together once, when
all of it is there.

Numba makes every function ready to run. It links what a function calls into it, again for each that
calls that one; looks up what adds two numbers at every sum; and has passes for closures, generators
and expressions of whole arrays. Here are its classes with less in them, which is half of what it
took. `Passes` and `Library` are what it lets others choose; `install` sets what it does
not, and stops at a Numba that has no such thing.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import llvmlite.binding as llvm
from numba.core import codegen, compiler, cpu, typed_passes, types, untyped_passes
from numba.core.compiler_machinery import PassManager

_LEFT_OUT = (
    untyped_passes.WithLifting,
    untyped_passes.InlineClosureLikes,
    untyped_passes.RewriteDynamicRaises,
    untyped_passes.MakeFunctionToJitFunction,
    untyped_passes.FindLiterallyCalls,
    untyped_passes.LiteralUnroll,
    untyped_passes.LiteralPropagationSubPipelinePass,
    typed_passes.InlineOverloads,
    typed_passes.NopythonRewrites,
    typed_passes.AnnotateTypes,
    typed_passes.DumpParforDiagnostics,
)


class Passes(compiler.CompilerBase):
    """Numba's passes, but for those that find nothing in a kernel."""

    def define_pipelines(self):
        passes = PassManager("kernel")
        for one, about in compiler.DefaultPassBuilder.define_nopython_pipeline(self.state).passes:
            if one not in _LEFT_OUT:
                passes.add_pass(one, about)
        passes.finalize()
        return [passes]


class Library(codegen.CPUCodeLibrary):
    """The code of one function, and where that of those is that it calls."""

    def __init__(self, owner, name):
        codegen.CodeLibrary.__init__(self, owner, name)
        self._modules = []  # LLVM's code, as text
        self._called = {}  # libraries, in order

    def add_ir_module(self, module):
        self._modules.append(str(module))

    def add_linking_library(self, library):
        self._called[library] = None

    def finalize(self):
        self._finalized = True

    def get_pointer_to_function(self, name):
        return 0

    def whole(self) -> Any:
        """A module of LLVM's, of the function and all that it calls."""
        found: dict[Library, None] = {}

        def find(library: Library) -> None:
            if library not in found:
                found[library] = None
                for called in library._called:
                    find(called)

        find(self)
        first, *others = (code for library in found for code in library._modules)
        module = llvm.parse_assembly(first)
        for code in others:
            module.link_in(llvm.parse_assembly(code))
        return module


@cache
def install() -> None:
    """Have Numba lower functions, and no more; and remember what it has looked up."""
    context, function = cpu.CPUContext, types.BaseFunction
    setattr(codegen.JITCPUCodegen, "_library_class", Library)  # noqa: B010
    # what Numba knows a function by: a builtin, and no two the same
    setattr(context, "get_executable", lambda *_: [].append)  # noqa: B010
    for name in ("get_abi_sizeof", "load_additional_registries"):
        setattr(context, name, cache(getattr(context, name)))
    look_up, found = function.get_call_type, {}

    def get_call_type(self, context, args, kws):
        key = self, args, tuple(kws.items())
        if key not in found:
            found[key] = look_up(self, context, args, kws)
        return found[key]

    setattr(function, "get_call_type", get_call_type)  # noqa: B010
