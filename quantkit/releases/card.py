"""The model card of a release: front matter that the Hub reads, and Markdown that people read.

Every number comes from the plan of the files and the model's metadata. Text from outside is escaped
where it is used: by YAML's writer in the front matter, by `escaped` in the rest.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

from quantkit.loading.kinds import PREFIX
from quantkit.model import provenance
from quantkit.releases.manifest import Manifest
from quantkit.releases.modelfile import turns_of
from quantkit.releases.purpose import Purpose, purpose_of
from quantkit.releases.quality import Score
from quantkit.releases.run_commands import (
    SENSES,
    Command,
    address,
    download,
    run_commands,
    senses,
)
from quantkit.reporting.inspection import Description
from quantkit.reporting.numbers import billions, gigabytes
from quantkit.reporting.table import Column, Row, columns, markdown_cell

USUAL = "Q4_K_M"
LEGACY = ("Q4_0", "Q4_1", "Q5_0", "Q5_1")  # the K-quants of their size are better
MEMORIES = (4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512, 1024)  # GB that computers have
VIDEO = (4, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128, 141, 192, 288)  # and GPUs
DRIVER = 500_000_000  # bytes that a GPU's driver takes of its memory
TOOL = "https://github.com/quantkit/quantkit"

# llama.cpp ggml/src/ggml-cpu/repack.cpp (ggml_repack_get_optimal_repack_type, b11549): formats that
# are rearranged as a file is loaded
ON_AVX2 = ("Q4_0", "Q4_K", "IQ4_NL", "MXFP4")
ON_AVX512 = ("Q2_K",)
ON_ARM = ("Q4_0", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "IQ4_NL", "MXFP4", "Q1_0")


def render(
    manifest: Manifest,
    rows: Sequence[Row],
    description: Description,
    values: Mapping[str, Any],
    pictures: Mapping[str, str] = MappingProxyType({}),
    more: Sequence[Row] = (),
) -> str:
    """The card's text. `values` is the model's metadata, `pictures` the title of each picture
    beside the card, by file name, `more` the rows of the model's encoders."""
    import yaml
    from jinja2 import Environment, PackageLoader, StrictUndefined

    matter = front_matter(manifest, description, values)
    environment = Environment(
        loader=PackageLoader("quantkit.releases"),
        undefined=StrictUndefined,
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "escaped": escaped, "billions": billions, "linked": linked, "gigabytes": gigabytes
    }  # fmt: skip
    chats, best = "tokenizer.chat_template" in values, usual(rows)
    purpose = purpose_in(manifest, values)
    programs: dict[str, list[Command]] = {}
    for it in run_commands(manifest, best, chats, purpose, more):
        programs.setdefault(it.program, []).append(it)
    formats = {
        tensor.format
        for file in manifest.files
        for tensor in file.tensors
        if not file.type.startswith(PREFIX)
    }
    text: str = environment.get_template("card.md").render(
        front=yaml.safe_dump(matter, sort_keys=False, allow_unicode=True),
        manifest=manifest,
        rows=rows,
        description=description,
        moe=description.experts,
        base=manifest.base_model,
        bases=matter.get("base_model", []),
        licence=matter.get("license_name") or matter.get("license"),
        licence_link=matter.get("license_link"),
        tool=TOOL,
        table=table(manifest, [*rows, *more], moe=description.experts is not None),
        measured=bool(manifest.errors),
        scores=manifest.scores,
        downloads=[command for row in (*rows, *more) if (command := download(manifest, row))],
        encoders=more,
        senses=" and ".join(senses(manifest)),
        tiny=is_tiny(rows),
        in_ram=choices(rows),
        in_vram=choices(rows, VIDEO, lambda row: row.max_ram_bytes + DRIVER),
        beside_experts=choices(rows, VIDEO, _beside_experts),
        legacy=[row.type for row in rows if row.type in LEGACY],
        repacked=bool(formats & {*ON_AVX2, *ON_AVX512, *ON_ARM}),
        on_avx=[name for name in ON_AVX2 if name in formats] or ["none of these"],
        on_avx512=[name for name in ON_AVX512 if name in formats],
        on_arm=[name for name in ON_ARM if name in formats] or ["none of these"],
        usual=best,
        programs=programs,
        prompt=prompt_format(values) if chats else "",
        plain=not any(row.type.endswith("-moe") for row in rows),
        imatrix=manifest.imatrix,
        matrix_at=manifest.imatrix and address(manifest, manifest.imatrix.name),
        merge=description.merge,
        before=manifest.made_from.quantized,
        context=rows[0].context,
        pictures=pictures,
        chats=chats,
        purpose=purpose,
    )
    return text


def table(manifest: Manifest, rows: Sequence[Row], *, moe: bool) -> str:
    """The table of files: each a link, and what was measured of it."""
    names = ["type", "bits", "size", "ram", *(["experts-on-cpu"] if moe else []), "use"]
    *shown, use = columns(names)
    if manifest.errors:
        shown.append(Column("error", "Measured error", lambda row: _error(manifest, row), ()))
    if manifest.scores:
        scores = manifest.scores.types
        for name, heading in (("kl", "KL divergence"), ("perplexity", "Perplexity")):
            shown.append(Column(name, heading, partial(_score, scores, name), ()))
    shown.append(use)
    lines = [["Name", *(column.heading for column in shown)]]
    lines.append(["---"] * len(lines[0]))
    for row in rows:
        cells = [markdown_cell(column.cell(row)) for column in shown]
        lines.append([_linked_files(manifest, row), *cells])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _linked_files(manifest: Manifest, row: Row) -> str:
    """The name of a file, which leads to it; of splits, their common name and a number for each."""
    files = [f.name for f in manifest.files if f.type == row.type]
    if len(files) == 1:
        return f"[{markdown_cell(files[0])}]({address(manifest, files[0])})"
    links = (f"[{i}]({address(manifest, name)})" for i, name in enumerate(files, 1))
    return f"{markdown_cell(row.name)}: {' '.join(links)}"


