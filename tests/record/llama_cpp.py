"""llama.cpp's own programs, run on a checkpoint or a file, and what came of it."""

from __future__ import annotations

import hashlib
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.record import fingerprint

HERE = Path(__file__).parent
_TAIL = 6  # keys at a file's end that are kept: llama-quantize moves and adds some there


class Refused(Exception):
    """llama.cpp made no file; its last words."""


@dataclass(frozen=True)
class Converter:
    """A tree of llama.cpp, and the Python of an environment with its torch and transformers."""

    tree: Path
    python: Path

    def convert(
        self, checkpoint: Path, outtype: str, case: dict[str, Any], out: Path | None = None
    ) -> dict[str, Any]:
        """What `convert_hf_to_gguf.py` makes, as `fingerprint.of_file`, or {"splits": [one, ...]}.

        `case` has `pre`, the pre-tokenizer's name or None, and `args`, the converter's options, in
        which CHECKPOINT is the checkpoint's path; an
        adapter's has `base`, the folder in it with its base's config. The file stays if `out` says
        where.

        Raises Refused.
        """
        with tempfile.TemporaryDirectory() as folder:
            made = out or Path(folder) / "out.gguf"
            _run(
                [
                    str(self.python),
                    str(HERE / "converter.py"),
                    str(self.tree),
                    case["pre"] or "-",
                    str(checkpoint),
                    "--outfile",
                    str(made),
                    "--outtype",
                    outtype,
                    *(arg.replace("CHECKPOINT", str(checkpoint)) for arg in case["args"]),
                    *(("--base", str(checkpoint / case["base"])) if case.get("base") else ()),
                ]
            )
            files = [fingerprint.of_file(p) for p in sorted(made.parent.glob("*.gguf"))]
        return files[0] if len(files) == 1 else {"splits": files}

    def versions(self) -> dict[str, str]:
        """What a golden is stamped with: the packages' versions, and a digest of the converter."""
        code = (
            "import importlib.metadata as m; print(m.version('torch'), m.version('transformers'))"
        )
        done = subprocess.run([str(self.python), "-c", code], capture_output=True, text=True)
        torch, transformers = done.stdout.split()
        digest = hashlib.sha256()
        for path in sorted((self.tree / "conversion").glob("*.py")):
            digest.update(path.read_bytes())
        return {
            "conversion": digest.hexdigest()[:12],
            "torch": torch,
            "transformers": transformers,
        }


def quantize(program: Path, source: Path, name: str, imatrix: Path | None) -> dict[str, Any]:
    """What llama-quantize makes of a file: each tensor's type and SHA-256, and the last keys; or
    {"fails": its words}.

    It runs in the folder above the importance matrix's own, so that every machine writes the same
    path into the file: `imatrix/CASE.gguf`.
    """
    command, folder = [str(program)], None
    if imatrix:
        folder = imatrix.parent.parent
        command += ["--imatrix", imatrix.relative_to(folder).as_posix()]
    with tempfile.TemporaryDirectory() as made:
        out = Path(made) / "out.gguf"
        try:
            _run([*command, str(source.resolve()), str(out), name], folder)
        except Refused as e:
            return {"fails": str(e)}
        file = fingerprint.of_file(out)
    noted = {k: v for k, v in file["kv"].items() if k.startswith("quantize.")}
    return {
        "file_size": file["file_size"],
        "file_sha256": file["file_sha256"],
        "kv_order_tail": file["kv_order"][-_TAIL:],
        "general.file_type": file["kv"]["general.file_type"]["value"],
        "tensors": [[t["name"], t["type"], t["sha256"]] for t in file["tensors"]],
        **({"quantize_kv": noted} if noted else {}),
    }


def _run(command: list[str], folder: Path | None = None) -> None:
    """Raises Refused: a process failed, or wrote nothing."""
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", cwd=folder)
    if done.returncode:
        lines = [s for s in (done.stderr + done.stdout).splitlines() if s.strip()]
        raise Refused(_reason(lines) or f"exit code {done.returncode}")


def _reason(lines: list[str]) -> str:
    """The line that says why: the last one of a Python traceback, else the first with an error."""
    errors = [s for s in lines if "ERROR" in s or "failed" in s]
    if any(s.startswith("Traceback") for s in lines) or not errors:
        return lines[-1] if lines else ""
    return errors[0]
