"""Max RAM: the formula against what llama.cpp says it allocates, and against what it takes."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from quantkit.jobs import convert, quantize
from quantkit.reporting.llama_memory import Weights, memory
from quantkit.reporting.table import read_memory, read_rows

# each keeps another cache: all tokens, windows, latents, states, none in the layers that predict
CASES = (
    "mixtral-4x", "gemma2-dense", "gpt-oss-bf16", "llama4", "mimo2", "gemma4-e2b", "deepseek-v2",
    "kimi-linear", "qwen3next", "granitehybrid", "jamba", "lfm2moe", "minimax-m1",
    "nemotron-h-moe", "glm4moe", "smallthinker", "cohere2moe", "step35", "llada-moe",
)  # fmt: skip

# loads the files, one beside another, and leaves without ending them
_LOAD = """
import os, sys, time, xllamacpp
servers = []
for path in sys.argv[2:]:
    p = xllamacpp.CommonParams()
    p.model.path, p.n_ctx, p.n_parallel, p.port = path, int(sys.argv[1]), 1, 0
    p.n_gpu_layers, p.warmup, p.fit_params, p.verbosity = 0, False, False, 4
    p.cpuparams.n_threads = 1
    servers.append(xllamacpp.Server(p))
time.sleep(0.5)
os._exit(0)
"""


def allocated(paths: Sequence[Path], context: int) -> dict[str, dict[str, float]]:
    """MiB of each kind of buffer that llama.cpp says it has, by the file's name."""
    command = [sys.executable, "-c", _LOAD, str(context), *map(str, paths)]
    log = subprocess.run(command, capture_output=True, check=True).stderr
    said = log.decode("utf-8", "replace")
    out: dict[str, dict[str, float]] = {}
    for part in said.split("loading model '")[1:]:
        found = out.setdefault(Path(part.partition("'")[0]).stem, {})
        for where, kind, mib in re.findall(r"(\S+)\s+(\w+) buffer size =\s+([\d.]+) MiB", part):
            found[kind] = found.get(kind, 0.0) + float(mib)
            found[f"{where} {kind}"] = float(mib)
    return out


@pytest.fixture(scope="module")
def files(
    checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> list[Path]:
    out = tmp_path_factory.mktemp("ram")
    for case in CASES:
        convert(checkpoint(case), out / f"{case}.gguf")
    return [out / f"{case}.gguf" for case in CASES]


@pytest.mark.parametrize("context", [512, 4096])
def test_the_parts_are_llama_cpps(context: int, files: list[Path]) -> None:
    found = allocated(files, context)
    for path in files:
        buffers, need = found[path.stem], read_memory(path, context)
        cache = buffers.get("KV", 0.0) + buffers.get("RS", 0.0)
        printed = 0.005 * len(buffers) + 1e-9  # each with two decimals
        assert abs(need.cache / 2**20 - cache) < printed, path.stem
        # beside the graph's buffer: inputs of products, rounded to 8 bits
        assert 0.9 < need.compute / 2**20 / buffers["compute"] < 1.4, path.stem


def test_copies_for_the_cpu_are_llama_cpps(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    types = ["Q4_0", "Q4_K_M", "MXFP4_MOE", "Q8_0"]
    quantize(checkpoint("mixtral-4x"), types, tmp_path)
    quantize(checkpoint("llama-dense"), ["Q4_0"], tmp_path / "dense.gguf")
    paths = sorted(tmp_path.glob("*.gguf"))
    found = allocated(paths, 512)
    for path in paths:
        copies = read_memory(path, 512).copies / 2**20
        assert abs(copies - found[path.stem].get("CPU_REPACK model", 0.0)) < 0.0051, path.stem


def test_a_tied_table_is_copied_where_it_is_a_matrix() -> None:
    table = Weights("token_embd.weight", (512, 256), "Q4_0")
    head = Weights("output.weight", (512, 256), "Q4_0")
    assert memory("llama", {}, [table], 512, 0).copies == table.nbytes
    assert memory("llama", {}, [table, head], 512, 0).copies == head.nbytes


def test_experts_on_the_cpu() -> None:
    experts = [Weights(f"blk.{i}.ffn_up_exps.weight", (4, 512, 256), "Q8_0") for i in range(2)]
    rest = [
        Weights("token_embd.weight", (512, 256), "Q8_0"),
        Weights("output.weight", (512, 256), "Q6_K"),
        Weights("blk.0.attn_k.weight", (256, 256), "Q8_0"),
    ]
    values = {"block_count": 2, "embedding_length": 256, "attention.head_count": 4}
    need = memory("llama", values, [*rest, *experts], 512, 100)
    assert need.experts_on_cpu is not None
    ram, vram = need.experts_on_cpu
    assert ram == 2 * experts[0].nbytes + rest[0].nbytes + need.compute + need.rest
    on_gpu = rest[1].nbytes + rest[2].nbytes + need.cache + need.compute
    assert vram == on_gpu + experts[0].nbytes
    assert memory("llama", values, rest, 512, 100).experts_on_cpu is None


@pytest.mark.parametrize("mapped", [True, False])
def test_the_peak_is_what_llama_cpp_takes(
    mapped: bool, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    """Of a small model, whose weights are not the most of it; docs/memory.md has large ones."""
    from benchmarks.memory import measure

    (path,) = (f.path for f in quantize(checkpoint("mixtral-8x"), ["Q4_0"], tmp_path).files)
    (row,) = read_rows([path], 2048)
    need = row.mapped_ram_bytes if mapped else row.max_ram_bytes
    assert 0.85 < need / measure(path, 2048, mapped)["peak"] < 1.15
