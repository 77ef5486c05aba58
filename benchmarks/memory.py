"""The memory that llama.cpp takes for files, measured and as the formula has it:
`python -m benchmarks.memory WORK_DIR [--write docs/memory.md]`.

The files are made: Mixtral's widths in one layer (a billion weights), a dense model and a mixture
of small experts with many layers. Each measurement is a process of its own that does what
llama-server does: loads the file, mapped or read, and evaluates a prompt of whole batches. What
Python takes by itself is subtracted.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import struct
import subprocess
import sys
from math import prod
from pathlib import Path
from typing import Any

from benchmarks import make_checkpoint
from benchmarks.measure import write_section
from quantkit.jobs import Run, quantize
from quantkit.reporting.table import read_rows

PROMPT = 2048  # tokens at most; the cache is written whole, however few are used


# checkpoint -> the types that are measured
TYPES = {
    "mixtral-1b": ("Q2_K", "Q4_K_M", "Q8_0"),
    "dense-16l": ("Q4_K_M", "Q6_K"),
    "small-experts-12l": ("Q4_0", "Q5_K_M"),
}
CONTEXTS = (512, 8192)
Shapes = dict[str, tuple[int, ...]]


def make(name: str, out: Path) -> None:
    """Write a checkpoint. Values do not matter here: those of the second and third are zero."""
    if name == "mixtral-1b":
        make_checkpoint.write(out)
        return
    out.mkdir()
    for text in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(out.parent / "mixtral-1b" / text, out)
    described, shapes = dense() if name == "dense-16l" else small_experts()
    (out / "config.json").write_text(json.dumps(described))
    header: dict[str, Any] = {}
    end = 0
    for tensor, shape in shapes.items():
        start, end = end, end + 2 * prod(shape)
        header[tensor] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    head = json.dumps(header).encode()
    with (out / "model.safetensors").open("wb") as f:
        f.write(struct.pack("<Q", len(head)) + head)
        f.truncate(8 + len(head) + end)


def dense() -> tuple[dict[str, Any], Shapes]:
    """A Llama of 0.25 billion weights: its config.json and the shapes of its tensors."""
    width, ffn, layers = 1024, 2816, 16
    shapes = attention(layers, width)
    for i in range(layers):
        for part in ("gate", "up", "down"):
            shape = (width, ffn) if part == "down" else (ffn, width)
            shapes[f"model.layers.{i}.mlp.{part}_proj.weight"] = shape
    return config("LlamaForCausalLM", layers, width, intermediate_size=ffn), shapes


def small_experts() -> tuple[dict[str, Any], Shapes]:
    """A Qwen3-MoE of 0.7 billion weights: 32 experts, of which a token uses 8."""
    width, ffn, layers, experts = 1024, 512, 12, 32
    shapes = attention(layers, width)
    for i in range(layers):
        layer = f"model.layers.{i}"
        shapes[f"{layer}.mlp.gate.weight"] = (experts, width)
        for norm in ("q_norm", "k_norm"):
            shapes[f"{layer}.self_attn.{norm}.weight"] = (64,)
        for x in range(experts):
            for part in ("gate", "up", "down"):
                shape = (width, ffn) if part == "down" else (ffn, width)
                shapes[f"{layer}.mlp.experts.{x}.{part}_proj.weight"] = shape
    found = config(
        "Qwen3MoeForCausalLM",
        layers,
        width,
        intermediate_size=ffn,
        moe_intermediate_size=ffn,
        num_experts=experts,
        num_experts_per_tok=8,
        norm_topk_prob=True,
        decoder_sparse_step=1,
        mlp_only_layers=[],
    )
    return found, shapes


def attention(layers: int, width: int) -> Shapes:
    """Embeddings, norms and attention with 16 heads of 64 channels, 4 of keys and values."""
    vocab = make_checkpoint.VOCAB
    out: Shapes = {
        "lm_head.weight": (vocab, width),
        "model.embed_tokens.weight": (vocab, width),
        "model.norm.weight": (width,),
    }
    for i in range(layers):
        layer = f"model.layers.{i}"
        out |= {
            f"{layer}.input_layernorm.weight": (width,),
            f"{layer}.post_attention_layernorm.weight": (width,),
            f"{layer}.self_attn.q_proj.weight": (1024, width),
            f"{layer}.self_attn.k_proj.weight": (256, width),
            f"{layer}.self_attn.v_proj.weight": (256, width),
            f"{layer}.self_attn.o_proj.weight": (width, 1024),
        }
    return out


def config(architecture: str, layers: int, width: int, **more: Any) -> dict[str, Any]:
    """A config.json."""
    return {
        "architectures": [architecture],
        "hidden_act": "silu",
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "vocab_size": make_checkpoint.VOCAB,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **more,
    }


def status() -> dict[str, int]:
    """Bytes of resident memory: the peak, and what is anonymous and of files now."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = dict(line.split(":", 1) for line in lines)
    return {k: int(found[k].split()[0]) << 10 for k in ("VmHWM", "VmRSS", "RssAnon", "RssFile")}


