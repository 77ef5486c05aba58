"""Kernels that come with the package: built as a wheel's are, linked by this machine's compiler."""

from __future__ import annotations

import json
import platform
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import quant_types
from quant_types import engines, kernels, shipped
from quant_types.lanes import library

MACHINE = {"x86_64": "linux-x86_64", "aarch64": "linux-aarch64"}.get(platform.machine())
BUILT = ["q8_0.q8_0"]
COMPILER = shutil.which("cc") or shutil.which("gcc")
needs_compiler = pytest.mark.skipif(
    sys.platform != "linux" or COMPILER is None or MACHINE is None,
    reason="links a library for Linux with the system's C compiler",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library of one kernel, and its digests."""
    assert COMPILER is not None
    assert MACHINE is not None
    found = tmp_path_factory.mktemp("ready")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "names", lambda: BUILT)
        library.build(library.PLATFORMS[MACHINE], found, linker=(COMPILER,))
    return found


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Nothing loaded, and nothing known of what comes with the package."""
    known = (shipped.level, shipped._digests, shipped._library, kernels.available)
    monkeypatch.setattr(kernels, "_loaded", {})
    for cached in known:
        cached.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    for cached in known:
        cached.cache_clear()


def not_compiled(name: str) -> bytes:
    raise AssertionError(f"{name} was to be compiled")


def weights() -> np.ndarray:
    return np.random.default_rng(5).standard_normal((64, 256)).astype(np.float32)


@needs_compiler
def test_a_kernel_of_the_library_is_used_and_makes_the_same_bytes(
    folder: Path, fresh: pytest.MonkeyPatch
) -> None:
    fresh.setattr(shipped, "FOLDER", folder)
    fresh.setattr(kernels, "_object", not_compiled)
    ours = quant_types.quantize(weights(), "Q8_0", engine="lanes")
    assert np.array_equal(ours, quant_types.quantize(weights(), "Q8_0", engine="array"))
    assert list(kernels._loaded) == BUILT


@needs_compiler
def test_every_level_has_every_kernel(folder: Path) -> None:
    assert MACHINE is not None
    levels = library.LEVELS[platform.machine()]
    data = (folder / "kernels.so").read_bytes()
    for level in levels:
        assert shipped.symbol(BUILT[0], level).encode() in data


@needs_compiler
def test_a_kernel_that_the_library_has_not_is_compiled(
    folder: Path, fresh: pytest.MonkeyPatch
) -> None:
    fresh.setattr(shipped, "FOLDER", folder)
    ours = quant_types.quantize(weights(), "Q4_0", engine="lanes")
    assert np.array_equal(ours, quant_types.quantize(weights(), "Q4_0", engine="array"))


@needs_compiler
def test_a_kernel_that_makes_other_bytes_is_not_used(
    folder: Path, tmp_path: Path, fresh: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ready = Path(shutil.copytree(folder, tmp_path / "ready"))
    digests = json.loads((ready / shipped.DIGESTS).read_text())
    digests["proofs"][BUILT[0]] = "0" * 64
    (ready / shipped.DIGESTS).write_text(json.dumps(digests))
    fresh.setattr(shipped, "FOLDER", ready)
    ours = quant_types.quantize(weights(), "Q8_0", engine="lanes")
    assert "the kernel q8_0.q8_0 is not used (its bytes are not those" in capsys.readouterr().err
    assert np.array_equal(ours, quant_types.quantize(weights(), "Q8_0", engine="array"))


@needs_compiler
@pytest.mark.parametrize("damage", ["sources", "library"])
def test_a_library_of_other_sources_or_of_another_platform_is_not_loaded(
    damage: str, folder: Path, tmp_path: Path, fresh: pytest.MonkeyPatch
) -> None:
    ready = Path(shutil.copytree(folder, tmp_path / "ready"))
    if damage == "sources":
        digests = json.loads((ready / shipped.DIGESTS).read_text())
        (ready / shipped.DIGESTS).write_text(json.dumps({**digests, "sources": "older"}))
    else:
        (ready / "kernels.so").write_bytes(b"MZ of another system")
    fresh.setattr(shipped, "FOLDER", ready)
    assert shipped.level() == 0
    assert kernels.available()  # Numba is here


def test_without_kernels_and_compiler_numpy_does_it_and_says_so_once(
    tmp_path: Path, fresh: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fresh.setattr(shipped, "FOLDER", tmp_path)
    fresh.setattr(kernels, "find_spec", lambda name: None)
    fresh.setattr(kernels, "load", not_compiled)
    assert engines.pick_engine("auto", is_numpy=True) == "array"
    first, second = (quant_types.quantize(weights(), "Q8_0") for _ in range(2))
    assert np.array_equal(first, second)
    assert capsys.readouterr().err.count("pip install 'quantkit-gguf[compile]'") == 1


def test_every_kernel_is_named_and_every_platform_has_levels() -> None:
    names = library.names()
    assert len(names) == len(set(names)) > 40
    for one in library.PLATFORMS.values():
        assert one.zig.split("-")[0] in library.LEVELS
        assert one.suffix == shipped.SUFFIX.get(
            {"macosx": "darwin", "win": "win32"}.get(one.tag.split("_")[0], "linux"), ".so"
        )
