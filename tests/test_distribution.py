"""The distribution quantkit-gguf: its names, and what the command says where another `quantkit` is
in the way."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import quantkit
import quantkit_gguf

ROOT = Path(__file__).parent.parent


def run(*paths: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """The command as its script calls it, with these directories before all others."""
    return subprocess.run(
        [sys.executable, "-c", "import quantkit_gguf; quantkit_gguf.main()", "--version"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (*paths, ROOT))), **env},
        cwd=paths[0] if paths else ROOT,
        capture_output=True,
        text=True,
    )


def installed(directory: Path) -> Path:
    """Our modules, as an installation has them."""
    for name in ("quantkit", "quant_types", "quantkit_gguf"):
        shutil.copytree(ROOT / name, directory / name, ignore=shutil.ignore_patterns("__pycache__"))
    return directory


def stranger(directory: Path, name: str, *files: str) -> None:
    """What another distribution leaves: its files, and the record of them."""
    info = directory / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "top_level.txt").write_text("quantkit\n")
    for file in files:
        (directory / file).parent.mkdir(exist_ok=True)
        (directory / file).write_text("def main():\n    print('a stranger')\n")


def uninstall(directory: Path) -> None:
    (directory / "quantkit" / "cli.py").unlink()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda d: stranger(d, "llm-quantkit", "quantkit/cli.py"),
            "llm-quantkit installs a module of the same name; pip uninstall llm-quantkit, then "
            "pip install --force-reinstall quantkit-gguf",
        ),
        (
            lambda d: stranger(d, "quantkit", "quantkit/cli.py", "quantkit/__init__.py"),
            "quantkit installs a module of the same name; pip uninstall quantkit, then",
        ),
        (uninstall, "; pip install --force-reinstall quantkit-gguf"),
    ],
    ids=["llm-quantkit", "quantkit", "a file is gone"],
)
def test_another_module_in_the_way(
    change: Callable[[Path], None], words: str, tmp_path: Path
) -> None:
    site = installed(tmp_path)
    assert run(site).stdout == f"quantkit {quantkit.__version__}\n"
    change(site)
    found = run(site)
    assert found.returncode == 1
    assert found.stdout == ""
    assert found.stderr.startswith("error: the module quantkit is not that of quantkit-gguf")
    assert found.stderr.count("\n") == 1
    assert words in found.stderr


def test_a_directory_of_that_name_comes_first(tmp_path: Path) -> None:
    (tmp_path / "quantkit").mkdir()
    (tmp_path / "quantkit" / "__init__.py").touch()
    found = run(tmp_path)
    assert found.returncode == 1
    assert f"{tmp_path / 'quantkit'} is found first; rename it" in found.stderr
    assert found.stderr.count("\n") == 1


def test_its_name_is_the_same_everywhere() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    assert f'name = "{quantkit.DISTRIBUTION}"' in project
    assert quantkit_gguf.DISTRIBUTION == quantkit.DISTRIBUTION
    assert f'version = "{quantkit.__version__}"' in project
    texts = [p for pattern in ("*.md", "*.yml", "docs/*.md", ".github/**/*.yml", "quantkit/**/*.py")
             for p in ROOT.glob(pattern)]  # fmt: skip
    for path in texts:
        for name in re.findall(r"pip install (?:-\S+ )*['\"]?([\w-]*quantkit[\w-]*)",
                               path.read_text(encoding="utf-8")):  # fmt: skip
            assert name == quantkit.DISTRIBUTION, path
