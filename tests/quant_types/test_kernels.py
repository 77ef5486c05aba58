"""How kernels are compiled and kept: only those used, once, and never a stale one."""

from __future__ import annotations

import errno
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import quant_types
from quant_types import kernels
from quant_types.engines import kernel_name
from quant_types.errors import CacheFull
from quant_types.grids import grid

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
    kept = times(tmp_path)
    assert [path.name for path in kept] == ["q8_0.q8_0.kernel"]
    assert run(tmp_path) == first
    assert times(tmp_path) == kept


def with_one_kernel(cache: Path) -> Path:
    """A cache in which the kernel of Q8_0 is, as this session has compiled it."""
    kept = kernels.cache_dir() / "q8_0.q8_0.kernel"
    (cache / kept.parent.name).mkdir(mode=0o700, parents=True)
    shutil.copy(kept, cache / kept.parent.name)
    return cache


def times(cache: Path) -> dict[Path, int]:
    """When each file of a cache was written."""
    return {path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()}


@pytest.mark.parametrize("changed", ["lanes/q8_0.py", "lanes/scalars.py"])
def test_a_changed_source_never_runs_a_stale_kernel(tmp_path: Path, changed: str) -> None:
    """Also where the change is in a file that the kernel only draws on. Here it makes the kernel
    wrong, which is found before it is kept."""
    copy = Path(shutil.copytree(PACKAGE, tmp_path / "source/quant_types"))
    before = run(with_one_kernel(tmp_path / "kernels"), copy.parent)
    source = copy / changed
    text = source.read_text()
    old, new = {
        "lanes/q8_0.py": ("np.float32(127.0)", "np.float32(63.0)"),
        "lanes/scalars.py": ("ONE = np.float32(1.0)", "ONE = np.float32(0.5)"),
    }[changed]
    assert text.count(old) == 1
    source.write_text(text.replace(old, new))
    kept = times(tmp_path / "kernels")
    with pytest.raises(subprocess.CalledProcessError) as caught:
        run(tmp_path / "kernels", copy.parent)
    assert "KernelError: the kernel q8_0.q8_0 could not be compiled" in caught.value.stderr
    assert "makes it wrong, install a newer one" in caught.value.stderr
    assert times(tmp_path / "kernels") == kept
    source.write_text(text)
    assert run(tmp_path / "kernels", copy.parent) == before