def _error(manifest: Manifest, row: Row) -> str:
    error = manifest.errors.get(row.type)
    return "-" if error is None else f"{100 * error:.2g}%"


def _score(scores: Mapping[str, Score], name: str, row: Row) -> str:
    score = scores.get(row.type)
    if score is None:
        return "-"
    return f"{score.kl:.4f} ± {score.kl_error:.4f}" if name == "kl" else f"{score.perplexity:.4f}"


def prompt_format(values: Mapping[str, Any]) -> str:
    """What the model's chat template writes around a system message and a question, as a block of
    code; "" where that is more than turns of text."""
    turns = turns_of(values)
    if turns is None:
        return ""
    messages = [{"role": "user", "content": "{prompt}"}]
    if turns.system is not None:
        messages.insert(0, {"role": "system", "content": "{system_prompt}"})
    text = turns.render(messages)
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", text)), 3)
    return f"{fence}\n{text.rstrip(chr(10))}\n{fence}"


def front_matter(
    manifest: Manifest, description: Description, values: Mapping[str, Any]
) -> dict[str, Any]:
    """The keys that the Hub knows, as far as they have a value.

    Without a `base_model`, the model is nowhere else on the Hub: its base models are those of the
    source, of which it is a merge or a finetune.
    """
    merge, moe = description.merge, description.experts
    purpose = purpose_in(manifest, values)
    bases = provenance.base_models(values)
    relation = "merge" if merge or len(bases) > 1 else "finetune"
    if manifest.base_model:
        bases, relation = [manifest.base_model], "quantized"
    tags = [
        *values.get("general.tags", []),
        "gguf",
        *(["moe"] if moe else []),
        *(["mergekit", "merge"] if merge else []),
    ]
    matter = {
        **provenance.licence(values),
        "language": values.get("general.languages"),
        "base_model": bases,
        "base_model_relation": relation if bases else None,
        "quantized_by": manifest.repo and manifest.repo.partition("/")[0],
        "model_name": manifest.name,
        "pipeline_tag": purpose.task if purpose else _task(manifest),
        "library_name": "gguf",
        "tags": list(dict.fromkeys(tags)),
    }
    return {key: value for key, value in matter.items() if value}


def _task(manifest: Manifest) -> str:
    """What the Hub calls such a model."""
    return next((SENSES[sense].task for sense in senses(manifest)), "text-generation")


def is_tiny(rows: Sequence[Row]) -> bool:
    """Whether every file runs on any machine, so that nobody has to choose by memory."""
    return max(row.max_ram_bytes for row in rows) <= MEMORIES[0] * 10**9


def purpose_in(manifest: Manifest, values: Mapping[str, Any]) -> Purpose | None:
    """What the model is for, where it does not continue a text."""
    return purpose_of(values, {t.name for file in manifest.files for t in file.tensors})


def usual(rows: Sequence[Row]) -> Row:
    """The row that most people want: Q4_K_M in any recipe, or what is nearest to its bits."""

    def distance(row: Row) -> tuple[bool, float]:
        return row.type.partition("-")[0] != USUAL, abs(row.bits_per_weight - 4.85)

    return min(rows, key=distance)


def _max_ram(row: Row) -> int:
    return row.max_ram_bytes


def _beside_experts(row: Row) -> float:
    """What a GPU needs if the experts are in main memory; without end for a model without them."""
    vram = row.experts_on_cpu_vram_bytes
    return float("inf") if vram is None else vram + DRIVER


def best_within(
    rows: Sequence[Row], memory: int, need: Callable[[Row], float] = _max_ram
) -> Row | None:
    """The best file that runs in so many bytes of memory; a legacy type only if there is no
    other."""
    good = [row for row in rows if row.type.partition("-")[0] not in LEGACY] or rows
    fitting = [row for row in good if need(row) <= memory]
    return max(fitting, key=lambda row: row.bits_per_weight, default=None)


def choices(
    rows: Sequence[Row],
    memories: Sequence[int] = MEMORIES,
    need: Callable[[Row], float] = _max_ram,
) -> list[tuple[int, Row]]:
    """(GB of memory, the best file whose need it has room for), where more memory allows a better
    one."""
    best_files: list[tuple[int, Row]] = []
    for memory in memories:
        best = best_within(rows, memory * 10**9, need)
        if best and (not best_files or best_files[-1][1] is not best):
            best_files.append((memory, best))
    return best_files


def escaped(text: object) -> str:
    """Text with all Markdown escaped, on one line."""
    return re.sub(r"[\\`*_|<>\[\]~&#!$]", r"\\\g<0>", " ".join(str(text).split()))


def linked(text: object) -> str:
    """The name of a model: a link if it is one on the Hub, else its last part (a path here)."""
    name = provenance.hub_name(str(text))
    if name and not str(text).startswith("."):
        return f"[{escaped(name)}]({provenance.HUB}{name})"
    return escaped(re.split(r"[\\/]", str(text).rstrip("\\/"))[-1])
