"""llama.cpp's own converter, told the name of the pre-tokenizer.

Runs in the converter's environment (torch, transformers), not in this project's:

    python tests/record/converter.py LLAMA_CPP PRE CHECKPOINT --outfile OUT.gguf --outtype bf16

The converter knows a pre-tokenizer by the hash of an encoded text, which no small vocabulary can
match. PRE is what the hash would have found; `-` leaves the finding to the converter. All that
follows CHECKPOINT are the converter's own options; with `--base` among them CHECKPOINT is an
adapter, which llama.cpp converts with another script.

torch leaves `exp` to Intel's MKL, whose last bit depends on the processor; it is asked for what it
computes on every one.
"""

from __future__ import annotations

import importlib
import os
import runpy
import sys
from pathlib import Path


def main(tree: str, pre: str, *args: str) -> None:
    root = Path(tree).resolve()
    os.environ |= {"HF_HUB_OFFLINE": "1", "MKL_CBWR": os.environ.get("MKL_CBWR", "COMPATIBLE")}
    sys.path[:1] = [str(root), str(root / "gguf-py")]
    if pre != "-":
        base = importlib.import_module("conversion.base")
        base.TextModel.get_vocab_base_pre = lambda self, tokenizer: pre
    kind = "lora" if "--base" in args else "hf"
    script = root / f"convert_{kind}_to_gguf.py"
    sys.argv = [str(script), *args]
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])