def test_what_another_source_is_named_by_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where an update comes between the digest and the compiler."""
    other = tmp_path / "kernels-0123456789abcdef"
    other.mkdir()
    monkeypatch.setattr(kernels, "cache_dir", lambda: other)
    with pytest.raises(kernels.KernelError, match="the source has changed meanwhile"):
        kernels._compile(["q8_0.q8_0"])
    assert not times(tmp_path)


def test_kernels_of_several_processes_do_not_mix(tmp_path: Path) -> None:
    """Each is compiled and kept by a process of its own; a last one runs them all."""
    names = ("Q8_0", "F16")
    alone = [run(tmp_path, names=(name,)) for name in names]
    kept = times(tmp_path)
    assert run(tmp_path, names=names) == "".join(alone)
    assert times(tmp_path) == kept


@pytest.mark.parametrize("damage", [b"", b"x" * 20, None])
def test_what_is_damaged_is_compiled_again(tmp_path: Path, damage: bytes | None) -> None:
    first = run(with_one_kernel(tmp_path))
    (kept,) = times(tmp_path)
    data = bytearray(kept.read_bytes())
    data[len(data) // 2] ^= 1
    kept.write_bytes(data if damage is None else damage)
    assert run(tmp_path) == first
    assert kept.read_bytes() != data


ALL = [
    (fmt, importance)
    for fmt in quant_types.FORMATS
    for importance in ([False, True] if fmt.takes_importance else [False])
    if importance or not fmt.needs_importance
]


@pytest.mark.parametrize(("fmt", "importance"), ALL, ids=str)
def test_a_kernel_stays_within_its_memory(fmt: quant_types.BlockFormat, importance: bool) -> None:
    """17 rows, so that the last tile is not whole."""
    x = np.random.default_rng(3).standard_normal((17, 512)).astype(np.float32)
    out = np.empty(17 * fmt.row_bytes(512), np.uint8)
    memory = np.full(kernels.MEMORY + 2 * 64 + (1 << 16), 0xA5, np.uint8)
    start = -memory.ctypes.data % 64 + 64
    given = [x.ctypes.data, x.size, 0, out.ctypes.data, out.size, memory.ctypes.data + start]
    given.append(grid(fmt.grid).table.ctypes.data if fmt.grid else None)
    if importance:
        table, rows = np.ones((1, 512), np.float32), np.zeros(17, np.int64)
        given += [table.ctypes.data, 1, 512, rows.ctypes.data, 17]
    assert kernels.load(kernel_name(fmt, importance))(*given) == -1
    assert (memory[:start] == 0xA5).all()
    assert (memory[start + kernels.MEMORY :] == 0xA5).all()


def test_a_kernel_that_allocates_is_refused(tmp_path: Path) -> None:
    """Only memory that it is given: there is nobody in the process to allocate with."""
    copy = Path(shutil.copytree(PACKAGE, tmp_path / "source/quant_types"))
    source = copy / "lanes/q8_0.py"
    source.write_text(source.read_text().replace("take_zeros(memory, W", "_new(memory, W"))
    with source.open("a") as file:
        file.write("\n\n@inner\ndef _new(memory, n):\n    return np.zeros(n, np.float32), memory\n")
    with pytest.raises(subprocess.CalledProcessError) as caught:
        run(tmp_path, copy.parent)
    assert "KernelError: the kernel q8_0.q8_0 could not be compiled" in caught.value.stderr
    assert "Pass nopython_type_inference" in caught.value.stderr


def test_modules_where_one_works_do_not_get_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "numba.py").write_text("raise SystemExit('not this one')")
    assert run(tmp_path)


def test_a_compiler_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "cache_dir", lambda: tmp_path)
    monkeypatch.setattr(kernels, "_loaded", {})
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    x = np.ones(32, np.float32)
    with pytest.raises(quant_types.KernelError, match=r"\(exit code 1\); NumPy does the same"):
        quant_types.quantize(x, "Q8_0")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(sys, "executable", shutil.which("true"))  # says that it has, and has not
    with pytest.raises(quant_types.KernelError, match="cannot be read"):
        quant_types.prepare([("Q8_0", False)])
    monkeypatch.setattr(sys, "executable", None)
    with pytest.raises(quant_types.KernelError, match="no Python to compile with"):
        quant_types.quantize(x, "Q8_0")


def test_no_room_for_what_was_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that compiles says it, and so does the one that wants the kernel."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(CacheFull, match="QUANTKIT_CACHE_DIR"):
            kernels.keep(tmp_path / "k.kernel", b"code")
    assert list(tmp_path.iterdir()) == []
    fault = tmp_path / "fault.py"
    fault.write_text(
        "from pathlib import Path\nfrom quant_types.errors import CacheFull\n"
        "raise CacheFull(Path('somewhere'))\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(PACKAGE.parent))
    monkeypatch.setattr(kernels, "cache_dir", lambda: tmp_path)
    monkeypatch.setattr(kernels, "_loaded", {})
    monkeypatch.setattr(kernels.isolated, "command", lambda *_: [sys.executable, str(fault)])
    with pytest.raises(CacheFull) as caught:
        quant_types.quantize(np.ones(32, np.float32), "Q8_0")
    assert caught.value.folder == tmp_path


def test_kernels_are_prepared_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of two formats, in two processes at once; then they are loaded, not compiled."""
    monkeypatch.setattr(kernels, "cache_dir", lambda: tmp_path)
    monkeypatch.setattr(kernels, "_loaded", {})
    quant_types.prepare([("TQ1_0", True), ("F16", False), ("F16", False)], threads=2)
    kept = times(tmp_path)
    assert sorted(path.stem for path in kept) == ["floats.f16", "ternary.tq1_0"]
    monkeypatch.setattr(kernels, "_compile", None)
    monkeypatch.setattr(kernels, "_loaded", {})
    quant_types.prepare([("TQ1_0", False)])
    assert list(kernels._loaded) == ["ternary.tq1_0"]


