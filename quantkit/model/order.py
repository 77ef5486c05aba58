"""When llama.cpp's converter meets a tensor: the order decides the bytes of the file.

It walks the files in order and the names in each in string order. What it keeps in blocks comes
before that, what it rebuilds from parts of other names after it.
"""

from __future__ import annotations

from quantkit.architectures.rules import AGAIN, Map
from quantkit.model.blocks import BLOCKS
from quantkit.source.tensors import SourceTensor

# its turn, a block and a kind of experts, the file, the name there
Order = tuple[int, int, str, str, str]

_TEXT = "language_model."  # in the names of models of several modes
_EARLY, _NVFP4, _TABLES, _MXFP4, _PLAIN, _REBUILT = range(6)
_CODINGS = {"gptq": _REBUILT, "awq": _REBUILT, "packed": _REBUILT}


def order_of(t: SourceTensor, m: Map, bid: int, xid: int, number: int) -> Order:
    """The place of a tensor, number `number` of the checkpoint, that row `m` takes."""
    if m.early:  # as they lie in their file; what is gathered of them, last
        return _EARLY, int(t.coding == "codebooks"), "", t.path.name, f"{t.offset:020}"
    # a fused tensor stands where the last of its experts would
    name = t.name.partition(AGAIN)[0]
    if m.like:
        at = name.find(_TEXT)
        name = m.like.format(bid=bid, xid=9)
        name = name if at < 0 else name[:at] + _TEXT + name[at:]
    if m.batch_norm:  # both stand where the last part does
        name = f"{name.removesuffix('.bias').removesuffix('.weight')}.weight"
        name += ".bias" if m.source.endswith(".bias") else ""
    in_file = name if t.path.suffix == ".safetensors" else f"{number:09}"
    place = ("~" if m.like.startswith("~") else t.path.name, in_file)  # after all files
    if t.coding == "nvfp4":
        return _NVFP4, 0, "", *place
    if t.coding == "indices":  # block by block
        return _TABLES, bid, "", *place
    if t.coding == "mxfp4_pairs" and "xid" in m.fields:  # and kind by kind
        return _MXFP4, bid, t.name.partition(f".{xid}.")[2], *place
    if m.beside and "mid" in m.fields:  # a pair of each layer ahead, when the experts are done
        return _MXFP4, bid, "~", *place
    first = t.coding in BLOCKS or (t.data is not None and not m.like)  # what is computed, too
    kept = (t.coding, *(part.coding for part in t.parts))
    turn = _MXFP4 if first else max(_CODINGS.get(coding, _PLAIN) for coding in kept)
    return turn, 0, "", *place
