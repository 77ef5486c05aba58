"""The encoders of images and sound of a released model: files of their own, beside the text's."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from quantkit.errors import ModelError, UnsupportedSource
from quantkit.execution.journal import Identity, identities
from quantkit.gguf.container import KeyValue
from quantkit.jobs import Job
from quantkit.loading.kinds import MODEL, PREFIX, kind_of
from quantkit.loading.vocabulary import NONE
from quantkit.model.open import Reading, open_gguf, read_encoders
from quantkit.planning.build import plan_conversion
from quantkit.source.location import Source

TYPES = {"f16": "F16", "q8_0": "Q8_0"}  # outtypes, and the last parts of the files' names


def check_is_model(source: Source) -> None:
    """A release is of a model. Raises UnsupportedSource, SourceError."""
    if source.is_checkpoint:
        return
    model = open_gguf(source)
    kind = kind_of(model.kv, [t.name for t in model.tensors])
    if kind is not MODEL and kind.use:
        raise UnsupportedSource(
            f"{source} is {kind.words}, of which no release is made: {kind.use}. Release the model "
            "that it is for"
        )


def check_has_words(source: Source, kv: Sequence[KeyValue]) -> None:
    """A card says how a model is asked, and one without a vocabulary is not. Raises
    UnsupportedSource."""
    if any(item.key == "tokenizer.ggml.model" and item.value in NONE for item in kv):
        raise UnsupportedSource(
            f"{source} has no vocabulary: vectors go in, and no card could say how it is run; make "
            "its file with `quantkit convert` or `quantkit quantize`"
        )


def projector_job(
    source: Source, directory: Path, name: str, reading: Reading
) -> tuple[Job | None, str]:
    """What makes `mmproj-NAME-F16.gguf` and `-Q8_0.gguf` in a directory, where the source is a
    checkpoint with encoders; or a line on why there is none of a model that should have one."""
    if not source.is_checkpoint:
        return None, ""
    try:
        models = read_encoders(source, list(TYPES), reading)
        if not models:
            return None, ""
        plans = [
            plan_conversion(model, f"{PREFIX}{label}", directory / f"{PREFIX}{name}-{label}.gguf")
            for model, label in zip(models, TYPES.values(), strict=True)
        ]
    except ModelError as e:
        return None, f"no {PREFIX[:-1]} is made of this model: {e}"
    plan = replace(plans[0], outputs=tuple(output for p in plans for output in p.outputs))
    return Job(models[0], plan, {}), ""


def identified(jobs: Sequence[Job]) -> tuple[Mapping[Path, Identity], str]:
    """The identity of each file of several plans, and one digest of all their sources."""
    found = [identities(job.plan, job.importance) for job in jobs]
    digests = [next(iter(each.values())).source for each in found if each]
    one = digests[0]
    if len(digests) > 1:
        one = hashlib.sha256("\0".join(digests).encode()).hexdigest()
    return {path: identity for each in found for path, identity in each.items()}, one
