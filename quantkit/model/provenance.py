"""Where a model comes from: what mergekit wrote about a merge, and what a card carries over."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quantkit.errors import CorruptFile
from quantkit.hub.repository import read_small
from quantkit.source.location import Source
from quantkit.storage.parse import MAX_YAML, parse_yaml

MERGE = "mergekit_moe_config.yml"
HUB = "https://huggingface.co/"


@dataclass(frozen=True)
class Merge:
    """A merge by mergekit-moe: the base, how routers were made, and the model that each expert
    was."""

    base: str
    gate_mode: str
    experts: tuple[str, ...]

    def as_data(self) -> dict[str, Any]:
        """Plain values, as `inspect --json` prints them."""
        return {"base": self.base, "gate_mode": self.gate_mode, "experts": list(self.experts)}


def read_merge(source: Source) -> Merge | None:
    """The merge that a source is, or None where mergekit left no word of one."""
    if source.address:
        data = None if source.address.file else read_small(source.address, MERGE)
    else:
        path = source.local() / MERGE
        data = None
        if path.is_file():
            with path.open("rb") as file:
                data = file.read(MAX_YAML + 1)
    if data is None:
        return None
    try:
        config = parse_yaml(data, MERGE)
    except CorruptFile:
        return None
    if not isinstance(config, dict) or not isinstance(config.get("experts"), list):
        return None
    named = [expert.get("source_model") for expert in config["experts"] if isinstance(expert, dict)]
    words = [config.get("base_model"), config.get("gate_mode", "hidden"), *named]
    if len(named) != len(config["experts"]) or not all(map(_is_plain, words)):
        return None
    base, gate_mode, *experts = map(str, words)
    return Merge(base, gate_mode, tuple(experts))


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float | None)


def hub_name(text: str) -> str | None:
    """`org/model` of a model on the Hub, given so or as its address; None if it is no such name."""
    name = text.strip().removeprefix(HUB).rstrip("/")
    return name if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) else None


def base_models(values: Mapping[str, Any]) -> list[str]:
    """The models on the Hub that the source says it was made of, from its metadata."""
    count = min(int(values.get("general.base_model.count", 0)), len(values))  # a key each
    urls = (values.get(f"general.base_model.{i}.repo_url", "") for i in range(count))
    return [name for url in urls if (name := hub_name(str(url)))]


def licence(values: Mapping[str, Any]) -> dict[str, str]:
    """The licence as the Hub's front matter has it: an id, or `other` with a name and a link."""
    text = str(values.get("general.license", "")).strip()
    name = values.get("general.license.name")
    link = values.get("general.license.link")
    if not text and not name:
        return {}
    if text and text == text.lower() and re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", text):
        found = {"license": text}
    else:  # words, not an id
        found = {"license": "other"}
        name = name or re.sub(r"[^a-z0-9.+-]+", "-", text.lower()).strip("-")
    if name and found["license"] == "other":
        found["license_name"] = str(name)
    return found | ({"license_link": str(link)} if link else {})