def load(path: Path, context: int, mapped: bool) -> dict[str, dict[str, int]]:
    """What this process holds before and after llama.cpp has loaded a file and read a prompt."""
    import xllamacpp

    before = status()
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.cache_ram_mib = context, 1, 0
    params.cpuparams.n_threads = 2
    params.n_gpu_layers, params.warmup, params.port = 0, False, 0
    modes = xllamacpp.llama_load_mode
    params.load_mode = modes.LLAMA_LOAD_MODE_MMAP if mapped else modes.LLAMA_LOAD_MODE_NONE
    server = xllamacpp.Server(params)
    prompt = [5 + i % 100 for i in range(min(context - 8, PROMPT))]
    server.handle_completions({"prompt": prompt, "n_predict": 2, "cache_prompt": False})
    return {"before": before, "after": status()}


def measure(path: Path, context: int, mapped: bool) -> dict[str, int]:
    """Bytes that llama.cpp takes: the peak, and then what is anonymous and what of files."""
    command = [sys.executable, "-m", "benchmarks.memory", "--one", str(path), str(context)]
    run = subprocess.run(
        [*command, "mapped" if mapped else "loaded"], check=True, text=True, capture_output=True
    )
    found = json.loads(run.stdout.splitlines()[-1])
    before, after = found["before"], found["after"]
    return {
        "peak": after["VmHWM"] - before["VmRSS"],
        "anonymous": after["RssAnon"] - before["RssAnon"],
        "file": after["RssFile"] - before["RssFile"],
    }


def main() -> None:
    """Measure and print; with --write, put the table into the document."""
    if sys.argv[1] == "--one":
        path, context, mode = sys.argv[2:]
        print(f"\n{json.dumps(load(Path(path), int(context), mode == 'mapped'))}", flush=True)
        os._exit(0)  # the server may wait for ever for its own end
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    files = []
    for name, types in TYPES.items():
        checkpoint = options.work / name
        if not checkpoint.exists():
            make(name, checkpoint)
        files += [f.path for f in quantize(checkpoint, types, options.work, run=Run(True)).files]
    rows = [
        "| file | context | how | formula | measured peak | ratio | anonymous | of files |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    print("\n".join(rows))
    for path in files:
        for context in CONTEXTS:
            (row,) = read_rows([path], context)
            for mapped in (True, False):
                m = measure(path, context, mapped)
                formula = row.mapped_ram_bytes if mapped else row.max_ram_bytes
                rows.append(
                    f"| {path.stem} | {context} | {'mapped' if mapped else 'loaded'} | "
                    f"{formula / 1e6:.0f} MB | {m['peak'] / 1e6:.0f} MB | "
                    f"{formula / m['peak']:.2f} | {m['anonymous'] / 1e6:.0f} MB | "
                    f"{m['file'] / 1e6:.0f} MB |"
                )
                print(rows[-1], flush=True)
    if options.write:
        write_section(options.write, "memory", "\n".join(rows))


if __name__ == "__main__":
    main()
