"""The model card of a release: front matter that the Hub reads, and Markdown that people read.

Every number comes from the plan of the files and the model's metadata. Words from outside are
escaped where they stand: YAML's writer does it for the front matter, `escaped` for the rest.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from quantkit.model import provenance
from quantkit.releases.manifest import SUMS, Manifest
from quantkit.reporting.numbers import billions
from quantkit.reporting.table import CARD, Row, as_markdown, columns

USUAL = "Q4_K_M"
LEGACY = ("Q4_0", "Q4_1", "Q5_0", "Q5_1")  # others of their size are better
MEMORIES = (4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512, 1024)  # GB that computers have


def render(
    manifest: Manifest, rows: Sequence[Row], facts: Mapping[str, Any], values: Mapping[str, Any],
    pictures: Mapping[str, str] = MappingProxyType({}),
) -> str:  # fmt: skip
    """The card's text. `facts` are `inspect.describe`'s with `origin.merged_from`'s, `values` the
    metadata of the model, `pictures` what each picture beside the card shows, by file name."""
    import yaml
    from jinja2 import Environment, PackageLoader, StrictUndefined

    front = yaml.safe_dump(
        front_matter(manifest, facts, values), sort_keys=False, allow_unicode=True
    )
    shown = columns(["name", "type", "bits", "size", "ram", "experts-on-cpu", "use"])
    moe = facts.get("experts")
    environment = Environment(
        loader=PackageLoader("quantkit.releases"), undefined=StrictUndefined, autoescape=False,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters |= {"escaped": escaped, "billions": billions, "linked": linked}
    text: str = environment.get_template("card.md").render(
        front=front, manifest=manifest, rows=rows, facts=facts, repo=manifest["repo"], moe=moe,
        base=manifest["base_model"], table=as_markdown(rows, shown if moe else CARD),
        choices=choices(rows), usual=usual(rows), first=first_file(manifest, usual(rows)),
        merge=facts.get("merged from"), sums=SUMS, context=rows[0].context, pictures=pictures,
        chats="tokenizer.chat_template" in values,
    )  # fmt: skip
    return text


def front_matter(
    manifest: Manifest, facts: Mapping[str, Any], values: Mapping[str, Any]
) -> dict[str, Any]:
    """The keys that the Hub knows, those that have a value.

    Without a `base_model` the release stands for a model that is nowhere else on the Hub, so that
    its base models are those of the source, and it is their merge or finetune.
    """
    merge, moe = facts.get("merged from"), facts.get("experts")
    bases = provenance.base_models(values)
    relation = "merge" if merge or len(bases) > 1 else "finetune"
    if manifest["base_model"]:
        bases, relation = [manifest["base_model"]], "quantized"
    tags = [
        *values.get("general.tags", []), "gguf",
        *(["moe"] if moe else []), *(["mergekit", "merge"] if merge else []),
    ]  # fmt: skip
    found = {
        **provenance.licence(values),
        "language": values.get("general.languages"),
        "base_model": bases,
        "base_model_relation": relation if bases else None,
        "quantized_by": manifest["repo"] and manifest["repo"].partition("/")[0],
        "model_name": manifest["name"],
        "pipeline_tag": "text-generation",
        "library_name": "gguf",
        "tags": list(dict.fromkeys(tags)),
    }
    return {key: value for key, value in found.items() if value}


def usual(rows: Sequence[Row]) -> Row:
    """The row that most people want: Q4_K_M in any recipe, or what is nearest to its bits."""

    def distance(row: Row) -> tuple[bool, float]:
        return row.type.partition("-")[0] != USUAL, abs(row.bits_per_weight - 4.85)

    return min(rows, key=distance)


def first_file(manifest: Manifest, row: Row) -> str:
    """The file to name for a row: the first of its splits."""
    return str(next(f["name"] for f in manifest["files"] if f["type"] == row.type))


def choices(rows: Sequence[Row]) -> list[tuple[int, Row]]:
    """(GB of memory, the best file that fits), where more memory allows a better one."""
    found: list[tuple[int, Row]] = []
    good = [row for row in rows if row.type.partition("-")[0] not in LEGACY] or list(rows)
    for memory in MEMORIES:
        fit = [row for row in good if row.max_ram_bytes <= memory * 10**9]
        best = max(fit, key=lambda row: row.bits_per_weight, default=None)
        if best and (not found or found[-1][1] is not best):
            found.append((memory, best))
    return found


def escaped(text: object) -> str:
    """Words in which nothing is markup, on one line."""
    return re.sub(r"[\\`*_|<>\[\]~&#!$]", r"\\\g<0>", " ".join(str(text).split()))


def linked(text: object) -> str:
    """The name of a model: a link if it is one on the Hub, else its last part (a path here)."""
    name = provenance.hub_name(str(text))
    if name and not str(text).startswith("."):
        return f"[{escaped(name)}]({provenance.HUB}{name})"
    return escaped(re.split(r"[\\/]", str(text).rstrip("\\/"))[-1])
