"""Values that do not fit, in every key of a golden's config.json: what is made of them?

`python -m tests.architectures.config_fuzz COUNT PART PARTS` tries COUNT of them, those of
every PARTS-th case from PART on, and says what was not refused by name, and what llama.cpp does
not load of what was not refused.
"""

from __future__ import annotations

import copy
import itertools
import json
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from quantkit.errors import QuantkitError
from quantkit.execution import pipeline
from quantkit.model import from_checkpoint as conversion
from quantkit.model import metadata
from quantkit.model.model import Model
from quantkit.planning.build import plan_conversion
from quantkit.planning.schedule import schedule
from quantkit.source.checkpoint_files import CheckpointFiles
from quantkit.tokenizer.vocabulary import read_vocabulary
from tests.architectures.differences import EIGHT_OF_FOUR, WITHOUT
from tests.architectures.test_architectures import options
from tests.checkpoints import architectures, from_recipe
from tests.real_loader import Judge

VALUES: tuple[Any, ...] = (None, 0, -1, "", [], [1, 2], {}, float("inf"), "x", 3, 0.5, True)
Path_ = tuple[Any, ...]


@dataclass
class Case:
    """A golden case that is converted again and again, with its files in memory."""

    name: str
    files: CheckpointFiles
    config: dict[str, Any]
    pre: str | None
    args: list[str]

    @classmethod
    def of(cls, name: str, parent: Path) -> Case:
        golden = architectures()[name]["golden"]
        files = CheckpointFiles.local(from_recipe(name, parent))
        return cls(name, files, files.json("config.json"), golden["pre"], golden["args"])

    def convert(self, config: dict[str, Any]) -> Model:
        self.files._objects["config.json"] = config
        asked = options(self.args, self.files.directory)
        return conversion.from_checkpoint(self.files, None, self.pre, asked)


def places(value: Any, path: Path_ = ()) -> Iterator[Path_]:
    """Every key of a config, of the tables in it, and the first and last of its lists."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield (*path, key)
            yield from places(inner, (*path, key))
    elif isinstance(value, list) and value:
        for i in {0, len(value) - 1}:
            yield (*path, i)
            yield from places(value[i], (*path, i))


def changed(config: dict[str, Any], changes: dict[Path_, Any]) -> dict[str, Any]:
    out = copy.deepcopy(config)
    for path, value in changes.items():
        inner: Any = out
        try:
            for key in path[:-1]:
                inner = inner[key]
            if isinstance(inner, dict) and not isinstance(path[-1], str):
                continue
            inner[path[-1]] = copy.deepcopy(value)
        except (TypeError, KeyError, IndexError):
            continue  # under what another change replaced
    return out


def mutations(case: Case, seed: int) -> Iterator[dict[Path_, Any]]:
    """Each key with each value; a list one longer and one shorter; then two keys at once."""
    draw = random.Random(seed)
    every = [*places(case.config)]
    for path in every:
        for value in VALUES:
            yield {path: value}
        old: Any = case.config
        for key in path:
            old = old[key]
        if isinstance(old, list) and old:
            yield from ({path: old[:-1]}, {path: [*old, old[-1]]})
        elif isinstance(old, int) and not isinstance(old, bool):
            yield from ({path: old + 1}, {path: old - 1}, {path: float(old)}, {path: str(old)})
    while True:
        yield {draw.choice(every): draw.choice(VALUES) for _ in range(2)}


class Vocabularies:
    """Vocabularies, each read once: they hang on few keys of the config."""

    def __init__(self) -> None:
        self.read: dict[Any, Any] = {}

    def __call__(self, files: CheckpointFiles, size: Any, pre: Any, rules: Any, name: str) -> Any:
        text = files.json("config.json")
        ids = {
            k: v
            for t in (text, text.get("text_config"))
            if isinstance(t, dict)
            for k, v in t.items()
            if k.endswith("_token_id")
        }
        key = (files.where, repr(size), pre, name, repr(ids))
        if key not in self.read:
            try:
                self.read[key] = read_vocabulary(files, size, pre, rules, name)
            except QuantkitError as e:
                self.read[key] = e
        if isinstance(self.read[key], QuantkitError):
            raise self.read[key]
        return self.read[key]


@dataclass
class Tally:
    """What came of mutations: how many, what was raised without a name, and models whose keys are
    others than the golden's, by those keys."""

    tried: int = 0
    refused: int = 0
    same: int = 0
    unnamed: Counter[str] | None = None
    others: dict[Any, tuple[dict[Path_, Any], Model]] | None = None


