"""The model card of a release: front matter that the Hub reads, and Markdown that people read.

Every number comes from the plan of the files and the model's metadata. Text from outside is escaped
where it is used: by YAML's writer in the front matter, by `escaped` in the rest.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from quantkit.model import provenance
from quantkit.model.encoder import PREFIX
from quantkit.releases.manifest import CHECKSUMS, Manifest
from quantkit.releases.purpose import Purpose, purpose_of
from quantkit.reporting.inspection import Description
from quantkit.reporting.numbers import billions
from quantkit.reporting.table import CARD, Row, as_markdown, columns

USUAL = "Q4_K_M"
LEGACY = ("Q4_0", "Q4_1", "Q5_0", "Q5_1")  # the K-quants of their size are better
MEMORIES = (4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512, 1024)  # GB that computers have


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

    front = yaml.safe_dump(
        front_matter(manifest, description, values), sort_keys=False, allow_unicode=True
    )
    shown = columns(["name", "type", "bits", "size", "ram", "experts-on-cpu", "use"])
    moe = description.experts
    environment = Environment(
        loader=PackageLoader("quantkit.releases"),
        undefined=StrictUndefined,
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"escaped": escaped, "billions": billions, "linked": linked}
    text: str = environment.get_template("card.md").render(
        front=front,
        manifest=manifest,
        rows=rows,
        description=description,
        moe=moe,
        repo=manifest.repo,
        base=manifest.base_model,
        table=as_markdown([*rows, *more], shown if moe else CARD),
        encoders=more,
        senses=" and ".join(
            verb for verb, has in zip(("sees", "hears"), _senses(manifest), strict=True) if has
        ),
        choices=choices(rows),
        usual=usual(rows),
        first=manifest.first_file(usual(rows).type),
        merge=description.merge,
        checksums=CHECKSUMS,
        context=rows[0].context,
        pictures=pictures,
        chats="tokenizer.chat_template" in values,
        purpose=_purpose(manifest, values),
    )
    return text


def front_matter(
    manifest: Manifest, description: Description, values: Mapping[str, Any]
) -> dict[str, Any]:
    """The keys that the Hub knows, as far as they have a value.

    Without a `base_model`, the model is nowhere else on the Hub: its base models are those of the
    source, of which it is a merge or a finetune.
    """
    merge, moe = description.merge, description.experts
    purpose = _purpose(manifest, values)
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


def _senses(manifest: Manifest) -> tuple[bool, bool]:
    """Whether the release has an encoder of images, and one of sound."""
    names = [
        tensor.name for f in manifest.files if f.name.startswith(PREFIX) for tensor in f.tensors
    ]
    sees, hears = (any(name.startswith(start) for name in names) for start in ("v.", "a."))
    return sees, hears


def _task(manifest: Manifest) -> str:
    """What the Hub calls such a model."""
    sees, hears = _senses(manifest)
    kind = "image-text-to-text" if sees else "audio-text-to-text"
    return kind if sees or hears else "text-generation"


def _purpose(manifest: Manifest, values: Mapping[str, Any]) -> Purpose | None:
    return purpose_of(values, {t.name for file in manifest.files for t in file.tensors})


def usual(rows: Sequence[Row]) -> Row:
    """The row that most people want: Q4_K_M in any recipe, or what is nearest to its bits."""

    def distance(row: Row) -> tuple[bool, float]:
        return row.type.partition("-")[0] != USUAL, abs(row.bits_per_weight - 4.85)

    return min(rows, key=distance)


def best_within(rows: Sequence[Row], memory: int) -> Row | None:
    """The best file that runs in so many bytes of main memory; a legacy type only if there is no
    other."""
    good = [row for row in rows if row.type.partition("-")[0] not in LEGACY] or rows
    fitting = [row for row in good if row.max_ram_bytes <= memory]
    return max(fitting, key=lambda row: row.bits_per_weight, default=None)


def choices(rows: Sequence[Row]) -> list[tuple[int, Row]]:
    """(GB of memory, the best file that fits), where more memory allows a better one."""
    best_files: list[tuple[int, Row]] = []
    for memory in MEMORIES:
        best = best_within(rows, memory * 10**9)
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
