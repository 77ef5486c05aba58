"""The lanes engine: ggml's searches as Numba kernels, one sub-block a SIMD lane.

A kernel takes `(floats, words, kind, out, memory)`: the weights as flat float32, or as flat uint16
with the bits of bfloat16 or float16, flat uint8 to write to, and the address of what it may work in
(`compile.take_floats` and the like make arrays of it). It returns -1, or the index of a tile with
NaN or infinity, or `kernels.OVERFLOW`. The kernel for importance, `NAME_importance`, takes
`(floats, words, kind, table, rows, out, memory)`: importance float32 `[m, n]`, and the row of it
that each row of the data uses. One that moves weights to a grid takes the address of its table
(`quant_types.grids`) as a last argument, `grid`.

Nothing here is imported when weights are quantized: `quant_types.kernels` has each kernel compiled
once by `python -m quant_types.lanes`.
"""
