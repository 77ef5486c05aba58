"""What llama.cpp multiplies with a model's weights, counted and summed up as it runs.

llama.cpp asks of every node of its graph whether it is to be looked at, and shows those that are
when they have been computed. A product with a weight has the activations as its second operand: a
row of them is a token (of a mixture: a token that was sent to an expert). Rows are squared and
added up one after another in float32, in the order of `tools/imatrix/imatrix.cpp`
(`collect_imatrix`), so that not only counts but sums are the same.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Mapping
from ctypes import c_char, c_int32, c_int64, c_void_p
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.calibration.sums import Entry
from quantkit.errors import LlamaError, LlamaMissing

Floats = NDArray[np.float32]
# of a product: where its activations and the experts' numbers lie, and how many matrices there are
Operand = tuple[int, int | None, int, int]
WATCH = ctypes.CFUNCTYPE(ctypes.c_bool, c_void_p, ctypes.c_bool, c_void_p)
OUTPUTS = ("output.weight", "token_embd.weight")
_F32 = 0
_LEAST = 16  # rows of a product that is looked at: fewer are not a batch of text


class _Tensor(ctypes.Structure):
    """`ggml_tensor`."""

    _fields_ = (
        ("type", c_int32), ("buffer", c_void_p), ("ne", c_int64 * 4), ("nb", c_int64 * 4),
        ("op", c_int32), ("op_params", c_int32 * 16), ("flags", c_int32), ("src", c_void_p * 10),
        ("view_src", c_void_p), ("view_offs", c_int64), ("data", c_void_p), ("name", c_char * 64),
        ("extra", c_void_p), ("padding", c_char * 8),
    )  # fmt: skip


class Collector:
    """The sums so far, by tensor, and the callback that adds to them.

    `known` are sums to go on from. `outputs`: whether the output matrix is looked at, too. With
    `wanted`, by tensor the experts (bool `[experts]`) that are counted: nothing else is.
    """

    def __init__(
        self,
        lib: ctypes.CDLL,
        known: Mapping[str, Entry],
        outputs: bool = False,
        wanted: Mapping[str, NDArray[np.bool_]] | None = None,
    ) -> None:
        self._lib, self.outputs, self.wanted = lib, outputs, wanted
        self.squares = {name: e.squares.astype(np.float32).reshape(-1) for name, e in known.items()}
        self.sums = {
            name: e.sums.astype(np.float32).reshape(-1)
            for name, e in known.items()
            if e.sums is not None
        }
        self.counts = {name: e.counts.copy() for name, e in known.items()}
        self.trouble: BaseException | None = None  # what stopped the run
        # products with the same operand have the same sums: they are taken once, for the first
        self._leader: dict[str, str] = {}
        self._first: dict[Operand, str] = {}
        self._last: dict[str, Operand] = {}
        self._settled = False  # the graph has been gone through once
        self._known = {
            name: hash((e.squares.tobytes(), e.counts.tobytes(), e.sums is None))
            for name, e in known.items()
        }
        self._plain, self._by_expert = self._operations()
        self.watch = WATCH(self._called)
        self._checked = False

    def entries(self) -> dict[str, Entry]:
        """What has been summed up."""
        return {
            name: Entry(squares, self.counts[name], self.sums.get(name))
            for name, squares in self.squares.items()
        }

    def _operations(self) -> tuple[int, int]:
        """The numbers of the two products."""
        for name in ("ggml_op_name", "ggml_get_name"):
            function = getattr(self._lib, name)
            function.restype = ctypes.c_char_p
        self._lib.ggml_op_name.argtypes = (c_int32,)
        self._lib.ggml_get_name.argtypes = (c_void_p,)
        self._lib.ggml_backend_buffer_is_host.argtypes = (c_void_p,)
        self._lib.ggml_backend_buffer_is_host.restype = ctypes.c_bool
        self._lib.ggml_backend_tensor_get.argtypes = (
            c_void_p, c_void_p, ctypes.c_size_t, ctypes.c_size_t,
        )  # fmt: skip
        self._lib.ggml_tensor_overhead.restype = ctypes.c_size_t
        names: dict[bytes, int] = {}
        while (name := self._lib.ggml_op_name(len(names))) and len(names) < 64:
            names[name] = len(names)
        if self._lib.ggml_tensor_overhead() != 32 + ctypes.sizeof(_Tensor):
            raise LlamaMissing("this llama.cpp's tensors are not as they are known here")
        return names[b"MUL_MAT"], names[b"MUL_MAT_ID"]

    def _called(self, address: int, ask: bool, _: int | None) -> bool:
        try:
            t = _Tensor.from_address(address)
            if ask:
                return self._is_wanted(address, t)
            self._add(t)
            return True
        except BaseException as e:
            self.trouble = e
            return False  # and nothing more of this batch is computed

    def _is_wanted(self, address: int, t: _Tensor) -> bool:
        if not self._checked:
            self._checked = True
            if self._lib.ggml_get_name(address) != t.name:
                raise LlamaMissing("this llama.cpp's tensors are not as they are known here")
        if t.op == self._by_expert:
            return self.wanted is None or _weight(t) in self.wanted
        if t.op != self._plain or self.wanted is not None:
            return False
        x = _Tensor.from_address(t.src[1])
        if x.ne[1] < _LEAST or x.type != _F32:
            return False
        name = _weight(t)
        return name.startswith("blk.") or (self.outputs and name in OUTPUTS)

    def _add(self, t: _Tensor) -> None:
        name, weight = _weight(t), _Tensor.from_address(t.src[0])
        ids = t.src[2] if t.op == self._by_expert else None
        if self._is_taken(name, (t.src[1], ids, weight.ne[2], weight.ne[3])):
            return
        x = self._values(t.src[1], np.float32)
        if t.op == self._by_expert:
            self._add_by_expert(name, int(weight.ne[2]), x, self._values(t.src[2], np.int32))
        else:
            self._add_plain(name, (int(weight.ne[3]), int(weight.ne[2])), x)

    def _is_taken(self, name: str, operand: Operand) -> bool:
        """Whether another product with this operand has been summed up for this one, too."""
        if (leader := self._leader.get(name)) is not None:
            if self._last[leader] != operand:
                raise LlamaError(f"{name} and {leader} have not the same activations any more")
            return True
        self._settled = self._settled or name in self._last
        self._last[name] = operand
        if self._settled or (other := self._first.setdefault(operand, name)) == name:
            return False
        alike = self._known.get(name) == self._known.get(other)
        if self.wanted is not None:
            alike = alike and np.array_equal(self.wanted[name], self.wanted[other])
        if alike:
            self._leader[name] = other
            for kept in (self.squares, self.sums, self.counts):
                if other in kept:
                    kept[name] = kept[other]
        return alike

    def _values(self, address: int, dtype: Any) -> NDArray[Any]:
        """A tensor's values, in NumPy's order of dimensions: `[ne3, ne2, ne1, ne0]`."""
        t = _Tensor.from_address(address)
        shape, strides = tuple(t.ne)[::-1], tuple(t.nb)[::-1]
        size = sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) + 4
        if self._lib.ggml_backend_buffer_is_host(t.buffer):
            data: Any = (c_char * size).from_address(t.data)
        else:
            data = (c_char * size)()
            self._lib.ggml_backend_tensor_get(address, data, 0, size)
        values: NDArray[Any] = np.ndarray(shape, dtype, data, strides=strides)
        return values

    def _place(self, name: str, size: int, counts: int) -> None:
        """Room for a tensor of `size` channels in all. Raises LlamaError: there is other data."""
        if name not in self.squares:
            self.squares[name] = np.zeros(size, np.float32)
            self.sums[name] = np.zeros(size, np.float32)
            self.counts[name] = np.zeros(counts, np.int64)
        if self.squares[name].size != size or self.counts[name].size != counts:
            raise LlamaError(
                f"{name}: {self.squares[name].size} channels and {self.counts[name].size} counts "
                f"so far, and now {size} and {counts}"
            )

    def _add_plain(self, name: str, matrices: tuple[int, int], x: Floats) -> None:
        """x float32 `[c, b, rows, n]`, of which `[c % outer, b % inner]` goes to one matrix."""
        outer, inner = matrices
        n, count = x.shape[3], outer * inner
        self._place(name, n * count, 1)
        for c in range(x.shape[0]):
            for b in range(x.shape[1]):
                part = slice(i := n * ((c % outer) * inner + b % inner), i + n)
                self._sum(name, part, x[c, b])
        self.counts[name] += x.shape[0] * x.shape[1] * x.shape[2] // count

    def _add_by_expert(self, name: str, experts: int, x: Floats, ids: NDArray[np.int32]) -> None:
        """x float32 `[1, tokens, 1 or k, n]`, ids int32 `[1, 1, tokens, k]`: of each token, the k
        experts that it goes to. Each expert's rows are added slot by slot, token by token."""
        _, tokens, slots, n = x.shape
        flat = ids[0, 0].T.reshape(-1)  # slot by slot
        if flat.min() < 0 or flat.max() >= experts:
            raise LlamaError(f"{name}: an expert that there is not, number {flat.max()}")
        self._place(name, n * experts, experts)
        order = np.argsort(flat, kind="stable")
        rows = x[0].reshape(tokens * slots, n) if x[0].flags.c_contiguous else None
        counted = np.bincount(flat, minlength=experts)
        ends = np.cumsum(counted)
        wanted = None if self.wanted is None else self.wanted[name]
        for expert in np.flatnonzero(counted).tolist():
            if wanted is not None and not wanted[expert]:
                continue
            at = order[ends[expert] - counted[expert] : ends[expert]]
            token, slot = at % tokens, (at // tokens) % slots
            own = x[0, token, slot] if rows is None else rows[token * slots + slot]
            self._sum(name, slice(n * expert, n * expert + n), own)
            self.counts[name][expert] += counted[expert]

    def _sum(self, name: str, part: slice, x: Floats) -> None:
        """Add the rows of x, float32 `[rows, n]`, to a matrix's sums, one after another; x is
        written over if it is its own."""
        squares, sums = self.squares[name][part], self.sums.get(name)
        room = x * x
        room[0] += squares
        np.add.reduce(room, axis=0, out=squares)
        if sums is not None:
            room = x if x.flags.owndata else x.copy()
            room[0] += sums[part]
            np.add.reduce(room, axis=0, out=sums[part])
        if not np.isfinite(squares).all():
            raise LlamaError(f"{name}: activations that are NaN or infinite, or too large")


def _weight(t: _Tensor) -> str:
    """The name of the weight of a product; `CUDA0#name#0` is a copy of it."""
    name: bytes = _Tensor.from_address(t.src[0]).name
    parts = name.split(b"#")
    return (parts[1] if len(parts) > 1 else parts[0]).decode("utf-8", "replace")


def lacking(entries: Mapping[str, Entry], least: int) -> dict[str, NDArray[np.bool_]]:
    """Of each tensor of stacked experts, those that were counted less often: bool `[experts]`."""
    found = {n: e.counts < least for n, e in entries.items() if e.counts.size > 1}
    return {name: few for name, few in found.items() if few.any()}


def few(lacking: Iterable[NDArray[np.bool_]]) -> int:
    """How many matrices of experts those are."""
    return sum(int(each.sum()) for each in lacking)
