"""Keys that are read have their kinds; what nobody reads may be anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from quantkit.errors import CorruptFile
from quantkit.gguf.container import KeyValue, array, string, uint32
from quantkit.gguf.schema import check
from quantkit.loading.model import faults

FILE = Path("m.gguf")
NAMES = array("general.tensor_extra.name", ["a", "b"])


@pytest.mark.parametrize(
    "item",
    [uint32("general.parameter_count", 7), array("general.of_somebody", [1, 2]), NAMES,
     array("general.tensor_extra.prec_a4", [True, False]), string("general.name", "M")],
    ids=lambda item: item.key,
)  # fmt: skip
def test_passes(item: KeyValue) -> None:
    check([item], FILE)


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (uint32("general.name", 7), "general.name is uint32, not text"),
        (array("general.base_model.0.name", ["M"]), "is a list of string, not text"),
        (string("general.tensor_extra.name", "a"), "is string, not a list of texts"),
    ],
)
def test_refused(item: KeyValue, words: str) -> None:
    with pytest.raises(CorruptFile, match=words):
        check([item], FILE)


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (array("general.tensor_extra.prec_a4", [True]), "has 1 values for 2 names"),
        (array("general.tensor_extra.prec_a4", [1, 0]), "is no list of true and false"),
        (string("general.tensor_extra.other", ""), "is no list of true and false"),
        (array("general.tensor_extra.prec_a4", [True, False]), None),
    ],
)
def test_what_the_loader_asks_of_precisions(item: KeyValue, words: str | None) -> None:
    found = [f for f in faults([string("general.architecture", "llama"), NAMES, item], []) if
             "prec_a4" in f]  # fmt: skip
    assert [words is not None and words in f for f in found] == ([True] if words else [])