def test_digest_covers_the_whole_package(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(PACKAGE, tmp_path / "quant_types"))
    digests = {kernels.cache_key(copy)}
    for name in ("search.py", "q4_k.py", "lanes/k_min.py"):
        with (copy / name).open("a") as file:
            file.write("\n")
        digests.add(kernels.cache_key(copy))
    assert len(digests) == 4


def test_cache_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = kernels.cache_dir.__wrapped__
    name = f"kernels-{kernels.cache_key(PACKAGE)}"
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

    def compiled(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        kernels.keep(kernels.path_of(command[-1], tmp_path), b"code")
        return subprocess.CompletedProcess(command, 0)

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(kernels, "cache_dir", lambda: tmp_path)
    monkeypatch.setattr(kernels, "_announced", False)
    monkeypatch.setattr(kernels, "_loaded", {})
    monkeypatch.setattr(subprocess, "run", compiled)
    assert kernels._object("a.b") == kernels._object("c.d") == b"code"
    assert terminal.getvalue() == "compiling kernels for this CPU, once\n"
    monkeypatch.setattr(kernels, "_announced", False)
    assert kernels._object("a.b") == b"code"
    assert terminal.getvalue().count("\n") == 1


def test_what_is_compiled_by_one_process() -> None:
    """With importance and without where threads are few, and about as much in each."""
    names = ["floats.f16", "iq4.iq4_xs", "iq4.iq4_xs_importance", "k_min.q4_k", "q8_0.q8_0"]
    assert kernels._batches(names, 2) == [
        ["k_min.q4_k", "q8_0.q8_0"],
        ["iq4.iq4_xs", "iq4.iq4_xs_importance", "floats.f16"],
    ]
    assert kernels._batches(names[1:3] + names[4:], 3) == [[n] for n in names[1:3] + names[4:]]
    assert kernels._batches(names[:3], 2) == [names[1:3], names[:1]]


def test_kernels_of_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second fails: the first is kept, and the message names the second."""
    monkeypatch.setattr(kernels, "cache_dir", lambda: tmp_path)
    with pytest.raises(quant_types.KernelError, match=r"the kernel floats\.f17 could not"):
        kernels._compile(["floats.f16", "floats.f17"])
    assert [path.name for path in times(tmp_path)] == ["floats.f16.kernel"]


def test_what_x86_would_store_by_a_mask() -> None:
    """A choice between what is there and something new; the load of what is there is marked, and no
    other."""
    pytest.importorskip("numba")
    from quant_types.lanes.compile import _without_masked_stores

    code = """
  %old = load <8 x float>, ptr %p, align 4
  %new = load <8 x float>, ptr %q, align 4
  %one = select <8 x i1> %c, <8 x float> %new, <8 x float> %old
  store <8 x float> %one, ptr %p, align 4
  %sum = fadd <8 x float> %one, %new
  store <8 x float> %sum, ptr %q, align 4
"""
    marked = code.replace("%old = load <", "%old = load volatile <")
    assert _without_masked_stores(code) == marked


@pytest.mark.slow
def test_a_kernel_is_the_same_after_one_in_pairs(tmp_path: Path) -> None:
    """LLVM's options for some kernels are those of the process, and set back after each."""
    pytest.importorskip("numba")
    program = """
import llvmlite.binding as llvm
llvm.initialize_all_targets()
llvm.initialize_all_asmprinters()
from quant_types.lanes.compile import object_code
machine = llvm.Target.from_triple("x86_64-unknown-linux-gnu").create_target_machine("x86-64-v3")


def instructions(name):
    found = llvm.ObjectFileRef.from_data(object_code(name, machine))  # names may have other numbers
    return [bytes(part.data()) for part in found.sections() if part.is_text()]


first = instructions("iq4.iq4_nl")
instructions("k_symmetric.q3_k")
assert instructions("iq4.iq4_nl") == first
"""
    variables = {"NUMBA_CPU_NAME": "x86-64-v3", "NUMBA_CPU_FEATURES": "", **kernels.NUMBA}
    command = [sys.executable, "-c", program]
    subprocess.run(command, env={**os.environ, **variables}, cwd=PACKAGE.parent, check=True)
