"""`quantkit plan`: what would come of a source, from headers alone."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks import make_checkpoint
from quantkit.cli import app
from quantkit.jobs import quantize
from quantkit.reporting.survey import survey
from quantkit.reporting.table import read_rows
from quantkit.source.safetensors import GUESS
from tests.checkpoints import FRANKENMOE
from tests.fake_hub import Hub

run = CliRunner().invoke

EIGHT = ("Q2_K", "Q3_K_M", "Q4_0", "Q4_K_M", "Q5_0", "Q5_K_M", "Q6_K", "Q8_0")
# experts of a Mixtral -> the MiB that `llama-quantize --dry-run` prints, type by type
DRY_RUNS = {
    4: (8432.57, 11043.27, 12991.87, 13932.37, 15855.49, 16339.99, 18898.09, 24476.64),
    5: (10379.07, 13605.77, 16016.37, 17187.87, 19551.99, 20155.49, 23308.59, 30189.14),
    8: (16508.57, 21501.27, 25217.87, 27129.87, 30737.49, 31689.49, 36602.09, 47326.64),
}


def write_sparse(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """A safetensors file with a real header, and a hole where the bfloat16 weights would be."""
    header: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        start = end
        end += 2 * int.__mul__(*(*shape, 1)[:2])
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        f.truncate(8 + len(text) + end)


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """A Mixtral of so many experts with Mistral-7B's widths; its weights are a hole."""

    def make(experts: int) -> Path:
        out = tmp_path_factory.mktemp(f"mixtral-{experts}x") / f"Mixtral-{experts}x7B"
        out.mkdir()
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(FRANKENMOE / name, out)
        config = json.loads((FRANKENMOE / "config.json").read_text())
        config |= {
            "hidden_size": make_checkpoint.HIDDEN,
            "intermediate_size": make_checkpoint.FFN,
            "num_hidden_layers": 32,
            "num_attention_heads": make_checkpoint.HEADS,
            "num_key_value_heads": make_checkpoint.KV_HEADS,
            "head_dim": None,
            "vocab_size": make_checkpoint.VOCAB,
            "num_local_experts": experts,
            "tie_word_embeddings": False,
            "max_position_embeddings": 32768,
        }
        (out / "config.json").write_text(json.dumps(config))
        write_sparse(out / "model.safetensors", make_checkpoint.shapes(32, experts))
        return out

    return make


@pytest.mark.parametrize("experts", DRY_RUNS)
def test_tensor_bytes_are_llama_quantizes(experts: int, mixtral: Callable[[int], Path]) -> None:
    found = survey(mixtral(experts), EIGHT)
    mib = tuple(round(row.tensor_bytes / 2**20, 2) for row in found.rows)
    assert tuple(row.type for row in found.rows) == EIGHT
    assert mib == DRY_RUNS[experts]


def test_a_published_card(mixtral: Callable[[int], Path]) -> None:
    """A 5x7B's card says 17, 20.7, 24.7 and 32: GB of 10^9 bytes, rounded up by about 1%."""
    rows = survey(mixtral(5), ["Q4_0", "Q5_0", "Q6_K", "Q8_0"]).rows
    assert [round(row.file_bytes / 1e9, 1) for row in rows] == [16.8, 20.5, 24.4, 31.7]
    for row, published in zip(rows, (17, 20.7, 24.7, 32), strict=True):
        assert 1.009 < published / (row.file_bytes / 1e9) < 1.013


def test_mixtral_has_46_7_billion_weights(mixtral: Callable[[int], Path]) -> None:
    source = str(mixtral(8))
    text = run(app, ["plan", source, "--types", "Q4_K_M"]).stdout
    assert "46.7B parameters, 12.9B active; 8 experts, 2 used" in text
    found = json.loads(run(app, ["plan", source, "--types", "q4_k_m", "--json"]).stdout)
    assert found["parameters"] == {"total": 46702792704, "active": 12879925248}
    assert found["experts"] == {"count": 8, "used": 2}
    (output,) = found["outputs"]
    assert output["tensor_bytes"] == round(27129.8671875 * 2**20)
    assert output["bits_per_weight"] == round(8 * output["tensor_bytes"] / 46702792704, 4)
    ram, vram = output["experts_on_cpu_ram_bytes"], output["experts_on_cpu_vram_bytes"]
    # activations are on both sides, and a tensor of experts is copied to the GPU at a time
    assert 0 < ram + vram - output["max_ram_bytes"] < 1e9
    # 32 layers of 8 experts with three matrices of 4096 x 14336, in at least 4.5 bits
    assert ram > 32 * 8 * 3 * 4096 * 14336 * 4.5 / 8 > 10 * vram


