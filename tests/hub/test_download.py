"""The commands on a card, run as they stand there: the real client of the Hub gets the files of a
type, and no others."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

import quantkit
from quantkit.gguf.splits import Splits
from quantkit.releases import manifest
from quantkit.releases.run_commands import download
from tests.conftest import sha256
from tests.fake_hub import Hub

REPO = "org/M-GGUF"
CLIENT = "from huggingface_hub.cli.hf import main; main()"


@pytest.mark.skipif(not find_spec("huggingface_hub.cli"), reason="`hf` came with version 0.34")
@pytest.mark.parametrize("splits", [Splits(), Splits(max_tensors=20)], ids=["whole", "split"])
def test_what_the_card_says_downloads_a_type(
    splits: Splits, frankenmoe: dict[str, Path], tmp_path: Path
) -> None:
    made = quantkit.release(
        frankenmoe["mergekit"], tmp_path / "out", ["Q4_K_M", "Q8_0"], splits=splits
    )
    record = replace(made.manifest, repo=REPO)
    with Hub() as hub:
        hub.publish(REPO, made.directory)
        for row in made.rows:
            there = tmp_path / row.type
            there.mkdir()
            program, *rest = shlex.split(download(record, row))
            assert program == "hf"
            env = {
                **os.environ,
                "HF_ENDPOINT": hub.url,
                "HF_HOME": str(tmp_path / "home"),
                "NO_PROXY": "127.0.0.1",
                "HF_HUB_DISABLE_XET": "1",
            }
            done = subprocess.run(
                [sys.executable, "-c", CLIENT, *rest], env=env, cwd=there, capture_output=True
            )
            assert done.returncode == 0, done.stderr
            got = {p.name: sha256(p) for p in there.glob("*.*") if p.is_file()}
            expected = {f.name: f.sha256 for f in record.files if f.type == row.type}
            assert got == expected
        sums = (made.directory / manifest.CHECKSUMS).read_text()
        assert all(re.search(rf"^{f.sha256}  {f.name}$", sums, re.M) for f in record.files)
