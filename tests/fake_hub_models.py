"""A model on the server of `tests/hub.py`, and what tests of it share; the fixtures are in
`conftest.py`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from quantkit.planning.plan import Plan
from tests.conftest import sha256

TYPES = ["Q4_K_M", "Q8_0"]
MODEL = "hf://org/ckpt"
TOKEN = "hf_verysecret"
SHARDED = "mixtral-4x-sharded"


def sums(plan: Plan) -> dict[str, str]:
    return {f.path.name: sha256(f.path) for f in plan.files}


def command(where: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "quantkit.cli", *arguments],
        cwd=where,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path, **env},
    )


def there(*parts: Path | str) -> Path:
    path = Path(*parts)
    path.mkdir(parents=True, exist_ok=True)
    return path


def altered(source: Path, target: Path) -> Path:
    """A copy with other signs in its last weights, and files of the same sizes."""
    shutil.copytree(source, target)
    shard = target / "model-00003-of-00003.safetensors"
    data = bytearray(shard.read_bytes())
    for i in range(1, 1024, 2):
        data[-i] ^= 0x80
    shard.write_bytes(data)
    return target
