"""How kernels are compiled and kept: only those used, once, and never a stale one."""

from __future__ import annotations

import importlib
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import quant_types
from quant_types.lanes import compile as compile_module

PACKAGE = Path(quant_types.__file__).parent
PROGRAM = """
import sys, numpy as np, quant_types
x = np.linspace(-1, 1, 256, dtype=np.float32)
for name in sys.argv[1:]:
    print(bytes(quant_types.quantize(x, name, engine="lanes")).hex())
"""


def run(
    cache: Path, package_parent: Path = PACKAGE.parent, names: tuple[str, ...] = ("Q8_0",)
) -> str:
    """A line of bytes a format from a new process, with its kernels kept under `cache`."""
    variables = {"QUANTKIT_CACHE_DIR": str(cache), "PYTHONPATH": str(package_parent)}
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, *names],
        env={**os.environ, **variables},
        cwd=cache,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stderr == ""  # a person is told, a pipe is not
    return result.stdout


def test_kernels_are_compiled_once_and_only_those_used(tmp_path: Path) -> None:
    first = run(tmp_path)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nb?")}
    assert [path.name.split("-")[0] for path in kept if path.suffix == ".nbi"] == ["q8_0.q8_0"]
    assert run(tmp_path) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nb?")} == kept


@pytest.mark.parametrize("changed", ["lanes/q8_0.py", "lanes/scalars.py"])
def test_a_changed_source_never_runs_a_stale_kernel(tmp_path: Path, changed: str) -> None:
    """Also where the change is in a file that the kernel only draws on."""
    copy = Path(shutil.copytree(PACKAGE, tmp_path / "source/quant_types"))
    before = run(tmp_path, copy.parent)
    source = copy / changed
    text = source.read_text()
    old, new = {
        "lanes/q8_0.py": ("np.float32(127.0)", "np.float32(63.0)"),
        "lanes/scalars.py": ("ONE = np.float32(1.0)", "ONE = np.float32(0.5)"),
    }[changed]
    assert text.count(old) == 1
    source.write_text(text.replace(old, new))
    assert run(tmp_path, copy.parent) != before
    source.write_text(text)
    assert run(tmp_path, copy.parent) == before


def test_kernels_of_several_processes_do_not_mix(tmp_path: Path) -> None:
    """Each is compiled and kept by a process of its own; a last one runs them all."""
    names = ("Q2_K", "Q4_K")
    alone = [run(tmp_path, names=(name,)) for name in names]
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nb?")}
    assert run(tmp_path, names=names) == "".join(alone)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nb?")} == kept


def test_sub_functions_have_symbols_of_their_own() -> None:
    """Two that share a qualified name, all that the linker goes by, are the same function."""
    found: dict[str, list[object]] = {}

    def visit(value: object) -> None:
        function = getattr(value, "py_func", None) or getattr(value, "__wrapped__", None)
        if function is None or not function.__module__.startswith("quant_types.lanes"):
            return
        cells = [cell.cell_contents for cell in function.__closure__ or ()]
        identity = [function.__code__, *map(compile_module._described, cells)]
        name = f"{function.__module__}.{function.__qualname__}"
        assert found.setdefault(name, identity) == identity, name
        for cell in cells:
            visit(cell)

    for path in sorted((PACKAGE / "lanes").glob("*.py")):
        module = importlib.import_module(f"quant_types.lanes.{path.stem}")
        for value in vars(module).values():
            visit(value)
    factories = {name.split(".<locals>")[0] for name in found if ".<locals>" in name}
    variants = [name for name in found if "min_search.make_search.<locals>.search_" in name]
    assert len(factories) > 8
    assert len(variants) >= 6


def test_digest_covers_the_whole_package(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(PACKAGE, tmp_path / "quant_types"))
    digests = {compile_module.source_digest(copy)}
    for name in ("search.py", "q4_k.py", "lanes/k_min.py"):
        with (copy / name).open("a") as file:
            file.write("\n")
        digests.add(compile_module.source_digest(copy))
    assert len(digests) == 4


def test_cache_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = compile_module.cache_dir.__wrapped__
    name = f"kernels-{compile_module.source_digest(PACKAGE)}"
    monkeypatch.delenv("QUANTKIT_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert find() == tmp_path / "xdg/quantkit" / name
    monkeypatch.setenv("QUANTKIT_CACHE_DIR", str(tmp_path / "own"))
    assert find() == tmp_path / "own" / name
    assert (tmp_path / "own" / name).is_dir()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("QUANTKIT_CACHE_DIR", str(tmp_path / "file"))
    fallback = find()
    assert fallback.is_dir()
    assert tmp_path not in fallback.parents
    fallback.rmdir()


def test_a_person_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(compile_module, "cache_dir", lambda: tmp_path)
    monkeypatch.setattr(compile_module, "_announced", False)

    def some_kernel() -> int:
        return 0

    compile_module._announce(some_kernel)
    compile_module._announce(some_kernel)
    assert terminal.getvalue() == "compiling kernels for this CPU, once\n"
    monkeypatch.setattr(compile_module, "_announced", False)
    (tmp_path / "module.some_kernel-1.py311.nbi").write_text("")
    compile_module._announce(some_kernel)
    assert terminal.getvalue().count("\n") == 1
