"""Record goldens, or check those that are there against llama.cpp: see CONTRIBUTING.md."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.checkpoints import GOLDEN
from tests.record import RecordError, adapters, recipes, store
from tests.record.fingerprint import differences
from tests.record.llama_cpp import Converter, Refused, quantize


def add(args: argparse.Namespace) -> int:
    """Record a case from a checkpoint directory, or from a recipe, into a table."""
    tokenizers = args.table.parent / "tokenizers"
    if args.source.is_dir():
        recipe, files = recipes.from_checkpoint(args.source, args.case)
        tokenizers.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            (tokenizers / name).write_bytes(data)
    else:
        recipe = {**json.loads(args.source.read_text("utf-8")), "case": args.case}
    config = json.loads(recipe["files"].get("config.json", "{}"))
    _record(recipe, args, {"hf_arch": config.get("architectures", [None])[0], "pre": args.pre})
    return 0


def adapter(args: argparse.Namespace) -> int:
    """Record a LoRA adapter of a case into a table; what it is made of is in adapters.py."""
    base, _ = store.load(args.table.parent, args.base)
    recipe = adapters.recipe(
        base,
        args.case,
        args.modules,
        args.rank,
        args.dtype,
        json.loads(args.settings),
        args.weights,
    )
    _record(recipe, args, {"pre": None, "base": adapters.BASE, "base_case": args.base})
    return 0


def _record(recipe: dict[str, Any], args: argparse.Namespace, more: dict[str, Any]) -> None:
    """Convert a recipe and put it into the table."""
    tokenizers = args.table.parent / "tokenizers"
    golden = {
        "case": args.case,
        "dir": recipe["dir"],
        **more,
        "args": shlex.split(args.args),
        "notes": args.notes,
    }
    with written(recipe, tokenizers) as checkpoint:
        golden |= converted(checkpoint, golden, args.outtype or ["bf16"], args.converters)
    golden["made_with"] = args.converters[0].versions()
    store.save(args.table, recipe, golden)
    print(f"{args.case}: {golden.get('llama_cpp') or 'recorded ' + ', '.join(golden['outtypes'])}")
    for key, other in golden.get("either", {}).items():
        print(f"  {key}: or {'absent' if other is None else other}")


def converted(
    checkpoint: Path, golden: dict[str, Any], outtypes: list[str], converters: list[Converter]
) -> dict[str, Any]:
    """What the first converter makes for each outtype, or why it makes nothing; `either` has the
    keys that another one, with another transformers, writes otherwise or not at all.

    Raises RecordError: another one makes other tensors, or keys that the first does not.
    """
    files: dict[str, Any] = {}
    either: dict[str, Any] = {}
    for outtype in outtypes:
        try:
            files[outtype] = converters[0].convert(checkpoint, outtype, golden)
        except Refused as e:
            return {"outtypes": {}, "llama_cpp": f"fails: {e}"}
        for converter in converters[1:]:
            try:
                either |= others(files[outtype], converter.convert(checkpoint, outtype, golden))
            except Refused as e:
                print(f"with {converter.python} it fails: {e}", file=sys.stderr)
    return {"outtypes": files, **({"either": either} if either else {})}


def others(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """The keys of the first that are not so in the second -> their value there, or None."""
    if "splits" in first:
        pairs = zip(first["splits"], second["splits"], strict=True)
        return {k: v for pair in pairs for k, v in others(*pair).items()}
    if more := second["kv"].keys() - first["kv"].keys():
        raise RecordError(f"a later --python writes {', '.join(more)} too: give that one first")
    differ = {k: second["kv"].get(k) for k, v in first["kv"].items() if second["kv"].get(k) != v}
    long = [key for key, other in differ.items() if other and "value" not in other]
    if long or first["tensors"] != second["tensors"]:
        what = ", ".join(long) or "tensors"
        raise RecordError(f"the --pythons make different {what}: give the one to trust alone")
    return {key: other and other["value"] for key, other in differ.items()}


def check(args: argparse.Namespace) -> int:
    """Convert cases afresh and compare; 1 if one of them differs."""
    wrong = 0
    for case in args.cases:
        recipe, golden = store.load(args.golden, case)
        with written(recipe, args.golden / "tokenizers") as checkpoint:
            for outtype in golden["outtypes"] or ["bf16"]:
                said = compared(checkpoint, golden, outtype, args.converters)
                print(f"{case} {outtype}: {said or 'same'}", flush=True)
                wrong += bool(said)
    return int(wrong > 0)


def compared(
    checkpoint: Path, golden: dict[str, Any], outtype: str, converters: list[Converter]
) -> str:
    """How what the converters make differs from the golden; nothing if one of them agrees."""
    theirs, said = golden["outtypes"].get(outtype), ""
    for converter in converters:
        try:
            made = converter.convert(checkpoint, outtype, golden)
        except Refused as e:
            said = f"fails: {e}" if theirs else ""
        else:
            said = differing(theirs, made, golden.get("either")) if theirs else "converts"
        if not said:
            break
    return said


def differing(theirs: dict[str, Any], made: dict[str, Any], either: Any) -> str:
    """What differs between two results of `Converter.convert`; nothing if they are the same."""
    files = [result.get("splits", [result]) for result in (theirs, made)]
    if len(files[0]) != len(files[1]):
        return f"{len(files[0])} -> {len(files[1])} files"
    pairs = zip(*files, strict=True)
    return "; ".join(line for a, b in pairs for line in differences(a, b, either))


def quantize_cases(args: argparse.Namespace) -> int:
    """Have llama-quantize make every type of cases, from the 16-bit file that the converter makes:
    record it, or compare it with the golden; 1 if a case differs."""
    wrong = 0
    for case in args.cases:
        recipe, golden = store.load(args.golden, case)
        stored = {} if args.type else store.load_quantized(args.golden, case)
        imatrix = store.imatrix(args.golden, case)
        parts = {"types": None, **({"types_imatrix": imatrix} if imatrix else {})}
        with written(recipe, args.golden / "tokenizers") as checkpoint:
            source = checkpoint.parent / "bf16.gguf"
            file = args.converters[0].convert(checkpoint, "bf16", golden, source)
            made = {
                part: {
                    name: quantize(args.llama_quantize, source, name, given)
                    for name in args.type or stored[part]
                }
                for part, given in parts.items()
                if args.type or part in stored
            }
        if args.type:
            store.save_quantized(args.golden, case, file, made)
            continue
        for part, types in made.items():
            for name, entry in types.items():
                theirs = stored[part][name]
                said = [k for k in {**theirs, **entry} if theirs.get(k) != entry.get(k)]
                label = f"{case} {name}{' with imatrix' * (part == 'types_imatrix')}"
                print(f"{label}: {', '.join(said) + ' differ' if said else 'same'}", flush=True)
                wrong += bool(said)
    return int(wrong > 0)


@contextmanager
def written(recipe: dict[str, Any], tokenizers: Path) -> Iterator[Path]:
    """A recipe's checkpoint, while it is needed."""
    with tempfile.TemporaryDirectory() as folder:
        yield recipes.write(recipe, tokenizers, Path(folder))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.record", description=__doc__)
    commands = parser.add_subparsers(required=True)
    for name, function in {
        "add": add,
        "adapter": adapter,
        "check": check,
        "quantize": quantize_cases,
    }.items():
        command = commands.add_parser(name, help=(function.__doc__ or "").partition(";")[0])
        command.set_defaults(function=function)
        command.add_argument("--llama-cpp", type=Path, required=True, help="its source tree")
        command.add_argument(
            "--python",
            type=Path,
            required=True,
            action="append",
            help="of an environment with torch and transformers; more than once "
            "for more than one transformers",
        )
        if name == "adapter":
            command.add_argument("base", help="the case that it is an adapter of")
            command.add_argument("--modules", required=True, help="a pattern of names of matrices")
            command.add_argument("--rank", type=int, default=4)
            command.add_argument("--dtype", default="F32")
            command.add_argument("--settings", default="{}", help="more of its config, as JSON")
            command.add_argument("--weights", default="adapter_model.safetensors", help="or .bin")
        if name == "add":
            command.add_argument("source", type=Path, help="a checkpoint directory, or a recipe")
            command.add_argument("--pre", help="the pre-tokenizer's name in llama.cpp")
        if name in ("add", "adapter"):
            command.add_argument("--case", required=True, help="its name")
            command.add_argument("--table", type=Path, required=True, help="a file *.json.xz")
            command.add_argument("--outtype", action="append", help="bf16 (the default), q8_0 ...")
            command.add_argument("--args", default="", help="the converter's options: '--no-mtp'")
            command.add_argument("--notes", default="", help="what the case is there for")
            continue
        command.add_argument("cases", nargs="+", metavar="CASE")
        command.add_argument("--golden", type=Path, default=GOLDEN, help="where cases are kept")
        if name == "quantize":
            command.add_argument("--llama-quantize", type=Path, required=True, help="the program")
            command.add_argument("--type", action="append", help="record these (else compare)")
    args = parser.parse_args()
    args.converters = [Converter(args.llama_cpp.resolve(), path.absolute()) for path in args.python]
    try:
        return int(args.function(args))
    except RecordError as e:
        parser.error(str(e))


if __name__ == "__main__":
    sys.exit(main())
