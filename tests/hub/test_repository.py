"""Models on the Hub: the bytes of a local run, and nothing on the disk.

The server is `tests/hub.py`, on 127.0.0.1.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from quantkit import errors
from quantkit.architectures.rules import ConversionOptions
from quantkit.gguf.splits import Splits
from quantkit.hub import repository
from quantkit.hub.repository import Address
from quantkit.jobs import Run, convert, merge, quantize, split
from quantkit.model.open import Reading, open_source
from quantkit.planning.schedule import Schedule
from quantkit.source.checkpoint import read_weights
from quantkit.source.safetensors import GUESS
from quantkit.source.tensors import Files
from quantkit.storage.inputs import AT_ONCE
from quantkit.verification.verify import verify
from tests.checkpoints import architectures, encoders, write_safetensors
from tests.conftest import sha256
from tests.fake_hub import Hub, Request
from tests.fake_hub_models import MODEL, SHARDED, TOKEN, TYPES, altered, command, sums, there

Get = Callable[[str], Path]


@pytest.mark.parametrize("case", ["mixtral-4x", SHARDED, "mixtral-4x-tf5fused", "llama-dense"])
def test_the_bytes_of_a_local_run(case: str, checkpoint: Get, hub: Hub, tmp_path: Path) -> None:
    source = checkpoint(case)
    name = f"hf://some-org/{source.name}"
    hub.publish(f"some-org/{source.name}", source)
    on_disk: list[int] = []

    def watch(request: Request) -> None:
        files = (p for p in (tmp_path / "temporary").rglob("*") if p.is_file())
        on_disk.append(sum(p.stat().st_size for p in files))

    hub.fault = watch
    here, far = there(tmp_path, "here"), there(tmp_path, "far")
    assert sums(convert(name, far)) == sums(convert(source, here))
    assert sums(quantize(name, TYPES, far)) == sums(quantize(source, TYPES, here))

    weights = sum(p.stat().st_size for p in source.glob("*.safetensors"))
    small = sum(p.stat().st_size for p in source.iterdir()) - weights
    assert 0 < max(on_disk) <= small < weights
    assert list((tmp_path / "temporary").iterdir()) == []
    assert sorted(p.name for p in far.iterdir()) == sorted(p.name for p in here.iterdir())
    # once for the conversion, once for the quantization, and what the headers are guessed to be
    shards = len(list(source.glob("*.safetensors")))
    assert hub.bytes_of("blob") <= 2 * (weights + shards * GUESS)


@pytest.mark.parametrize(
    "case", ["qwen3vlmoe", "llama4", "gpt-oss", "gpt-oss-bf16", "deepseek-v3-fp8", "qwen3-gptq"]
)
def test_rows_that_are_made_of_others(case: str, checkpoint: Get, hub: Hub, tmp_path: Path) -> None:
    """Experts that are stored transposed, rows that alternate, weights beside their scales."""
    source = checkpoint(case)
    name = f"hf://org/{source.name}"
    hub.publish(f"org/{source.name}", source)
    here, far = there(tmp_path, "here"), there(tmp_path, "far")
    assert sums(convert(name, far)) == sums(convert(source, here))
    requests = [r.kind for r in hub.log].count("blob")
    tensors = sum(len(read_weights(p)) for p in source.glob("*.safetensors"))
    assert requests < 20 * tensors


@pytest.mark.parametrize(
    ("case", "options"),
    [("plamo2", {}), ("rwkv6", {}), ("lfm2-colbert", {}),
     ("embeddinggemma-dense", {"dense_modules": True}), ("mimov2-mmproj", {"mmproj": True})],
)  # fmt: skip
def test_files_of_other_names_and_in_folders(
    case: str, options: dict[str, bool], checkpoint: Get, hub: Hub, tmp_path: Path
) -> None:
    source = checkpoint(case)
    name = f"hf://org/{source.name}"
    hub.publish(f"org/{source.name}", source)
    here, far = there(tmp_path, "here"), there(tmp_path, "far")
    reading = Reading(options=ConversionOptions(**options))
    ours, theirs = (convert(s, to, reading=reading) for s, to in ((name, far), (source, here)))
    assert sums(ours) == sums(theirs)


def test_every_small_file_of_the_goldens_is_fetched() -> None:
    """But for code of the models' own, which is never run, and a draft's other model."""
    recipes = [case["recipe"] for case in (*architectures().values(), *encoders().values())]
    names = {n for r in recipes for n in (*r["files"], *r["tokenizer_files"])}
    names = {n for n in names if not n.startswith(("target/", "tokenization_"))}
    assert [n for n in sorted(names) if not repository._is_small(n)] == []


def test_a_file_is_verified_against_the_hub(sharded: Path, hub: Hub, tmp_path: Path) -> None:
    path = quantize(sharded, ["Q4_K_M"], tmp_path).files[0].path
    verdict = verify(path, MODEL)
    assert verdict.good
    assert verdict.proven[-1] == "every tensor is byte for byte what its format gives"
    assert verdict.tensors == verify(path, sharded).tensors


def test_the_token_goes_to_the_hub_only(sharded: Path, hub: Hub, tmp_path: Path) -> None:
    convert(MODEL, tmp_path)
    for request in hub.log:
        sent = request.headers.get("authorization")
        assert sent == (None if request.kind == "blob" else f"Bearer {TOKEN}"), request
        assert request.kind == "api" or request.range is not None


def test_connections_are_kept(sharded: Path, hub: Hub, tmp_path: Path) -> None:
    quantize(MODEL, TYPES, tmp_path)
    blobs = [r for r in hub.log if r.kind == "blob"]
    assert len(blobs) > 2 * hub.connections / 3
    asked_where = [r for r in hub.log if r.kind == "resolve" and r.name.endswith(".safetensors")]
    assert len(asked_where) == 3 + 3  # once a shard for the headers, once for the weights


def test_a_dry_run_reads_headers_only(sharded: Path, hub: Hub, tmp_path: Path) -> None:
    plan = quantize(MODEL, TYPES, tmp_path, run=Run(dry=True))
    assert plan.source_bytes > 1_000_000
    assert hub.bytes_of("blob") <= 3 * GUESS
    assert [r.kind for r in hub.log].count("blob") == 3
    remote, local = (
        Schedule(p, 2) for p in (plan, quantize(sharded, TYPES, tmp_path, run=Run(dry=True)))
    )
    assert remote.workers == 2 + AT_ONCE
    assert remote.stages == (AT_ONCE, 2, 1)
    assert remote.least_memory > local.least_memory


def test_the_command_line(sharded: Path, hub: Hub, tmp_path: Path) -> None:
    """`hf://` survives the options, in a process of its own."""
    run = command(tmp_path, "convert", MODEL, "-o", "far.gguf")
    assert run.returncode == 0, run.stderr
    convert(sharded, tmp_path / "here.gguf")
    assert sha256(tmp_path / "far.gguf") == sha256(tmp_path / "here.gguf")


def test_a_revision_is_pinned_once(
    sharded: Path, local_sums: dict[str, str], hub: Hub, tmp_path: Path
) -> None:
    """The branch moves on while the run is under way."""
    other = altered(sharded, tmp_path / "other")
    first = hub.publish("org/ckpt", sharded)

    def move(request: Request) -> None:
        if request.kind == "blob" and not moved:
            moved.append(hub.publish("org/ckpt", other))

    moved: list[str] = []
    hub.fault = move
    assert sums(quantize(MODEL, TYPES, there(tmp_path, "a"))) == local_sums
    assert moved
    assert [r.kind for r in hub.log].count("api") == 1
    assert sums(quantize(MODEL, TYPES, there(tmp_path, "b"))) != local_sums
    assert sums(quantize(f"{MODEL}@{first}", TYPES, there(tmp_path, "c"))) == local_sums
    hub.publish("org/ckpt", sharded, "refs/pr/7")
    assert sums(quantize(f"{MODEL}@refs/pr/7", TYPES, there(tmp_path, "d"))) == local_sums
    file = next(t.path for t in open_source(MODEL).sources.values())
    assert isinstance(file, repository.RemoteFile)
    assert str(Address.parse(MODEL).at(file.commit)) == f"{MODEL}@{moved[0]}"
    assert (
        str(Address.parse(f"{MODEL}@main/a/b.gguf").at(file.commit))
        == f"{MODEL}@{moved[0]}/a/b.gguf"
    )


def test_columns_are_fetched_by_the_matrix(hub: Hub, tmp_path: Path) -> None:
    """Experts that are stored the other way round: pieces of every row, in one request."""
    x = np.arange(4 * 32 * 48, dtype=np.float32).astype(ml_dtypes.bfloat16).reshape(4, 32, 48)
    directory = there(tmp_path, "columns")
    write_safetensors(directory / "model.safetensors", {"x": ("BF16", [4, 32, 48], x.tobytes())})
    hub.publish("org/columns", directory)
    with repository.snapshot(Address("org/columns")) as snapshot:
        (t,) = read_weights(snapshot.files["model.safetensors"])
    before = len(hub.log)
    with Files([t.path]) as files:
        for matrix, column in itertools.product(range(4), range(0, 48, 16)):
            got = files.read_columns(t, 32 * matrix, 32, column, 16)
            assert np.array_equal(got, x[matrix, :, column : column + 16])
    assert [r.kind for r in hub.log[before:]].count("blob") == 4


def test_gguf_files(checkpoint: Get, hub: Hub, tmp_path: Path) -> None:
    """One file, a set of splits, and cutting and joining them."""
    model = tmp_path / "model-BF16.gguf"
    convert(checkpoint("mixtral-4x"), model)
    repo = there(tmp_path, "repo", "deep")
    pieces = split(model, repo / "model-BF16.gguf", Splits(max_tensors=12))
    shutil.copy(model, repo.parent)
    hub.publish("org/gguf", repo.parent)
    here = sums(quantize(model, TYPES, there(tmp_path, "here")))
    assert list(here) == [f"model-{name}.gguf" for name in TYPES]
    assert sums(quantize("hf://org/gguf/model-BF16.gguf", TYPES, there(tmp_path, "far"))) == here
    first = f"hf://org/gguf/deep/{pieces.files[0].path.name}"
    assert sums(quantize(first, TYPES, there(tmp_path, "pieces"))) == here
    merge(first, tmp_path / "joined.gguf")
    assert sha256(tmp_path / "joined.gguf") == sha256(model)
    cut = split(
        "hf://org/gguf/model-BF16.gguf",
        there(tmp_path, "cut") / "model-BF16.gguf",
        Splits(max_tensors=12),
    )
    assert sums(cut) == sums(pieces)
    (repo / pieces.files[1].path.name).unlink()
    hub.publish("org/gguf", repo.parent)
    with pytest.raises(errors.ShardMissing, match="00002-of"):
        quantize(first, TYPES, tmp_path)