def test_plan_foretells_what_quantize_makes(
    checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = checkpoint("mixtral-4x")
    types = ["Q4_K_M", "Q8_0"]
    planned = survey(source, types, 64).rows
    assert list(tmp_path.iterdir()) == []
    quantize(source, types)
    made = read_rows([tmp_path / row.name for row in planned], 64)
    assert made == list(planned)


def test_all_types_and_what_is_refused(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    result = run(app, ["plan", str(checkpoint("mixtral-4x"))])
    assert result.exit_code == 0
    types = [line.split(" | ")[0].removeprefix("| ") for line in result.stdout.splitlines()]
    assert {"TQ1_0", "Q4_K_M", "MXFP4_MOE", "F32", "COPY"} < set(types)
    assert "Q2_K_S" not in types
    (note,) = result.stderr.splitlines()
    assert note.startswith("note: 9 types cannot be made (IQ1_S")
    assert "Q2_K_S" in note
    assert "importance matrix" in note

    quantize(checkpoint("mixtral-4x"), ["Q4_0"], tmp_path / "small.gguf")
    small = str(tmp_path / "small.gguf")
    result = run(app, ["plan", small])
    assert len(result.stderr.splitlines()) == 1
    assert "is Q4_0 already" in result.stderr
    found = json.loads(run(app, ["plan", small, "--json"]).stdout)
    assert {"Q4_0", "COPY"} <= {output["type"] for output in found["outputs"]}
    assert "Q8_0" in found["refused"]
    again = json.loads(run(app, ["plan", small, "--json", "--allow-requantize"]).stdout)
    assert "Q8_0" in {output["type"] for output in again["outputs"]}

    result = run(app, ["plan", small, "--types", "Q8_0"])
    assert result.exit_code == 1


def test_what_fits(mixtral: Callable[[int], Path]) -> None:
    arguments = ["plan", str(mixtral(4)), "--types", ", ".join(EIGHT), "--json"]
    found = json.loads(run(app, [*arguments, "--ram", "16GB", "--disk", "20GB"]).stdout)
    for output in found["outputs"]:
        assert output["fits_ram"] == (output["max_ram_bytes"] <= 16e9)
        assert output["fits_disk"] == (output["file_bytes"] <= 20e9)
    assert {output["fits_ram"] for output in found["outputs"]} == {True, False}
    whole = sum(output["file_bytes"] for output in found["outputs"])
    assert found["release"] == {"types": list(EIGHT), "file_bytes": whole, "fits_disk": ["Q2_K"]}
    longer = json.loads(run(app, [*arguments, "--ram", "16GB", "--ctx", "32768"]).stdout)
    assert sum(o["fits_ram"] for o in longer["outputs"]) < sum(
        o["fits_ram"] for o in found["outputs"]
    )
    assert longer["release"]["fits_disk"] is None
    text = run(app, ["plan", arguments[1], "--disk", "20GB"]).stdout
    assert f"A release of {', '.join(EIGHT)}: {whole / 1e9:.2f} GB." in text
    assert "20.00 GB of disk holds Q2_K at once." in text


def test_splits_are_jobs(mixtral: Callable[[int], Path]) -> None:
    arguments = ["plan", str(mixtral(4)), "--types", "Q4_K_M", "--split-max-size", "4G", "--json"]
    (output,) = json.loads(run(app, arguments).stdout)["outputs"]
    sizes = [f["bytes"] for f in output["files"]]
    assert len(sizes) == 4
    assert max(sizes) < 4.1e9
    assert sum(sizes) == output["file_bytes"]
    assert output["files"][1]["path"] == "Mixtral-4x7B-Q4_K_M-00002-of-00004.gguf"


def test_wrong_wishes(checkpoint: Callable[[str], Path]) -> None:
    source = str(checkpoint("mixtral-4x"))
    for wish, said in (
        (["--ram", "16"], "'16' is not a size"),
        (["--types", "Q4_K_M,Q7_K"], "unknown type 'Q7_K'"),
        (["--columns", "name,colour"], "unknown column 'colour'"),
    ):
        result = run(app, ["plan", source, *wish])
        assert result.exit_code == 2
        assert said in result.stderr


def test_a_model_on_the_hub(
    checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = checkpoint("mixtral-4x-sharded")
    here = json.loads(run(app, ["plan", str(source), "--json"]).stdout)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Hub() as hub:
        hub.publish("org/ckpt", source)
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        there = json.loads(run(app, ["plan", "hf://org/ckpt", "--json"]).stdout)
        assert hub.bytes_of("blob") <= 3 * GUESS  # of three shards, the headers
    for output in [*here["outputs"], *there["outputs"]]:
        for key in ("name", "file_bytes", "files"):  # its name is in the metadata
            del output[key]
    assert len(here["outputs"]) > 20
    assert there["outputs"] == here["outputs"]


def test_a_plan_of_700_gigabytes_is_quick(mixtral: Callable[[int], Path]) -> None:
    """Two seconds and 200 MB on a machine of its own; the machine that tests may be busy."""
    code = (
        "import time; from quantkit.cli import app\n"
        "try: app()\n"
        "except SystemExit: pass\n"
        "peak = open('/proc/self/status').read().partition('VmHWM:')[2].split()[0]\n"
        "print(time.process_time(), peak)"
    )
    source = str(mixtral(64))
    held = sum(f.stat().st_size for f in Path(source).iterdir())
    assert held > 700e9
    command = [sys.executable, "-c", code, "plan", source]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, kilobytes = map(float, done.stdout.splitlines()[-1].split())
    assert seconds < 4
    assert kilobytes < 200_000
