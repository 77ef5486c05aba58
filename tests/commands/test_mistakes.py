"""Mistakes that people make, and the one line that each of them gets."""

from __future__ import annotations

import gc
import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from quantkit import cli
from quantkit.gguf.splits import Splits
from quantkit.jobs import convert, split
from tests.commands.test_json import DEFS, wrong

ONE = "one source is expected, and"
SIZE = "is not a size; for instance 300M or 4G"
UNSET = "is empty; is a variable of the shell not set?"
END = "it is being written or downloaded; finish that first"
TILDE = "the shell leaves ~ as it is in quotes and after =; write $HOME, or"
LONG = "a" * 250
ALL = (
    "commands: convert, quantize, split, merge, edit, inspect, report, plan, release, verify, fit, "
    "imatrix"
)

# what is typed -> exit code, the line after `error: `; "..." stands for anything
MISTAKES: tuple[tuple[str, int, str], ...] = (
    # commands
    ("melt", 2, f"no command 'melt'; {ALL}"),
    ("quantise ckpt", 2, f"no command 'quantise'; did you mean quantize? {ALL}"),
    ("m.gguf", 2, "'m.gguf' is no command; to see what it is: quantkit inspect m.gguf"),
    ("--types Q8_0", 2,
     "no option --types; it is one of quantize, plan, release; see quantkit --help"),
    # sources
    ("convert", 2,
     "SOURCE is missing: a checkpoint directory, a LoRA adapter's directory, or hf://ORG/MODEL; "
     "see quantkit convert --help"),
    ("quantize nowhere -t Q8_0", 1, "nowhere: no such file or directory"),
    ("quantize org/model -t Q8_0", 1,
     "org/model: no such file or directory; a model on the Hub is written hf://org/model"),
    ("convert org/model", 1,
     "org/model: no such file or directory; a model on the Hub is written hf://org/model"),
    ("convert https://example.com/org/model", 1,
     "https://example.com/org/model: not a model on the Hub; hf://ORG/MODEL or "
     "https://huggingface.co/ORG/MODEL is expected, or a path"),
    ("convert hf://model", 1,
     "hf://model: not a model on the Hub; hf://ORG/MODEL, hf://ORG/MODEL@REVISION or "
     "hf://ORG/MODEL/FILE.gguf is expected"),
    ("quantize adapter -t Q8_0", 1,
     "adapter: no config.json in it; it is an adapter (LoRA), not a model; convert makes the file "
     "of it that llama.cpp takes with --lora, or merge it into its base (merge_and_unload of peft) "
     "and save that"),
    ("convert adapter", 1, "adapter/adapter_config.json: 'lora_alpha' is missing"),
    ("verify parent pipeline", 2,
     "one source is expected, and 2 are given: parent, pipeline ..."),
    ("quantize pipeline -t Q8_0", 1,
     "pipeline: no config.json in it; it is a diffusers pipeline (for pictures, video or "
     "sound); language models are converted, and of a pipeline none but its text encoder, "
     "which is a directory of its own"),
    ("quantize parent -t Q8_0", 1,
     "parent: no config.json in it; it is a directory of 2 models; name one of them, for "
     "instance parent/a"),
    ("quantize parent/inner -t Q8_0", 1,
     "parent/inner: no config.json in it; it is a directory of 1 model; name "
     "parent/inner/c"),
    ("quantize empty -t Q8_0", 1, "empty: no config.json in it; not a checkpoint directory"),
    ("quantize ckpt/model.safetensors -t Q8_0", 1,
     "ckpt/model.safetensors is weights of a checkpoint; the model is its directory, ckpt"),
    ("convert ckpt/model.safetensors", 1,
     "ckpt/model.safetensors is weights of a checkpoint; the model is its directory, ckpt"),
    ("inspect alone.safetensors", 1,
     "alone.safetensors is weights of a checkpoint, of which config.json and the tokenizer"
     " are missing beside it"),
    ("quantize ckpt/config.json -t Q8_0", 1,
     "ckpt/config.json is a part of a checkpoint; the model is its directory, ckpt"),
    ("quantize model.zip -t Q8_0", 1, "model.zip is an archive; unpack it first"),
    ("convert m.gguf", 1,
     "m.gguf is a GGUF file, which quantize takes; a checkpoint directory is converted"),
    ("split ckpt --split-max-size 1M", 1, "ckpt is a directory; a GGUF file is expected"),
    ("merge parts -o x.gguf", 1,
     "parts is a directory; a GGUF file is expected, for instance "
     "parts/m-00001-of-00004.gguf"),
    ("report empty", 1, "empty: no GGUF file in it"),
    ("verify empty", 1, "empty: no GGUF file in it"),
    ("report ..", 1, "..: no GGUF file in it; ../place has some"),
    ("quantize m.gguf/x -t Q8_0", 1, "m.gguf/x: no such file or directory; m.gguf is a file"),
    ("verify nowhere.gguf", 1, "nowhere.gguf: no such file"),
    ("report hf://org/model", 1,
     "hf:/org/model: a file of this machine is expected; download it first (`hf download`)"),
    ("inspect ~/ckpt", 2, f"~/ckpt: {TILDE} ./~/ckpt if it is called so"),
    ("convert -dash", 2, "no option -dash; if the file or directory is meant, write ./-dash"),
    ("convert -- ckpt -o x.gguf", 2,
     "-o stands after --, where no options are; write it before that"),
    # types
    ("quantize ckpt", 2, "no type given; for instance --type Q4_K_M"),
    ("quantize ckpt --type", 2, "--type takes a value, TYPE; see quantkit quantize --help"),
    ("quantize ckpt --type Q7_K", 2, "unknown type 'Q7_K'; did you mean ..."),
    ("convert ckpt --type Q8_0", 2,
     "no option --type; it is one of quantize, plan, release; see quantkit convert --help"),
    ("convert ckpt --outtype Q4_K_M", 2,
     "--outtype is auto, f32, f16, bf16, q8_0, tq1_0 or tq2_0; Q4_K_M is made by quantize: "
     "quantkit quantize ckpt --type Q4_K_M"),
    ("convert ckpt --outtype int4", 2,
     "unknown outtype 'int4'; one of auto, f32, f16, bf16, q8_0, tq1_0, tq2_0"),
    ("quantize ckpt -t Q8_0 --tensor-type ffn_down", 2, "..."),
    ("quantize m.gguf -t IQ1_S", 1, "...importance matrix..."),
    # words in the order of other tools
    ("quantize m.gguf out.gguf Q4_K_M", 2,
     "say it with options: quantkit quantize m.gguf --type Q4_K_M -o out.gguf"),
    ("quantize m.gguf Q4_K_M", 2, "say it with options: quantkit quantize m.gguf --type Q4_K_M"),
    ("quantize m.gguf out.gguf 15 8", 2,
     "say it with options: quantkit quantize m.gguf --type Q4_K_M -o out.gguf --threads 8"),
    ("quantize --imatrix i.gguf --pure m.gguf o.gguf q4_0", 2,
     "say it with options: quantkit quantize m.gguf --type Q4_0 -o o.gguf --imatrix i.gguf --pure"),
    ("quantize m.gguf 7 -o o.gguf", 2,
     "say it with options: quantkit quantize m.gguf --type Q8_0 -o o.gguf"),
    ("convert ckpt --json=yes", 2, "--json takes no value; see quantkit convert --help"),
    ("quantize ckpt out.gguf -t q4km,Q8_0", 2,
     "say it with options: quantkit quantize ckpt --type Q4_K_M --type Q8_0 -o out.gguf"),
    ("release ckpt new Q8_0", 2,
     "say it with options: quantkit release ckpt --type Q8_0 -o new"),
    ("convert ckpt out.gguf", 2, "say it with options: quantkit convert ckpt -o out.gguf"),
    ("convert ckpt Q4_K_M", 2,
     "convert takes no type; quantize does: quantkit quantize ckpt --type Q4_K_M"),
    ("merge m.gguf out.gguf", 2, "say it with options: quantkit merge m.gguf -o out.gguf"),
    ("inspect ckpt m.gguf", 2, f"{ONE} 2 are given: ckpt, m.gguf ..."),
    ("quantize a b c -t Q8_0", 2, f"{ONE} 3 are given: a, b ..."),
    # outputs
    ("quantize ckpt -t Q8_0 -o x.bin", 2,
     "x.bin: the name of a file that is written ends in .gguf"),
    ("convert ckpt --outfile x.safetensors", 2,
     "x.safetensors: the name of a file that is written ends in .gguf"),
    ("quantize ckpt -t Q8_0,Q4_0 -o x.gguf", 2,
     "x.gguf is one file and 2 types are asked for; give -o a directory, or a name with {ftype} in "
     "it"),
    ("quantize ckpt -t F16 -o m.gguf", 1, "m.gguf exists already; --force overwrites it"),
    ("convert ckpt -o notes/m.gguf", 1,
     "...notes is a file, and no directory; name another output with -o"),
    ("merge m.gguf", 2, "say where to write: quantkit merge m.gguf -o FILE.gguf"),
    ("merge m.gguf -o x", 2, "x: one file is written, and its name ends in .gguf"),
    ("edit m.gguf -o x.gguf", 2,
     "say what to change: --set KEY=VALUE, --chat-template FILE or --remove KEY"),
    ("edit m.gguf --set general.name=x", 2,
     "say where to write: quantkit edit m.gguf ... -o OUT.gguf, or --in-place"),
    ("edit m.gguf --set general.name=x -o m.gguf --in-place", 2,
     "-o and --in-place exclude each other"),
    ("edit m.gguf --set general.name -o x.gguf", 2,
     "--set 'general.name' is not KEY=VALUE; for instance 'general.name=My Model'"),
    ("edit m.gguf --set general.nam=x -o x.gguf", 1,
     "--set general.nam: not in this file (did you mean general.name?); a new key is set with ..."),
    ("edit m.gguf --set general.name=x -o m.gguf", 1,
     "m.gguf is the input; name another output with -o"),
    ("release ckpt", 2, "say where: quantkit release ckpt -o DIR"),
    ("release ckpt -o x.gguf", 1, "x.gguf: a release is a directory; name one with -o"),
    ("release ckpt -o new --drop Q8_0", 2, "--drop Q8_0: not in the release, which has nothing"),
    ("release ckpt -o ckpt", 1, "ckpt is where the source lies; name another directory with -o"),
    ("convert ckpt --outfile=~/x.gguf", 2, f"~/x.gguf: {TILDE} ./~/x.gguf if it is called so"),
    ("convert ckpt -o ~x.gguf", 2, f"~x.gguf: {TILDE} ./~x.gguf if it is called so"),
    (f"convert ckpt -o {LONG}.gguf", 1,
     f"{LONG}.gguf: 263 bytes, 8 of them for its name while it is made, and a name has 255 at "
     "most; give a shorter one with -o (files of a release are called after the source: rename "
     "that)"),
    # values
    ("quantize ckpt -t Q8_0 --memory 4", 2, f"--memory: '4' {SIZE}"),
    ("split m.gguf --split-max-size 300", 2, f"--split-max-size: '300' {SIZE}"),
    ("plan ckpt --ram 16", 2, f"--ram: '16' {SIZE}"),
    ("plan ckpt --disk many", 2, f"--disk: 'many' {SIZE}"),
    ("fit ckpt --size 12", 2, f"--size: '12' {SIZE}"),
    ("fit ckpt", 2, "give one of --size 12GB, --ram 16GB and --bpw 4.5"),
    ("quantize ckpt -t Q8_0 --threads x", 2,
     "--threads: 'x' is not a whole number from 1; see quantkit quantize --help"),
    ("quantize ckpt -t Q8_0 --threads=0", 2,
     "--threads: '0' is not a whole number from 1; see quantkit quantize --help"),
    ("release ckpt -o out --types ,", 2,
     "--types names no type; leave it out for the usual ones"),
    ("quantize ckpt --type Q8_0 --include-weights attn", 2,
     "--include-weights goes with --imatrix FILE"),
    ("quantize ckpt --type Q8_0 --imatrix auto --exclude-weights attn", 2,
     "--exclude-weights goes with --imatrix FILE"),
    ("quantize ckpt -t Q8_0 --imatrix-strict", 2, "--imatrix-strict goes with --imatrix"),
    ("quantize ckpt -t Q8_0 --keep-experts 0-99", 1,
     "experts 4, 5, 6 ... cannot be kept; the model has 0 to 3"),
    ("quantize '' -t Q8_0", 2, f"an argument {UNSET}"),
    ("quantize ckpt -t Q8_0 -o ''", 2, f"-o {UNSET}"),
    ("quantize ckpt -t Q8_0 --output=", 2, f"--output {UNSET}"),
    ("quantize ckpt -t Q8_0 --imatrix ''", 2, f"--imatrix {UNSET}"),
    ("report m.gguf ''", 2, f"an argument {UNSET}"),
    ("convert ckpt -o .gguf", 2,
     ".gguf: the file's name is empty; is a variable of the shell not set?"),
    ("quantize ckpt -t Q8_0 --imatrix auto --calibration nowhere.txt", 1,
     "nowhere.txt: cannot be read (No such file or directory)"),
    ("quantize ckpt -t Q8_0 --imatrix auto --calibration empty.txt", 1, "empty.txt: an empty text"),
    ("imatrix ckpt -f pipe -o i.gguf", 1, "pipe: cannot be read (a pipe or a device, not a file)"),
    ("imatrix ckpt -f latin.txt -o i.gguf", 1,
     "latin.txt: not UTF-8: byte 0xe4 at 0; convert it first"),
    ("inspect begun/m.gguf.partial", 1, f"begun/m.gguf.partial: not whole yet, by its name: {END}"),
    ("quantize begun/m.gguf -t Q8_0", 1,
     "begun/m.gguf: not whole yet: m.gguf.aria2 lies beside it, which aria2 removes when ..."),
    ("convert loading", 1,
     "loading/model.safetensors: not whole yet: model.safetensors.aria2 lies beside it, ..."),
    ("convert loaded", 1,
     "loaded: no model*.safetensors or pytorch_model*.bin in it; model.safetensors.part is of a "
     "download that is not finished; finish it"),
    ("report", 2, "FILE... is missing: GGUF files, or directories of them; see quantkit report"
     " --help"),
    ("fit ckpt --bpw nan", 2, "--bpw: nan bits per weight are none; for instance 4.5"),
    ("fit ckpt --bpw 4 --recipe-file x --picture x", 2,
     "--recipe-file and --picture are both x; name two files"),
    ("fit ckpt --bpw 4 --recipe-file notes", 1, "notes exists; give --force to overwrite it"),
    ("fit ckpt --bpw 4 --picture parts --force", 1, "parts is a directory; name a file"),
    ("imatrix --merge m.gguf -o parts --force", 1, "parts is a directory; name a file"),
    ("verify m.gguf --against ckpt --picture notes", 1,
     "notes exists, and is no picture; name another file"),
    ("fit ckpt --bpw high", 2, "--bpw: 'high' is not a number; see quantkit fit --help"),
    ("quantize ckpt -t Q8_0 --keep-experts a-b", 2,
     "--keep-experts: 'a-b' is not a list of numbers; for instance 3,7-9"),
    ("quantize ckpt -t Q8_0 --prune-layers all", 2,
     "--prune-layers: 'all' is not a list of layers; for instance 3,7,8"),
    ("report m.gguf --columns colour", 2, "unknown column 'colour'; columns: name, type, ..."),
    ("report m.gguf --format pdf", 2,
     "--format: 'pdf' is none of table, markdown, json, csv, html"),
    ("release ckpt -o new --push name", 1,
     "'name' is no name on the Hub; ORG/NAME of letters, ..."),
    ("release ckpt -o new --share 5/4", 2,
     "'5/4' is not a share, such as 3/16: the third of sixteen"),
    ("release ckpt -o new --commit some", 2, "--commit: 'some' is none of each, all"),
    # options
    ("quantize ckpt -t Q8_0 --thread 4", 2,
     "no option --thread; did you mean --threads? see quantkit quantize --help"),
    ("convert ckpt --push org/name", 2,
     "no option --push; it is one of release; see quantkit convert --help"),
    ("convert --print-supported-models", 2,
     "no option --print-supported-models; quantkit inspect --architectures lists what is "
     "converted; see quantkit convert --help"),
    ("quantize ckpt -t Q8_0 --model-name x", 2,
     "no option --model-name; it is one of convert; quantize has --override-kv "
     "general.name=str:NAME; see quantkit quantize --help"),
    ("convert ckpt --mtp --no-nextn", 2, "--mtp and --no-mtp exclude each other"),
    ("convert --remote org/model", 2,
     "no option --remote; write hf://ORG/MODEL as the source; see quantkit convert --help"),
    ("convert ckpt --mtp --no-mtp", 2, "--mtp and --no-mtp exclude each other"),
    ("verify m.gguf --picture x.svg", 2, "--picture needs --against SOURCE"),
    ("convert ckpt --target-model-dir ckpt -o new.gguf", 2,
     "ckpt/config.json: --target-model-dir is for a draft, and llama is none that takes the "
     "vocabulary of another model; leave it out"),
    ("quantize m.gguf -t Q4_0 --no-mtp --pre qwen2 -o new.gguf", 2,
     "m.gguf: the tensors and the vocabulary of a GGUF file are as they are; --pre, --mtp or "
     "--no-mtp goes with a checkpoint"),
    ("imatrix m.gguf -f notes --ctx 8 -o m.gguf --force", 1,
     "m.gguf exists, and is no importance matrix; name another file, or remove it"),
    ("imatrix ckpt -f notes --ctx 8 -o notes --force", 1,
     "notes exists, and is no importance matrix; name another file, or remove it"),
    ("imatrix --merge m.gguf -o alone.safetensors --force", 1,
     "alone.safetensors exists, and is no importance matrix; name another file, or remove it"),
    ("fit m.gguf --size 4MB --recipe-file m.gguf --force", 1,
     "m.gguf exists, and is no text; name another file, or remove it"),
)  # fmt: skip