def run(case: Case, count: int, seed: int = 0, skip: int = 0) -> Tally:
    """Try `count` mutations of a case, all but the first `skip`."""
    tally = Tally(unnamed=Counter(), others={})
    assert tally.unnamed is not None
    assert tally.others is not None
    tensors = conversion.read_tensors(case.files)
    real, general = metadata.add_general, list[Any]()

    def add_general(writer: Any, files: Any, made: Any, options: Any) -> None:
        if not general:
            before = len(writer.entries)
            real(writer, files, made)
            general.extend(writer.entries[before:])
        else:
            writer._entries.update((item.key, item) for item in general)

    with (
        mock.patch.object(conversion, "read_tensors", return_value=tensors),
        mock.patch.object(metadata, "read_vocabulary", Vocabularies()),
        mock.patch.object(metadata, "add_general", add_general),
    ):
        wanted = case.convert(case.config)
        for change in itertools.islice(mutations(case, seed), skip, skip + count):
            tally.tried += 1
            try:
                model = case.convert(changed(case.config, change))
            except QuantkitError as e:
                tally.refused += 1
                if "\n" in str(e):
                    tally.unnamed[f"{case.name} {change}: {e!r}"] += 1
                continue
            except Exception as e:
                tally.unnamed[f"{case.name} {change}: {type(e).__name__}: {e}"] += 1
                continue
            if model.kv == wanted.kv and model.tensors == wanted.tensors:
                tally.same += 1
            else:
                tally.others.setdefault(model.kv, (change, model))
    case.files._objects["config.json"] = case.config
    return tally


def smallest() -> list[str]:
    """A case for each architecture of config.json: the one with the fewest tensors."""
    best: dict[Any, tuple[int, str]] = {}
    for name, data in architectures().items():
        if "config.json" not in data["recipe"]["files"]:  # Mistral's own format
            continue
        config = json.loads(data["recipe"]["files"]["config.json"])
        size = sum(len(f["tensors"]) for f in data["recipe"]["weights"].values())
        names = tuple(config.get("architectures") or ())
        if name not in EIGHT_OF_FOUR | WITHOUT:
            best[names] = min(best.get(names, (size, name)), (size, name))
    return sorted(name for _, name in best.values())


def judged(tally: Tally, directory: Path, judge: Judge) -> Iterator[tuple[dict[Path_, Any], str]]:
    """The changes whose models are none of the golden's, each with what is wrong with its file:
    nothing where llama.cpp completes with it, or where it is refused."""
    assert tally.others is not None
    out = directory / "out.gguf"
    for change, model in tally.others.values():
        try:
            plan = plan_conversion(model, "F16", out)
        except QuantkitError:
            yield change, ""
            continue
        pipeline.execute(schedule(plan, 1))
        yield change, judge.complaint(out)
        out.unlink()


def main(count: int, part: int, parts: int) -> None:
    """Print what came of `count` mutations, those of every `parts`-th case from `part` on."""
    names = smallest()
    tried = refused = same = others = 0
    with Judge() as judge:
        for name in names[part::parts]:
            with tempfile.TemporaryDirectory() as parent:
                tally = run(Case.of(name, Path(parent)), count // len(names), seed=1)
                assert tally.unnamed is not None
                said = [*judged(tally, Path(parent), judge)]
            tried, refused, same = (tried + tally.tried, refused + tally.refused, same + tally.same)
            others += len(said)
            for line, times in tally.unnamed.items():
                print(f"{times} x {line}", flush=True)
            for change, why in said:
                if why:
                    print(f"{name} {change}: {why}", flush=True)
            told = f"{tried} tried, {refused} refused, {same} the same, {others} other files"
            print(f"{name}: {told}", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]))
