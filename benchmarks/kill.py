"""Kill runs at random moments and go on once: `python -m benchmarks.kill CHECKPOINT WORK [N]`.

Prints how many runs died under way and how many results were those of an unbroken run.
"""

from __future__ import annotations

import hashlib
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

TYPES = ["Q4_K_M", "Q8_0", "BF16"]
# sync often, so that there is something to go on from
CODE = (
    "import quantkit.execution.outputs as o; o.SYNC_SECONDS = 0.02; "
    "from quantkit.cli import main; main()"
)


def sums(directory: Path) -> dict[str, str]:
    """SHA-256 of every file."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in directory.iterdir()}


def main(checkpoint: Path, work: Path, runs: int = 100) -> None:
    """Kill and go on, `runs` times."""

    def command(out: Path) -> list[str]:
        types = [f"--type={t}" for t in TYPES]
        return [sys.executable, "-c", CODE, "quantize", str(checkpoint), "-o", str(out), *types]

    whole = work / "whole"
    shutil.rmtree(work, ignore_errors=True)
    whole.mkdir(parents=True)
    start = time.monotonic()
    subprocess.run(command(whole), check=True, stdout=subprocess.DEVNULL)
    length = time.monotonic() - start
    expected, rng, died, same = sums(whole), random.Random(1), 0, 0
    for i in range(runs):
        out = work / str(i)
        out.mkdir()
        process = subprocess.Popen(command(out), stdout=subprocess.DEVNULL)
        time.sleep(rng.random() * length)
        process.send_signal(signal.SIGKILL)
        process.wait()
        died += not all((out / name).exists() for name in expected)
        subprocess.run(command(out), capture_output=True, check=False)
        same += sums(out) == expected
        shutil.rmtree(out)
    print(
        f"{runs} runs killed, {died} of them before they were done; {same} identical after one more"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:4]))
