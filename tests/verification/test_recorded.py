"""Files with a manifest beside them, sets of splits, smaller mixtures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from quantkit import jobs
from quantkit.errors import CorruptFile
from quantkit.gguf.container import read_header
from quantkit.gguf.splits import Splits
from quantkit.jobs import convert, quantize
from quantkit.planning.plan import Plan
from quantkit.releases import manifest
from quantkit.releases.checksums import hash_file
from quantkit.releases.manifest import FileRecord, MadeFrom, Manifest, TensorRecord
from quantkit.reporting.inspection import Parameters
from quantkit.verification.verify import verify
from tests.verification.damage import span


def recorded(plan: Plan, directory: Path) -> list[Path]:
    """Copies of a plan's files with the manifest of a release beside them."""
    files = []
    for f in plan.files:
        path = directory / f.path.name
        path.write_bytes(f.path.read_bytes())
        spans = [(t.offset, t.offset + t.nbytes) for t in f.tensors]
        whole, parts = hash_file(path, spans)
        tensors = tuple(
            TensorRecord(t.name, t.format, t.shape, t.offset, t.nbytes, part)
            for t, part in zip(f.tensors, parts, strict=True)
        )
        files.append(FileRecord(path.name, "", f.size, whole, tensors, ""))
    made = Manifest(
        "", "m", "", "llama", Parameters(1, 1), None, MadeFrom("", ""), files=tuple(files)
    )
    (directory / manifest.NAME).write_text(manifest.as_json(made))
    return [directory / f.name for f in files]


@pytest.fixture
def released(plain: Plan, tmp_path: Path) -> Path:
    return recorded(plain, tmp_path)[1]


def test_padding_counts_too(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    plan = convert(checkpoint("deepseek-v3"), tmp_path / "m.gguf")
    directory = tmp_path / "released"
    directory.mkdir()
    (path,) = recorded(plan, directory)
    header, whole = read_header(path), path.read_bytes()
    name = "blk.1.exp_probs_b.bias"
    end = header.data_offset + span(header, name).stop
    assert end % 32
    assert verify(path).good
    changed = bytearray(whole)
    changed[end] ^= 1
    path.write_bytes(changed)
    assert verify(path).findings == ["m.gguf: the padding after blk.1.exp_probs_b.bias was changed"]


def test_every_flipped_byte_is_found_and_named(released: Path) -> None:
    assert verify(released).proven[0] == "every byte is the one that manifest.json names"
    whole, header = released.read_bytes(), read_header(released)
    for t in header.tensors:
        part = span(header, t.name)
        start, end = part.start + header.data_offset, part.stop + header.data_offset
        for at in (start, end - 1):
            changed = bytearray(whole)
            changed[at] ^= 1
            released.write_bytes(changed)
            finding = f"{released.name}: the bytes of {t.name} were changed"
            assert finding in verify(released).findings
    for at in (0, 5, 100, header.data_offset // 2, header.data_offset - 1):
        changed = bytearray(whole)
        changed[at] ^= 1
        released.write_bytes(changed)
        assert verify(released).findings[0] == f"{released.name}: the header was changed"
    released.write_bytes(whole[:-5000])
    first, second = verify(released).findings
    assert f"{len(whole) - 5000} bytes, manifest.json says {len(whole)}; it ends before" in first
    assert "it is truncated" in second
    stranger = released.with_name("other.gguf")
    stranger.write_bytes(whole)
    assert verify(stranger).notes == ["manifest.json does not list other.gguf"]
    record = json.loads((released.parent / manifest.NAME).read_text())
    del record["files"][0]["tensors"][0]["offset"]
    (released.parent / manifest.NAME).write_text(json.dumps(record))
    path = released.with_name(record["files"][0]["name"])
    with pytest.raises(CorruptFile, match=r"manifest.json: not a manifest, or damaged .*offset"):
        verify(path)


def test_a_set_of_splits(source: Path, tmp_path: Path) -> None:
    request = jobs.Request(splits=Splits(max_tensors=10))
    plan = quantize(source, ["Q4_K_M"], tmp_path, request=request)
    assert len(plan.files) == 4
    for f in plan.files:
        found = verify(f.path, source)
        assert found.good
        assert len(found.tensors) == 33
    plan.files[2].path.unlink()
    (finding,) = verify(plan.files[0].path, source).findings
    assert "1 of 4 splits are not there" in finding


def test_a_smaller_mixture_is_read_as_it_was_made(source: Path, tmp_path: Path) -> None:
    reading = jobs.Reading(keep_experts=(0, 3), experts_used=2)
    path = quantize(source, ["Q4_K_M"], tmp_path, reading=reading).files[0].path
    assert verify(path, source, reading=reading).good
    findings = verify(path, source).findings
    assert "llama.expert_count is 2 in the file, the source gives 4" in findings
