"""The two main jobs, step by step: convert a checkpoint, quantize a checkpoint or a GGUF file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from quantkit import pipeline
from quantkit.errors import RecipeError, SourceNotFound
from quantkit.model import OUTTYPES, Model, from_checkpoint, from_gguf
from quantkit.plan import Plan, plan_conversion, plan_quantization
from quantkit.recipes import find_recipe

Report = Callable[[Model, Plan], pipeline.Progress]  # told the plan, answers where progress goes


def _silent(model: Model, plan: Plan) -> pipeline.Progress:
    return lambda done: None


def convert(
    directory: Path, output: Path | None = None, outtype: str = "auto", *,
    pre: str | None = None, force: bool = False, threads: int | None = None,
    report: Report = _silent,
) -> Plan:  # fmt: skip
    """Convert a checkpoint directory to one GGUF file, as llama.cpp's converter would.

    `outtype` is auto, f32, f16, bf16 or q8_0; `output` a `.gguf` path or a directory (default: the
    current one). Returns the plan that was carried out. Raises QuantkitError.
    """
    if outtype not in ("auto", *OUTTYPES):
        raise RecipeError(f"unknown outtype {outtype!r}; one of auto, {', '.join(OUTTYPES)}")
    model = from_checkpoint(directory, outtype, pre)
    label = _label(model)
    plan = plan_conversion(model, label, _paths(model, [label], output)[0])
    return _run(model, plan, force, threads, report)


def quantize(
    source: Path, types: Sequence[str], output: Path | None = None, *,
    pre: str | None = None, force: bool = False, threads: int | None = None,
    report: Report = _silent,
) -> Plan:  # fmt: skip
    """Quantize a checkpoint directory or a GGUF file to one file a type, all in one read.

    `output` is a `.gguf` path for one type, or a directory (default: the current one) that gets
    `<name>-<TYPE>.gguf` for each. Returns the plan that was carried out. Raises QuantkitError.
    """
    recipes = [find_recipe(name) for name in dict.fromkeys(t.upper() for t in types)]
    if not recipes:
        raise RecipeError("no type given; for instance --type Q4_K_M")
    if not source.exists():
        raise SourceNotFound(f"{source}: no such file or directory")
    model = from_checkpoint(source, None, pre) if source.is_dir() else from_gguf(source)
    paths = _paths(model, [r.name for r in recipes], output)
    plan = plan_quantization(model, list(zip(recipes, paths, strict=True)))
    return _run(model, plan, force, threads, report)


def _run(model: Model, plan: Plan, force: bool, threads: int | None, report: Report) -> Plan:
    pipeline.check_outputs(plan, force)
    pipeline.execute(plan, threads or pipeline.default_threads(), report(model, plan))
    return plan


def _label(model: Model) -> str:
    file_type = next(item.value for item in model.kv if item.key == "general.file_type")
    return next(weights for number, weights in OUTTYPES.values() if number == file_type)


def _paths(model: Model, labels: Sequence[str], output: Path | None) -> list[Path]:
    if output is not None and output.suffix == ".gguf" and not output.is_dir():
        if len(labels) > 1:
            raise RecipeError(f"{output} is one file and {len(labels)} types are asked for; "
                              "give -o a directory")  # fmt: skip
        return [output]
    return [(output or Path()) / f"{model.name}-{label}.gguf" for label in labels]