@pytest.fixture(scope="module")
def place(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in which there is one of everything, alone in another."""
    here = tmp_path_factory.mktemp("around") / "place"
    here.mkdir()
    ckpt = Path(shutil.copytree(checkpoint("mixtral-4x"), here / "ckpt"))
    convert(ckpt, here / "m.gguf")
    split(here / "m.gguf", here / "parts" / "m.gguf", Splits(max_tensors=6))
    for name in ("parent/a", "parent/b", "parent/inner/c", "adapter", "pipeline", "empty", "-dash"):
        (here / name).mkdir(parents=True)
    for name in ("parent/a", "parent/b", "parent/inner/c"):
        (here / name / "config.json").write_text("{}")
    (here / "adapter" / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    (here / "pipeline" / "model_index.json").write_text("{}")
    shutil.copy(ckpt / "model.safetensors", here / "alone.safetensors")
    for name, path in (("loading", ckpt), ("loaded", ckpt), ("begun", here / "parts")):
        shutil.copytree(path, here / name)
    (here / "loading" / "model.safetensors.aria2").write_bytes(b"")
    (here / "loaded" / "model.safetensors").rename(here / "loaded" / "model.safetensors.part")
    for name in ("m.gguf", "m.gguf.partial"):
        shutil.copy(here / "m.gguf", here / "begun" / name)
    (here / "begun" / "m.gguf.aria2").write_bytes(b"")
    (here / "empty.txt").write_bytes(b"")
    if hasattr(os, "mkfifo"):
        os.mkfifo(here / "pipe")
    (here / "latin.txt").write_bytes("ähnlich".encode("latin-1"))
    (here / "model.zip").write_bytes(b"PK\3\4")
    (here / "notes").write_text("mine")
    return here


def test_there_are_fifty() -> None:
    assert len({typed for typed, _, _ in MISTAKES}) == len(MISTAKES) >= 50


@pytest.mark.parametrize(
    ("typed", "code", "line"), MISTAKES, ids=[typed for typed, _, _ in MISTAKES]
)
def test_what_a_mistake_gets(
    typed: str,
    code: int,
    line: str,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if "pipe " in typed and not hasattr(os, "mkfifo"):
        pytest.skip("no pipes in a directory here")
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "argv", ["quantkit", *shlex.split(typed)])
    before = {p: p.stat().st_mtime_ns for p in place.rglob("*")}
    with pytest.raises(SystemExit) as ended:
        cli.main()
    gc.unfreeze()
    said = capsys.readouterr()
    assert ended.value.code == code
    assert said.out == ""
    (found,) = said.err.splitlines()
    parts = f"error: {line}".split("...")
    if line.endswith("given: ckpt, m.gguf ...") or line.endswith("given: a, b ..."):
        parts = [f"error: {line}"]
    at = 0
    for part in parts:
        assert part in found[at:], found
        at = found.index(part, at) + len(part)
    assert found.startswith(parts[0])
    assert len(parts) > 1 or found == parts[0]
    assert {p: p.stat().st_mtime_ns for p in place.rglob("*")} == before


def test_the_same_as_json(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever is refused is an object of the schema on standard output, and the line as ever."""
    monkeypatch.chdir(place)
    for typed, code, _ in MISTAKES:
        words = shlex.split(typed)
        if {"--", "--json=yes"} & {*words} or ("pipe" in words and not hasattr(os, "mkfifo")):
            continue
        monkeypatch.setattr(sys, "argv", ["quantkit", *words, "--json"])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        gc.unfreeze()
        said = capsys.readouterr()
        found = json.loads(said.out)
        assert wrong(found, DEFS["error"]) == [], typed
        assert (ended.value.code, found["error"]["exit_code"]) == (code, code), typed
        assert said.err == f"error: {found['error']['text']}\n", typed
